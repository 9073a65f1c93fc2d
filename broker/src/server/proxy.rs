//! The PROXY protocol, versions 1 and 2 (haproxy's `doc/proxy-protocol.txt`): how a proxy in front tells whom it
//! carries.
//!
//! A header is believed only from a proxy that [`ProxyRules`] names, because it decides who counts as being on
//! this machine. A listener that expects a header takes no connection without one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;
/// The longest line of version 1, with its end.
const V1_BYTES_MAX: usize = 107;
/// The longest body of version 2 that is read: addresses and whatever a proxy adds to them.
const V2_BODY_BYTES_MAX: usize = 4_096;

/// From where the header is believed.
#[derive(Clone, Debug, Default)]
pub struct ProxyRules {
    /// The proxies.
    pub from: Vec<Network>,
}

impl ProxyRules {
    /// Whether `peer` is one of the proxies.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.from.iter().any(|network| network.contains(peer))
    }
}

/// One address, or all that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `peer` is in it. An IPv4 address written as IPv6 is the IPv4 address.
    pub fn contains(self, peer: IpAddr) -> bool {
        match (self.address, peer.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(peer)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == peer.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(peer)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == peer.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        if self.bits == whole { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.bits) }
    }
}

/// The text is neither an address nor a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an address or a network: write 192.0.2.7, 192.0.2.0/24, ::1")]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(whole), str::parse).map_err(|_| NotANetwork)?;
        if bits > whole { Err(NotANetwork) } else { Ok(Self { address, bits }) }
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// How many bytes it has.
    pub(super) bytes: usize,
    /// Whom the proxy carries; `None` when it speaks for itself (LOCAL) or cannot tell (UNKNOWN).
    pub(super) source: Option<IpAddr>,
}

/// The bytes are no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY header, or a malformed one")]
pub(super) struct Malformed;

/// Reads the header at the front of `bytes`; `None` when more bytes are needed.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let same = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..same] == V2_SIGNATURE[..same] { parse_v2(bytes) } else { parse_v1(bytes) }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    const START: &[u8] = b"PROXY ";
    let same = bytes.len().min(START.len());
    if bytes[..same] != START[..same] {
        return Err(Malformed);
    }
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if line.len() < V1_BYTES_MAX { Ok(None) } else { Err(Malformed) };
    };
    let text = std::str::from_utf8(&line[START.len()..end]).map_err(|_| Malformed)?;
    let header = |source| Ok(Some(Header { bytes: end + 2, source }));
    let mut words = text.split(' ');
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // Whatever else stands in the line is to be ignored.
        return header(None);
    }
    let mut next = || words.next().ok_or(Malformed);
    let (source, destination) = (next()?, next()?);
    let ports = [next()?, next()?];
    if words.next().is_some() || ports.into_iter().any(|port| !is_port(port)) {
        return Err(Malformed);
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| Malformed),
        "TCP6" => text.parse().map(IpAddr::V6).map_err(|_| Malformed),
        _ => Err(Malformed),
    };
    address(destination)?;
    header(Some(address(source)?))
}

fn is_port(text: &str) -> bool {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits && (text == "0" || !text.starts_with('0')) && text.parse::<u16>().is_ok()
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    // What is wrong in the head is told before the body comes.
    let (command, family) = (bytes.get(12).copied(), bytes.get(13).copied());
    if command.is_some_and(|command| command != LOCAL && command != PROXY) {
        return Err(Malformed);
    }
    let Some(head) = bytes.first_chunk::<V2_HEAD_BYTES>() else { return Ok(None) };
    let body_bytes = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let carried = match (command, family) {
        (Some(PROXY), Some(TCP4)) => 4,
        (Some(PROXY), Some(TCP6)) => 16,
        // Addresses that are no IP addresses of a TCP connection, or of nobody: to be skipped.
        _ => 0,
    };
    // Two addresses and two ports; behind them come extensions, which are skipped.
    let addresses = if carried == 0 { 0 } else { 2 * carried + 4 };
    if !(addresses..=V2_BODY_BYTES_MAX).contains(&body_bytes)
        || family.is_some_and(|family| !is_family(family))
    {
        return Err(Malformed);
    }
    let Some(body) = bytes.get(V2_HEAD_BYTES..V2_HEAD_BYTES + body_bytes) else { return Ok(None) };
    let source = match carried {
        4 => body.first_chunk::<4>().map(|ip| IpAddr::V4(Ipv4Addr::from(*ip))),
        16 => body.first_chunk::<16>().map(|ip| IpAddr::V6(Ipv6Addr::from(*ip))),
        _ => None,
    };
    Ok(Some(Header { bytes: V2_HEAD_BYTES + body_bytes, source }))
}

