//! The headers of a consumed record, also those whose names are no text: whoever writes to Kafka names them as it likes,
//! and rdkafka's own way to read them ends in a panic there.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings as rd;
use rdkafka::bindings::rd_kafka_resp_err_t as Response;
use rdkafka::message::{BorrowedMessage, Message as _};

/// Names and values, in their order.
type Headers<'m> = Vec<(&'m str, Option<&'m [u8]>)>;

/// The headers of `record` in their order, and how many there are besides whose names are no UTF-8.
pub(in super::super) fn headers<'m>(record: &'m BorrowedMessage<'_>) -> (Headers<'m>, u64) {
    let Some(headers) = record.headers() else { return (Vec::new(), 0) };
    // SAFETY: a record's `BorrowedHeaders` is a reference that rdkafka makes of the pointer to librdkafka's list, and
    // nothing else. The list belongs to the record, which is borrowed for as long as what is returned.
    unsafe { read(ptr::from_ref(headers).cast()) }
}

/// # Safety
///
/// `list` is a live list of headers, and neither freed nor changed during `'m`.
unsafe fn read<'m>(list: *const rd::rd_kafka_headers_t) -> (Headers<'m>, u64) {
    // SAFETY: the list is live.
    let count = unsafe { rd::rd_kafka_header_cnt(list) };
    let (mut headers, mut nameless) = (Vec::with_capacity(count), 0);
    for at in 0..count {
        let (mut name, mut value, mut bytes) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list is live, and the three places are ours.
        let answer =
            unsafe { rd::rd_kafka_header_get_all(list, at, &raw mut name, &raw mut value, &raw mut bytes) };
        if answer != Response::RD_KAFKA_RESP_ERR_NO_ERROR {
            break;
        }
        // SAFETY: librdkafka ends each name with NUL (rdkafka.h, rd_kafka_header_get_all), and it lies in the list.
        let name = unsafe { CStr::from_ptr(name) }.to_str();
        // SAFETY: a value that is there has this many bytes in the list.
        let value =
            (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), bytes) });
        match name {
            Ok(name) => headers.push((name, value)),
            Err(_) => nameless += 1,
        }
    }
    (headers, nameless)
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    #[test]
    fn headers_are_read_in_their_order_and_those_without_a_name_are_counted() {
        // SAFETY: the list is made, filled, read and freed here; nothing that was read outlives it.
        unsafe {
            let list = rd::rd_kafka_headers_new(4);
            for (name, value) in [(&b"a"[..], &b"1"[..]), (b"\xff\xfe", b"x"), (b"a", b""), (b"b", b"\xff")] {
                let bytes = |part: &[u8]| isize::try_from(part.len()).unwrap();
                rd::rd_kafka_header_add(
                    list,
                    name.as_ptr().cast(),
                    bytes(name),
                    value.as_ptr().cast(),
                    bytes(value),
                );
            }
            let (headers, nameless) = read(list);
            let expected: [(&str, Option<&[u8]>); 3] =
                [("a", Some(b"1")), ("a", Some(b"")), ("b", Some(b"\xff"))];
            assert_eq!(headers, expected);
            assert_eq!(nameless, 1);
            rd::rd_kafka_headers_destroy(list);
        }
    }

    /// What [`headers`] relies on.
    #[test]
    fn borrowed_headers_are_librdkafkas_list() {
        let owned = OwnedHeaders::new()
            .insert(Header { key: "a", value: Some("1") })
            .insert(Header::<&[u8]> { key: "none", value: None });
        // SAFETY: the list belongs to `owned`, which outlives what is read.
        let (headers, nameless) = unsafe { read(ptr::from_ref(owned.as_borrowed()).cast()) };
        assert_eq!(headers, [("a", Some(&b"1"[..])), ("none", None)]);
        assert_eq!(nameless, 0);
    }
}
