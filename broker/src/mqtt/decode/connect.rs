//! CONNECT (section 3.1) and CONNACK (section 3.2).

use super::super::error::{Checked, ConnectError, DecodeError, malformed, protocol};
use super::super::packet::{ConnAck, Connect, Will};
use super::super::property::{Found, Place, WireProperties, read_will};
use super::super::wire::{Reader, topic_name};
use super::super::{ReasonCode, Version};
use crate::record::Qos;

const USERNAME: u8 = 0b1000_0000;
const PASSWORD: u8 = 0b0100_0000;
const WILL_RETAIN: u8 = 0b0010_0000;
const WILL_QOS: u8 = 0b0001_1000;
const WILL: u8 = 0b0000_0100;
const CLEAN_START: u8 = 0b0000_0010;
const RESERVED: u8 = 0b0000_0001;

/// Reads the body of a CONNECT.
pub(super) fn connect(body: &[u8]) -> Result<Connect<'_>, ConnectError> {
    let mut reader = Reader::new(body);
    let version = version(&mut reader).map_err(|error| ConnectError { error, version: None })?;
    after_version(version, reader).map_err(|error| ConnectError { error: *error, version: Some(version) })
}

fn version(reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let name = reader.binary()?;
    let is_mqtt = match name {
        b"MQTT" => true,
        b"MQIsdp" => false,
        _ => return Err(*protocol!("the Protocol Name is not MQTT", "MQTT-3.1.2-1")),
    };
    match (is_mqtt, reader.u8()?) {
        (false, 3) => Ok(Version::V31),
        (true, 4) => Ok(Version::V311),
        (true, 5) => Ok(Version::V5),
        (_, level) => Err(DecodeError::UnsupportedVersion { level }),
    }
}

fn after_version(version: Version, mut reader: Reader<'_>) -> Checked<Connect<'_>> {
    let flags = reader.u8()?;
    check_flags(flags, version)?;
    let keep_alive_s = reader.u16()?;
    let section = if version.is_v5() { reader.properties()? } else { &[] };
    let found = Found::read(section, Place::CONNECT)?;
    if found.authentication_data.is_some() && found.authentication_method.is_none() {
        return Err(protocol!("Authentication Data needs an Authentication Method", "3.1.2.11.10"));
    }
    let client_id = reader.text()?;
    let will = if flags & WILL != 0 { Some(will(flags, version, &mut reader)?) } else { None };
    // MQTT 3.1 lets clients set the User Name flag and send none: the end of the packet goes before the flag.
    let absent = version == Version::V31 && reader.is_empty();
    let username = if flags & USERNAME != 0 && !absent { Some(reader.text()?) } else { None };
    let absent = version == Version::V31 && reader.is_empty();
    let password = if flags & PASSWORD != 0 && !absent { Some(reader.binary()?) } else { None };
    reader.end()?;
    Ok(Connect {
        version,
        clean_start: flags & CLEAN_START != 0,
        keep_alive_s,
        client_id,
        will,
        username,
        password,
        session_expiry_s: found.session_expiry_s.unwrap_or(0),
        receive_maximum: found.receive_maximum.unwrap_or(u16::MAX),
        maximum_packet_bytes: found.maximum_packet_bytes,
        topic_alias_maximum: found.topic_alias_maximum.unwrap_or(0),
        request_response_information: found.request_response_information.unwrap_or(false),
        request_problem_information: found.request_problem_information.unwrap_or(true),
        authentication_method: found.authentication_method,
        authentication_data: found.authentication_data,
        user_properties: found.user_properties,
    })
}

fn check_flags(flags: u8, version: Version) -> Checked<()> {
    // MQTT 3.1 calls the lowest bit unused, later versions ask for 0.
    if flags & RESERVED != 0 && version != Version::V31 {
        return Err(malformed!("the reserved Connect Flag must be 0", "MQTT-3.1.2-3"));
    }
    if flags & WILL_QOS == WILL_QOS {
        return Err(malformed!("the Will QoS is 0, 1 or 2", "MQTT-3.1.2-12"));
    }
    if flags & WILL == 0 && flags & WILL_QOS != 0 {
        return Err(malformed!("the Will QoS must be 0 without a Will", "MQTT-3.1.2-11"));
    }
    if flags & WILL == 0 && flags & WILL_RETAIN != 0 {
        return Err(malformed!("Will Retain must be 0 without a Will", "MQTT-3.1.2-13"));
    }
    if flags & PASSWORD != 0 && flags & USERNAME == 0 && !version.is_v5() {
        return Err(malformed!("before MQTT 5.0 a password needs a user name", "MQTT-3.1.2-22"));
    }
    Ok(())
}

fn will<'a>(flags: u8, version: Version, reader: &mut Reader<'a>) -> Checked<Will<'a>> {
    let (properties, delay_s) =
        if version.is_v5() { read_will(reader.properties()?)? } else { (WireProperties::NONE, 0) };
    let topic = topic_name(reader.binary()?)?;
    let payload = reader.binary()?;
    let qos = Qos::from_bits((flags & WILL_QOS) >> 3).expect("check_flags refuses QoS 3");
    Ok(Will { topic, payload, qos, retain: flags & WILL_RETAIN != 0, delay_s, properties })
}

