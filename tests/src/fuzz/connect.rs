//! The first packet of a connection, from anybody.

use tidegate_broker::mqtt::{Connect, Decoded, PACKET_BYTES_MAX, Packet, decode, decode_connect, encode};

/// Reads `bytes` as a connection's first.
pub(crate) fn check(bytes: &[u8]) {
    match decode_connect(bytes, PACKET_BYTES_MAX) {
        Ok(Decoded::Incomplete { needed }) => {
            assert!(
                needed.is_none_or(|needed| needed > bytes.len()),
                "a packet that is whole is not waited for"
            );
        }
        Ok(Decoded::Packet { packet, bytes: taken }) => {
            assert!(0 < taken && taken <= bytes.len());
            for cut in [0, 1, taken / 2, taken - 1] {
                let decoded = decode_connect(&bytes[..cut], PACKET_BYTES_MAX);
                assert!(matches!(decoded, Ok(Decoded::Incomplete { .. })), "cut at {cut}: {decoded:?}");
            }
            check_packet(&packet);
        }
        Err(error) => {
            assert!(error.reason().is_failure());
            let mut answer = Vec::new();
            error.answer(&mut answer);
            if let Some(version) = error.version.filter(|_| !answer.is_empty()) {
                let decoded = decode(&answer, version, PACKET_BYTES_MAX);
                assert!(
                    matches!(decoded, Ok(Decoded::Packet { packet: Packet::ConnAck(_), .. })),
                    "{decoded:?}"
                );
            }
        }
    }
}

/// What was decoded is encoded and decoded again as it was.
fn check_packet(connect: &Connect<'_>) {
    let mut out = Vec::new();
    encode::connect(&mut out, connect);
    let Ok(Decoded::Packet { packet: again, bytes }) = decode_connect(&out, PACKET_BYTES_MAX) else {
        panic!("{connect:?} is encoded as {out:02x?}");
    };
    assert_eq!(bytes, out.len());
    let plain = |connect: &Connect<'_>| {
        let will = connect.will.as_ref().map(|will| {
            let mut scratch = Vec::new();
            let travelling = will.travelling(&mut scratch).iter().map(|property| format!("{property:?}"));
            let travelling: Vec<String> = travelling.collect();
            (
                will.topic.as_str().to_owned(),
                will.payload.to_vec(),
                will.qos,
                will.retain,
                will.delay_s,
                travelling,
            )
        });
        let user_properties = connect.user_properties.into_iter();
        let user_properties = user_properties.map(|(name, value)| (name.to_owned(), value.to_owned()));
        (will, user_properties.collect::<Vec<_>>())
    };
    assert_eq!(plain(connect), plain(&again));
    let rest = |connect: &Connect<'_>| {
        (
            (connect.version, connect.clean_start, connect.keep_alive_s, connect.session_expiry_s),
            (connect.receive_maximum, connect.maximum_packet_bytes, connect.topic_alias_maximum),
            (connect.request_response_information, connect.request_problem_information),
        )
    };
    assert_eq!(rest(connect), rest(&again));
    assert_eq!(
        (connect.client_id, connect.username, connect.password),
        (again.client_id, again.username, again.password)
    );
    assert_eq!(
        (connect.authentication_method, connect.authentication_data),
        (again.authentication_method, again.authentication_data)
    );
}
