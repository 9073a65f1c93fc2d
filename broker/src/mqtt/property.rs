//! The properties of MQTT 5.0 packets (section 2.2.2).

use super::error::DecodeError;
use crate::record::Properties;

/// The properties of a PUBLISH or a Will, as they lie on the wire: well-formed, allowed in that packet, each at
/// most as often as it may occur.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WireProperties<'a> {
    bytes: &'a [u8],
    all_travel: bool,
}

#[allow(unused_variables)]
impl<'a> WireProperties<'a> {
    /// No properties.
    pub const NONE: Self = Self { bytes: &[], all_travel: true };

    /// The properties that travel with a publish. See [`super::Publish::travelling`].
    pub fn travelling<'s>(&'s self, scratch: &'s mut Vec<u8>) -> Properties<'s> {
        todo!()
    }

    /// The Subscription Identifiers among them.
    pub const fn subscription_ids(self) -> SubscriptionIds<'a> {
        SubscriptionIds(self.bytes)
    }

    /// Wraps properties that travel, to be encoded as a Will.
    pub const fn from_travelling(properties: Properties<'a>) -> Self {
        Self { bytes: properties.encoded(), all_travel: true }
    }
}

/// Iterator over the Subscription Identifiers of a PUBLISH; none is 0.
#[derive(Clone, Debug)]
pub struct SubscriptionIds<'a>(&'a [u8]);

impl Iterator for SubscriptionIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        todo!()
    }
}

/// The User Properties of a packet: names and values, in order, repetitions kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UserProperties<'a>(&'a [u8]);

#[allow(unused_variables)]
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
        UserPropertiesIter(self.0)
    }
}

impl<'a> IntoIterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = UserPropertiesIter<'a>;

    fn into_iter(self) -> UserPropertiesIter<'a> {
        self.iter()
    }
}

/// Iterator over [`UserProperties`].
#[derive(Clone, Debug)]
pub struct UserPropertiesIter<'a>(&'a [u8]);

impl<'a> Iterator for UserPropertiesIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        todo!()
    }
}

/// So that the stub compiles.
pub(super) type Checked<T> = Result<T, DecodeError>;
