//! As much of MQTT 3.1.1 as a load generator speaks: it writes CONNECT, SUBSCRIBE, PUBLISH, PUBACK and PINGREQ,
//! and reads what a broker answers.
//!
//! It trusts the broker to a degree: a packet that is not what was asked for is [`Unexpected`], a wrong detail
//! inside one is not looked for. Nothing here allocates but the output buffer.

/// What a broker sent that a load generator cannot make sense of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected {
    /// The packet's first byte: its type and flags.
    pub first_byte: u8,
}

impl std::fmt::Display for Unexpected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the broker sent a packet that was not asked for or is malformed (first byte {:#04x})",
            self.first_byte
        )
    }
}

impl std::error::Error for Unexpected {}

/// A packet from the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// CONNACK with its return code; 0 is success.
    ConnAck(u8),
    /// SUBACK with its first return code: the granted QoS, or 0x80.
    SubAck(u8),
    /// PUBACK of this Packet Identifier.
    PubAck(u16),
    /// PUBLISH; without a Packet Identifier at QoS 0.
    Publish {
        /// The Packet Identifier, at QoS 1.
        packet_id: Option<u16>,
        /// The payload.
        payload: &'a [u8],
    },
    /// PINGRESP.
    PingResp,
}

/// Appends a CONNECT with a keep-alive of ten minutes, which no run lasts; rumqttd refuses clients that switch it
/// off. The session is a clean one, or is kept.
pub fn put_connect(out: &mut Vec<u8>, client_id: &str, clean: bool) {
    out.push(0x10);
    put_remaining_length(out, 10 + 2 + client_id.len());
    out.extend_from_slice(b"\x00\x04MQTT\x04");
    out.push(if clean { 0x02 } else { 0x00 });
    out.extend_from_slice(b"\x02\x58");
    put_text(out, client_id);
}

/// Appends a SUBSCRIBE to one Topic Filter with Packet Identifier 1.
pub fn put_subscribe(out: &mut Vec<u8>, filter: &str, qos: u8) {
    out.push(0x82);
    put_remaining_length(out, 2 + 2 + filter.len() + 1);
    out.extend_from_slice(&[0, 1]);
    put_text(out, filter);
    out.push(qos);
}

/// Appends a PUBLISH whose payload is `parts` in a row; QoS 1 with a Packet Identifier, else QoS 0.
#[inline]
pub fn put_publish(out: &mut Vec<u8>, topic: &str, packet_id: Option<u16>, parts: [&[u8]; 2]) {
    out.push(if packet_id.is_some() { 0x32 } else { 0x30 });
    let packet_id_bytes = if packet_id.is_some() { 2 } else { 0 };
    put_remaining_length(out, 2 + topic.len() + packet_id_bytes + parts[0].len() + parts[1].len());
    put_text(out, topic);
    if let Some(packet_id) = packet_id {
        out.extend_from_slice(&packet_id.to_be_bytes());
    }
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
}

/// Appends a PUBACK.
#[inline]
pub fn put_puback(out: &mut Vec<u8>, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[0x40, 2, high, low]);
}

/// Appends a PINGREQ.
pub fn put_pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, 0]);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("client ids and topics of the load are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_remaining_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Takes the first whole packet off `input`; `None` if there is none yet.
#[inline]
pub fn take_packet<'a>(input: &mut &'a [u8]) -> Result<Option<Incoming<'a>>, Unexpected> {
    let Some((&first_byte, rest)) = input.split_first() else { return Ok(None) };
    let unexpected = Unexpected { first_byte };
    let Some((length, header_bytes)) = remaining_length(rest).map_err(|()| unexpected)? else {
        return Ok(None);
    };
    let Some(body) = rest.get(header_bytes..header_bytes + length) else { return Ok(None) };
    *input = &rest[header_bytes + length..];
    parse(first_byte, body).ok_or(unexpected).map(Some)
}

/// The Remaining Length at the start of `bytes` and how many bytes it takes; `None` if it is cut off.
#[inline]
fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, ()> {
    let mut length = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((length, at + 1)));
        }
    }
    if bytes.len() >= 4 { Err(()) } else { Ok(None) }
}

#[inline]
fn parse(first_byte: u8, body: &[u8]) -> Option<Incoming<'_>> {
    match first_byte >> 4 {
        2 => body.get(1).map(|&code| Incoming::ConnAck(code)),
        3 => {
            let (topic_bytes, rest) = take_u16(body)?;
            let rest = rest.get(usize::from(topic_bytes)..)?;
            match (first_byte >> 1) & 3 {
                0 => Some(Incoming::Publish { packet_id: None, payload: rest }),
                1 => {
                    let (packet_id, payload) = take_u16(rest)?;
                    Some(Incoming::Publish { packet_id: Some(packet_id), payload })
                }
                _ => None,
            }
        }
        4 => take_u16(body).map(|(packet_id, _)| Incoming::PubAck(packet_id)),
        9 => body.get(2).map(|&code| Incoming::SubAck(code)),
        13 => Some(Incoming::PingResp),
        _ => None,
    }
}

fn take_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    bytes.split_first_chunk::<2>().map(|(number, rest)| (u16::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way of cutting `bytes` off yields no packet, the whole yields `expected` and leaves nothing.
    fn check(bytes: &[u8], expected: Incoming<'_>) {
        for cut in 0..bytes.len() {
            assert_eq!(take_packet(&mut &bytes[..cut]), Ok(None), "cut at {cut}");
        }
        let mut input = bytes;
        assert_eq!(take_packet(&mut input), Ok(Some(expected)));
        assert!(input.is_empty());
    }

    #[test]
    fn answers_are_read_as_the_specification_writes_them() {
        check(b"\x20\x02\x00\x05", Incoming::ConnAck(5));
        check(b"\x90\x03\x00\x01\x80", Incoming::SubAck(0x80));
        check(b"\x40\x02\x12\x34", Incoming::PubAck(0x1234));
        check(b"\xD0\x00", Incoming::PingResp);
        check(b"\x30\x05\x00\x01aok", Incoming::Publish { packet_id: None, payload: b"ok" });
        check(b"\x3A\x07\x00\x01a\x00\x09ok", Incoming::Publish { packet_id: Some(9), payload: b"ok" });
    }

    #[test]
    fn a_written_publish_is_read_back_at_every_width_of_its_length() {
        for bytes in [0, 100, 127, 128, 16_383, 16_384] {
            let payload = vec![7; bytes];
            for packet_id in [None, Some(300)] {
                let mut out = Vec::new();
                put_publish(&mut out, "sensors/a", packet_id, [&payload[..bytes / 2], &payload[bytes / 2..]]);
                let expected = Incoming::Publish { packet_id, payload: &payload };
                assert_eq!(take_packet(&mut &out[..]), Ok(Some(expected)));
            }
        }
    }

    #[test]
    fn what_a_broker_must_not_send_is_unexpected() {
        for bytes in
            [&b"\x10\x00"[..], b"\x36\x05\x00\x01a\x00\x01", b"\x40\x01\x00", b"\x30\xff\xff\xff\xff"]
        {
            assert_eq!(take_packet(&mut &bytes[..]), Err(Unexpected { first_byte: bytes[0] }));
        }
    }
}
