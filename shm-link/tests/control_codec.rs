//! The codec of the control channel: what is encoded decodes to the same, and
//! no bytes make a decoder panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use shm_link::control::hello::{BadHandshake, HELLO_LEN, Handshake};
use shm_link::control::message::{Configure, FromGuest, FromHost, Message};
use shm_link::control::{
    ConfigError, DecodeErrorKind, EncodeError, ErrorCode, Level, NetworkConfig, Prefixed, Refusal,
    RefusalReason, VersionRange,
};
use shm_link::link::MAX_CONTROL_LEN;
use shm_link::offload::Offloads;

fn text(max_bytes: usize) -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..=max_bytes).prop_map(move |chars| {
        let mut text = String::new();
        for c in chars {
            if text.len() + c.len_utf8() > max_bytes {
                break;
            }
            text.push(c);
        }
        text
    })
}

fn offloads() -> impl Strategy<Value = Offloads> {
    any::<u32>().prop_map(Offloads::from_bits)
}

fn prefixed<A: std::fmt::Debug>(
    addr: impl Strategy<Value = A>,
) -> impl Strategy<Value = heapless::Vec<Prefixed<A>, 4>> {
    let one = (addr, any::<u8>()).prop_map(|(addr, len)| Prefixed::new(addr, len));
    proptest::collection::vec(one, 0..=4).prop_map(|list| list.into_iter().collect())
}

prop_compose! {
    fn config()(
        (serial, mac, mtu, carrier) in any::<(u32, [u8; 6], u16, bool)>(),
        offloads_to_guest in offloads(),
        offloads_to_host in offloads(),
        v4 in prefixed(any::<Ipv4Addr>()),
        v6 in prefixed(any::<Ipv6Addr>()),
        (gateway4, gateway6) in any::<(Option<Ipv4Addr>, Option<Ipv6Addr>)>(),
        dns in proptest::collection::vec(any::<IpAddr>(), 0..=4),
        (dhcp4, slaac) in any::<(bool, bool)>(),
        name in proptest::option::of(text(63)),
        domain in proptest::option::of(text(253)),
    ) -> NetworkConfig {
        NetworkConfig {
            serial, mac, mtu, carrier, offloads_to_guest, offloads_to_host, v4, v6,
            gateway4, gateway6, dns: dns.into_iter().collect(), dhcp4, slaac,
            name: name.map(|name| name.as_str().try_into().unwrap()),
            domain: domain.map(|domain| domain.as_str().try_into().unwrap()),
        }
    }
}

fn encode_guest(message: &Message<FromGuest<'_>>) -> Vec<u8> {
    let mut buf = [0xa5; MAX_CONTROL_LEN];
    let len = message.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}

fn encode_host(message: &Message<FromHost<'_>>) -> Vec<u8> {
    let mut buf = [0xa5; MAX_CONTROL_LEN];
    let len = message.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}

fn guest_round_trip(id: u32, body: FromGuest<'_>) {
    let message = Message { id, body };
    let bytes = encode_guest(&message);
    assert_eq!(Message::<FromGuest>::try_from(&bytes[..]), Ok(message));
}

fn host_round_trip(id: u32, body: FromHost<'_>) {
    let message = Message { id, body };
    let bytes = encode_host(&message);
    assert_eq!(Message::<FromHost>::try_from(&bytes[..]), Ok(message));
}

