//! The properties of MQTT 5.0 packets (section 2.2.2): which there are, where each may stand, and how they are
//! read.

use std::fmt;
use std::str::from_utf8;

use super::error::{Checked, DecodeError, malformed, protocol};
use super::wire::{Reader, text, topic_name};
use crate::record::{Properties, Property};

/// Property identifiers (table 2-4).
pub(super) mod id {
    pub(in crate::mqtt) use crate::record::property_id::*;
    pub(in crate::mqtt) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(in crate::mqtt) const SESSION_EXPIRY: u8 = 0x11;
    pub(in crate::mqtt) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(in crate::mqtt) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(in crate::mqtt) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(in crate::mqtt) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(in crate::mqtt) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(in crate::mqtt) const WILL_DELAY: u8 = 0x18;
    pub(in crate::mqtt) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(in crate::mqtt) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(in crate::mqtt) const SERVER_REFERENCE: u8 = 0x1C;
    pub(in crate::mqtt) const REASON_STRING: u8 = 0x1F;
    pub(in crate::mqtt) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in crate::mqtt) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in crate::mqtt) const TOPIC_ALIAS: u8 = 0x23;
    pub(in crate::mqtt) const MAXIMUM_QOS: u8 = 0x24;
    pub(in crate::mqtt) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(in crate::mqtt) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(in crate::mqtt) const WILDCARD_SUBSCRIPTIONS: u8 = 0x28;
    pub(in crate::mqtt) const SUBSCRIPTION_IDS: u8 = 0x29;
    pub(in crate::mqtt) const SHARED_SUBSCRIPTIONS: u8 = 0x2A;
}

/// A set of property identifiers, all of which are below 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids(u64);

impl Ids {
    const NONE: Self = Self(0);

    pub(super) const fn of(ids: &[u8]) -> Self {
        let mut set = 0;
        let mut at = 0;
        while at < ids.len() {
            set |= 1 << ids[at];
            at += 1;
        }
        Self(set)
    }

    pub(super) const fn has(self, id: u8) -> bool {
        id < 64 && self.0 & (1 << id) != 0
    }

    const fn with(self, id: u8) -> Self {
        Self(self.0 | 1 << id)
    }

    const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

/// Where properties stand: which are allowed there, and which may stand there more than once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) allowed: Ids,
    pub(super) repeatable: Ids,
}

impl Place {
    const fn new(allowed: &[u8]) -> Self {
        Self { allowed: Ids::of(allowed), repeatable: Ids::of(&[id::USER]) }
    }

    pub(super) const CONNECT: Self = Self::new(&[
        id::SESSION_EXPIRY,
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
        id::REQUEST_PROBLEM_INFORMATION,
        id::REQUEST_RESPONSE_INFORMATION,
        id::RECEIVE_MAXIMUM,
        id::TOPIC_ALIAS_MAXIMUM,
        id::MAXIMUM_PACKET_SIZE,
        id::USER,
    ]);
    const WILL: Self = Self::new(&[
        id::PAYLOAD_FORMAT,
        id::MESSAGE_EXPIRY,
        id::CONTENT_TYPE,
        id::RESPONSE_TOPIC,
        id::CORRELATION_DATA,
        id::WILL_DELAY,
        id::USER,
    ]);
    pub(super) const CONNACK: Self = Self::new(&[
        id::SESSION_EXPIRY,
        id::ASSIGNED_CLIENT_ID,
        id::SERVER_KEEP_ALIVE,
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
        id::RESPONSE_INFORMATION,
        id::SERVER_REFERENCE,
        id::REASON_STRING,
        id::RECEIVE_MAXIMUM,
        id::TOPIC_ALIAS_MAXIMUM,
        id::MAXIMUM_QOS,
        id::RETAIN_AVAILABLE,
        id::USER,
        id::MAXIMUM_PACKET_SIZE,
        id::WILDCARD_SUBSCRIPTIONS,
        id::SUBSCRIPTION_IDS,
        id::SHARED_SUBSCRIPTIONS,
    ]);
    const PUBLISH: Self = Self {
        allowed: Ids::of(&[
            id::PAYLOAD_FORMAT,
            id::MESSAGE_EXPIRY,
            id::CONTENT_TYPE,
            id::RESPONSE_TOPIC,
            id::CORRELATION_DATA,
            id::SUBSCRIPTION_ID,
            id::TOPIC_ALIAS,
            id::USER,
        ]),
        // A publish that matched several subscriptions carries all their identifiers [MQTT-3.3.4-4].
        repeatable: Ids::of(&[id::USER, id::SUBSCRIPTION_ID]),
    };
    pub(super) const ACK: Self = Self::new(&[id::REASON_STRING, id::USER]);
    pub(super) const SUBSCRIBE: Self = Self::new(&[id::SUBSCRIPTION_ID, id::USER]);
    pub(super) const UNSUBSCRIBE: Self = Self::new(&[id::USER]);
    pub(super) const DISCONNECT: Self =
        Self::new(&[id::SESSION_EXPIRY, id::SERVER_REFERENCE, id::REASON_STRING, id::USER]);
    pub(super) const AUTH: Self =
        Self::new(&[id::AUTHENTICATION_METHOD, id::AUTHENTICATION_DATA, id::REASON_STRING, id::USER]);
}

