//! A JSON object flattened into its leaves, in one pass over the bytes and without building a tree.
//!
//! Strict JSON (RFC 8259), with one exception: `NaN`, `Infinity` and `-Infinity`, which Python writes, are taken as
//! leaves. Nothing is copied but names and texts that hold escapes. What a leaf means is the business of
//! [`super::reading`]; the few names with a meaning are recognised here because the key is at hand.

/// How deep objects and arrays may nest; deeper is not taken for JSON, so that no payload can exhaust the stack.
const DEPTH_MAX: u32 = 64;
/// A longer number, or one with a longer exponent, may not fit PostgreSQL's `numeric`, which `jsonb` stores.
const JSONB_NUMBER_BYTES_MAX: usize = 300;
const JSONB_EXPONENT_DIGITS_MAX: usize = 3;

/// A part of the scanned text. Payloads are below 256 MiB [MQTT-1.5.5], so 32 bits are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        let narrow = |place| u32::try_from(place).expect("packets are below 256 MiB [MQTT-1.5.5]");
        Self { start: narrow(start), end: narrow(end) }
    }

    /// The text it stands for.
    pub(super) fn of(self, text: &str) -> &str {
        &text[self.start as usize..self.end as usize]
    }
}

/// What lies between the quotes of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quoted {
    span: Span,
    escaped: bool,
}

impl Quoted {
    /// The string it means; `decoded` holds it if it has escapes. U+0000 and unpaired surrogates become U+FFFD.
    pub(super) fn decode<'a>(self, text: &'a str, decoded: &'a mut String) -> &'a str {
        let raw = self.span.of(text);
        if !self.escaped {
            return raw;
        }
        decoded.clear();
        unescape(raw, decoded);
        decoded
    }
}

/// The value of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(Span),
    /// `NaN`, `Infinity` or `-Infinity`.
    NotFinite(Span),
    Text(Quoted),
    Bool(bool),
    Null,
    /// An array, whole.
    Array(Span),
    EmptyObject,
}

/// What a key means, if it is one of the names that mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Device,
    Time,
    Metric,
    Unit,
    Value,
    Other,
}

impl Key {
    fn of(name: &str, object: u32) -> Self {
        match name {
            "value" => Self::Value,
            "unit" | "units" => Self::Unit,
            _ if object != ROOT => Self::Other,
            "device" | "deviceId" | "device_id" | "sensor_id" | "sensorId" => Self::Device,
            "timestamp" | "ts" | "time" | "Timestamp" | "Time" => Self::Time,
            "metric" | "reading_type" | "readingType" => Self::Metric,
            _ => Self::Other,
        }
    }
}

/// The number of the outermost object.
pub(super) const ROOT: u32 = 0;

/// A name and a value that is no object (or an empty one).
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    /// The object it lies in.
    pub(super) object: u32,
    pub(super) name: Quoted,
    pub(super) key: Key,
    pub(super) value: Value,
}

/// An object of the document.
#[derive(Clone, Copy, Debug)]
struct Object {
    /// The names that lead to it, joined by dots, in [`Document::paths`]; `value` leaves no trace in it.
    path: (usize, usize),
    /// It is the value of the outermost `value`, or lies in it.
    in_root_value: bool,
    has_value: bool,
    /// The text of its `unit`, else that of the object it is the `value` of.
    unit: Option<Quoted>,
}

/// The leaves of one JSON object. Keeps its memory from one document to the next.
#[derive(Debug, Default)]
pub(super) struct Document {
    leaves: Vec<Leaf>,
    objects: Vec<Object>,
    paths: String,
    is_jsonb: bool,
}

