//! Reason Codes (MQTT 5.0 section 2.4) and what they are in MQTT 3.

/// Why something was done, or was not: MQTT 5.0 table 2-6. Codes from 0x80 on are failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // The names are the specification's.
pub enum ReasonCode {
    /// Also "Normal disconnection" and "Granted QoS 0".
    #[default]
    Success = 0x00,
    GrantedQos1 = 0x01,
    GrantedQos2 = 0x02,
    DisconnectWithWill = 0x04,
    NoMatchingSubscribers = 0x10,
    NoSubscriptionExisted = 0x11,
    ContinueAuthentication = 0x18,
    Reauthenticate = 0x19,
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecificError = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    Banned = 0x8A,
    ServerShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdentifierInUse = 0x91,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    MessageRateTooHigh = 0x96,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    PayloadFormatInvalid = 0x99,
    RetainNotSupported = 0x9A,
    QosNotSupported = 0x9B,
    UseAnotherServer = 0x9C,
    ServerMoved = 0x9D,
    SharedSubscriptionsNotSupported = 0x9E,
    ConnectionRateExceeded = 0x9F,
    MaximumConnectTime = 0xA0,
    SubscriptionIdentifiersNotSupported = 0xA1,
    WildcardSubscriptionsNotSupported = 0xA2,
}

/// Every code with its number and the specification's name.
const ALL: [(ReasonCode, &str); 43] = {
    use ReasonCode as R;
    [
        (R::Success, "Success"),
        (R::GrantedQos1, "Granted QoS 1"),
        (R::GrantedQos2, "Granted QoS 2"),
        (R::DisconnectWithWill, "Disconnect with Will Message"),
        (R::NoMatchingSubscribers, "No matching subscribers"),
        (R::NoSubscriptionExisted, "No subscription existed"),
        (R::ContinueAuthentication, "Continue authentication"),
        (R::Reauthenticate, "Re-authenticate"),
        (R::UnspecifiedError, "Unspecified error"),
        (R::MalformedPacket, "Malformed Packet"),
        (R::ProtocolError, "Protocol Error"),
        (R::ImplementationSpecificError, "Implementation specific error"),
        (R::UnsupportedProtocolVersion, "Unsupported Protocol Version"),
        (R::ClientIdentifierNotValid, "Client Identifier not valid"),
        (R::BadUserNameOrPassword, "Bad User Name or Password"),
        (R::NotAuthorized, "Not authorized"),
        (R::ServerUnavailable, "Server unavailable"),
        (R::ServerBusy, "Server busy"),
        (R::Banned, "Banned"),
        (R::ServerShuttingDown, "Server shutting down"),
        (R::BadAuthenticationMethod, "Bad authentication method"),
        (R::KeepAliveTimeout, "Keep Alive timeout"),
        (R::SessionTakenOver, "Session taken over"),
        (R::TopicFilterInvalid, "Topic Filter invalid"),
        (R::TopicNameInvalid, "Topic Name invalid"),
        (R::PacketIdentifierInUse, "Packet Identifier in use"),
        (R::PacketIdentifierNotFound, "Packet Identifier not found"),
        (R::ReceiveMaximumExceeded, "Receive Maximum exceeded"),
        (R::TopicAliasInvalid, "Topic Alias invalid"),
        (R::PacketTooLarge, "Packet too large"),
        (R::MessageRateTooHigh, "Message rate too high"),
        (R::QuotaExceeded, "Quota exceeded"),
        (R::AdministrativeAction, "Administrative action"),
        (R::PayloadFormatInvalid, "Payload format invalid"),
        (R::RetainNotSupported, "Retain not supported"),
        (R::QosNotSupported, "QoS not supported"),
        (R::UseAnotherServer, "Use another server"),
        (R::ServerMoved, "Server moved"),
        (R::SharedSubscriptionsNotSupported, "Shared Subscriptions not supported"),
        (R::ConnectionRateExceeded, "Connection rate exceeded"),
        (R::MaximumConnectTime, "Maximum connect time"),
        (R::SubscriptionIdentifiersNotSupported, "Subscription Identifiers not supported"),
        (R::WildcardSubscriptionsNotSupported, "Wildcard Subscriptions not supported"),
    ]
};

/// From a byte to its entry in [`ALL`], or 255.
const BY_BYTE: [u8; 256] = {
    let mut table = [u8::MAX; 256];
    let mut at = 0;
    while at < ALL.len() {
        table[ALL[at].0 as usize] = at as u8;
        at += 1;
    }
    table
};

impl ReasonCode {
    /// The code written as `byte`, if the specification knows it.
    pub const fn from_u8(byte: u8) -> Option<Self> {
        match BY_BYTE[byte as usize] {
            u8::MAX => None,
            at => Some(ALL[at as usize].0),
        }
    }

    /// Its byte.
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// The specification's name for it.
    pub const fn name(self) -> &'static str {
        ALL[BY_BYTE[self as usize] as usize].1
    }

    /// Whether it tells a failure (0x80 and above).
    pub const fn is_failure(self) -> bool {
        self as u8 >= 0x80
    }

    /// The Connect Return code of an MQTT 3 CONNACK (3.1.1 table 3.1) that comes nearest.
    pub const fn v3_connect_return(self) -> u8 {
        match self as u8 {
            0x84 => 1,
            0x85 => 2,
            0x86 => 4,
            // Not authorized, banned, bad authentication method.
            0x87 | 0x8A | 0x8C => 5,
            0x80.. => 3,
            _ => 0,
        }
    }

    /// The Reason Code for an MQTT 3 Connect Return code; `None` for the reserved ones (6 and above).
    pub const fn from_v3_connect_return(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Success),
            1 => Some(Self::UnsupportedProtocolVersion),
            2 => Some(Self::ClientIdentifierNotValid),
            3 => Some(Self::ServerUnavailable),
            4 => Some(Self::BadUserNameOrPassword),
            5 => Some(Self::NotAuthorized),
            _ => None,
        }
    }

    /// The SUBACK code that grants `qos`.
    pub const fn granted(qos: crate::record::Qos) -> Self {
        match qos {
            crate::record::Qos::AtMostOnce => Self::Success,
            crate::record::Qos::AtLeastOnce => Self::GrantedQos1,
            crate::record::Qos::ExactlyOnce => Self::GrantedQos2,
        }
    }
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (0x{:02X})", self.name(), self.as_u8())
    }
}