proptest! {
    #[test]
    fn a_handshake_decodes_to_what_was_encoded(
        which in 0..3u8, oldest: u16, newest: u16, code: u16, features: u64, session: u32,
    ) {
        let versions = VersionRange::new(oldest, newest);
        let handshake = match which {
            0 => Handshake::Hello { versions, features, session },
            1 => Handshake::Accept { versions, version: code, features, session },
            _ => Handshake::Refuse { versions, reason: RefusalReason::from_code(code), session },
        };
        let mut buf = [0xa5; 64];
        prop_assert_eq!(handshake.encode(&mut buf), Ok(HELLO_LEN));
        prop_assert_eq!(Handshake::try_from(&buf[..HELLO_LEN]), Ok(handshake));
        prop_assert_eq!(Handshake::try_from(&buf[..]), Ok(handshake), "longer ones are read too");
    }

    #[test]
    fn every_guest_message_decodes_to_what_was_encoded(
        id: u32, code: u16, exit: u32, level: u8, max_mtu: u16,
        can_receive in offloads(), can_send in offloads(),
        name in text(63), words in text(160), long in text(1024),
        unknown in 6..0x8000u16, reply: bool,
    ) {
        let configure = Configure { max_mtu, can_receive, can_send, name: &name };
        guest_round_trip(id, FromGuest::Configure(configure));
        guest_round_trip(id, FromGuest::Ping);
        guest_round_trip(id, FromGuest::Report { level: Level::from_number(level), text: &long });
        guest_round_trip(id, FromGuest::Goodbye { code: exit, words: &words });
        guest_round_trip(id, FromGuest::Pong);
        guest_round_trip(id, FromGuest::Done);
        let code = ErrorCode::from_code(code);
        guest_round_trip(id, FromGuest::Error { code, words: &words });
        let kind = if reply { unknown | 0x8000 } else { unknown };
        guest_round_trip(id, FromGuest::Unknown { kind });
    }

    #[test]
    fn every_host_message_decodes_to_what_was_encoded(
        id: u32, code: u16, words in text(160), config in config(),
        unknown in 6..0x8000u16, reply: bool,
    ) {
        host_round_trip(id, FromHost::Update(config.clone()));
        host_round_trip(id, FromHost::Config(config));
        host_round_trip(id, FromHost::Ping);
        host_round_trip(id, FromHost::Pong);
        host_round_trip(id, FromHost::Done);
        let code = ErrorCode::from_code(code);
        host_round_trip(id, FromHost::Error { code, words: &words });
        let kind = if reply { unknown | 0x8000 } else { unknown };
        host_round_trip(id, FromHost::Unknown { kind });
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Handshake::try_from(&bytes[..]);
        let _ = Message::<FromGuest>::try_from(&bytes[..]);
        let _ = Message::<FromHost>::try_from(&bytes[..]);
    }

    #[test]
    fn damaged_messages_make_no_decoder_panic_and_no_invalid_message(
        config in config(), at: prop::sample::Index, value: u8, cut: prop::sample::Index,
    ) {
        let message = Message { id: 7, body: FromHost::Config(config) };
        let mut bytes = encode_host(&message);
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok(message) = Message::<FromHost>::try_from(&bytes[..]) {
            // Whatever it became, it is a message like any other.
            let again = encode_host(&message);
            prop_assert_eq!(Message::<FromHost>::try_from(&again[..]), Ok(message));
        }
    }

    #[test]
    fn validate_never_panics(config in config()) {
        let _ = config.validate().map_err(|error| error.to_string());
    }
}

