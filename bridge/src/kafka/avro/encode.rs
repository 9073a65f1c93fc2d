//! From JSON to Avro's binary form (specification 1.12.0, "Binary encoding"), by a [`Schema`]; pure.
//!
//! What a JSON value may be for each type:
//!
//! - `null`, `boolean`: the same. `string`: a string.
//! - `int`, `long`: a whole number in range, also written `72.0` or `7.2e1`. `float`, `double`: any number in range.
//! - `bytes`, `fixed`: a string of characters up to U+00FF, each of which is one byte, as in Avro's own JSON.
//! - `enum`: one of its symbols. `array`: an array. `map`: an object.
//! - `record`: an object. A field that is missing gets its default, else null if its type has null; else it is a
//!   misfit. Members that are no field are passed over. Of two members with one name the last counts.
//! - union: for an object whose only member is called like a branch, that branch, as in Avro's own JSON; else, and if
//!   that does not fit, the first branch that fits.
//! - `date` is also taken as `"2025-07-27"`, `time-millis` and `time-micros` as `"14:30:00.5"`, `timestamp-millis`,
//!   `-micros` and `-nanos` as RFC 3339 text; as numbers they stay what they are. What is finer than the type is cut
//!   off.
//! - `decimal`: a number, or a string that holds one, with no more decimal places than its scale.
//!
//! Nothing is rounded but to the nearest `float` or `double`. What does not fit is told with its place; then nothing
//! is written. However a payload is made, the work on it has a limit.

use std::borrow::Cow;
use std::fmt;

use super::json::{self, Kind};
use super::number::{self, NumberError};
use super::schema::{FieldDefault, IntLogical, LongLogical, Schema, Type, TypeId};

/// How deep values may nest.
const DEPTH_MAX: u32 = 64;
/// How many bytes of arrays and objects may be gone through for each byte of the payload, and beside that: each is gone
/// through once for the level that it lies in, and again for each branch of a union that is tried.
const EFFORT_PER_BYTE: usize = DEPTH_MAX as usize;
const EFFORT_MIN: usize = 64 << 10;
/// How much of what was found is told, in characters.
const FOUND_MAX: usize = 40;

/// What of a payload does not fit the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Where, as a JSON pointer; empty for the payload itself.
    pub path: String,
    /// What was expected there, and what was found.
    pub what: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the payload" } else { &self.path };
        write!(f, "{path}: {}", self.what)
    }
}

impl std::error::Error for Misfit {}

impl Schema {
    /// Appends `payload`, which is JSON, to `out` in Avro's binary form; or tells what does not fit, and appends
    /// nothing.
    pub fn encode(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Misfit> {
        let whole = |what: String| Misfit { path: String::new(), what };
        let json =
            str::from_utf8(payload).map_err(|error| whole(format!("no JSON, as it is no UTF-8: {error}")))?;
        let json = json.trim_matches([' ', '\t', '\n', '\r']);
        if json.is_empty() {
            return Err(whole("no JSON, as it is empty".to_owned()));
        }
        // Objects and arrays are checked as they are gone through.
        let outer = match self.of(self.root) {
            Type::Record { .. } | Type::Map(_) => Some(Kind::Object),
            Type::Array(_) => Some(Kind::Array),
            Type::Null
            | Type::Boolean
            | Type::Int(_)
            | Type::Long(_)
            | Type::Float
            | Type::Double
            | Type::String
            | Type::Bytes(_)
            | Type::Fixed { .. }
            | Type::Enum { .. }
            | Type::Union(_) => None,
        };
        if outer != Some(json::kind(json)) {
            json::whole(json).map_err(|error| whole(format!("no JSON: {error}")))?;
        }
        let start = out.len();
        let walked = Walk::new(self, json.len()).any(self.root, json, out);
        if walked.is_err() {
            out.truncate(start);
        }
        walked
    }
}

/// The way through one JSON text.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    schema: &'a Schema,
    /// How many bytes may still be gone through.
    effort: usize,
}

/// What does not fit, before it is put into words: in a union that is no more than a reason to try another branch.
#[derive(Debug)]
struct Wrong<'a> {
    expected: TypeId,
    found: &'a str,
    because: Because,
    /// From the inside out.
    path: Vec<Step<'a>>,
}