const TRAVELLING: Ids = Ids::of(&[
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER,
]);

/// A property's value, checked.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair,
}

/// Reads the properties of `section`, hands each to `found` and returns which there were.
#[inline]
fn walk<'a>(section: &'a [u8], place: Place, mut found: impl FnMut(u8, Value<'a>)) -> Checked<Ids> {
    let mut reader = Reader::new(section);
    let mut seen = Ids::NONE;
    while !reader.is_empty() {
        let id = reader.u8()?;
        if !place.allowed.has(id) {
            return Err(malformed!("a property is unknown or not allowed in this packet", "2.2.2.2"));
        }
        if seen.has(id) && !place.repeatable.has(id) {
            return Err(protocol!("a property stands twice that may stand once", "2.2.2.2"));
        }
        seen = seen.with(id);
        found(id, value(id, &mut reader)?);
    }
    Ok(seen)
}

/// Reads and checks the value of the property `id`.
#[inline]
fn value<'a>(id: u8, reader: &mut Reader<'a>) -> Checked<Value<'a>> {
    Ok(match id {
        id::USER => {
            reader.text()?;
            reader.text()?;
            Value::Pair
        }
        id::CORRELATION_DATA | id::AUTHENTICATION_DATA => Value::Binary(reader.binary()?),
        id::RESPONSE_TOPIC => Value::Text(response_topic(reader.binary()?)?),
        id::CONTENT_TYPE
        | id::ASSIGNED_CLIENT_ID
        | id::AUTHENTICATION_METHOD
        | id::RESPONSE_INFORMATION
        | id::SERVER_REFERENCE
        | id::REASON_STRING => Value::Text(reader.text()?),
        _ => Value::Number(number(id, reader)?),
    })
}

fn response_topic(bytes: &[u8]) -> Checked<&str> {
    let text = text(bytes)?;
    topic_name(bytes).map_err(|_| {
        protocol!("a Response Topic must be a Topic Name, without wildcards", "MQTT-3.3.2-14")
    })?;
    Ok(text)
}

#[inline]
fn number(id: u8, reader: &mut Reader<'_>) -> Checked<u32> {
    const ZERO: &DecodeError = protocol!("a property is 0 that never may be", "2.2.2");
    match id {
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY => reader.u32(),
        id::SERVER_KEEP_ALIVE | id::TOPIC_ALIAS_MAXIMUM => reader.u16().map(u32::from),
        id::TOPIC_ALIAS => match reader.u16()? {
            0 => Err(&DecodeError::TopicAlias),
            alias => Ok(u32::from(alias)),
        },
        // Sections 3.1.2.11.3 and 3.2.2.3.3.
        id::RECEIVE_MAXIMUM => {
            reader.u16().and_then(|value| if value == 0 { Err(ZERO) } else { Ok(value.into()) })
        }
        // Sections 3.1.2.11.4 and 3.2.2.3.6.
        id::MAXIMUM_PACKET_SIZE => {
            reader.u32().and_then(|value| if value == 0 { Err(ZERO) } else { Ok(value) })
        }
        // Sections 3.3.2.3.8 and 3.8.2.1.2.
        id::SUBSCRIPTION_ID => {
            reader.var_int().and_then(|value| if value == 0 { Err(ZERO) } else { Ok(value) })
        }
        // The others are one byte that says yes or no; Maximum QoS too knows only 0 and 1.
        _ => match reader.u8()? {
            value @ (0 | 1) => Ok(u32::from(value)),
            _ => Err(protocol!("a property is neither 0 nor 1", "2.2.2")),
        },
    }
}

