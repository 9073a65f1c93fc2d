//! The MQTT Control Packets, borrowed from the bytes they were read from.
//!
//! A packet that came out of the decoder is valid in itself. Lists are read from the wire as they are walked;
//! nothing is collected. In MQTT 3 packets everything that only 5.0 has holds its default.

use super::property::{SubscriptionIds, UserProperties, WireProperties};
use super::wire::{Reader, trusted_text};
use super::{ReasonCode, Version};
use crate::record::{Properties, Qos};
use crate::topic::TopicName;

/// One MQTT Control Packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet<'a> {
    /// A client opens its connection. Boxed, as is [`ConnAck`], so that the packets that come by the million
    /// stay small.
    Connect(Box<Connect<'a>>),
    /// The server's answer to it.
    ConnAck(Box<ConnAck<'a>>),
    /// An application message.
    Publish(Publish<'a>),
    /// QoS 1: taken over.
    PubAck(Ack<'a>),
    /// QoS 2, first answer: taken over.
    PubRec(Ack<'a>),
    /// QoS 2, second request: forget the Packet Identifier.
    PubRel(Ack<'a>),
    /// QoS 2, second answer: forgotten.
    PubComp(Ack<'a>),
    /// A client asks for topics.
    Subscribe(Subscribe<'a>),
    /// The server's answer to it.
    SubAck(SubAck<'a>),
    /// A client asks no more for topics.
    Unsubscribe(Unsubscribe<'a>),
    /// The server's answer to it.
    UnsubAck(UnsubAck<'a>),
    /// A client asks whether the server is there.
    PingReq,
    /// It is.
    PingResp,
    /// The sender closes the connection on purpose.
    Disconnect(Disconnect<'a>),
    /// A step of enhanced authentication (5.0).
    Auth(Auth<'a>),
}

/// CONNECT (section 3.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Connect<'a> {
    /// The version that the whole connection speaks.
    pub version: Version,
    /// Clean Start; in MQTT 3 Clean Session, which also ends the session with the connection.
    pub clean_start: bool,
    /// Seconds of silence after which the client counts as gone is one and a half times this; 0 turns it off.
    pub keep_alive_s: u16,
    /// The Client Identifier; empty when the server is to choose one. Its length is not judged here.
    pub client_id: &'a str,
    /// What to publish when the connection breaks.
    pub will: Option<Will<'a>>,
    /// The User Name.
    pub username: Option<&'a str>,
    /// The Password.
    pub password: Option<&'a [u8]>,
    /// Seconds to keep the session after the connection; 0 ends it at once, [`u32::MAX`] keeps it for ever. Always 0 in
    /// MQTT 3, where `clean_start` decides.
    pub session_expiry_s: u32,
    /// How many QoS 1 and 2 publishes the client takes unacknowledged; never 0.
    pub receive_maximum: u16,
    /// The largest packet in bytes the client takes; never 0; `None` means any.
    pub maximum_packet_bytes: Option<u32>,
    /// The highest topic alias the client takes; 0 means none.
    pub topic_alias_maximum: u16,
    /// Whether the client wants Response Information in CONNACK.
    pub request_response_information: bool,
    /// Whether Reason Strings and User Properties may be sent in packets other than PUBLISH, CONNACK and
    /// DISCONNECT [MQTT-3.1.2-29].
    pub request_problem_information: bool,
    /// Names the enhanced authentication the client wants.
    pub authentication_method: Option<&'a str>,
    /// Its first step; only ever with a method.
    pub authentication_data: Option<&'a [u8]>,
    /// User Properties of the connection.
    pub user_properties: UserProperties<'a>,
}

impl<'a> Connect<'a> {
    /// A CONNECT with nothing special: clean start, no keep alive, no credentials.
    pub const fn new(version: Version, client_id: &'a str) -> Self {
        Self {
            version,
            clean_start: true,
            keep_alive_s: 0,
            client_id,
            will: None,
            username: None,
            password: None,
            session_expiry_s: 0,
            receive_maximum: u16::MAX,
            maximum_packet_bytes: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            authentication_method: None,
            authentication_data: None,
            user_properties: UserProperties::NONE,
        }
    }
}

/// What is published for a client whose connection breaks (section 3.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Will<'a> {
    /// Where.
    pub topic: TopicName<'a>,
    /// What.
    pub payload: &'a [u8],
    /// At which QoS.
    pub qos: Qos,
    /// Whether it becomes the topic's retained record.
    pub retain: bool,
    /// Seconds to wait for the client to come back first (5.0).
    pub delay_s: u32,
    /// The Will Properties as they were sent.
    pub properties: WireProperties<'a>,
}

impl Will<'_> {
    /// The properties that are published with it. Borrowed from the wire when nothing has to be left out, else
    /// encoded again into `scratch`, which is overwritten.
    pub fn travelling<'s>(&'s self, scratch: &'s mut Vec<u8>) -> Properties<'s> {
        self.properties.travelling(scratch)
    }
}

/// CONNACK (section 3.2). The defaults are those of the specification for properties that are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConnAck<'a> {
    /// Whether the server went on with an earlier session.
    pub session_present: bool,
    /// [`ReasonCode::Success`], or why the connection is refused. MQTT 3 codes are mapped.
    pub reason: ReasonCode,
    /// The Session Expiry Interval in seconds, where the server chose another than was asked for.
    pub session_expiry_s: Option<u32>,
    /// How many QoS 1 and 2 publishes the server takes unacknowledged; never 0.
    pub receive_maximum: u16,
    /// The highest QoS the server takes.
    pub maximum_qos: Qos,
    /// Whether the server keeps retained records.
    pub retain_available: bool,
    /// The largest packet in bytes the server takes; never 0; `None` means any.
    pub maximum_packet_bytes: Option<u32>,
    /// The Client Identifier the server chose for a client that came without.
    pub assigned_client_id: Option<&'a str>,
    /// The highest topic alias the server takes; 0 means none.
    pub topic_alias_maximum: u16,
    /// For people and logs.
    pub reason_string: Option<&'a str>,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
    /// Whether filters may hold wildcards.
    pub wildcard_subscriptions: bool,
    /// Whether Subscription Identifiers may be used.
    pub subscription_ids: bool,
    /// Whether Shared Subscriptions may be used.
    pub shared_subscriptions: bool,
    /// The Keep Alive in seconds that holds instead of the client's.
    pub server_keep_alive_s: Option<u16>,
    /// What response topics may be built from.
    pub response_information: Option<&'a str>,
    /// Which other server to use.
    pub server_reference: Option<&'a str>,
    /// The method of enhanced authentication.
    pub authentication_method: Option<&'a str>,
    /// Its last step.
    pub authentication_data: Option<&'a [u8]>,
}

impl Default for ConnAck<'_> {
    fn default() -> Self {
        Self {
            session_present: false,
            reason: ReasonCode::Success,
            session_expiry_s: None,
            receive_maximum: u16::MAX,
            maximum_qos: Qos::ExactlyOnce,
            retain_available: true,
            maximum_packet_bytes: None,
            assigned_client_id: None,
            topic_alias_maximum: 0,
            reason_string: None,
            user_properties: UserProperties::NONE,
            wildcard_subscriptions: true,
            subscription_ids: true,
            shared_subscriptions: true,
            server_keep_alive_s: None,
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
        }
    }
}

/// PUBLISH (section 3.3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Publish<'a> {
    /// Whether it may have been sent before; never at QoS 0.
    pub dup: bool,
    /// Quality of Service.
    pub qos: Qos,
    /// RETAIN flag.
    pub retain: bool,
    /// A valid Topic Name, or empty where `topic_alias` stands for it.
    pub topic: &'a str,
    /// The Packet Identifier; 0 at QoS 0, never 0 above.
    pub packet_id: u16,
    /// What stands for the topic, or will from now on (5.0); never 0.
    pub topic_alias: Option<u16>,
    /// The properties as they were sent.
    pub properties: WireProperties<'a>,
    /// What is published.
    pub payload: &'a [u8],
}

impl<'a> Publish<'a> {
    /// The topic, unless an alias stands for it.
    pub fn topic_name(&self) -> Option<TopicName<'a>> {
        (!self.topic.is_empty()).then(|| TopicName::trusted(self.topic))
    }

    /// The properties that go on to every receiver. Borrowed from the wire when nothing has to be left out
    /// (the usual case), else encoded again into `scratch`, which is overwritten.
    pub fn travelling<'s>(&'s self, scratch: &'s mut Vec<u8>) -> Properties<'s> {
        self.properties.travelling(scratch)
    }

    /// The Subscription Identifiers that a server put in; empty in what a client may send.
    pub const fn subscription_ids(&self) -> SubscriptionIds<'a> {
        self.properties.subscription_ids()
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (sections 3.4 to 3.7).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ack<'a> {
    /// The Packet Identifier; never 0.
    pub packet_id: u16,
    /// How it went; always [`ReasonCode::Success`] in MQTT 3.
    pub reason: ReasonCode,
    /// For people and logs.
    pub reason_string: Option<&'a str>,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
}

impl Ack<'_> {
    /// An acknowledgement without properties.
    pub const fn new(packet_id: u16, reason: ReasonCode) -> Self {
        Self { packet_id, reason, reason_string: None, user_properties: UserProperties::NONE }
    }
}

/// SUBSCRIBE (section 3.8).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subscribe<'a> {
    /// The Packet Identifier; never 0.
    pub packet_id: u16,
    /// What the server puts into publishes that match these filters (5.0); never 0.
    pub subscription_id: Option<u32>,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
    /// What is asked for; never empty.
    pub subscriptions: Subscriptions<'a>,
}

/// One Topic Filter of a SUBSCRIBE with its Subscription Options (section 3.8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription<'a> {
    /// A valid Topic Filter, possibly that of a Shared Subscription; only that it has too many levels is left to
    /// find.
    pub filter: &'a str,
    /// The highest QoS at which publishes are to be delivered.
    pub qos: Qos,
    /// Not what the client published itself (5.0).
    pub no_local: bool,
    /// RETAIN flags stay as they were published (5.0).
    pub retain_as_published: bool,
    /// Which retained records are sent at once (5.0).
    pub retain_handling: RetainHandling,
}

impl<'a> Subscription<'a> {
    /// A subscription with the options of MQTT 3.
    pub const fn new(filter: &'a str, qos: Qos) -> Self {
        Self {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }
    }

    /// The Subscription Options byte.
    pub(super) const fn options(&self) -> u8 {
        self.qos as u8
            | (self.no_local as u8) << 2
            | (self.retain_as_published as u8) << 3
            | (self.retain_handling as u8) << 4
    }

    fn from_options(filter: &'a str, options: u8) -> Option<Self> {
        Some(Self {
            filter,
            qos: Qos::from_bits(options & 0b11)?,
            no_local: options & 0b100 != 0,
            retain_as_published: options & 0b1000 != 0,
            retain_handling: RetainHandling::from_bits(options >> 4)?,
        })
    }
}

/// Which retained records a subscription asks for (section 3.8.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum RetainHandling {
    /// All that match, at every SUBSCRIBE.
    #[default]
    Send = 0,
    /// All that match, unless the subscription existed.
    SendIfNew = 1,
    /// None.
    DoNotSend = 2,
}

impl RetainHandling {
    /// The value written as `bits`; 3 is a Protocol Error.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Send),
            1 => Some(Self::SendIfNew),
            2 => Some(Self::DoNotSend),
            _ => None,
        }
    }
}