#[derive(Debug)]
enum Step<'a> {
    Name(Cow<'a, str>),
    Place(usize),
}

#[derive(Debug)]
enum Because {
    Kind,
    Range,
    Fraction,
    Symbol,
    Bytes,
    Latin,
    Surrogate,
    Time,
    Missing,
    Depth,
    Effort,
    Json(serde_json::Error),
}

impl<'a> Wrong<'a> {
    fn within(mut self, step: Step<'a>) -> Self {
        self.path.push(step);
        self
    }
}

type Done<'a> = Result<(), Wrong<'a>>;

impl<'a> Walk<'a> {
    /// For a text of so many bytes.
    pub(super) fn new(schema: &'a Schema, bytes: usize) -> Self {
        Self { schema, effort: bytes.saturating_mul(EFFORT_PER_BYTE).saturating_add(EFFORT_MIN) }
    }

    /// Appends `json` to `out`, as a value of the type `id`.
    pub(super) fn any(mut self, id: TypeId, json: &'a str, out: &mut Vec<u8>) -> Result<(), Misfit> {
        self.value(id, json, 0, out).map_err(|wrong| self.put_into_words(wrong))
    }

    fn value(&mut self, id: TypeId, json: &'a str, depth: u32, out: &mut Vec<u8>) -> Done<'a> {
        let wrong = |because| Wrong { expected: id, found: json, because, path: Vec::new() };
        if depth > DEPTH_MAX {
            return Err(wrong(Because::Depth));
        }
        let kind = json::kind(json);
        if matches!(kind, Kind::Array | Kind::Object) && !matches!(self.schema.of(id), Type::Union(_)) {
            self.effort = self.effort.checked_sub(json.len()).ok_or_else(|| wrong(Because::Effort))?;
        }
        let schema = self.schema;
        match (schema.of(id), kind) {
            (Type::Union(branches), _) => return self.union(id, branches, json, depth, out),
            (Type::Null, Kind::Null) => {}
            (Type::Boolean, Kind::Boolean) => out.push(u8::from(json == "true")),
            (Type::Int(logical), kind) => {
                let number = match (kind, logical) {
                    (Kind::Number, _) => number::whole(json).map_err(|error| wrong(error.into()))?,
                    (Kind::String, IntLogical::Date) => date(json).ok_or_else(|| wrong(Because::Time))?,
                    (Kind::String, IntLogical::TimeMillis) => {
                        time(json).ok_or_else(|| wrong(Because::Time))? / 1_000_000
                    }
                    _ => return Err(wrong(Because::Kind)),
                };
                i32::try_from(number).map_err(|_| wrong(Because::Range))?;
                write_long(number, out);
            }
            (Type::Long(_), Kind::Number) => {
                write_long(number::whole(json).map_err(|error| wrong(error.into()))?, out);
            }
            (Type::Long(logical), Kind::String) if *logical != LongLogical::None => {
                write_long(moment(*logical, json).ok_or_else(|| wrong(Because::Time))?, out);
            }
            (Type::Float, Kind::Number) => {
                let number: f32 = json.parse().map_err(|_| wrong(Because::Kind))?;
                if number.is_infinite() {
                    return Err(wrong(Because::Range));
                }
                out.extend_from_slice(&number.to_le_bytes());
            }
            (Type::Double, Kind::Number) => {
                let number: f64 = json.parse().map_err(|_| wrong(Because::Kind))?;
                if number.is_infinite() {
                    return Err(wrong(Because::Range));
                }
                out.extend_from_slice(&number.to_le_bytes());
            }
            (Type::String, Kind::String) => {
                let text = json::text(json).ok_or_else(|| wrong(Because::Surrogate))?;
                write_bytes(text.as_bytes(), out);
            }
            (Type::Bytes(Some(decimal)), Kind::Number | Kind::String) => {
                let bytes = unscaled(json, *decimal).map_err(wrong)?;
                write_bytes(&bytes, out);
            }
            (Type::Fixed { bytes, decimal: Some(decimal), .. }, Kind::Number | Kind::String) => {
                let number = unscaled(json, *decimal).map_err(wrong)?;
                // By its precision it fits.
                let sign = if number.first().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
                out.resize(out.len() + bytes.saturating_sub(number.len()), sign);
                out.extend_from_slice(&number);
            }
            (Type::Bytes(None), Kind::String) => {
                write_bytes(&latin(json).map_err(wrong)?, out);
            }
            (Type::Fixed { bytes, decimal: None, .. }, Kind::String) => {
                let found = latin(json).map_err(wrong)?;
                if found.len() != *bytes {
                    return Err(wrong(Because::Bytes));
                }
                out.extend_from_slice(&found);
            }
            (Type::Enum { symbols, .. }, Kind::String) => {
                let symbol = json::text(json).ok_or_else(|| wrong(Because::Surrogate))?;
                write_long(*symbols.get(&*symbol).ok_or_else(|| wrong(Because::Symbol))?, out);
            }
            (Type::Array(of), Kind::Array) | (Type::Map(of), Kind::Object) => {
                return self.items(id, *of, json, depth, out);
            }
            (Type::Record { .. }, Kind::Object) => return self.record(id, json, depth, out),
            _ => return Err(wrong(Because::Kind)),
        }
        Ok(())
    }

    fn union(
        &mut self,
        id: TypeId,
        branches: &'a [TypeId],
        json: &'a str,
        depth: u32,
        out: &mut Vec<u8>,
    ) -> Done<'a> {
        let start = out.len();
        let is_object = json::kind(json) == Kind::Object;
        if is_object && let Some((number, branch, inner)) = self.tagged(branches, json) {
            write_long(number, out);
            if self.value(branch, inner, depth, out).is_ok() {
                return Ok(());
            }
            out.truncate(start);
        }
        let mut deepest: Option<Wrong<'a>> = None;
        for (&branch, number) in branches.iter().zip(0..) {
            write_long(number, out);
            match self.value(branch, json, depth, out) {
                Ok(()) => return Ok(()),
                Err(wrong @ Wrong { because: Because::Effort, .. }) => return Err(wrong),
                Err(wrong) if deepest.as_ref().is_none_or(|known| known.path.len() < wrong.path.len()) => {
                    deepest = Some(wrong);
                }
                Err(_) => {}
            }
            out.truncate(start);
        }
        // What one branch misses inside says more than that none fits; so does what its only branch beside null says.
        let speaks = |wrong: &Wrong<'_>| !wrong.path.is_empty() || !matches!(wrong.because, Because::Kind);
        Err(deepest.filter(speaks).unwrap_or(Wrong {
            expected: id,
            found: json,
            because: Because::Kind,
            path: Vec::new(),
        }))
    }

