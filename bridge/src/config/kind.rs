//! The syntaxes of values: how a setting is written, what is allowed, how it is shown.
//!
//! What a kind shows, it also reads, and gets the same value. A refusal says what was wrong and what is allowed;
//! where the value came from is added by the caller.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tidegate_broker::journal::SyncPolicy;

use super::key::Raw;
use super::source;

/// One way of writing a `T`.
pub(super) trait Kind<T> {
    /// Reads a value. The error says what is wrong and what is allowed, without the value's origin.
    fn parse(&self, text: &str) -> Result<T, String>;
    /// Writes a value so that [`Kind::parse`] reads the same; `None` when it is not set.
    fn show(&self, value: &T) -> Option<String>;
    /// Reads a value that may be a list or a table where the kind takes one.
    fn read(&self, raw: &Raw) -> Result<T, String> {
        self.parse(raw.one()?)
    }
}

/// Any text; empty means not set.
pub(super) struct Text;

impl Kind<String> for Text {
    fn parse(&self, text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
    fn show(&self, value: &String) -> Option<String> {
        (!value.is_empty()).then(|| quoted(value))
    }
}

impl Kind<Option<String>> for Text {
    fn parse(&self, text: &str) -> Result<Option<String>, String> {
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }
    fn show(&self, value: &Option<String>) -> Option<String> {
        value.as_deref().map(quoted)
    }
}

impl Kind<PathBuf> for Text {
    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        if text.is_empty() { Err("is empty: write a path".to_owned()) } else { Ok(PathBuf::from(text)) }
    }
    fn show(&self, value: &PathBuf) -> Option<String> {
        Some(quoted(&value.to_string_lossy()))
    }
}

impl Kind<Option<PathBuf>> for Text {
    fn parse(&self, text: &str) -> Result<Option<PathBuf>, String> {
        Ok((!text.is_empty()).then(|| PathBuf::from(text)))
    }
    fn show(&self, value: &Option<PathBuf>) -> Option<String> {
        value.as_ref().map(|path| quoted(&path.to_string_lossy()))
    }
}

/// `true` or `false`, also as yes/no, on/off and 1/0.
pub(super) struct Switch;

impl Kind<bool> for Switch {
    fn parse(&self, text: &str) -> Result<bool, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(format!("{} is neither true nor false", quoted(text))),
        }
    }
    fn show(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

/// Any number of texts: a TOML list, or one text with commas.
pub(super) struct List;

impl Kind<Vec<String>> for List {
    fn parse(&self, text: &str) -> Result<Vec<String>, String> {
        if text.starts_with('[') {
            return match source::value(text)? {
                list @ Raw::List(_) => self.read(&list),
                Raw::One(_) | Raw::Table(_) => Err(format!("{} is not a list of texts", quoted(text))),
            };
        }
        Ok(text.split(',').map(str::trim).filter(|each| !each.is_empty()).map(str::to_owned).collect())
    }
    fn show(&self, value: &Vec<String>) -> Option<String> {
        let texts: Vec<String> = value.iter().map(|each| quoted(each)).collect();
        Some(format!("[{}]", texts.join(", ")))
    }
    fn read(&self, raw: &Raw) -> Result<Vec<String>, String> {
        match raw {
            Raw::List(values) => values.iter().map(|value| value.one().map(str::to_owned)).collect(),
            Raw::One(_) | Raw::Table(_) => self.parse(raw.one()?),
        }
    }
}

/// An address to listen on: `0.0.0.0:1883`, `[::]:1883`, `localhost:1883`, or a port alone for every address.
pub(super) struct Address;

impl Kind<SocketAddr> for Address {
    fn parse(&self, text: &str) -> Result<SocketAddr, String> {
        let refuse =
            || format!("{} is not an address: write IP:PORT, as in 0.0.0.0:1883 or [::]:1883", quoted(text));
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port = port.parse().map_err(|_| refuse())?;
        Ok(SocketAddr::new(host_ip(host).ok_or_else(refuse)?, port))
    }
    fn show(&self, value: &SocketAddr) -> Option<String> {
        Some(quoted(&value.to_string()))
    }
}

/// A value of another kind, or `off`.
pub(super) struct OrOff<K>(pub(super) K);

impl<T, K: Kind<T>> Kind<Option<T>> for OrOff<K> {
    fn parse(&self, text: &str) -> Result<Option<T>, String> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(None);
        }
        self.0.parse(text).map(Some).map_err(|error| format!("{error}, or off"))
    }
    fn show(&self, value: &Option<T>) -> Option<String> {
        value.as_ref().map_or_else(|| Some(quoted("off")), |value| self.0.show(value))
    }
}

