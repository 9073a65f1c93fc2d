//! An Avro schema (specification 1.12.0) as the encoder walks it; pure.
//!
//! Types lie in one list and name each other by their place in it, so that a type may contain itself. Names are
//! resolved, defaults are encoded, and what a logical type asks for is part of its type: nothing of this is left for
//! the time when records are encoded. What only readers need (documentation, aliases, order, an enum's default) is
//! passed over, and a logical type that is not known, or does not fit its type, counts for nothing, as the
//! specification has it.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

use super::encode::Walk;

/// How many types a schema may have, those of its references included.
const TYPES_MAX: usize = 20_000;

/// A schema, ready to encode by.
#[derive(Debug)]
pub struct Schema {
    pub(super) types: Vec<Type>,
    pub(super) root: TypeId,
}

/// A place in [`Schema::types`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TypeId(u32);

/// One type.
#[derive(Debug)]
pub(super) enum Type {
    Null,
    Boolean,
    Int(IntLogical),
    Long(LongLogical),
    Float,
    Double,
    String,
    Bytes(Option<Decimal>),
    Fixed { name: String, bytes: usize, decimal: Option<Decimal> },
    Enum { name: String, symbols: HashMap<String, i64> },
    Array(TypeId),
    Map(TypeId),
    Record { name: String, fields: Vec<Field>, places: HashMap<String, usize> },
    Union(Vec<TypeId>),
}

/// What an `int` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntLogical {
    None,
    Date,
    TimeMillis,
}

/// What a `long` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LongLogical {
    None,
    TimeMicros,
    TimestampMillis,
    TimestampMicros,
    TimestampNanos,
}

/// `unscaled × 10^-scale`, with at most `precision` digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    pub(super) precision: u32,
    pub(super) scale: u32,
}

/// A field of a record.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) of: TypeId,
    pub(super) default: FieldDefault,
}

/// What stands for a field that is missing.
#[derive(Debug)]
pub(super) enum FieldDefault {
    None,
    /// As JSON; only while the schema is made.
    Json(String),
    /// In Avro's binary form.
    Encoded(Vec<u8>),
}

/// Why a schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaError {
    /// Where in the schema, as a JSON pointer; empty for the whole.
    pub at: String,
    /// What is wrong there.
    pub why: String,
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() { f.write_str(&self.why) } else { write!(f, "at {}: {}", self.at, self.why) }
    }
}

impl std::error::Error for SchemaError {}

impl Schema {
    /// Reads a schema in JSON. `references` are the schemas whose types it names, each behind those that it names
    /// itself.
    pub fn parse(text: &str, references: &[String]) -> Result<Self, SchemaError> {
        let mut builder = Builder::default();
        for reference in references {
            builder.whole(reference)?;
        }
        let root = builder.whole(text)?;
        let mut schema = Self { types: builder.types, root };
        schema.encode_defaults()?;
        Ok(schema)
    }

    /// What the outermost type is called.
    pub fn root_name(&self) -> &str {
        self.name(self.root)
    }

