//! The lines of the admin protocol as types.
//!
//! A request is read strictly: what is not understood must not be half obeyed.
//! A response is read leniently, so that a newer daemon may say more.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::port::{PortChange, PortStatus};

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// Longest line of a request, in bytes, the newline included.
pub const MAX_REQUEST_LEN: usize = 64 << 10;

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How one port, or each port, is now.
    Status {
        /// The port's name; without it all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<String>,
    },
    /// Change a port. Answered when a running guest has acknowledged it.
    Change {
        /// The port's name.
        port: String,
        /// What to change.
        change: Box<PortChange>,
    },
    /// Let another process of the daemon take over: guests and connections stay.
    Restart {},
}

/// What the daemon answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// Ports as they are now, by name.
    Status {
        /// The ports.
        ports: Vec<PortStatus>,
    },
    /// The change holds.
    Changed {
        /// The port as it is now.
        port: Box<PortStatus>,
    },
    /// This process ends now and another goes on.
    Restarting {},
    /// The request was not understood or could not be fulfilled.
    Error {
        /// Words for a person.
        why: String,
    },
}

/// A request as it stands in a line.
#[derive(Serialize)]
struct RequestLine<'a> {
    v: u32,
    request: &'a Request,
}

/// A request's line as far as every version understands it.
#[derive(Deserialize)]
struct AnyLine {
    v: u32,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// A response as it stands in a line.
#[derive(Serialize, Deserialize)]
struct ResponseLine<R> {
    v: u32,
    response: R,
}

impl Request {
    /// The request as a line, newline included.
    pub fn to_line(&self) -> String {
        line(&RequestLine {
            v: VERSION,
            request: self,
        })
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, in words for the client.
    pub fn from_line(line: &[u8]) -> Result<Self, String> {
        let words = |error: serde_json::Error| format!("the request is not understood: {error}");
        let mut line: AnyLine = serde_json::from_slice(line).map_err(words)?;
        if line.v != VERSION {
            return Err(format!(
                "this daemon speaks version {VERSION} of the admin protocol, the request is of \
                 version {}: use the command of the daemon's own release",
                line.v
            ));
        }
        let request = line
            .rest
            .remove("request")
            .ok_or_else(|| "the request is not understood: \"request\" is missing".to_owned())?;
        if let Some(unknown) = line.rest.keys().next() {
            return Err(format!(
                "the request is not understood: unknown field {unknown:?}"
            ));
        }
        serde_json::from_value(request).map_err(words)
    }
}

impl Response {
    /// The response as a line, newline included.
    pub fn to_line(&self) -> String {
        line(&ResponseLine {
            v: VERSION,
            response: self,
        })
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_line(line: &[u8]) -> Result<Self, serde_json::Error> {
        let line: ResponseLine<Self> = serde_json::from_slice(line)?;
        Ok(line.response)
    }
}

fn line(message: &impl Serialize) -> String {
    // Strings, numbers, lists and maps with text keys: JSON has all of them.
    let mut text = serde_json::to_string(message).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_line() {
        for request in [
            Request::Status { port: None },
            Request::Status {
                port: Some("guest0".into()),
            },
            Request::Change {
                port: "guest0".into(),
                change: Box::new(PortChange {
                    mtu: Some(1300),
                    addresses: Some(vec!["10.0.0.2/24".parse().unwrap()]),
                    impair_to_host: Some("loss=5%".parse().unwrap()),
                    ..PortChange::default()
                }),
            },
        ] {
            let line = request.to_line();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(Request::from_line(line.as_bytes()), Ok(request));
        }
    }

    #[test]
    fn the_documented_lines_are_what_is_spoken() {
        let line = r#"{"v":1,"request":{"status":{}}}"#;
        assert_eq!(
            Request::Status { port: None }.to_line(),
            format!("{line}\n")
        );
        let line = r#"{"v":1,"request":{"change":{"port":"guest0","change":{"mtu":1300}}}}"#;
        assert!(matches!(
            Request::from_line(line.as_bytes()),
            Ok(Request::Change { change, .. }) if change.mtu == Some(1300)
        ));
        let error = Response::Error { why: "no".into() };
        assert_eq!(
            error.to_line(),
            "{\"v\":1,\"response\":{\"error\":{\"why\":\"no\"}}}\n"
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_in_words() {
        for (line, words) in [
            ("", "not understood"),
            ("nonsense", "not understood"),
            ("{}", "missing field `v`"),
            (r#"{"v":2,"request":{"reboot":{}}}"#, "speaks version 1"),
            (r#"{"v":1}"#, "\"request\" is missing"),
            (
                r#"{"v":1,"request":{"status":{}},"x":1}"#,
                "unknown field \"x\"",
            ),
            (
                r#"{"v":1,"request":{"reboot":{}}}"#,
                "unknown variant `reboot`",
            ),
            (
                r#"{"v":1,"request":{"status":{"x":1}}}"#,
                "unknown field `x`",
            ),
            (
                r#"{"v":1,"request":{"change":{"port":"p","change":{"mut":1}}}}"#,
                "unknown field `mut`",
            ),
            (
                r#"{"v":1,"request":{"change":{"port":"p","change":{"impair_to_host":"lots"}}}}"#,
                "has no value",
            ),
        ] {
            let error = Request::from_line(line.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