/// The permissions of a file, in octal.
pub(super) struct Mode;

impl Kind<u32> for Mode {
    fn parse(&self, text: &str) -> Result<u32, String> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
        mode.ok_or_else(|| {
            format!("{} is not the mode of a file: write it in octal, as in \"0660\"", quoted(text))
        })
    }
    fn show(&self, value: &u32) -> Option<String> {
        Some(quoted(&format!("{value:04o}")))
    }
}

/// Any number of values that are written as one text each.
pub(super) struct Each;

impl<T: Display + FromStr<Err: Display>> Kind<Vec<T>> for Each {
    fn parse(&self, text: &str) -> Result<Vec<T>, String> {
        self.read(&Raw::One(text.to_owned()))
    }
    fn show(&self, value: &Vec<T>) -> Option<String> {
        List.show(&value.iter().map(T::to_string).collect())
    }
    fn read(&self, raw: &Raw) -> Result<Vec<T>, String> {
        let read = |text: &String| text.parse().map_err(|error| format!("{} {error}", quoted(text)));
        List.read(raw)?.iter().map(read).collect()
    }
}

/// The address a bare host stands for; names other than `localhost` are not resolved.
pub(super) fn host_ip(host: &str) -> Option<IpAddr> {
    match host {
        "" | "*" => Some(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        "::" => Some(Ipv6Addr::UNSPECIFIED.into()),
        other => other.parse().ok(),
    }
}

/// A whole number from `min` to `max`.
pub(super) struct Count {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl<T: Copy + Display + TryFrom<u64>> Kind<T> for Count {
    fn parse(&self, text: &str) -> Result<T, String> {
        let value = text.replace('_', "").parse().ok().filter(|n| (self.min..=self.max).contains(n));
        value.and_then(|n| T::try_from(n).ok()).ok_or_else(|| {
            format!("{} is not a whole number from {} to {}", quoted(text), self.min, self.max)
        })
    }
    fn show(&self, value: &T) -> Option<String> {
        Some(value.to_string())
    }
}

/// A number of bytes from `min` to `max`: `67108864`, `64MiB`, `1GB`.
pub(super) struct Size {
    pub(super) min: u64,
    pub(super) max: u64,
}

/// Units of size, the largest binary ones first so that what is shown is exact and short.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl<T: Copy + TryFrom<u64> + TryInto<u64>> Kind<T> for Size {
    fn parse(&self, text: &str) -> Result<T, String> {
        let bytes = with_unit(text, 1, |unit| {
            SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, bytes)| *bytes)
        });
        let bytes =
            bytes.ok_or_else(|| format!("{} is not a size: write bytes, or 64MiB, 1GB", quoted(text)))?;
        if !(self.min..=self.max).contains(&bytes) {
            let (min, max) = (size(self.min), size(self.max));
            return Err(format!("{} is not allowed: from {min} to {max}", quoted(text)));
        }
        T::try_from(bytes).map_err(|_| format!("{} is too large for this machine", quoted(text)))
    }
    fn show(&self, value: &T) -> Option<String> {
        (*value).try_into().ok().map(|bytes| quoted(&size(bytes)))
    }
}

/// A size as people write it.
pub fn size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// A span of time from `min` to `max`: `500ms`, `30s`, `15m`, `12h`, `7d`; where it can be absent, also `never`.
pub(super) struct Period {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

/// Units of time in milliseconds, the largest first.
const PERIOD_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Kind<Duration> for Period {
    fn parse(&self, text: &str) -> Result<Duration, String> {
        let milliseconds = with_unit(text, 1_000, |unit| {
            PERIOD_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms)
        });
        let refuse = || format!("{} is not a span of time: write 500ms, 30s, 15m, 12h or 7d", quoted(text));
        let value = Duration::from_millis(milliseconds.ok_or_else(refuse)?);
        if (self.min..=self.max).contains(&value) {
            return Ok(value);
        }
        Err(format!("{} is not allowed: from {} to {}", quoted(text), period(self.min), period(self.max)))
    }
    fn show(&self, value: &Duration) -> Option<String> {
        Some(quoted(&period(*value)))
    }
}

impl Kind<Option<Duration>> for Period {
    fn parse(&self, text: &str) -> Result<Option<Duration>, String> {
        if text == "never" {
            return Ok(None);
        }
        self.parse(text).map(Some).map_err(|error: String| format!("{error}, or never"))
    }
    fn show(&self, value: &Option<Duration>) -> Option<String> {
        value.as_ref().map_or_else(|| Some(quoted("never")), |value| self.show(value))
    }
}

/// Whole days, or `forever`.
pub(super) struct Days {
    pub(super) max: u32,
}