/// The properties of a packet other than PUBLISH: each where it was found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found<'a> {
    pub(super) subscription_id: Option<u32>,
    pub(super) session_expiry_s: Option<u32>,
    pub(super) assigned_client_id: Option<&'a str>,
    pub(super) server_keep_alive_s: Option<u16>,
    pub(super) authentication_method: Option<&'a str>,
    pub(super) authentication_data: Option<&'a [u8]>,
    pub(super) request_problem_information: Option<bool>,
    pub(super) request_response_information: Option<bool>,
    pub(super) response_information: Option<&'a str>,
    pub(super) server_reference: Option<&'a str>,
    pub(super) reason_string: Option<&'a str>,
    pub(super) receive_maximum: Option<u16>,
    pub(super) topic_alias_maximum: Option<u16>,
    pub(super) maximum_qos: Option<bool>,
    pub(super) retain_available: Option<bool>,
    pub(super) maximum_packet_bytes: Option<u32>,
    pub(super) wildcard_subscriptions: Option<bool>,
    pub(super) subscription_ids: Option<bool>,
    pub(super) shared_subscriptions: Option<bool>,
    pub(super) user_properties: UserProperties<'a>,
}

impl<'a> Found<'a> {
    /// Reads the properties of `section`.
    pub(super) fn read(section: &'a [u8], place: Place) -> Checked<Self> {
        let mut all = Self::default();
        if section.is_empty() {
            return Ok(all);
        }
        let seen = walk(section, place, |id, value| match value {
            Value::Number(value) => all.put_number(id, value),
            Value::Text(value) => all.put_text(id, value),
            Value::Binary(value) => all.authentication_data = Some(value),
            Value::Pair => {}
        })?;
        if seen.has(id::USER) {
            all.user_properties = UserProperties(section);
        }
        Ok(all)
    }

    fn put_number(&mut self, id: u8, value: u32) {
        let two_bytes = Some(value as u16);
        let yes = Some(value != 0);
        match id {
            id::SUBSCRIPTION_ID => self.subscription_id = Some(value),
            id::SESSION_EXPIRY => self.session_expiry_s = Some(value),
            id::MAXIMUM_PACKET_SIZE => self.maximum_packet_bytes = Some(value),
            id::SERVER_KEEP_ALIVE => self.server_keep_alive_s = two_bytes,
            id::RECEIVE_MAXIMUM => self.receive_maximum = two_bytes,
            id::TOPIC_ALIAS_MAXIMUM => self.topic_alias_maximum = two_bytes,
            id::REQUEST_PROBLEM_INFORMATION => self.request_problem_information = yes,
            id::REQUEST_RESPONSE_INFORMATION => self.request_response_information = yes,
            id::MAXIMUM_QOS => self.maximum_qos = yes,
            id::RETAIN_AVAILABLE => self.retain_available = yes,
            id::WILDCARD_SUBSCRIPTIONS => self.wildcard_subscriptions = yes,
            id::SUBSCRIPTION_IDS => self.subscription_ids = yes,
            id::SHARED_SUBSCRIPTIONS => self.shared_subscriptions = yes,
            _ => debug_assert!(false, "property {id:#x} is read elsewhere"),
        }
    }

    fn put_text(&mut self, id: u8, value: &'a str) {
        let value = Some(value);
        match id {
            id::ASSIGNED_CLIENT_ID => self.assigned_client_id = value,
            id::AUTHENTICATION_METHOD => self.authentication_method = value,
            id::RESPONSE_INFORMATION => self.response_information = value,
            id::SERVER_REFERENCE => self.server_reference = value,
            id::REASON_STRING => self.reason_string = value,
            _ => debug_assert!(false, "property {id:#x} is read elsewhere"),
        }
    }
}

