//! The control channel: its messages, and both machines against any peer.

use shm_link::control::hello::Handshake;
use shm_link::control::message::{FromGuest, FromHost, Message};
use shm_link::control::{
    GuestControl, GuestEvent, GuestOffer, HostControl, HostOffer, NetworkConfig, Prefixed,
    VersionRange,
};
use shm_link::link::MAX_CONTROL_LEN;
use shm_link::offload::Offloads;

use crate::input::Input;

/// What is understood is encoded again to something that means the same.
pub(crate) fn messages(bytes: &[u8]) {
    let mut buf = [0; MAX_CONTROL_LEN];
    if let Ok(handshake) = Handshake::try_from(bytes) {
        let len = handshake.encode(&mut buf).expect("it fits");
        assert_eq!(Handshake::try_from(&buf[..len]), Ok(handshake));
    }
    if let Ok(message) = Message::<FromGuest>::try_from(bytes)
        && let Ok(len) = message.encode(&mut buf)
    {
        assert_eq!(Message::<FromGuest>::try_from(&buf[..len]), Ok(message));
    }
    if let Ok(message) = Message::<FromHost>::try_from(bytes)
        && let Ok(len) = message.encode(&mut buf)
    {
        assert_eq!(Message::<FromHost>::try_from(&buf[..len]), Ok(message));
    }
}

fn config(mtu: u16) -> NetworkConfig {
    let mut config = NetworkConfig::new([2, 0, 0, 0, 0, 1], mtu);
    let _ = config.v4.push(Prefixed::new([10, 0, 0, 2].into(), 24));
    config
}

/// A host and what any guest sends it.
pub(crate) fn host(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut host = HostControl::new(HostOffer {
        versions: VersionRange::SUPPORTED,
        features: 0,
        config: config(1500),
    })
    .expect("a good configuration");
    while !input.is_empty() {
        match input.byte() {
            0 => {
                let _ = host.update(config(input.word()));
            }
            1 => {
                let _ = host.ping();
            }
            2 => {
                if let Some(message) = host.poll_transmit() {
                    assert!(message.len() <= MAX_CONTROL_LEN);
                    host.transmitted();
                }
            }
            3 => {
                let _ = host.repeat_update();
            }
            _ => {
                let len = input.word().into();
                if host.wants_input() && host.handle_message(input.bytes(len)).is_err() {
                    return;
                }
            }
        }
        if let Some(agreed) = host.agreed() {
            assert!(agreed.validate().is_ok(), "{agreed:?}");
        }
    }
}

/// A guest and what any host sends it.
pub(crate) fn guest(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let offer = GuestOffer {
        session: 7,
        versions: VersionRange::SUPPORTED,
        features: 0,
        max_mtu: 1500,
        can_receive: Offloads::CHECKSUM,
        can_send: Offloads::NONE,
        name: "fuzz".try_into().expect("short"),
    };
    let mut guest = GuestControl::new(offer);
    while !input.is_empty() {
        match input.byte() {
            0 => {
                let _ = guest.ping();
            }
            1 => guest.restart(),
            2 => {
                if let Some(message) = guest.poll_transmit() {
                    assert!(message.len() <= MAX_CONTROL_LEN);
                    guest.transmitted();
                }
            }
            3 => {
                let _ = guest.applied(u32::from(input.word()));
            }
            4 => {
                let _ = guest.goodbye(1, "enough");
            }
            _ => {
                let len = input.word().into();
                if !guest.wants_input() {
                    continue;
                }
                match guest.handle_message(input.bytes(len)) {
                    Ok(Some(GuestEvent::Configured(config) | GuestEvent::Changed(config))) => {
                        assert!(config.validate().is_ok(), "{config:?}");
                        assert!(config.mtu <= 1500, "beyond what was offered");
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        }
    }
}