/// The payload of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriptions<'a>(pub(super) &'a [u8]);

impl<'a> Subscriptions<'a> {
    /// The subscriptions in order.
    pub const fn iter(self) -> SubscriptionsIter<'a> {
        SubscriptionsIter(Reader::new(self.0))
    }
}

impl<'a> IntoIterator for Subscriptions<'a> {
    type Item = Subscription<'a>;
    type IntoIter = SubscriptionsIter<'a>;

    fn into_iter(self) -> SubscriptionsIter<'a> {
        self.iter()
    }
}

/// Iterator over [`Subscriptions`].
#[derive(Clone, Debug)]
pub struct SubscriptionsIter<'a>(Reader<'a>);

impl<'a> Iterator for SubscriptionsIter<'a> {
    type Item = Subscription<'a>;

    fn next(&mut self) -> Option<Subscription<'a>> {
        let filter = trusted_text(self.0.binary().ok()?);
        Subscription::from_options(filter, self.0.u8().ok()?)
    }
}

/// SUBACK (section 3.9).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubAck<'a> {
    /// The Packet Identifier of the SUBSCRIBE; never 0.
    pub packet_id: u16,
    /// One code per subscription; in MQTT 3 a failure is [`ReasonCode::UnspecifiedError`].
    pub codes: ReasonCodes<'a>,
    /// For people and logs.
    pub reason_string: Option<&'a str>,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
}

