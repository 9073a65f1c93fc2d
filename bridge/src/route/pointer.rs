//! A JSON Pointer (RFC 6901) and what it finds in a payload; pure.
//!
//! The payload is read from its beginning as far as the place that the pointer names, and no further: nothing is built
//! or copied, unless the text found has escapes. So what lies behind that place may be anything, and what is no JSON
//! before it finds nothing. Depth costs no stack.

use std::borrow::Cow;

/// A pointer that names a place inside a document, as in `/device/id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// As it was written.
    text: Box<str>,
    /// The names and places on the way, without their escapes.
    tokens: Box<[Token]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    name: Box<str>,
    /// Which element of an array it is, if it can be one.
    element: Option<usize>,
}

impl Pointer {
    /// Reads a pointer. The error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("{text:?} is not a JSON pointer: write /deviceId or /device/id"));
        };
        let tokens = rest.split('/').map(token).collect::<Option<_>>();
        let tokens = tokens.ok_or_else(|| {
            format!("{text:?} is not a JSON pointer: in a name ~ is written ~0 and / is written ~1")
        })?;
        Ok(Self { text: text.into(), tokens })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text, number or boolean that it names in `payload`: a text without its escapes, the others as they are
    /// written. `None` if there is nothing there, or null, an array or an object, or an empty text.
    pub fn find<'a>(&self, payload: &'a [u8]) -> Option<Cow<'a, str>> {
        let mut scan = Scan { bytes: payload, at: 0 };
        for token in &self.tokens {
            scan.space();
            match scan.take()? {
                b'{' => scan.enter_member(&token.name)?,
                b'[' => scan.enter_element(token.element?)?,
                _ => return None,
            }
        }
        scan.space();
        scan.scalar()
    }
}

/// RFC 6901 sections 3 and 4.
fn token(raw: &str) -> Option<Token> {
    let mut name = String::with_capacity(raw.len());
    let mut rest = raw.chars();
    while let Some(each) = rest.next() {
        match each {
            '~' => match rest.next()? {
                '0' => name.push('~'),
                '1' => name.push('/'),
                _ => return None,
            },
            other => name.push(other),
        }
    }
    let is_element =
        name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    let element = if is_element { name.parse().ok() } else { None };
    Some(Token { name: name.into(), element })
}