#[test]
fn the_layout_of_the_hello_is_frozen() {
    let mut buf = [0xff; HELLO_LEN];
    let hello = Handshake::Hello {
        versions: VersionRange::new(0x0201, 0x0403),
        features: 0x0f0e_0d0c_0b0a_0908,
        session: 0x1413_1211,
    };
    hello.encode(&mut buf).unwrap();
    #[rustfmt::skip]
    let expected = [
        0x4e, 0x47, 0x6c, 0x69, 0x6e, 0x6b, 0x21, 0x0a,
        1, 0, 0, 0, 0x01, 0x02, 0x03, 0x04,
        0, 0, 0, 0, 0x11, 0x12, 0x13, 0x14,
        0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    ];
    assert_eq!(buf, expected);

    let accept = Handshake::Accept {
        versions: VersionRange::new(1, 2),
        version: 2,
        features: 1,
        session: 3,
    };
    accept.encode(&mut buf).unwrap();
    #[rustfmt::skip]
    let expected = [
        0x4e, 0x47, 0x6c, 0x69, 0x6e, 0x6b, 0x21, 0x0a,
        2, 0, 0, 0, 1, 0, 2, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(buf, expected);

    let refuse = Handshake::Refuse {
        versions: VersionRange::new(4, 5),
        reason: RefusalReason::GuestTooOld,
        session: 3,
    };
    refuse.encode(&mut buf).unwrap();
    #[rustfmt::skip]
    let expected = [
        0x4e, 0x47, 0x6c, 0x69, 0x6e, 0x6b, 0x21, 0x0a,
        3, 0, 1, 0, 4, 0, 5, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(buf, expected);
}

#[test]
fn the_reserved_field_of_a_handshake_is_ignored() {
    let hello = Handshake::Hello {
        versions: VersionRange::SUPPORTED,
        features: 0,
        session: 1,
    };
    let mut buf = [0; HELLO_LEN];
    hello.encode(&mut buf).unwrap();
    buf[18..20].fill(0xff);
    assert_eq!(Handshake::try_from(&buf[..]), Ok(hello));
}

#[test]
fn a_short_or_unknown_handshake_is_an_error() {
    let hello = Handshake::Hello {
        versions: VersionRange::SUPPORTED,
        features: 0,
        session: 1,
    };
    let mut buf = [0; HELLO_LEN];
    hello.encode(&mut buf).unwrap();
    assert_eq!(Handshake::try_from(&buf[..31]), Err(BadHandshake));
    buf[8] = 4;
    assert_eq!(Handshake::try_from(&buf[..]), Err(BadHandshake));
    assert_eq!(hello.encode(&mut [0; 31]), Err(EncodeError::BufferTooSmall));
}

/// A ping with options of the given tags, one byte each.
fn ping_with(options: &[u16]) -> Vec<u8> {
    let ping = Message {
        id: 9,
        body: FromGuest::Ping,
    };
    let mut bytes = encode_guest(&ping);
    for tag in options {
        bytes.extend(tag.to_le_bytes());
        bytes.extend([1, 0, 0x55]);
    }
    bytes
}

#[test]
fn unknown_optional_options_are_skipped_and_mandatory_ones_are_an_error() {
    let skipped = ping_with(&[77, 78]);
    let message = Message::<FromGuest>::try_from(&skipped[..]).unwrap();
    assert_eq!(message.body, FromGuest::Ping);

    let mandatory = ping_with(&[77, 0x8000 | 78]);
    let error = Message::<FromGuest>::try_from(&mandatory[..]).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::Unknown(78));
    assert_eq!(error.reply_to, Some(9));
}

#[test]
fn a_known_option_is_read_with_and_without_its_mandatory_bit() {
    let message = Message {
        id: 1,
        body: FromGuest::Goodbye { code: 3, words: "" },
    };
    let mut bytes = encode_guest(&message);
    bytes[9] |= 0x80;
    assert_eq!(Message::<FromGuest>::try_from(&bytes[..]), Ok(message));
}

#[test]
fn the_header_flags_are_ignored() {
    let message = Message {
        id: 1,
        body: FromHost::Done,
    };
    let mut bytes = encode_host(&message);
    bytes[2..4].fill(0xff);
    assert_eq!(Message::<FromHost>::try_from(&bytes[..]), Ok(message));
}

#[test]
fn a_broken_request_names_its_id_and_a_broken_answer_does_not() {
    let config = NetworkConfig::new([2, 0, 0, 0, 0, 1], 1500);
    let update = Message {
        id: 5,
        body: FromHost::Update(config.clone()),
    };
    let bytes = encode_host(&update);
    let error = Message::<FromHost>::try_from(&bytes[..bytes.len() - 1]).unwrap_err();
    assert_eq!(error.reply_to, Some(5));
    assert_eq!(error.kind, DecodeErrorKind::Truncated);

    let answer = Message {
        id: 5,
        body: FromHost::Config(config),
    };
    let bytes = encode_host(&answer);
    let error = Message::<FromHost>::try_from(&bytes[..bytes.len() - 1]).unwrap_err();
    assert_eq!(error.reply_to, None);

    let error = Message::<FromHost>::try_from(&bytes[..7]).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::NoHeader);
}