/// UNSUBSCRIBE (section 3.10).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unsubscribe<'a> {
    /// The Packet Identifier; never 0.
    pub packet_id: u16,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
    /// Which subscriptions to end; never empty.
    pub filters: Filters<'a>,
}

/// The payload of an UNSUBSCRIBE: valid Topic Filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filters<'a>(pub(super) &'a [u8]);

impl<'a> Filters<'a> {
    /// The filters in order.
    pub const fn iter(self) -> FiltersIter<'a> {
        FiltersIter(Reader::new(self.0))
    }
}

impl<'a> IntoIterator for Filters<'a> {
    type Item = &'a str;
    type IntoIter = FiltersIter<'a>;

    fn into_iter(self) -> FiltersIter<'a> {
        self.iter()
    }
}

/// Iterator over [`Filters`].
#[derive(Clone, Debug)]
pub struct FiltersIter<'a>(Reader<'a>);

impl<'a> Iterator for FiltersIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.0.binary().ok().map(trusted_text)
    }
}

/// UNSUBACK (section 3.11).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnsubAck<'a> {
    /// The Packet Identifier of the UNSUBSCRIBE; never 0.
    pub packet_id: u16,
    /// One code per filter; none in MQTT 3.
    pub codes: ReasonCodes<'a>,
    /// For people and logs.
    pub reason_string: Option<&'a str>,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
}