    /// The branch that the only member of `json` is called like, and the value of that member.
    fn tagged(&mut self, branches: &[TypeId], json: &'a str) -> Option<(i64, TypeId, &'a str)> {
        self.effort = self.effort.saturating_sub(json.len());
        let mut only = None;
        let mut count = 0;
        json::members(json, |name, value| {
            count += 1;
            only = Some((name, value));
            count < 2
        })
        .ok()?;
        let (name, value) = only.filter(|_| count == 1)?;
        let (&branch, number) =
            branches.iter().zip(0..).find(|&(&branch, _)| self.schema.name(branch) == name)?;
        Some((number, branch, value))
    }

    /// The elements of an array, or the members of a map behind their names, as one block.
    fn items(&mut self, id: TypeId, of: TypeId, json: &'a str, depth: u32, out: &mut Vec<u8>) -> Done<'a> {
        let start = begin_block(out);
        let is_map = matches!(self.schema.of(id), Type::Map(_));
        let mut count = 0;
        let mut done = Ok(());
        let mut item = |name: Option<Cow<'a, str>>, value: &'a str| {
            let step = match name {
                Some(name) => {
                    write_bytes(name.as_bytes(), out);
                    Step::Name(name)
                }
                None => Step::Place(usize::try_from(count).unwrap_or(usize::MAX)),
            };
            done = self.value(of, value, depth + 1, out).map_err(|wrong| wrong.within(step));
            count += 1;
            done.is_ok()
        };
        let read = if is_map {
            json::members(json, |name, value| item(Some(name), value))
        } else {
            json::elements(json, |value| item(None, value))
        };
        read.map_err(|error| no_json(id, json, error))?;
        done?;
        end_block(start, count, out);
        Ok(())
    }

    fn record(&mut self, id: TypeId, json: &'a str, depth: u32, out: &mut Vec<u8>) -> Done<'a> {
        let Type::Record { fields, places, .. } = self.schema.of(id) else { return Ok(()) };
        let mut values: Vec<Option<&'a str>> = vec![None; fields.len()];
        // Members mostly come in the order of the fields.
        let mut next = 0;
        json::members(json, |name, value| {
            let expected = fields.get(next).is_some_and(|field| field.name == name);
            if let Some(place) = if expected { Some(next) } else { places.get(&*name).copied() } {
                values[place] = Some(value);
                next = place + 1;
            }
            true
        })
        .map_err(|error| no_json(id, json, error))?;
        for (field, value) in fields.iter().zip(values) {
            let done = match (value, &field.default) {
                (Some(value), _) => self.value(field.of, value, depth + 1, out),
                (None, FieldDefault::Encoded(bytes)) => {
                    out.extend_from_slice(bytes);
                    Ok(())
                }
                (None, FieldDefault::Json(default)) => self.value(field.of, default, depth + 1, out),
                (None, FieldDefault::None) => self.value(field.of, "null", depth + 1, out).map_err(|_| {
                    Wrong { expected: field.of, found: "", because: Because::Missing, path: Vec::new() }
                }),
            };
            done.map_err(|wrong| wrong.within(Step::Name(Cow::Borrowed(&field.name))))?;
        }
        Ok(())
    }

    fn put_into_words(&self, wrong: Wrong<'a>) -> Misfit {
        let mut path = String::new();
        for step in wrong.path.iter().rev() {
            path.push('/');
            match step {
                // RFC 6901 section 3.
                Step::Name(name) => path.push_str(&name.replace('~', "~0").replace('/', "~1")),
                Step::Place(place) => path.push_str(&place.to_string()),
            }
        }
        let (expected, found) = (self.described(wrong.expected), shown(wrong.found));
        let what = match wrong.because {
            Because::Kind | Because::Symbol => format!("expected {expected}, found {found}"),
            Because::Range => format!("expected {expected}, found {found}, which is out of range"),
            Because::Fraction => {
                format!("expected {expected}, found {found}, which has too many decimal places")
            }
            Because::Bytes => format!("expected {expected}, found {found}, which has another length"),
            Because::Latin => {
                format!("expected {expected} as characters up to U+00FF, found {found}, which has others")
            }
            Because::Surrogate => {
                format!("expected {expected}, found {found}, in which an escape is half a character")
            }
            Because::Time => format!("expected {expected}, found {found}, which cannot be read as one"),
            Because::Missing => "missing and the schema has no default".to_owned(),
            Because::Depth => format!("nested deeper than {DEPTH_MAX} levels"),
            Because::Effort => "nested in too many ways for the unions of the schema".to_owned(),
            Because::Json(error) => format!("no JSON: {error}"),
        };
        Misfit { path, what }
    }

    fn described(&self, id: TypeId) -> String {
        let name = self.schema.name(id);
        match self.schema.of(id) {
            Type::Union(branches) => {
                let names: Vec<&str> = branches.iter().map(|&branch| self.schema.name(branch)).collect();
                match names.as_slice() {
                    [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
                    other => other.concat(),
                }
            }
            Type::Record { .. } => format!("the record {name}"),
            Type::Enum { symbols, .. } => {
                let mut listed: Vec<_> = symbols.iter().collect();
                listed.sort_by_key(|(_, number)| **number);
                let listed: Vec<_> = listed.iter().take(10).map(|(symbol, _)| symbol.as_str()).collect();
                let more = if listed.len() < symbols.len() { ", ..." } else { "" };
                format!("a symbol of {name} ({}{more})", listed.join(", "))
            }
            Type::Fixed { decimal: Some(decimal), .. } | Type::Bytes(Some(decimal)) => {
                format!("decimal({}, {})", decimal.precision, decimal.scale)
            }
            Type::Fixed { bytes, .. } => format!("the fixed {name} of {bytes} bytes"),
            Type::Int(IntLogical::Date) => "date".to_owned(),
            Type::Int(IntLogical::TimeMillis) => "time-millis".to_owned(),
            Type::Long(LongLogical::TimeMicros) => "time-micros".to_owned(),
            Type::Long(LongLogical::TimestampMillis) => "timestamp-millis".to_owned(),
            Type::Long(LongLogical::TimestampMicros) => "timestamp-micros".to_owned(),
            Type::Long(LongLogical::TimestampNanos) => "timestamp-nanos".to_owned(),
            Type::Null
            | Type::Boolean
            | Type::Int(IntLogical::None)
            | Type::Long(LongLogical::None)
            | Type::Float
            | Type::Double
            | Type::String
            | Type::Bytes(None)
            | Type::Array(_)
            | Type::Map(_) => name.to_owned(),
        }
    }
}

fn no_json(expected: TypeId, found: &str, error: serde_json::Error) -> Wrong<'_> {
    Wrong { expected, found, because: Because::Json(error), path: Vec::new() }
}

impl From<NumberError> for Because {
    fn from(error: NumberError) -> Self {
        match error {
            NumberError::Range => Self::Range,
            NumberError::Fraction => Self::Fraction,
        }
    }
}

/// `json` as it is told.
fn shown(json: &str) -> String {
    match json::kind(json) {
        Kind::Array => "an array".to_owned(),
        Kind::Object => "an object".to_owned(),
        Kind::Null | Kind::Boolean | Kind::Number | Kind::String => {
            match json.char_indices().nth(FOUND_MAX) {
                Some((end, _)) => format!("{}...", &json[..end]),
                None => json.to_owned(),
            }
        }
    }
}

/// The bytes that a JSON string stands for.
fn latin(json: &str) -> Result<Vec<u8>, Because> {
    let text = json::text(json).ok_or(Because::Surrogate)?;
    text.chars().map(|character| u8::try_from(character).map_err(|_| Because::Latin)).collect()
}

/// A decimal, written as a number or as a string that holds one.
fn unscaled(json: &str, decimal: super::schema::Decimal) -> Result<Vec<u8>, Because> {
    let text = if json::kind(json) == Kind::String {
        json::text(json).ok_or(Because::Surrogate)?
    } else {
        Cow::Borrowed(json)
    };
    number::unscaled(&text, decimal).ok_or(Because::Kind)?.map_err(Because::from)
}

/// Days since 1970.
fn date(json: &str) -> Option<i64> {
    let date: jiff::civil::Date = json::text(json)?.parse().ok()?;
    let midnight = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    Some(midnight.as_second().div_euclid(86_400))
}

/// Nanoseconds since midnight.
fn time(json: &str) -> Option<i64> {
    let time: jiff::civil::Time = json::text(json)?.parse().ok()?;
    let seconds = i64::from(time.hour()) * 3_600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    Some(seconds * 1_000_000_000 + i64::from(time.subsec_nanosecond()))
}

fn moment(logical: LongLogical, json: &str) -> Option<i64> {
    if logical == LongLogical::TimeMicros {
        return time(json).map(|nanoseconds| nanoseconds / 1_000);
    }
    let moment: jiff::Timestamp = json::text(json)?.parse().ok()?;
    let unit = match logical {
        LongLogical::TimestampMillis => 1_000_000,
        LongLogical::TimestampMicros => 1_000,
        LongLogical::TimestampNanos => 1,
        LongLogical::None | LongLogical::TimeMicros => return None,
    };
    i64::try_from(moment.as_nanosecond().div_euclid(unit)).ok()
}

/// A zigzag varint.
fn write_long(number: i64, out: &mut Vec<u8>) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_long(i64::try_from(bytes.len()).expect("a slice is no longer than i64::MAX"), out);
    out.extend_from_slice(bytes);
}

/// Leaves room for the count of a block, which is known only behind it. Returns where the block begins.
fn begin_block(out: &mut Vec<u8>) -> usize {
    out.push(0);
    out.len() - 1
}

/// Writes the count, and the empty block that ends an array or a map. One that is empty is that alone.
fn end_block(start: usize, count: i64, out: &mut Vec<u8>) {
    if count == 0 {
        return;
    }
    if count < 64 {
        out[start] = (count as u8) << 1;
    } else {
        let mut written = Vec::new();
        write_long(count, &mut written);
        out.splice(start..=start, written);
    }
    out.push(0);
}