#[test]
fn what_stands_twice_or_is_missing_or_too_many_is_an_error() {
    let config = NetworkConfig::new([2, 0, 0, 0, 0, 1], 1500);
    let message = Message {
        id: 1,
        body: FromHost::Update(config),
    };
    let bytes = encode_host(&message);
    let kind = |bytes: &[u8]| Message::<FromHost>::try_from(bytes).unwrap_err().kind;

    let mut twice = bytes.clone();
    twice.extend_from_slice(&bytes[8..16]);
    assert_eq!(kind(&twice), DecodeErrorKind::Duplicate(1));

    let mut without_serial = bytes[..8].to_vec();
    without_serial.extend_from_slice(&bytes[16..]);
    assert_eq!(kind(&without_serial), DecodeErrorKind::Missing(1));

    let mut five_addresses = bytes.clone();
    for last in 1..=5 {
        five_addresses.extend([7, 0, 5, 0, 10, 0, 0, last, 24]);
    }
    assert_eq!(kind(&five_addresses), DecodeErrorKind::TooMany(7));

    let mut carrier_of_two = bytes.clone();
    let carrier = bytes.windows(4).position(|w| w == [4, 0, 1, 0]).unwrap();
    carrier_of_two[carrier + 4] = 2;
    assert_eq!(kind(&carrier_of_two), DecodeErrorKind::BadValue(4));
}

#[test]
fn a_text_over_its_limit_is_not_encoded() {
    let long = "x".repeat(1025);
    let message = Message {
        id: 1,
        body: FromGuest::Report {
            level: Level::Info,
            text: &long,
        },
    };
    let mut buf = [0; MAX_CONTROL_LEN];
    assert_eq!(message.encode(&mut buf), Err(EncodeError::TextTooLong));
    let message = Message {
        id: 1,
        body: FromGuest::Ping,
    };
    assert_eq!(
        message.encode(&mut buf[..7]),
        Err(EncodeError::BufferTooSmall)
    );
}

#[test]
fn the_largest_messages_fit_a_control_message() {
    let mut config = full_config();
    config.domain = Some([b'd'; 253].map(char::from).iter().collect());
    config.name = Some([b'n'; 63].map(char::from).iter().collect());
    let bytes = encode_host(&Message {
        id: 1,
        body: FromHost::Config(config),
    });
    assert!(bytes.len() <= MAX_CONTROL_LEN);
    let text = "x".repeat(1024);
    let bytes = encode_guest(&Message {
        id: 1,
        body: FromGuest::Report {
            level: Level::Info,
            text: &text,
        },
    });
    assert!(bytes.len() <= MAX_CONTROL_LEN);
}

fn full_config() -> NetworkConfig {
    let mut config = NetworkConfig::new([2, 0, 0, 0, 0, 1], 1500);
    for last in 1..=4 {
        let v4 = Ipv4Addr::new(10, 0, 0, last);
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into());
        config.v4.push(Prefixed::new(v4, 24)).unwrap();
        config.v6.push(Prefixed::new(v6, 64)).unwrap();
        let server = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, last.into());
        config.dns.push(server.into()).unwrap();
    }
    config.gateway4 = Some(Ipv4Addr::new(10, 0, 0, 254));
    config.gateway6 = Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
    config.name = Some("guest-1".try_into().unwrap());
    config.domain = Some("lab.example".try_into().unwrap());
    config
}

#[test]
fn a_sensible_configuration_is_valid() {
    assert_eq!(full_config().validate(), Ok(()));
    assert_eq!(
        NetworkConfig::new([2, 0, 0, 0, 0, 1], 576).validate(),
        Ok(())
    );
    assert_eq!(
        NetworkConfig::new([2, 0, 0, 0, 0, 1], 65535).validate(),
        Ok(())
    );
}