impl Kind<Option<u32>> for Days {
    fn parse(&self, text: &str) -> Result<Option<u32>, String> {
        if text == "forever" {
            return Ok(None);
        }
        let days = text.strip_suffix('d').and_then(|days| days.trim_end().parse().ok());
        let days = days.filter(|days| (1..=self.max).contains(days));
        days.map(Some).ok_or_else(|| {
            format!("{} is not a number of days: write 1d to {}d, or forever", quoted(text), self.max)
        })
    }
    fn show(&self, value: &Option<u32>) -> Option<String> {
        Some(quoted(&value.map_or_else(|| "forever".to_owned(), |days| format!("{days}d"))))
    }
}

/// Whole seconds kept as a number.
pub(super) struct Seconds(pub(super) Period);

impl<T: Copy + TryFrom<u64> + Into<u64>> Kind<T> for Seconds {
    fn parse(&self, text: &str) -> Result<T, String> {
        let value: Duration = self.0.parse(text)?;
        if value.subsec_millis() != 0 {
            return Err(format!("{} is not a whole number of seconds", quoted(text)));
        }
        T::try_from(value.as_secs()).map_err(|_| format!("{} is too long", quoted(text)))
    }
    fn show(&self, value: &T) -> Option<String> {
        self.0.show(&Duration::from_secs((*value).into()))
    }
}

/// Milliseconds kept as a number.
pub(super) struct Millis(pub(super) Period);

impl<T: Copy + TryFrom<u128> + Into<u64>> Kind<T> for Millis {
    fn parse(&self, text: &str) -> Result<T, String> {
        let value: Duration = self.0.parse(text)?;
        T::try_from(value.as_millis()).map_err(|_| format!("{} is too long", quoted(text)))
    }
    fn show(&self, value: &T) -> Option<String> {
        self.0.show(&Duration::from_millis((*value).into()))
    }
}

/// A span of time as people write it.
pub fn period(value: Duration) -> String {
    let milliseconds = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    let unit =
        PERIOD_UNITS.iter().find(|(_, unit)| milliseconds >= *unit && milliseconds.is_multiple_of(*unit));
    unit.map_or_else(|| "0s".to_owned(), |(name, unit)| format!("{}{name}", milliseconds / unit))
}

/// A number with a unit behind it, perhaps with a space or a fraction; `bare` is the unit of a number alone.
fn with_unit(text: &str, bare: u64, unit: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (number, name) = (text[..end].replace('_', ""), text[end..].trim());
    let factor = if name.is_empty() { bare } else { unit(name)? };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let (whole, fraction) = number.split_once('.')?;
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| (1..=9).contains(digits))?;
    let thousandths = fraction.parse::<u64>().ok()?.checked_mul(factor)?;
    whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(thousandths / 10_u64.pow(digits))
}

/// One of a few words.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind<T> for Choice<T> {
    fn parse(&self, text: &str) -> Result<T, String> {
        let found = self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
            format!("{} is not one of: {}", quoted(text), names.join(", "))
        })
    }
    fn show(&self, value: &T) -> Option<String> {
        self.0.iter().find(|(_, each)| each == value).map(|(name, _)| quoted(name))
    }
}

/// `always`, `never`, or the longest time between two syncs.
pub(super) struct Sync;

impl Kind<SyncPolicy> for Sync {
    fn parse(&self, text: &str) -> Result<SyncPolicy, String> {
        let interval = Period { min: Duration::from_millis(1), max: Duration::from_secs(3_600) };
        match text {
            "always" => Ok(SyncPolicy::Always),
            "never" => Ok(SyncPolicy::Never),
            other => interval.parse(other).map(SyncPolicy::Interval).map_err(|_| {
                format!("{} is not one of: always, never, or a span of time from 1ms to 1h", quoted(text))
            }),
        }
    }
    fn show(&self, value: &SyncPolicy) -> Option<String> {
        Some(match value {
            SyncPolicy::Always => quoted("always"),
            SyncPolicy::Never => quoted("never"),
            SyncPolicy::Interval(interval) => quoted(&period(*interval)),
        })
    }
}