impl Document {
    /// Takes in `text`, which must be one JSON object; says whether it is, with at most `leaves_max` leaves.
    pub(super) fn scan(&mut self, text: &str, leaves_max: usize) -> Scan {
        self.leaves.clear();
        self.objects.clear();
        self.paths.clear();
        let mut scanner = Scanner::new(text);
        let root = Object { path: (0, 0), in_root_value: false, has_value: false, unit: None };
        self.objects.push(root);
        let whole = scanner.expect(b'{') && self.object(&mut scanner, ROOT, leaves_max, 1).is_some();
        self.is_jsonb = scanner.is_jsonb;
        match (whole && scanner.is_at_end(), self.leaves.len() <= leaves_max) {
            (false, _) => Scan::NotJson,
            (true, false) => Scan::TooMany,
            (true, true) => Scan::Flat,
        }
    }

    /// Every leaf in order.
    pub(super) fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Whether `jsonb` can store it.
    pub(super) const fn is_jsonb(&self) -> bool {
        self.is_jsonb
    }

    /// Whether the outermost object has a `value`.
    pub(super) fn has_value(&self) -> bool {
        self.objects[ROOT as usize].has_value
    }

    /// The outermost object's `unit`, if it is a text.
    pub(super) fn root_unit(&self) -> Option<Quoted> {
        self.objects[ROOT as usize].unit
    }

    /// The dotted path of the object `leaf` lies in; empty for the outermost.
    pub(super) fn path(&self, leaf: &Leaf) -> &str {
        let (start, end) = self.objects[leaf.object as usize].path;
        &self.paths[start..end]
    }

    /// Whether `leaf` lies in the object that is the outermost `value`.
    pub(super) fn in_root_value(&self, leaf: &Leaf) -> bool {
        self.objects[leaf.object as usize].in_root_value
    }

    /// Whether a `value` lies beside `leaf`.
    pub(super) fn beside_value(&self, leaf: &Leaf) -> bool {
        self.objects[leaf.object as usize].has_value
    }

    /// The unit that counts for the values in the object of `leaf`.
    pub(super) fn unit_of(&self, leaf: &Leaf) -> Option<Quoted> {
        self.objects[leaf.object as usize].unit
    }

    /// Behind the opening brace of `object`.
    fn object(
        &mut self,
        scanner: &mut Scanner<'_>,
        object: u32,
        leaves_max: usize,
        depth: u32,
    ) -> Option<()> {
        scanner.space();
        if scanner.expect(b'}') {
            return Some(());
        }
        loop {
            let name = scanner.key()?;
            let key = Key::of(name.span.of(scanner.text), object);
            scanner.space();
            if scanner.peek() == Some(b'{') {
                self.inner_object(scanner, object, (name, key), leaves_max, depth)?;
            } else {
                let value = scanner.leaf(depth)?;
                self.note(object, key, Some(value));
                self.push(Leaf { object, name, key, value }, leaves_max);
            }
            if !scanner.another(b'}')? {
                return Some(());
            }
        }
    }

    fn inner_object(
        &mut self,
        scanner: &mut Scanner<'_>,
        object: u32,
        (name, key): (Quoted, Key),
        leaves_max: usize,
        depth: u32,
    ) -> Option<()> {
        if depth >= DEPTH_MAX {
            return None;
        }
        scanner.expect(b'{');
        scanner.space();
        self.note(object, key, None);
        if scanner.expect(b'}') {
            self.push(Leaf { object, name, key, value: Value::EmptyObject }, leaves_max);
            return Some(());
        }
        if self.objects.len() > leaves_max {
            // Already too many to be flat: what is left is only checked.
            return scanner.rest_of_object(depth + 1);
        }
        let inner = self.enter(scanner.text, object, name, key);
        self.object(scanner, inner, leaves_max, depth + 1)
    }

    /// A new object called `name` in `outer`.
    fn enter(&mut self, text: &str, outer: u32, name: Quoted, key: Key) -> u32 {
        let from = self.objects[outer as usize];
        let is_value = key == Key::Value;
        let path = if is_value { from.path } else { self.extended_path(text, from.path, name) };
        let number = u32::try_from(self.objects.len()).expect("there are at most as many as leaves");
        self.objects.push(Object {
            path,
            in_root_value: from.in_root_value || (is_value && outer == ROOT),
            has_value: false,
            unit: if is_value { from.unit } else { None },
        });
        number
    }