#[test]
fn every_rule_of_a_configuration_has_its_error() {
    let broken = |change: fn(&mut NetworkConfig)| {
        let mut config = full_config();
        change(&mut config);
        config.validate()
    };
    let v4 = |d| IpAddr::V4(Ipv4Addr::new(10, 0, 0, d));
    assert_eq!(broken(|c| c.mac = [0; 6]), Err(ConfigError::Mac));
    assert_eq!(broken(|c| c.mac[0] = 1), Err(ConfigError::Mac));
    assert_eq!(broken(|c| c.mtu = 575), Err(ConfigError::MtuTooSmall));
    assert_eq!(
        broken(|c| c.mtu = 1279),
        Err(ConfigError::MtuTooSmallForIpv6)
    );
    assert_eq!(
        broken(|c| {
            c.v6.clear();
            c.gateway6 = None;
            c.mtu = 1279;
        }),
        Ok(())
    );
    assert_eq!(
        broken(|c| c.v4[0].prefix_len = 33),
        Err(ConfigError::Prefix(v4(1)))
    );
    assert!(matches!(
        broken(|c| c.v6[0].prefix_len = 129),
        Err(ConfigError::Prefix(_))
    ));
    for bad in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        let mut config = full_config();
        config.v4[1].addr = bad.into();
        assert_eq!(config.validate(), Err(ConfigError::Address(bad.into())));
        config.v4[1].addr = [10, 0, 0, 2].into();
        config.gateway4 = Some(bad.into());
        assert_eq!(config.validate(), Err(ConfigError::Gateway(bad.into())));
    }
    assert_eq!(
        broken(|c| c.v4[3].addr = c.v4[0].addr),
        Err(ConfigError::Duplicate(v4(1)))
    );
    assert_eq!(
        broken(|c| c.gateway4 = Some(c.v4[0].addr)),
        Err(ConfigError::Gateway(v4(1)))
    );
    assert!(matches!(
        broken(|c| c.dns[0] = IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        Err(ConfigError::Dns(_))
    ));
    assert_eq!(
        broken(|c| c.name = Some("a.b".try_into().unwrap())),
        Err(ConfigError::Name)
    );
    assert_eq!(
        broken(|c| c.domain = Some("a..b".try_into().unwrap())),
        Err(ConfigError::Domain)
    );
}

#[test]
fn the_newest_common_version_is_chosen() {
    let host = VersionRange::new(2, 5);
    assert_eq!(host.choose(VersionRange::new(1, 3)), Ok(3));
    assert_eq!(host.choose(VersionRange::new(4, 9)), Ok(5));
    assert_eq!(
        host.choose(VersionRange::new(1, 1)),
        Err(RefusalReason::GuestTooOld)
    );
    assert_eq!(
        host.choose(VersionRange::new(6, 9)),
        Err(RefusalReason::GuestTooNew)
    );
    assert_eq!(
        host.choose(VersionRange::new(3, 2)),
        Err(RefusalReason::NoVersion)
    );
}

#[test]
fn a_refusal_says_what_to_do() {
    let refusal = |reason, guest| Refusal {
        reason,
        host: VersionRange::new(3, 5),
        guest,
    };
    let old = refusal(RefusalReason::GuestTooOld, VersionRange::new(1, 1)).to_string();
    assert!(old.contains("version 1") && old.contains("versions 3 to 5"));
    assert!(old.contains("build the guest with a newer"));
    let new = refusal(RefusalReason::GuestTooNew, VersionRange::new(6, 7)).to_string();
    assert!(new.contains("run a newer bridge"));
    let other = refusal(RefusalReason::Other(99), VersionRange::new(3, 3)).to_string();
    assert!(other.contains("99") && other.contains("log of the bridge"));
}