/// The payload of a SUBACK or UNSUBACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonCodes<'a>(pub(super) &'a [u8]);

impl<'a> ReasonCodes<'a> {
    /// The codes in order.
    pub fn iter(self) -> impl Iterator<Item = ReasonCode> + Clone + 'a {
        self.0.iter().filter_map(|byte| ReasonCode::from_u8(*byte))
    }
}

/// DISCONNECT (section 3.14).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disconnect<'a> {
    /// Why; [`ReasonCode::Success`] is the normal end, after which no Will is published.
    pub reason: ReasonCode,
    /// A new Session Expiry Interval in seconds, from a client.
    pub session_expiry_s: Option<u32>,
    /// For people and logs.
    pub reason_string: Option<&'a str>,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
    /// Which other server to use, from a server.
    pub server_reference: Option<&'a str>,
}

impl Disconnect<'_> {
    /// A DISCONNECT without properties.
    pub const fn new(reason: ReasonCode) -> Self {
        Self {
            reason,
            session_expiry_s: None,
            reason_string: None,
            user_properties: UserProperties::NONE,
            server_reference: None,
        }
    }
}

/// AUTH (section 3.15).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Auth<'a> {
    /// Success, continue or re-authenticate.
    pub reason: ReasonCode,
    /// The method; `None` only with [`ReasonCode::Success`].
    pub method: Option<&'a str>,
    /// The step.
    pub data: Option<&'a [u8]>,
    /// For people and logs.
    pub reason_string: Option<&'a str>,
    /// User Properties.
    pub user_properties: UserProperties<'a>,
}
