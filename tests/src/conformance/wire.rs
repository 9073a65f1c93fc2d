//! MQTT packets as bytes, written out by hand: what a client sends, and what a server may answer.
//!
//! Nothing here comes from the product's codec, so that a mistake there cannot hide behind itself.

/// A packet: its first byte, and what follows the Remaining Length.
pub(super) fn packet(first: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let mut bytes = vec![first];
    bytes.extend(var_int(body.len() as u32));
    bytes.extend(body);
    bytes
}

/// A Variable Byte Integer in as few bytes as will do.
pub(super) fn var_int(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A UTF-8 Encoded String or Binary Data: a length of two bytes, then the content.
pub(super) fn string(content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let length = u16::try_from(content.len()).expect("no string is longer");
    [&length.to_be_bytes(), content].concat()
}

/// Properties with their length in front.
pub(super) fn properties(list: &[Vec<u8>]) -> Vec<u8> {
    let all = list.concat();
    [var_int(all.len() as u32), all].concat()
}

/// The properties of MQTT 5.0 (table 2-4), each with its identifier in front.
pub(super) mod property {
    use super::{string, var_int};

    pub(in super::super) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(in super::super) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(in super::super) const CONTENT_TYPE: u8 = 0x03;
    pub(in super::super) const RESPONSE_TOPIC: u8 = 0x08;
    pub(in super::super) const CORRELATION_DATA: u8 = 0x09;
    pub(in super::super) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(in super::super) const SESSION_EXPIRY: u8 = 0x11;
    pub(in super::super) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(in super::super) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(in super::super) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(in super::super) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(in super::super) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(in super::super) const WILL_DELAY: u8 = 0x18;
    pub(in super::super) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(in super::super) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(in super::super) const SERVER_REFERENCE: u8 = 0x1C;
    pub(in super::super) const REASON_STRING: u8 = 0x1F;
    pub(in super::super) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in super::super) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in super::super) const TOPIC_ALIAS: u8 = 0x23;
    pub(in super::super) const MAXIMUM_QOS: u8 = 0x24;
    pub(in super::super) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(in super::super) const USER: u8 = 0x26;
    pub(in super::super) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(in super::super) const WILDCARD_SUBSCRIPTIONS: u8 = 0x28;
    pub(in super::super) const SUBSCRIPTION_IDS: u8 = 0x29;
    pub(in super::super) const SHARED_SUBSCRIPTIONS: u8 = 0x2A;

    /// All of them.
    pub(in super::super) const ALL: [u8; 27] = [
        PAYLOAD_FORMAT,
        MESSAGE_EXPIRY,
        CONTENT_TYPE,
        RESPONSE_TOPIC,
        CORRELATION_DATA,
        SUBSCRIPTION_ID,
        SESSION_EXPIRY,
        ASSIGNED_CLIENT_ID,
        SERVER_KEEP_ALIVE,
        AUTHENTICATION_METHOD,
        AUTHENTICATION_DATA,
        REQUEST_PROBLEM_INFORMATION,
        WILL_DELAY,
        REQUEST_RESPONSE_INFORMATION,
        RESPONSE_INFORMATION,
        SERVER_REFERENCE,
        REASON_STRING,
        RECEIVE_MAXIMUM,
        TOPIC_ALIAS_MAXIMUM,
        TOPIC_ALIAS,
        MAXIMUM_QOS,
        RETAIN_AVAILABLE,
        USER,
        MAXIMUM_PACKET_SIZE,
        WILDCARD_SUBSCRIPTIONS,
        SUBSCRIPTION_IDS,
        SHARED_SUBSCRIPTIONS,
    ];

    /// A value of one byte.
    pub(in super::super) fn byte(id: u8, value: u8) -> Vec<u8> {
        vec![id, value]
    }

    /// A value of two bytes.
    pub(in super::super) fn two(id: u8, value: u16) -> Vec<u8> {
        [&[id][..], &value.to_be_bytes()].concat()
    }

    /// A value of four bytes.
    pub(in super::super) fn four(id: u8, value: u32) -> Vec<u8> {
        [&[id][..], &value.to_be_bytes()].concat()
    }

    /// A Variable Byte Integer.
    pub(in super::super) fn number(id: u8, value: u32) -> Vec<u8> {
        [vec![id], var_int(value)].concat()
    }

    /// A string or binary data.
    pub(in super::super) fn text(id: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
        [vec![id], string(value)].concat()
    }

    /// A User Property.
    pub(in super::super) fn user(name: &str, value: &str) -> Vec<u8> {
        [vec![USER], string(name), string(value)].concat()
    }

    /// Some legal value of the property `id`.
    pub(in super::super) fn sample(id: u8) -> Vec<u8> {
        match id {
            MESSAGE_EXPIRY | SESSION_EXPIRY | WILL_DELAY | MAXIMUM_PACKET_SIZE => four(id, 1_000),
            SERVER_KEEP_ALIVE | RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM | TOPIC_ALIAS => two(id, 1),
            SUBSCRIPTION_ID => number(id, 1),
            USER => user("name", "value"),
            CONTENT_TYPE | RESPONSE_TOPIC | CORRELATION_DATA | ASSIGNED_CLIENT_ID => text(id, "t"),
            AUTHENTICATION_METHOD | AUTHENTICATION_DATA | RESPONSE_INFORMATION => text(id, "t"),
            SERVER_REFERENCE | REASON_STRING => text(id, "t"),
            _ => byte(id, 1),
        }
    }
}