/// Reads the properties of a PUBLISH; returns them and the topic alias.
#[inline]
pub(super) fn read_publish(section: &[u8]) -> Checked<(WireProperties<'_>, Option<u16>)> {
    if section.is_empty() {
        return Ok((WireProperties::NONE, None));
    }
    read_publish_section(section)
}

#[inline(never)]
fn read_publish_section(section: &[u8]) -> Checked<(WireProperties<'_>, Option<u16>)> {
    let mut alias = None;
    let mut payload_is_text = false;
    let seen = walk(section, Place::PUBLISH, |id, value| match (id, value) {
        (id::TOPIC_ALIAS, Value::Number(value)) => alias = Some(value as u16),
        (id::PAYLOAD_FORMAT, Value::Number(value)) => payload_is_text = value == 1,
        _ => {}
    })?;
    let all_travel = seen.is_within(TRAVELLING);
    Ok((WireProperties { bytes: section, all_travel, payload_is_text }, alias))
}

/// Reads the properties of a Will; returns them and the Will Delay Interval in seconds.
pub(super) fn read_will(section: &[u8]) -> Checked<(WireProperties<'_>, u32)> {
    let mut delay_s = 0;
    let mut payload_is_text = false;
    let seen = walk(section, Place::WILL, |id, value| match (id, value) {
        (id::WILL_DELAY, Value::Number(value)) => delay_s = value,
        (id::PAYLOAD_FORMAT, Value::Number(value)) => payload_is_text = value == 1,
        _ => {}
    })?;
    let all_travel = seen.is_within(TRAVELLING);
    Ok((WireProperties { bytes: section, all_travel, payload_is_text }, delay_s))
}

/// A property of bytes that were checked before.
#[derive(Clone, Copy, Debug)]
struct Raw<'a> {
    id: u8,
    value: &'a [u8],
    /// Identifier and value.
    whole: &'a [u8],
}

/// Takes the property at the front of `reader` apart; `None` at the end.
fn next<'a>(reader: &mut Reader<'a>) -> Option<Raw<'a>> {
    let whole = reader.rest();
    let id = reader.u8().ok()?;
    let begin = reader.rest();
    match id {
        id::USER => {
            reader.binary().ok()?;
            reader.binary().ok()?;
        }
        id::SUBSCRIPTION_ID => {
            reader.var_int().ok()?;
        }
        id::PAYLOAD_FORMAT
        | id::REQUEST_PROBLEM_INFORMATION
        | id::REQUEST_RESPONSE_INFORMATION
        | id::MAXIMUM_QOS
        | id::RETAIN_AVAILABLE
        | id::WILDCARD_SUBSCRIPTIONS
        | id::SUBSCRIPTION_IDS
        | id::SHARED_SUBSCRIPTIONS => {
            reader.take(1).ok()?;
        }
        id::SERVER_KEEP_ALIVE | id::RECEIVE_MAXIMUM | id::TOPIC_ALIAS_MAXIMUM | id::TOPIC_ALIAS => {
            reader.take(2).ok()?;
        }
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY | id::MAXIMUM_PACKET_SIZE => {
            reader.take(4).ok()?;
        }
        _ => {
            reader.binary().ok()?;
        }
    }
    let left = reader.rest().len();
    Some(Raw { id, value: &begin[..begin.len() - left], whole: &whole[..whole.len() - left] })
}

/// Where the value of the Message Expiry Interval lies in the encoding of `properties`.
pub(super) fn message_expiry_at(properties: Properties<'_>) -> Option<usize> {
    let mut reader = Reader::new(properties.encoded());
    while let Some(property) = next(&mut reader) {
        if property.id == id::MESSAGE_EXPIRY {
            return Some(properties.encoded().len() - reader.rest().len() - property.value.len());
        }
    }
    None
}

/// The properties of a PUBLISH or a Will, as they lie on the wire: well-formed, allowed in that packet, each at
/// most as often as it may occur.
#[derive(Clone, Copy)]
pub struct WireProperties<'a> {
    bytes: &'a [u8],
    all_travel: bool,
    payload_is_text: bool,
}

impl<'a> WireProperties<'a> {
    /// No properties.
    pub const NONE: Self = Self { bytes: &[], all_travel: true, payload_is_text: false };