    fn extended_path(&mut self, text: &str, outer: (usize, usize), name: Quoted) -> (usize, usize) {
        let start = self.paths.len();
        // Bounds the memory of deep paths; a metric's name is cut at this length anyway.
        let kept = outer.1.min(outer.0 + super::reading::NAME_BYTES_MAX);
        let kept = (outer.0..=kept).rev().find(|&end| self.paths.is_char_boundary(end)).unwrap_or(outer.0);
        self.paths.extend_from_within(outer.0..kept);
        if self.paths.len() > start {
            self.paths.push('.');
        }
        let raw = name.span.of(text);
        if name.escaped {
            unescape(raw, &mut self.paths)
        } else {
            self.paths.push_str(raw)
        }
        (start, self.paths.len())
    }

    fn note(&mut self, object: u32, key: Key, value: Option<Value>) {
        let object = &mut self.objects[object as usize];
        match (key, value) {
            (Key::Value, _) => object.has_value = true,
            (Key::Unit, Some(Value::Text(unit))) => object.unit = Some(unit),
            (Key::Unit | Key::Device | Key::Time | Key::Metric | Key::Other, _) => {}
        }
    }

    fn push(&mut self, leaf: Leaf, leaves_max: usize) {
        if self.leaves.len() <= leaves_max {
            self.leaves.push(leaf);
        }
    }
}

/// What [`Document::scan`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// One object; its leaves are in the document.
    Flat,
    /// One object with too many leaves.
    TooMany,
    /// Anything else.
    NotJson,
}

/// The objects in `text`, if it is a JSON array that holds objects and nothing else; whether `jsonb` can store it,
/// if it is any other JSON array.
pub(super) fn array(text: &str, objects: &mut Vec<Span>) -> Option<bool> {
    objects.clear();
    let mut scanner = Scanner::new(text);
    if !scanner.expect(b'[') {
        return None;
    }
    scanner.space();
    let mut only_objects = true;
    if !scanner.expect(b']') {
        loop {
            scanner.space();
            let start = scanner.at;
            only_objects &= scanner.peek() == Some(b'{');
            scanner.skip(1)?;
            objects.push(Span::new(start, scanner.at));
            if !scanner.another(b']')? {
                break;
            }
        }
    }
    if !only_objects {
        objects.clear();
    }
    scanner.is_at_end().then_some(scanner.is_jsonb)
}

/// The JSON string that `text` is, whole.
pub(super) fn string(text: &str) -> Option<Quoted> {
    let mut scanner = Scanner::new(text);
    let quoted = if scanner.expect(b'"') { scanner.quoted()? } else { return None };
    scanner.is_at_end().then_some(quoted)
}

struct Scanner<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    is_jsonb: bool,
}