/// A CONNECT, field by field; [`Connect::bytes`] writes whatever the fields say, right or wrong.
#[derive(Clone, Debug)]
pub(super) struct Connect {
    pub(super) name: Vec<u8>,
    pub(super) level: u8,
    /// Flags beside those that `will`, `username` and `password` set.
    pub(super) flags: u8,
    pub(super) keep_alive_s: u16,
    pub(super) properties: Vec<Vec<u8>>,
    pub(super) client_id: Vec<u8>,
    pub(super) will: Option<Will>,
    pub(super) username: Option<Vec<u8>>,
    pub(super) password: Option<Vec<u8>>,
}

/// The Will in a CONNECT.
#[derive(Clone, Debug)]
pub(super) struct Will {
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) properties: Vec<Vec<u8>>,
    pub(super) topic: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Will {
    pub(super) fn new(topic: &str, payload: &str) -> Self {
        Self { qos: 1, retain: false, properties: Vec::new(), topic: topic.into(), payload: payload.into() }
    }
}

pub(super) const CLEAN_START: u8 = 0b0000_0010;

impl Connect {
    /// A clean start without keep alive, Will and credentials. Level 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0.
    pub(super) fn new(level: u8, client_id: &str) -> Self {
        Self {
            name: if level == 3 { b"MQIsdp".into() } else { b"MQTT".into() },
            level,
            flags: CLEAN_START,
            keep_alive_s: 0,
            properties: Vec::new(),
            client_id: client_id.into(),
            will: None,
            username: None,
            password: None,
        }
    }

    /// One with a Client Identifier of its own.
    pub(super) fn fresh(level: u8) -> Self {
        Self::new(level, &crate::support::unique("fresh"))
    }

    /// One that goes on with its session, which outlives the connection.
    pub(super) fn kept(level: u8, client_id: &str) -> Self {
        let connect = Self { flags: 0, ..Self::new(level, client_id) };
        if level == 5 { connect.with(property::four(property::SESSION_EXPIRY, 600)) } else { connect }
    }

    /// With one more property.
    pub(super) fn with(mut self, property: Vec<u8>) -> Self {
        self.properties.push(property);
        self
    }

    /// With a Will.
    pub(super) fn will(self, will: Will) -> Self {
        Self { will: Some(will), ..self }
    }

    /// The Connect Flags.
    pub(super) fn connect_flags(&self) -> u8 {
        let will = self
            .will
            .as_ref()
            .map_or(0, |will| 0b0000_0100 | (will.qos << 3) | if will.retain { 0b0010_0000 } else { 0 });
        let username = if self.username.is_some() { 0b1000_0000 } else { 0 };
        let password = if self.password.is_some() { 0b0100_0000 } else { 0 };
        self.flags | will | username | password
    }