/// A place in a payload; everything before it has been read.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Behind the opening brace of an object: goes to the value of the first member called `name`.
    fn enter_member(&mut self, name: &str) -> Option<()> {
        loop {
            self.space();
            if self.take()? != b'"' {
                return None;
            }
            let raw = self.rest_of_string()?;
            self.space();
            if self.take()? != b':' {
                return None;
            }
            if is_called(raw, name) {
                return Some(());
            }
            self.pass_value()?;
            self.pass_comma()?;
        }
    }

    /// Behind the opening bracket of an array: goes to the element counted `element` from 0.
    fn enter_element(&mut self, element: usize) -> Option<()> {
        for _ in 0..element {
            self.pass_value()?;
            self.pass_comma()?;
        }
        Some(())
    }

    fn pass_comma(&mut self) -> Option<()> {
        self.space();
        (self.take()? == b',').then_some(())
    }

    /// Behind an opening quote: what lies before the closing one, with its quotes.
    fn rest_of_string(&mut self) -> Option<&'a [u8]> {
        let start = self.at - 1;
        loop {
            match self.take()? {
                b'"' => return Some(&self.bytes[start..self.at]),
                b'\\' => _ = self.take()?,
                0..0x20 => return None,
                _ => {}
            }
        }
    }

    /// Passes one value, of which only strings and brackets are looked at.
    fn pass_value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            self.space();
            match self.take()? {
                b'"' => _ = self.rest_of_string()?,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.checked_sub(1)?,
                b',' | b':' if depth > 0 => continue,
                byte if is_plain(byte) => {
                    while self.peek().is_some_and(is_plain) {
                        self.at += 1;
                    }
                }
                _ => return None,
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// The text, number or boolean here.
    fn scalar(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at;
        if self.take()? == b'"' {
            let quoted = self.rest_of_string()?;
            let found = if quoted.contains(&b'\\') {
                // Whoever sends escapes that mean nothing has no key.
                Cow::Owned(serde_json::from_slice(quoted).ok()?)
            } else {
                Cow::Borrowed(std::str::from_utf8(&quoted[1..quoted.len() - 1]).ok()?)
            };
            return Some(found).filter(|found: &Cow<'_, str>| !found.is_empty());
        }
        while self.peek().is_some_and(is_plain) {
            self.at += 1;
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).ok()?;
        let is_value =
            matches!(text, "true" | "false") || serde_json::from_str::<serde_json::Number>(text).is_ok();
        is_value.then_some(Cow::Borrowed(text))
    }
}

/// Whether the string `quoted`, with its quotes, means `name`.
fn is_called(quoted: &[u8], name: &str) -> bool {
    let raw = &quoted[1..quoted.len() - 1];
    if raw.contains(&b'\\') {
        return serde_json::from_slice::<String>(quoted).is_ok_and(|meant| meant == name);
    }
    raw == name.as_bytes()
}

/// Whether a number, a boolean or null may hold `byte`.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    #[track_caller]
    fn check(payload: &str, pointer: &str, expected: Option<&str>) {
        let found = Pointer::new(pointer).unwrap().find(payload.as_bytes());
        assert_eq!(found.as_deref(), expected, "{pointer} in {payload}");
    }

    #[test]
    fn a_pointer_finds_texts_numbers_and_booleans() {
        let health = r#"{"deviceId":"device-7","timestamp":1753626600,"heartRate":72}"#;
        check(health, "/deviceId", Some("device-7"));
        check(health, "/heartRate", Some("72"));
        check(health, "/patientId", None);
        check(r#" { "a" : { "b" : [ 1 , {"c":"x"} , -2.50e1 ] } } "#, "/a/b/1/c", Some("x"));
        check(r#"{"a":{"b":[1,{"c":"x"},-2.50e1]}}"#, "/a/b/2", Some("-2.50e1"));
        check("[true,false,null]", "/1", Some("false"));
        check("[true,false,null]", "/2", None);
        check("[true,false,null]", "/3", None);
        check("[true]", "/-", None);
        check("[1,2]", "/01", None);
        check(r#"{"":"empty name","~/":1,"~1":2}"#, "/", Some("empty name"));
        check(r#"{"":"empty name","~/":1,"~1":2}"#, "/~0~1", Some("1"));
        check(r#"{"":"empty name","~/":1,"~1":2}"#, "/~01", Some("2"));
    }

    #[test]
    fn escapes_are_read_in_names_and_texts() {
        check(r#"{"ger\u00e4t":"z\u00e4hler \"1\"\n"}"#, "/gerät", Some("zähler \"1\"\n"));
        check(r#"{"a":"\ud83d\ude00"}"#, "/a", Some("😀"));
        check(r#"{"a":"\ud83d"}"#, "/a", None);
        check(r#"{"a":"\x"}"#, "/a", None);
        check(r#"{"x\"a":1,"a":2}"#, "/a", Some("2"));
    }

    #[test]
    fn what_is_no_key_finds_nothing() {
        for payload in
            ["", "22.5", "Temperature: 22.5°C", "\"a\"", "{", "{\"a\"", "{\"a\":", "{\"a\":}", "[", "nul"]
        {
            check(payload, "/a", None);
        }
        check(r#"{"a":{}}"#, "/a", None);
        check(r#"{"a":[1]}"#, "/a", None);
        check(r#"{"a":null}"#, "/a", None);
        check(r#"{"a":""}"#, "/a", None);
        check(r#"{"a":NaN}"#, "/a", None);
        check(r#"{"a":01}"#, "/a", None);
        check(r#"{"a":1}"#, "/a/b", None);
        check(r#"{"b":[}],"a":1}"#, "/a", None);
        assert_eq!(Pointer::new("/a").unwrap().find(b"{\"a\":\"\xff\"}"), None);
        assert_eq!(
            Pointer::new("/a").unwrap().find(b"{\"a\":\"x\"").as_deref(),
            Some("x"),
            "read no further"
        );
    }

    #[test]
    fn only_a_pointer_is_one() {
        assert!(Pointer::new("deviceId").unwrap_err().contains("write /deviceId"));
        assert!(Pointer::new("/a~b").unwrap_err().contains("~0"));
        assert!(Pointer::new("/a~").is_err());
        assert_eq!(Pointer::new("/a/b").unwrap().as_str(), "/a/b");
    }

    #[test]
    fn depth_costs_no_stack_and_nothing_is_copied_without_escapes() {
        let deep = format!("{{\"x\":{}{},\"a\":\"key\"}}", "[".repeat(200_000), "]".repeat(200_000));
        let found = Pointer::new("/a").unwrap().find(deep.as_bytes()).unwrap();
        assert!(matches!(found, Cow::Borrowed("key")));
    }

    /// Numbers that look random and are the same each time (xorshift64*).
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
        }

        fn name(&mut self) -> &'static str {
            ["a", "b", "", "0", "1", "ä\"\n", "~/", "\u{1F600}", "value"][self.below(9) as usize]
        }

        /// An object or an array.
        fn document(&mut self) -> Value {
            loop {
                let document = self.value(4);
                if document.is_object() || document.is_array() {
                    return document;
                }
            }
        }

        fn value(&mut self, depth: u32) -> Value {
            match self.below(if depth == 0 { 6 } else { 8 }) {
                0 => Value::Null,
                1 => json!(self.below(2) == 1),
                2 => json!(self.below(1_000)),
                3 => json!(-0.5 * self.below(1_000) as f64),
                4 | 5 => json!(self.name()),
                6 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
                _ => {
                    let members = (0..self.below(5)).map(|_| (self.name().to_owned(), self.value(depth - 1)));
                    Value::Object(members.collect::<Map<_, _>>())
                }
            }
        }
    }

    fn expected(value: Option<&Value>) -> Option<String> {
        match value? {
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(number) => Some(number.to_string()),
            Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    #[test]
    fn it_agrees_with_serde_json_and_never_panics() {
        let mut random = Random(0x5eed);
        let mut found = 0;
        for round in 0..40_000 {
            let document = random.document();
            let text = if round % 2 == 0 {
                serde_json::to_string(&document)
            } else {
                serde_json::to_string_pretty(&document)
            };
            let mut bytes = text.unwrap().into_bytes();
            let tokens: Vec<String> =
                (0..=random.below(3)).map(|_| random.name().replace('~', "~0").replace('/', "~1")).collect();
            let pointer = Pointer::new(&format!("/{}", tokens.join("/"))).unwrap();
            let theirs = expected(document.pointer(pointer.as_str()));
            let ours = pointer.find(&bytes);
            assert_eq!(
                ours.as_deref(),
                theirs.as_deref(),
                "round {round}: {} in {document}",
                pointer.as_str()
            );
            found += usize::from(theirs.is_some());
            // Damaged: it may find anything, but it comes to an end.
            for _ in 0..3 {
                if bytes.is_empty() {
                    break;
                }
                let at = random.below(bytes.len() as u64) as usize;
                match random.below(3) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => bytes.truncate(at),
                    _ => bytes.insert(at, b"\"\\{}[],:"[random.below(8) as usize]),
                }
                let _ = pointer.find(&bytes);
            }
        }
        assert!(found > 1_000, "only {found} of the pointers found something");
    }
}
