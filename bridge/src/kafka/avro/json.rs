//! A JSON text, read one level at a time; pure.
//!
//! Objects and arrays are gone through without building anything: what lies in them is handed on as its text, which
//! is known to be JSON then, and of which numbers keep every digit.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What kind of JSON a text is, by its first character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

/// The kind of `json`, which is JSON without space around it.
pub(super) fn kind(json: &str) -> Kind {
    match json.as_bytes().first() {
        Some(b'n') => Kind::Null,
        Some(b't' | b'f') => Kind::Boolean,
        Some(b'"') => Kind::String,
        Some(b'[') => Kind::Array,
        Some(b'{') => Kind::Object,
        Some(_) | None => Kind::Number,
    }
}

/// `json` without the space around it, if it is JSON.
pub(super) fn whole(json: &str) -> Result<&str, serde_json::Error> {
    serde_json::from_str::<&RawValue>(json).map(RawValue::get)
}

/// The text that `json`, a JSON string, stands for; `None` if an escape in it stands for half a character.
pub(super) fn text(json: &str) -> Option<Cow<'_, str>> {
    let inner = &json[1..json.len() - 1];
    if inner.as_bytes().contains(&b'\\') {
        serde_json::from_str(json).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// Goes through the members of `json`, an object, until `each` returns false.
pub(super) fn members<'a>(
    json: &'a str,
    each: impl FnMut(Cow<'a, str>, &'a str) -> bool,
) -> Result<(), serde_json::Error> {
    struct Members<F>(F);
    impl<'a, F: FnMut(Cow<'a, str>, &'a str) -> bool> Visitor<'a> for Members<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
            let mut wanted = true;
            // The rest is read all the same, to see whether it is JSON.
            while let Some((Name(name), value)) = map.next_entry::<Name<'a>, &'a RawValue>()? {
                wanted = wanted && (self.0)(name, value.get());
            }
            Ok(())
        }
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_map(Members(each))?;
    reader.end()
}

/// Goes through the elements of `json`, an array, until `each` returns false.
pub(super) fn elements<'a>(
    json: &'a str,
    each: impl FnMut(&'a str) -> bool,
) -> Result<(), serde_json::Error> {
    struct Elements<F>(F);
    impl<'a, F: FnMut(&'a str) -> bool> Visitor<'a> for Elements<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'a>>(mut self, mut seq: A) -> Result<(), A::Error> {
            let mut wanted = true;
            while let Some(value) = seq.next_element::<&'a RawValue>()? {
                wanted = wanted && (self.0)(value.get());
            }
            Ok(())
        }
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_seq(Elements(each))?;
    reader.end()
}

/// A member's name, copied only if it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