    /// The packet.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut body = string(&self.name);
        body.extend([self.level, self.connect_flags()]);
        body.extend(self.keep_alive_s.to_be_bytes());
        if self.level == 5 {
            body.extend(properties(&self.properties));
        }
        body.extend(string(&self.client_id));
        if let Some(will) = &self.will {
            if self.level == 5 {
                body.extend(properties(&will.properties));
            }
            body.extend(string(&will.topic));
            body.extend(string(&will.payload));
        }
        for credential in [&self.username, &self.password].into_iter().flatten() {
            body.extend(string(credential));
        }
        packet(0x10, &[&body])
    }
}

/// A PUBLISH, either way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) dup: bool,
    pub(super) packet_id: u16,
    pub(super) properties: Vec<Vec<u8>>,
}

impl Publish {
    /// At QoS 0.
    pub(super) fn new(topic: &str, payload: &str) -> Self {
        Self { topic: topic.into(), payload: payload.into(), ..Self::default() }
    }

    /// At QoS 1 or 2.
    pub(super) fn at(qos: u8, packet_id: u16, topic: &str, payload: &str) -> Self {
        Self { qos, packet_id, ..Self::new(topic, payload) }
    }

    /// To become the topic's retained record.
    pub(super) fn retained(self) -> Self {
        Self { retain: true, ..self }
    }

    /// With one more property.
    pub(super) fn with(mut self, property: Vec<u8>) -> Self {
        self.properties.push(property);
        self
    }

    /// The packet, for a connection of this level.
    pub(super) fn bytes(&self, level: u8) -> Vec<u8> {
        let first = 0x30 | (u8::from(self.dup) << 3) | (self.qos << 1) | u8::from(self.retain);
        let packet_id = self.packet_id.to_be_bytes();
        let packet_id = if self.qos > 0 { &packet_id[..] } else { &[] };
        let properties = if level == 5 { properties(&self.properties) } else { Vec::new() };
        packet(first, &[&string(&self.topic), packet_id, &properties, &self.payload])
    }

    /// The payload as text.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("the tests publish text")
    }
}

/// A SUBSCRIBE of one filter with its Subscription Options.
pub(super) fn subscribe(level: u8, packet_id: u16, filter: &str, options: u8) -> Vec<u8> {
    subscribe_all(level, packet_id, &[], &[(filter, options)])
}

/// A SUBSCRIBE with properties and several filters.
pub(super) fn subscribe_all(level: u8, packet_id: u16, list: &[Vec<u8>], filters: &[(&str, u8)]) -> Vec<u8> {
    let filters: Vec<u8> =
        filters.iter().flat_map(|(filter, options)| [string(filter), vec![*options]].concat()).collect();
    let properties = if level == 5 { properties(list) } else { Vec::new() };
    packet(0x82, &[&packet_id.to_be_bytes(), &properties, &filters])
}

/// An UNSUBSCRIBE.
pub(super) fn unsubscribe(level: u8, packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let filters: Vec<u8> = filters.iter().flat_map(string).collect();
    let properties: &[u8] = if level == 5 { &[0] } else { &[] };
    packet(0xA2, &[&packet_id.to_be_bytes(), properties, &filters])
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP for success: the same in every version.
pub(super) fn ack(first: u8, packet_id: u16) -> Vec<u8> {
    packet(first, &[&packet_id.to_be_bytes()])
}

pub(super) const PUBACK: u8 = 0x40;
pub(super) const PUBREC: u8 = 0x50;
pub(super) const PUBREL: u8 = 0x62;
pub(super) const PUBCOMP: u8 = 0x70;
pub(super) const SUBACK: u8 = 0x90;
pub(super) const UNSUBACK: u8 = 0xB0;
pub(super) const PINGREQ: [u8; 2] = [0xC0, 0];
pub(super) const PINGRESP: [u8; 2] = [0xD0, 0];
pub(super) const DISCONNECT: [u8; 2] = [0xE0, 0];