    pub(super) fn of(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// What refusals, and Avro's JSON form of a union, call a type.
    pub(super) fn name(&self, id: TypeId) -> &str {
        match self.of(id) {
            Type::Null => "null",
            Type::Boolean => "boolean",
            Type::Int(_) => "int",
            Type::Long(_) => "long",
            Type::Float => "float",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes(_) => "bytes",
            Type::Array(_) => "array",
            Type::Map(_) => "map",
            Type::Union(_) => "union",
            Type::Fixed { name, .. } | Type::Enum { name, .. } | Type::Record { name, .. } => name,
        }
    }

    /// Defaults may rest on the defaults of the records in them, so all are encoded from their JSON before any is
    /// replaced.
    fn encode_defaults(&mut self) -> Result<(), SchemaError> {
        let mut encoded = Vec::new();
        for (place, each) in self.types.iter().enumerate() {
            let Type::Record { name, fields, .. } = each else { continue };
            for (number, field) in fields.iter().enumerate() {
                let FieldDefault::Json(json) = &field.default else { continue };
                let mut bytes = Vec::new();
                Walk::new(self, json.len()).any(field.of, json, &mut bytes).map_err(|misfit| {
                    let Field { name: field, .. } = field;
                    let why = format!("the default of the field {field} of {name} does not fit: {misfit}");
                    SchemaError { at: String::new(), why }
                })?;
                encoded.push((place, number, bytes));
            }
        }
        for (place, number, bytes) in encoded {
            if let Type::Record { fields, .. } = &mut self.types[place] {
                fields[number].default = FieldDefault::Encoded(bytes);
            }
        }
        Ok(())
    }
}

/// Reads schemas one after the other; what one has named, the next may name.
#[derive(Debug, Default)]
struct Builder {
    types: Vec<Type>,
    named: HashMap<String, TypeId>,
    /// Where in the schema it is.
    at: Vec<String>,
}

impl Builder {
    fn whole(&mut self, text: &str) -> Result<TypeId, SchemaError> {
        let value = match serde_json::from_str(text) {
            Ok(value) => value,
            // A registry may give the schema "string" as the word alone.
            Err(_) if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte)) => {
                Value::String(text.to_owned())
            }
            Err(error) => return Err(self.wrong(&format!("it is no JSON: {error}"))),
        };
        self.any(&value, "")
    }

    fn wrong(&self, why: &str) -> SchemaError {
        SchemaError { at: self.at.iter().map(|part| format!("/{part}")).collect(), why: why.to_owned() }
    }

    fn within<T>(
        &mut self,
        part: impl ToString,
        read: impl FnOnce(&mut Self) -> Result<T, SchemaError>,
    ) -> Result<T, SchemaError> {
        self.at.push(part.to_string());
        let result = read(self)?;
        self.at.pop();
        Ok(result)
    }

    fn add(&mut self, each: Type) -> Result<TypeId, SchemaError> {
        if self.types.len() >= TYPES_MAX {
            return Err(self.wrong(&format!("it has more than {TYPES_MAX} types")));
        }
        let place = u32::try_from(self.types.len()).expect("there are at most TYPES_MAX");
        self.types.push(each);
        Ok(TypeId(place))
    }

    /// Any form of a schema, inside `namespace`.
    fn any(&mut self, value: &Value, namespace: &str) -> Result<TypeId, SchemaError> {
        match value {
            Value::String(name) => match primitive(name, None) {
                Some(primitive) => self.add(primitive),
                None => self.known(name, namespace),
            },
            Value::Array(branches) => self.union(branches, namespace),
            Value::Object(object) => self.object(object, namespace),
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                Err(self.wrong(&format!("a type is a name, an object or a list, not {value}")))
            }
        }
    }

    fn known(&self, name: &str, namespace: &str) -> Result<TypeId, SchemaError> {
        let here = full_name(name, namespace);
        let found = self.named.get(&here).or_else(|| self.named.get(name));
        found.copied().ok_or_else(|| self.wrong(&format!("there is no type called {name:?}")))
    }

    fn union(&mut self, branches: &[Value], namespace: &str) -> Result<TypeId, SchemaError> {
        let mut read: Vec<TypeId> = Vec::with_capacity(branches.len());
        for (place, branch) in branches.iter().enumerate() {
            let branch = self.within(place, |builder| builder.any(branch, namespace))?;
            if matches!(self.types[branch.0 as usize], Type::Union(_)) {
                return Err(self.wrong("a union cannot hold another one"));
            }
            read.push(branch);
        }
        if read.is_empty() {
            return Err(self.wrong("a union needs a branch"));
        }
        self.add(Type::Union(read))
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<TypeId, SchemaError> {
        let name = match object.get("type") {
            Some(Value::String(name)) => name.as_str(),
            Some(inner @ (Value::Object(_) | Value::Array(_))) => {
                return self.within("type", |builder| builder.any(inner, namespace));
            }
            _ => return Err(self.wrong("it has no type")),
        };
        match name {
            "record" | "error" => self.record(object, namespace),
            "enum" => self.enumeration(object, namespace),
            "fixed" => self.fixed(object, namespace),
            "array" | "map" => {
                let part = if name == "array" { "items" } else { "values" };
                let inner = object.get(part).ok_or_else(|| self.wrong(&format!("it has no {part}")))?;
                let inner = self.within(part, |builder| builder.any(inner, namespace))?;
                self.add(if name == "array" { Type::Array(inner) } else { Type::Map(inner) })
            }
            _ => match primitive(name, Some(object)) {
                Some(primitive) => self.add(primitive),
                None => self.known(name, namespace),
            },
        }
    }

    /// The full name of a named type, and the namespace that holds inside it.
    fn called(&self, object: &Map<String, Value>, namespace: &str) -> Result<(String, String), SchemaError> {
        let Some(name) = object.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
            return Err(self.wrong("it has no name"));
        };
        let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
        let name = full_name(name, namespace);
        let namespace = name.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        Ok((name, namespace))
    }

    fn name_it(&mut self, name: &str, id: TypeId) -> Result<TypeId, SchemaError> {
        match self.named.insert(name.to_owned(), id) {
            None => Ok(id),
            Some(_) => Err(self.wrong(&format!("there are two types called {name}"))),
        }
    }

    fn record(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<TypeId, SchemaError> {
        let (name, namespace) = self.called(object, namespace)?;
        let Some(described) = object.get("fields").and_then(Value::as_array) else {
            return Err(self.wrong("a record needs a list of fields"));
        };
        // Named before its fields are read, which may hold it.
        let empty = Type::Record { name: name.clone(), fields: Vec::new(), places: HashMap::new() };
        let id = self.add(empty)?;
        self.name_it(&name, id)?;
        let fields = self.within("fields", |builder| {
            let read = |(place, field)| builder.within(place, |builder| builder.field(field, &namespace));
            described.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()
        })?;
        let places: HashMap<_, _> =
            fields.iter().enumerate().map(|(place, field)| (field.name.clone(), place)).collect();
        if places.len() < fields.len() {
            return Err(self.wrong(&format!("two fields of {name} have the same name")));
        }
        self.types[id.0 as usize] = Type::Record { name, fields, places };
        Ok(id)
    }

    fn field(&mut self, value: &Value, namespace: &str) -> Result<Field, SchemaError> {
        let name =
            value.get("name").and_then(Value::as_str).ok_or_else(|| self.wrong("a field has no name"))?;
        let of = value.get("type").ok_or_else(|| self.wrong(&format!("the field {name} has no type")))?;
        let of = self.within("type", |builder| builder.any(of, namespace))?;
        let default = value.get("default");
        let default = default.map_or(FieldDefault::None, |json| FieldDefault::Json(json.to_string()));
        Ok(Field { name: name.to_owned(), of, default })
    }

    fn enumeration(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<TypeId, SchemaError> {
        let (name, _) = self.called(object, namespace)?;
        let listed = object.get("symbols").and_then(Value::as_array);
        let listed = listed.ok_or_else(|| self.wrong("an enum needs a list of symbols"))?;
        let mut symbols = HashMap::with_capacity(listed.len());
        for (symbol, number) in listed.iter().zip(0..) {
            let symbol = symbol.as_str().ok_or_else(|| self.wrong("a symbol is a text"))?;
            if symbols.insert(symbol.to_owned(), number).is_some() {
                return Err(self.wrong(&format!("the symbol {symbol} is there twice")));
            }
        }
        let id = self.add(Type::Enum { name: name.clone(), symbols })?;
        self.name_it(&name, id)
    }

    fn fixed(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<TypeId, SchemaError> {
        let (name, _) = self.called(object, namespace)?;
        let size = object.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        let bytes = size.ok_or_else(|| self.wrong("a fixed needs a size in bytes"))?;
        let decimal = decimal(object).filter(|decimal| decimal.fits(bytes));
        let id = self.add(Type::Fixed { name: name.clone(), bytes, decimal })?;
        self.name_it(&name, id)
    }
}

impl Decimal {
    /// Whether every number of its precision fits so many bytes in two's complement.
    fn fits(self, bytes: usize) -> bool {
        // log2(10) is below 3.322; one bit is the sign.
        u128::from(self.precision) * 3_322 < (bytes as u128 * 8).saturating_sub(1) * 1_000
    }
}

/// A name with its namespace, unless it has one already.
fn full_name(name: &str, namespace: &str) -> String {
    if namespace.is_empty() || name.contains('.') {
        // A leading dot says that there is no namespace.
        name.strip_prefix('.').unwrap_or(name).to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

/// The primitive type called `name`, with what `object` adds to it.
fn primitive(name: &str, object: Option<&Map<String, Value>>) -> Option<Type> {
    let logical = object.and_then(|object| object.get("logicalType")).and_then(Value::as_str);
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int(match logical {
            Some("date") => IntLogical::Date,
            Some("time-millis") => IntLogical::TimeMillis,
            _ => IntLogical::None,
        }),
        "long" => Type::Long(match logical {
            Some("time-micros") => LongLogical::TimeMicros,
            Some("timestamp-millis") => LongLogical::TimestampMillis,
            Some("timestamp-micros") => LongLogical::TimestampMicros,
            Some("timestamp-nanos") => LongLogical::TimestampNanos,
            _ => LongLogical::None,
        }),
        "float" => Type::Float,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes(object.and_then(decimal)),
        _ => return None,
    })
}

/// The logical type `decimal`, if `object` has it and it is right.
fn decimal(object: &Map<String, Value>) -> Option<Decimal> {
    if object.get("logicalType")?.as_str()? != "decimal" {
        return None;
    }
    let number = |name: &str| object.get(name)?.as_u64().and_then(|number| u32::try_from(number).ok());
    let precision = number("precision").filter(|precision| (1..=Decimal::DIGITS_MAX).contains(precision))?;
    let scale = if object.contains_key("scale") { number("scale")? } else { 0 };
    (scale <= precision).then_some(Decimal { precision, scale })
}

impl Decimal {
    /// With more digits it is not taken for a decimal: the time for one grows with their square.
    const DIGITS_MAX: u32 = 1_000;
}
