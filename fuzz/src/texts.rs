//! What administrators and their programs write.

use host_bridge::admin::protocol::{Request, Response};
use host_bridge::impair::ImpairConfig;
use host_bridge::limit::LimitConfig;
use host_bridge::settings::{Mac, Options, Settings};
use shm_link::linux::address::Address;

/// A configuration file, parsed and checked. Nothing is opened.
pub(crate) fn settings(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(options) = Options::parse(text)
        && let Ok(settings) = Settings::new(options, None)
    {
        assert!((1..=256).contains(&settings.workers));
        for socket in &settings.sockets {
            for slot in [0, socket.places.count() - 1] {
                let assignment = socket.places.assign(slot);
                assert!(assignment.network.validate().is_ok(), "{assignment:?}");
            }
        }
    }
}

/// A line of the admin protocol, in both directions.
pub(crate) fn admin(bytes: &[u8]) {
    if let Ok(request) = Request::from_line(bytes) {
        assert_eq!(
            Request::from_line(request.to_line().as_bytes()),
            Ok(request)
        );
    }
    if let Ok(response) = Response::from_line(bytes) {
        let line = response.to_line();
        assert!(Response::from_line(line.as_bytes()).is_ok(), "{line}");
    }
}

/// Values that have a form of their own: what is understood is written as something
/// that means the same.
pub(crate) fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(impair) = text.parse::<ImpairConfig>() {
        assert_eq!(impair.to_string().parse(), Ok(impair));
    }
    if let Ok(limit) = text.parse::<LimitConfig>() {
        assert_eq!(limit.to_string().parse(), Ok(limit));
    }
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().ok(), Some(address));
    }
    let _ = text.parse::<Mac>();
}
