//! PINGREQ, PINGRESP, DISCONNECT and AUTH (sections 3.12 to 3.15).

use super::super::error::{Checked, protocol};
use super::super::packet::{Auth, Disconnect};
use super::super::property::{Found, Place, UserProperties};
use super::super::wire::Reader;
use super::super::{ReasonCode, Version};
use super::Sender;

/// Checks the body of a PINGREQ or PINGRESP: there is none.
pub(super) const fn ping(body: &[u8]) -> Checked<()> {
    Reader::new(body).end()
}

/// What both sides may say in DISCONNECT (table 3-10).
const BY_BOTH: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::UnspecifiedError,
    ReasonCode::MalformedPacket,
    ReasonCode::ProtocolError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::TopicNameInvalid,
    ReasonCode::ReceiveMaximumExceeded,
    ReasonCode::TopicAliasInvalid,
    ReasonCode::PacketTooLarge,
    ReasonCode::MessageRateTooHigh,
    ReasonCode::QuotaExceeded,
    ReasonCode::AdministrativeAction,
    ReasonCode::PayloadFormatInvalid,
];

const BY_SERVER: &[ReasonCode] = &[
    ReasonCode::NotAuthorized,
    ReasonCode::ServerBusy,
    ReasonCode::ServerShuttingDown,
    ReasonCode::KeepAliveTimeout,
    ReasonCode::SessionTakenOver,
    ReasonCode::TopicFilterInvalid,
    ReasonCode::RetainNotSupported,
    ReasonCode::QosNotSupported,
    ReasonCode::UseAnotherServer,
    ReasonCode::ServerMoved,
    ReasonCode::SharedSubscriptionsNotSupported,
    ReasonCode::ConnectionRateExceeded,
    ReasonCode::MaximumConnectTime,
    ReasonCode::SubscriptionIdentifiersNotSupported,
    ReasonCode::WildcardSubscriptionsNotSupported,
];

fn may_disconnect_with(reason: ReasonCode, sender: Sender) -> bool {
    BY_BOTH.contains(&reason)
        || reason == ReasonCode::DisconnectWithWill
        || sender == Sender::Either && BY_SERVER.contains(&reason)
}

/// Reads the body of a DISCONNECT.
pub(super) fn disconnect(body: &[u8], version: Version, sender: Sender) -> Checked<Disconnect<'_>> {
    let mut reader = Reader::new(body);
    if !version.is_v5() {
        reader.end()?;
    }
    // Reason Code and Property Length may be left out (sections 3.14.2.1 and 3.14.2.2.1).
    if reader.is_empty() {
        return Ok(Disconnect::new(ReasonCode::Success));
    }
    let reason = ReasonCode::from_u8(reader.u8()?)
        .filter(|reason| may_disconnect_with(*reason, sender))
        .ok_or(protocol!("a Reason Code that this DISCONNECT cannot carry", "MQTT-3.14.2-1"))?;
    if reader.is_empty() {
        return Ok(Disconnect::new(reason));
    }
    let found = Found::read(reader.properties()?, Place::DISCONNECT)?;
    reader.end()?;
    if sender == Sender::Client && found.server_reference.is_some() {
        return Err(protocol!("only a server refers to another server", "3.14.2.2.5"));
    }
    Ok(Disconnect {
        reason,
        session_expiry_s: found.session_expiry_s,
        reason_string: found.reason_string,
        user_properties: found.user_properties,
        server_reference: found.server_reference,
    })
}

/// Reads the body of an AUTH.
pub(super) fn auth(body: &[u8], sender: Sender) -> Checked<Auth<'_>> {
    const BY_CLIENT: &[ReasonCode] = &[ReasonCode::ContinueAuthentication, ReasonCode::Reauthenticate];
    const BY_EITHER: &[ReasonCode] =
        &[ReasonCode::Success, ReasonCode::ContinueAuthentication, ReasonCode::Reauthenticate];
    let legal = match sender {
        Sender::Client => BY_CLIENT,
        Sender::Either => BY_EITHER,
    };
    let mut reader = Reader::new(body);
    let byte = if reader.is_empty() { ReasonCode::Success.as_u8() } else { reader.u8()? };
    let reason = super::reason_code(
        byte,
        legal,
        protocol!("a Reason Code that this AUTH cannot carry", "MQTT-3.15.2-1"),
    )?;
    // Reason Code and Property Length may be left out together, for success (section 3.15.2.1).
    if body.is_empty() {
        let user_properties = UserProperties::NONE;
        return Ok(Auth { reason, method: None, data: None, reason_string: None, user_properties });
    }
    let found = Found::read(reader.properties()?, Place::AUTH)?;
    reader.end()?;
    if found.authentication_method.is_none() {
        return Err(protocol!("an AUTH names its Authentication Method", "3.15.2.2.2"));
    }
    Ok(Auth {
        reason,
        method: found.authentication_method,
        data: found.authentication_data,
        reason_string: found.reason_string,
        user_properties: found.user_properties,
    })
}