/// An address family (unspecified, IPv4, IPv6, Unix) and a transport (unspecified, stream, datagram).
const fn is_family(byte: u8) -> bool {
    byte >> 4 <= 3 && byte & 0x0F <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[track_caller]
    fn check(header: &[u8], source: Option<&str>) {
        let source = source.map(|source| source.parse().unwrap());
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end]), Ok(None), "{end} bytes of {header:x?}");
        }
        let more = [header, b"\x10\x0c\0\x04MQTT"].concat();
        assert_eq!(parse(&more), Ok(Some(Header { bytes: header.len(), source })), "{header:x?}");
    }

    #[test]
    fn both_versions_tell_the_source() {
        check(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", Some("192.0.2.7"));
        check(b"PROXY TCP6 2001:db8::7 2001:db8::1 0 65535\r\n", Some("2001:db8::7"));
        check(b"PROXY UNKNOWN\r\n", None);
        check(b"PROXY UNKNOWN ffff:f...f:ffff 1 2 3 whatever\r\n", None);
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0xDC, 0x04, 0x01, 0xBB];
        let extensions = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        check(&v2(0x21, 0x11, &v4), Some("192.0.2.7"));
        check(&v2(0x21, 0x11, &extensions), Some("192.0.2.7"));
        let ip: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let v6 = [&ip.octets()[..], &[0; 16], &[0, 1, 0, 2]].concat();
        check(&v2(0x21, 0x21, &v6), Some("2001:db8::7"));
        check(&v2(0x20, 0x00, &[]), None);
        check(&v2(0x20, 0x11, &v4), None);
        check(&v2(0x21, 0x00, &[]), None);
        check(&v2(0x21, 0x31, &[0; 216]), None);
    }

    #[test]
    fn malformed_headers_are_told_as_soon_as_they_can_be() {
        let check = |bytes: &[u8]| assert_eq!(parse(bytes), Err(Malformed), "{bytes:x?}");
        check(b"\x10");
        check(b"GET / HTTP/1.1\r\n");
        check(b"proxy TCP4");
        check(b"PROXY\tTCP4");
        check(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n");
        check(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 1\r\n");
        check(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 65536\r\n");
        check(b"PROXY TCP4 192.0.2.7 198.51.100.1 056324 443\r\n");
        check(b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n");
        check(b"PROXY TCP4 192.0.2.777 198.51.100.1 1 443\r\n");
        check(b"PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n");
        check(b"PROXY TCP6 192.0.2.7 198.51.100.1 1 443\r\n");
        check(b"PROXY TCP4  192.0.2.7 198.51.100.1 1 443\r\n");
        check(b"PROXY UDP4 192.0.2.7 198.51.100.1 1 443\r\n");
        check(b"PROXY \xFF\xFE\r\n");
        check(&[b"PROXY TCP4 ".as_slice(), &[b'1'; 100]].concat());
        check(b"\r\n\r\n\0\r\nQUIT\r");
        check(&v2(0x11, 0x11, &[0; 12])[..13]);
        check(&v2(0x22, 0x11, &[0; 12]));
        check(&v2(0x21, 0x11, &[0; 11]));
        check(&v2(0x21, 0x21, &[0; 35]));
        check(&v2(0x21, 0x41, &[0; 12]));
        check(&v2(0x21, 0x13, &[0; 12]));
        check(&v2(0x20, 0x00, &[0; V2_BODY_BYTES_MAX + 1])[..16]);
    }

    #[test]
    fn networks_are_one_address_or_a_prefix() {
        let check = |network: &str, peer: &str, expected: bool| {
            let read: Network = network.parse().unwrap();
            assert_eq!(read.contains(peer.parse().unwrap()), expected, "{peer} in {network}");
            assert_eq!(read.to_string(), network);
        };
        check("127.0.0.1", "127.0.0.1", true);
        check("127.0.0.1", "::ffff:127.0.0.1", true);
        check("127.0.0.1", "127.0.0.2", false);
        check("127.0.0.0/8", "127.9.9.9", true);
        check("10.0.0.0/9", "10.128.0.0", false);
        check("0.0.0.0/0", "203.0.113.1", true);
        check("0.0.0.0/0", "::1", false);
        check("::1", "::1", true);
        check("2001:db8::/32", "2001:db8:1::7", true);
        check("2001:db8::/32", "2001:db9::7", false);
        for bad in ["", "proxy.example", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "1.2.3.4/-1"] {
            assert_eq!(bad.parse::<Network>(), Err(NotANetwork), "{bad}");
        }
    }
}