impl<'t> Scanner<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0, is_jsonb: true }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn is_at_end(&mut self) -> bool {
        self.space();
        self.at == self.bytes.len()
    }

    /// A name and its colon.
    fn key(&mut self) -> Option<Quoted> {
        self.space();
        let name = if self.expect(b'"') { self.quoted()? } else { return None };
        self.space();
        self.expect(b':').then_some(name)
    }

    /// Whether a comma follows, and not `end`.
    fn another(&mut self, end: u8) -> Option<bool> {
        self.space();
        let next = self.peek()?;
        self.at += 1;
        match next {
            b',' => Some(true),
            _ if next == end => Some(false),
            _ => None,
        }
    }

    /// A value that is no object.
    fn leaf(&mut self, depth: u32) -> Option<Value> {
        let start = self.at;
        match self.peek()? {
            b'"' => {
                self.at += 1;
                self.quoted().map(Value::Text)
            }
            b'[' => {
                self.skip(depth)?;
                Some(Value::Array(Span::new(start, self.at)))
            }
            b't' => self.word("true").then_some(Value::Bool(true)),
            b'f' => self.word("false").then_some(Value::Bool(false)),
            b'n' => self.word("null").then_some(Value::Null),
            _ if self.word("NaN") || self.word("Infinity") || self.word("-Infinity") => {
                self.is_jsonb = false;
                Some(Value::NotFinite(Span::new(start, self.at)))
            }
            _ => self.number().map(Value::Number),
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let is_there = self.bytes[self.at..].starts_with(word.as_bytes());
        self.at += if is_there { word.len() } else { 0 };
        is_there
    }

    /// Passes over any value, checking it.
    fn skip(&mut self, depth: u32) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        if self.expect(b'{') {
            self.space();
            return if self.expect(b'}') { Some(()) } else { self.rest_of_object(depth) };
        }
        if !self.expect(b'[') {
            return self.leaf(depth).map(|_| ());
        }
        self.space();
        if self.expect(b']') {
            return Some(());
        }
        loop {
            self.space();
            self.skip(depth + 1)?;
            if !self.another(b']')? {
                return Some(());
            }
        }
    }

    /// Passes over the members of an object that has some, behind its brace.
    fn rest_of_object(&mut self, depth: u32) -> Option<()> {
        loop {
            self.key()?;
            self.space();
            self.skip(depth + 1)?;
            if !self.another(b'}')? {
                return Some(());
            }
        }
    }

    /// The rest of a string behind its opening quote.
    fn quoted(&mut self) -> Option<Quoted> {
        let start = self.at;
        let mut escaped = false;
        loop {
            match self.peek()? {
                b'"' => {
                    let span = Span::new(start, self.at);
                    self.at += 1;
                    return Some(Quoted { span, escaped });
                }
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
                0..=0x1f => return None,
                _ => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        match self.bytes.get(self.at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 2,
            b'u' => {
                let (length, character) = unicode_escape(&self.bytes[self.at..])?;
                self.is_jsonb &= character.is_some_and(|character| character != '\0');
                self.at += length;
            }
            _ => return None,
        }
        Some(())
    }

    fn number(&mut self) -> Option<Span> {
        let start = self.at;
        self.expect(b'-');
        if !self.expect(b'0') && self.digits() == 0 {
            return None;
        }
        if self.expect(b'.') && self.digits() == 0 {
            return None;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            match self.digits() {
                0 => return None,
                digits => self.is_jsonb &= digits <= JSONB_EXPONENT_DIGITS_MAX,
            }
        }
        self.is_jsonb &= self.at - start <= JSONB_NUMBER_BYTES_MAX;
        Some(Span::new(start, self.at))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }
}

/// The `\uXXXX` (or pair of them) at the start of `bytes`: its length, and its character unless it is half a pair.
fn unicode_escape(bytes: &[u8]) -> Option<(usize, Option<char>)> {
    let unit = |at: usize| -> Option<u32> {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let first = unit(0)?;
    if (0xd800..0xdc00).contains(&first)
        && let Some(second) = unit(6).filter(|second| (0xdc00..0xe000).contains(second))
    {
        return Some((12, char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))));
    }
    Some((6, char::from_u32(first)))
}

/// Appends what `raw`, checked before, means.
fn unescape(raw: &str, decoded: &mut String) {
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        decoded.push_str(&rest[..at]);
        let (length, character) = match rest.as_bytes()[at + 1] {
            b'b' => (2, Some('\u{8}')),
            b'f' => (2, Some('\u{c}')),
            b'n' => (2, Some('\n')),
            b'r' => (2, Some('\r')),
            b't' => (2, Some('\t')),
            b'u' => {
                unicode_escape(&rest.as_bytes()[at..]).expect("escapes are checked when they are scanned")
            }
            plain => (2, Some(char::from(plain))),
        };
        decoded.push(character.filter(|&character| character != '\0').unwrap_or('\u{fffd}'));
        rest = &rest[at + length..];
    }
    decoded.push_str(rest);
}