/// The text as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { min: 1, max: u64::MAX };
    const PERIOD: Period = Period { min: Duration::ZERO, max: Duration::from_secs(86_400 * 365) };

    /// Reads `text`, expects `value`, and expects that `shown` is how the value is written and reads back.
    fn check<T: PartialEq + std::fmt::Debug>(kind: &impl Kind<T>, text: &str, value: T, shown: &str) {
        let read = kind.parse(text).unwrap();
        assert_eq!(read, value, "{text}");
        assert_eq!(kind.show(&read).as_deref(), Some(shown), "{text}");
        assert_eq!(kind.parse(shown.trim_matches('"')).unwrap(), value, "{shown}");
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        check(&SIZE, "67108864", 67_108_864_u64, "\"64MiB\"");
        check(&SIZE, "64MiB", 67_108_864_u64, "\"64MiB\"");
        check(&SIZE, "1 GB", 1_000_000_000_u64, "\"1GB\"");
        check(&SIZE, "1.5gib", 1_610_612_736_usize, "\"1536MiB\"");
        check(&SIZE, "10_001", 10_001_u64, "\"10001B\"");
        for bad in ["", "MiB", "-1", "64 MiBs", "1.2.3GB", "99999999TiB", "0", "1e6"] {
            assert!(Kind::<u64>::parse(&SIZE, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_of_time_are_read_with_units_and_seconds_without() {
        check(&PERIOD, "7d", Duration::from_secs(604_800), "\"7d\"");
        check(&PERIOD, "30", Duration::from_secs(30), "\"30s\"");
        check(&PERIOD, "1.5s", Duration::from_millis(1_500), "\"1500ms\"");
        check(&PERIOD, "90m", Duration::from_secs(5_400), "\"90m\"");
        check(&PERIOD, "0s", Duration::ZERO, "\"0s\"");
        check(&PERIOD, "never", None::<Duration>, "\"never\"");
        check(&Seconds(PERIOD), "2h", 7_200_u32, "\"2h\"");
        for bad in ["", "d", "7 days", "-1s", "500d"] {
            assert!(Kind::<Duration>::parse(&PERIOD, bad).is_err(), "{bad}");
        }
        assert!(Kind::<u16>::parse(&Seconds(PERIOD), "1d").is_err(), "86,400 does not fit 16 bits");
        assert!(Kind::<u16>::parse(&Seconds(PERIOD), "1500ms").is_err());
    }

    #[test]
    fn addresses_are_read_with_a_name_only_for_this_machine() {
        let check = |text, shown| check(&Address, text, shown_address(shown), &format!("\"{shown}\""));
        check("0.0.0.0:1883", "0.0.0.0:1883");
        check("[::]:1883", "[::]:1883");
        check("localhost:80", "127.0.0.1:80");
        check(":1883", "0.0.0.0:1883");
        check("*:1883", "0.0.0.0:1883");
        check("1883", "0.0.0.0:1883");
        for bad in ["", "example.org:1883", "0.0.0.0", "0.0.0.0:70000", "tcp://0.0.0.0:1883", "::1:1883:"] {
            assert!(Address.parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn listeners_can_be_off() {
        let kind = OrOff(Address);
        check(&kind, "0.0.0.0:9001", Some(shown_address("0.0.0.0:9001")), "\"0.0.0.0:9001\"");
        check(&kind, "OFF", None, "\"off\"");
        assert!(kind.parse("no").unwrap_err().ends_with(", or off"));
    }

    #[test]
    fn modes_are_octal() {
        check(&Mode, "0660", 0o660, "\"0660\"");
        check(&Mode, "600", 0o600, "\"0600\"");
        check(&Mode, "0o777", 0o777, "\"0777\"");
        for bad in ["", "0888", "-1", "1777", "rw"] {
            assert!(Mode.parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        use tidegate_broker::server::Network;
        let network = |text: &str| text.parse::<Network>().unwrap();
        let both = vec![network("127.0.0.1"), network("10.0.0.0/8")];
        check(&Each, "127.0.0.1, 10.0.0.0/8", both.clone(), "[\"127.0.0.1\", \"10.0.0.0/8\"]");
        check(&Each, "", Vec::<Network>::new(), "[]");
        let refusal = Kind::<Vec<Network>>::parse(&Each, "proxy.example").unwrap_err();
        assert!(refusal.contains("is not an address or a network"), "{refusal}");
    }

    fn shown_address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn sync_is_a_word_or_a_span_of_time() {
        check(&Sync, "always", SyncPolicy::Always, "\"always\"");
        check(&Sync, "never", SyncPolicy::Never, "\"never\"");
        check(&Sync, "200ms", SyncPolicy::Interval(Duration::from_millis(200)), "\"200ms\"");
        for bad in ["", "sometimes", "0s", "2h"] {
            assert!(Sync.parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_what_is_allowed() {
        let refusal = Kind::<u16>::parse(&Count { min: 1, max: 100 }, "101").unwrap_err();
        assert_eq!(refusal, "\"101\" is not a whole number from 1 to 100");
        let refusal = Choice(&[("refuse", 1), ("drop-oldest", 2)]).parse("drop").unwrap_err();
        assert_eq!(refusal, "\"drop\" is not one of: refuse, drop-oldest");
    }
}