    /// The properties that travel with a publish. Borrowed from the wire when nothing has to be left out, else
    /// encoded again into `scratch`, which is overwritten.
    pub fn travelling<'s>(&'s self, scratch: &'s mut Vec<u8>) -> Properties<'s> {
        if self.all_travel {
            return Properties::from_encoded(self.bytes);
        }
        scratch.clear();
        let mut reader = Reader::new(self.bytes);
        while let Some(property) = next(&mut reader) {
            if TRAVELLING.has(property.id) {
                scratch.extend_from_slice(property.whole);
            }
        }
        Properties::from_encoded(scratch)
    }

    /// The Subscription Identifiers among them.
    pub const fn subscription_ids(self) -> SubscriptionIds<'a> {
        // They do not travel, so where everything travels there is none.
        SubscriptionIds(Reader::new(if self.all_travel { &[] } else { self.bytes }))
    }

    /// Whether there is a Subscription Identifier.
    #[inline]
    pub(super) fn has_subscription_ids(self) -> bool {
        !self.all_travel && self.subscription_ids().next().is_some()
    }

    /// Whether the payload is declared to be UTF-8 text (Payload Format Indicator 1).
    pub const fn payload_is_text(self) -> bool {
        self.payload_is_text
    }

    /// Whether `payload` is what it is declared to be (section 3.3.2.3.2).
    pub fn describe(self, payload: &[u8]) -> bool {
        !self.payload_is_text || from_utf8(payload).is_ok()
    }

    /// Properties that travel, to be encoded with a Will.
    pub const fn from_travelling(properties: Properties<'a>) -> Self {
        Self { bytes: properties.encoded(), all_travel: true, payload_is_text: false }
    }
}

impl Default for WireProperties<'_> {
    fn default() -> Self {
        Self::NONE
    }
}

impl PartialEq for WireProperties<'_> {
    /// Whether the same properties travel and the Subscription Identifiers are the same.
    fn eq(&self, other: &Self) -> bool {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        self.travelling(&mut left) == other.travelling(&mut right)
            && self.subscription_ids().eq(other.subscription_ids())
    }
}

impl fmt::Debug for WireProperties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut scratch = Vec::new();
        let travelling: Vec<Property<'_>> = self.travelling(&mut scratch).iter().collect();
        f.debug_struct("WireProperties")
            .field("travelling", &travelling)
            .field("subscription_ids", &self.subscription_ids().collect::<Vec<_>>())
            .finish()
    }
}

/// Iterator over the Subscription Identifiers of a PUBLISH; none is 0.
#[derive(Clone, Debug)]
pub struct SubscriptionIds<'a>(Reader<'a>);

impl Iterator for SubscriptionIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let property = next(&mut self.0)?;
            if property.id == id::SUBSCRIPTION_ID {
                return Reader::new(property.value).var_int().ok();
            }
        }
    }
}

/// The User Properties of a packet: names and values, in order, repetitions kept.
#[derive(Clone, Copy, Default)]
pub struct UserProperties<'a>(&'a [u8]);

impl<'a> UserProperties<'a> {
    /// No User Properties.
    pub const NONE: Self = Self(&[]);

    /// Properties in their encoding, of which all but User Properties are passed over. The caller has checked
    /// them; [`super::encode::user_property`] writes one. Iteration ends where they are not well-formed.
    pub const fn from_encoded(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The pairs in order.
    pub const fn iter(self) -> UserPropertiesIter<'a> {
        UserPropertiesIter(Reader::new(self.0))
    }
}

impl<'a> IntoIterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = UserPropertiesIter<'a>;

    fn into_iter(self) -> UserPropertiesIter<'a> {
        self.iter()
    }
}

impl PartialEq for UserProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for UserProperties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterator over [`UserProperties`].
#[derive(Clone, Debug)]
pub struct UserPropertiesIter<'a>(Reader<'a>);

impl<'a> Iterator for UserPropertiesIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        loop {
            let property = next(&mut self.0)?;
            if property.id == id::USER {
                let mut pair = Reader::new(property.value);
                return Some((pair.text().ok()?, pair.text().ok()?));
            }
        }
    }
}