/// Reads the body of a CONNACK.
pub(super) fn connack(body: &[u8], version: Version) -> Checked<ConnAck<'_>> {
    let mut reader = Reader::new(body);
    let flags = reader.u8()?;
    // MQTT 3.1 has no flags here, only a reserved byte.
    if flags > 1 && version != Version::V31 {
        return Err(malformed!("the reserved Connect Acknowledge Flags must be 0", "MQTT-3.2.2-1"));
    }
    let session_present = flags == 1 && version != Version::V31;
    let reason = connack_reason(reader.u8()?, version)?;
    if session_present && reason != ReasonCode::Success {
        return Err(protocol!("a refused connection has no session present", "MQTT-3.2.2-6"));
    }
    let section = if version.is_v5() { reader.properties()? } else { &[] };
    reader.end()?;
    let found = Found::read(section, Place::CONNACK)?;
    Ok(ConnAck {
        session_present,
        reason,
        session_expiry_s: found.session_expiry_s,
        receive_maximum: found.receive_maximum.unwrap_or(u16::MAX),
        maximum_qos: match found.maximum_qos {
            Some(false) => Qos::AtMostOnce,
            Some(true) => Qos::AtLeastOnce,
            None => Qos::ExactlyOnce,
        },
        retain_available: found.retain_available.unwrap_or(true),
        maximum_packet_bytes: found.maximum_packet_bytes,
        assigned_client_id: found.assigned_client_id,
        topic_alias_maximum: found.topic_alias_maximum.unwrap_or(0),
        reason_string: found.reason_string,
        user_properties: found.user_properties,
        wildcard_subscriptions: found.wildcard_subscriptions.unwrap_or(true),
        subscription_ids: found.subscription_ids.unwrap_or(true),
        shared_subscriptions: found.shared_subscriptions.unwrap_or(true),
        server_keep_alive_s: found.server_keep_alive_s,
        response_information: found.response_information,
        server_reference: found.server_reference,
        authentication_method: found.authentication_method,
        authentication_data: found.authentication_data,
    })
}

fn connack_reason(byte: u8, version: Version) -> Checked<ReasonCode> {
    use ReasonCode as R;
    const LEGAL: [ReasonCode; 22] = [
        R::Success,
        R::UnspecifiedError,
        R::MalformedPacket,
        R::ProtocolError,
        R::ImplementationSpecificError,
        R::UnsupportedProtocolVersion,
        R::ClientIdentifierNotValid,
        R::BadUserNameOrPassword,
        R::NotAuthorized,
        R::ServerUnavailable,
        R::ServerBusy,
        R::Banned,
        R::BadAuthenticationMethod,
        R::TopicNameInvalid,
        R::PacketTooLarge,
        R::QuotaExceeded,
        R::PayloadFormatInvalid,
        R::RetainNotSupported,
        R::QosNotSupported,
        R::UseAnotherServer,
        R::ServerMoved,
        R::ConnectionRateExceeded,
    ];
    if version.is_v5() {
        return super::reason_code(
            byte,
            &LEGAL,
            protocol!("a Reason Code that CONNACK cannot carry", "MQTT-3.2.2-8"),
        );
    }
    R::from_v3_connect_return(byte).ok_or(protocol!("Connect Return codes above 5 are reserved", "3.2.2.3"))
}
