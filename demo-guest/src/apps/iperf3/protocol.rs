//! What iperf3 says on its control connection: state bytes, the test's
//! parameters and its results, both as JSON behind a length.
//!
//! Bytes in, values out: no sockets, no clock. The parameters come from a
//! stranger, so every one is checked and nothing here panics.
//!
//! | server | client |
//! | --- | --- |
//! | | cookie (37 bytes) |
//! | [`PARAM_EXCHANGE`] | parameters |
//! | [`CREATE_STREAMS`] | data connections, each with the same cookie |
//! | [`TEST_START`], [`TEST_RUNNING`] | data, then [`TEST_END`] |
//! | [`EXCHANGE_RESULTS`] | its results |
//! | its results, [`DISPLAY_RESULTS`] | [`IPERF_DONE`] |

use alloc::vec::Vec;

use guest_stack::time::Duration;
use serde_json::{Value, json};

use super::meter::Meter;

/// 36 characters and a NUL, which say what test a connection belongs to.
pub(super) type Cookie = [u8; 37];

/// The test begins.
pub(super) const TEST_START: u8 = 1;
/// Data may flow.
pub(super) const TEST_RUNNING: u8 = 2;
/// The client has had enough.
pub(super) const TEST_END: u8 = 4;
/// The client is to send its parameters.
pub(super) const PARAM_EXCHANGE: u8 = 9;
/// The client is to open its data connections.
pub(super) const CREATE_STREAMS: u8 = 10;
/// The client gives up.
pub(super) const CLIENT_TERMINATE: u8 = 12;
/// The client is to send its results.
pub(super) const EXCHANGE_RESULTS: u8 = 13;
/// The client may print.
pub(super) const DISPLAY_RESULTS: u8 = 14;
/// The client has everything.
pub(super) const IPERF_DONE: u8 = 16;
/// Another test runs.
pub(super) const ACCESS_DENIED: u8 = 0xff;
/// An error; two numbers follow.
const SERVER_ERROR: u8 = 0xfe;

/// What a client sends over UDP to open a stream: a number in its own byte
/// order, which spells this on a little-endian machine.
pub(super) const UDP_HELLO: [u8; 4] = *b"9876";

/// Longest JSON text of parameters; a client's are some 300 bytes.
pub(super) const MAX_PARAMS: usize = 8 << 10;
/// Longest JSON text of results: 128 streams take some 20 KB.
pub(super) const MAX_RESULTS: usize = 1 << 20;

const MAX_STREAMS: u64 = 128;
const MAX_TIME_SECONDS: u64 = 86_400;
const MAX_OMIT_SECONDS: u64 = 60;
const MAX_BLOCK: u64 = 1 << 20;
/// A UDP payload over IPv4.
const MAX_UDP_BLOCK: u64 = 65_507;
/// Seconds, microseconds, and a counter of 64 bits.
const MIN_UDP_BLOCK: u64 = 16;

/// Why a test is refused, by iperf3's numbers, so that the client can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Refusal {
    /// The test would take too long.
    Duration = 5,
    /// Too many streams.
    Streams = 6,
    /// Blocks of this size are not sent over TCP.
    Block = 7,
    /// The time to leave out is too long.
    Omit = 12,
    /// Something that this server cannot do.
    NotImplemented = 13,
    /// Blocks of this size are not sent over UDP.
    UdpBlock = 20,
    /// A message that means nothing here.
    Message = 110,
    /// The parameters are no JSON object of the expected shape.
    Params = 114,
    /// The results are not.
    Results = 117,
    /// The data connections cannot be had.
    StreamAccept = 203,
}

impl Refusal {
    /// The message that tells the client.
    pub(super) fn message(self) -> [u8; 9] {
        let [a, b, c, d] = (self as u32).to_be_bytes();
        // The last four are an errno, which says nothing about a guest.
        [SERVER_ERROR, a, b, c, d, 0, 0, 0, 0]
    }
}

/// What carries the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) transport: Transport,
    /// Streams on which the client sends. They are opened first.
    pub(super) to_guest: usize,
    /// Streams on which this server sends.
    pub(super) from_guest: usize,
    /// Bytes per write or datagram.
    pub(super) block: usize,
    /// Bits per second and stream; 0: as fast as it goes.
    pub(super) rate: u64,
    /// How long the client sends; zero if it counts bytes instead.
    pub(super) duration: Duration,
    /// What is left out of the results at the beginning.
    pub(super) omit: Duration,
    pub(super) nodelay: bool,
    /// Datagrams are counted in 64 bits.
    pub(super) wide_counters: bool,
}

impl Params {
    /// Reads the client's JSON text.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Refusal> {
        let value: Value = serde_json::from_slice(text).map_err(|_| Refusal::Params)?;
        let object = value.as_object().ok_or(Refusal::Params)?;
        let flag = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(Value::Number(number)) => Ok(number.as_f64() != Some(0.0)),
            Some(_) => Err(Refusal::Params),
        };
        let number = |name: &str, default: u64| match object.get(name) {
            None => Ok(default),
            Some(value) => value.as_u64().ok_or(Refusal::Params),
        };
        let transport = match (flag("tcp")?, flag("udp")?) {
            (true, false) => Transport::Tcp,
            (false, true) => Transport::Udp,
            (false, false) => return Err(Refusal::NotImplemented),
            (true, true) => return Err(Refusal::Params),
        };
        let at_most = |value: u64, most: u64, refusal| {
            if value <= most {
                Ok(value)
            } else {
                Err(refusal)
            }
        };
        let streams =
            at_most(number("parallel", 1)?, MAX_STREAMS, Refusal::Streams)?.max(1) as usize;
        let (to_guest, from_guest) = match (flag("reverse")?, flag("bidirectional")?) {
            (false, false) => (streams, 0),
            (true, false) => (0, streams),
            (false, true) => (streams, streams),
            (true, true) => return Err(Refusal::Params),
        };
        let block = match transport {
            Transport::Tcp => match number("len", 128 << 10)? {
                block @ 1..=MAX_BLOCK => block,
                _ => return Err(Refusal::Block),
            },
            Transport::Udp => match number("len", 1460)? {
                block @ MIN_UDP_BLOCK..=MAX_UDP_BLOCK => block,
                _ => return Err(Refusal::UdpBlock),
            },
        };
        let duration = at_most(number("time", 0)?, MAX_TIME_SECONDS, Refusal::Duration)?;
        let omit = at_most(number("omit", 0)?, MAX_OMIT_SECONDS, Refusal::Omit)?;
        Ok(Self {
            transport,
            to_guest,
            from_guest,
            block: block as usize,
            rate: number("bandwidth", 0)?,
            duration: Duration::from_secs(duration),
            omit: Duration::from_secs(omit),
            nodelay: flag("nodelay")?,
            wide_counters: flag("udp_counters_64bit")?,
        })
    }

    /// Data connections in all.
    pub(super) fn streams(&self) -> usize {
        self.to_guest + self.from_guest
    }

    /// How long the test may take before its client counts as gone.
    pub(super) fn patience(&self) -> Duration {
        let longest = match self.duration {
            Duration::ZERO => Duration::from_secs(MAX_TIME_SECONDS),
            duration => duration,
        };
        self.omit + longest + Duration::from_secs(30)
    }
}

/// The number that iperf3 gives its stream of this place in the row: 1, 3, 4 …
fn stream_id(place: usize) -> usize {
    if place == 0 { 1 } else { place + 2 }
}

/// This server's results, with their length in front. `sends`: it sent, at
/// least on some streams.
pub(super) fn results(meters: &[Meter], sends: bool, elapsed: Duration) -> Vec<u8> {
    let seconds = elapsed.total_micros() as f64 / 1e6;
    let streams = meters.iter().enumerate().map(|(place, meter)| {
        json!({
            "id": stream_id(place),
            "bytes": meter.bytes,
            "retransmits": -1,
            "jitter": meter.jitter_seconds(),
            "errors": meter.lost,
            "omitted_errors": meter.omitted_lost,
            "packets": meter.packets,
            "omitted_packets": meter.omitted_packets,
            "start_time": 0,
            "end_time": seconds,
        })
    });
    let results = json!({
        // A guest does not measure its processor.
        "cpu_util_total": 0.0,
        "cpu_util_user": 0.0,
        "cpu_util_system": 0.0,
        // 0: they are not counted; -1: there are none to count.
        "sender_has_retransmits": if sends { 0 } else { -1 },
        "streams": streams.collect::<Vec<_>>(),
    });
    // Numbers, text and lists of them always serialise.
    let text = serde_json::to_vec(&results).unwrap_or_default();
    let mut message = (text.len() as u32).to_be_bytes().to_vec();
    message.extend(text);
    message
}

/// The answer to a datagram that opens a stream; `None` if it is not one.
pub(super) fn udp_answer(payload: &[u8]) -> Option<[u8; 4]> {
    let mut hello: [u8; 4] = payload.try_into().ok()?;
    let other_order = {
        let mut turned = UDP_HELLO;
        turned.reverse();
        turned
    };
    // The answer is the same digits from the other end.
    (hello == UDP_HELLO || hello == other_order).then(|| {
        hello.reverse();
        hello
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"{"tcp":true,"omit":0,"time":10,"num":0,"blockcount":0,"parallel":1,
        "len":131072,"pacing_timer":1000,"client_version":"3.12"}"#;

    #[test]
    fn the_parameters_of_a_plain_test_are_understood() {
        let params = Params::parse(PLAIN.as_bytes()).unwrap();
        assert_eq!(
            (params.transport, params.to_guest, params.from_guest),
            (Transport::Tcp, 1, 0)
        );
        assert_eq!((params.block, params.rate), (131_072, 0));
        assert_eq!(params.duration, Duration::from_secs(10));
        assert_eq!(params.patience(), Duration::from_secs(40));
    }

    #[test]
    fn directions_and_streams_are_understood() {
        let streams =
            |json: &str| Params::parse(json.as_bytes()).map(|p| (p.to_guest, p.from_guest));
        assert_eq!(
            streams(r#"{"tcp":true,"parallel":4,"reverse":true}"#),
            Ok((0, 4))
        );
        assert_eq!(
            streams(r#"{"tcp":true,"parallel":3,"bidirectional":1}"#),
            Ok((3, 3))
        );
        assert_eq!(streams(r#"{"udp":true,"reverse":false}"#), Ok((1, 0)));
    }

    #[test]
    fn parameters_that_make_no_sense_are_refused_by_iperf3s_own_number() {
        for (json, refusal) in [
            ("", Refusal::Params),
            ("{", Refusal::Params),
            ("[1,2]", Refusal::Params),
            ("\u{0}", Refusal::Params),
            (r#"{"tcp":"yes"}"#, Refusal::Params),
            (r#"{"tcp":true,"udp":true}"#, Refusal::Params),
            (r#"{"tcp":true,"len":-1}"#, Refusal::Params),
            (r#"{"tcp":true,"time":1.5}"#, Refusal::Params),
            (
                r#"{"tcp":true,"reverse":true,"bidirectional":true}"#,
                Refusal::Params,
            ),
            (r#"{"sctp":true}"#, Refusal::NotImplemented),
            (r#"{"tcp":true,"parallel":129}"#, Refusal::Streams),
            (r#"{"tcp":true,"len":0}"#, Refusal::Block),
            (r#"{"tcp":true,"len":2000000}"#, Refusal::Block),
            (r#"{"udp":true,"len":15}"#, Refusal::UdpBlock),
            (r#"{"udp":true,"len":65508}"#, Refusal::UdpBlock),
            (r#"{"tcp":true,"time":86401}"#, Refusal::Duration),
            (r#"{"tcp":true,"omit":61}"#, Refusal::Omit),
            (
                r#"{"tcp":true,"parallel":18446744073709551615}"#,
                Refusal::Streams,
            ),
        ] {
            assert_eq!(Params::parse(json.as_bytes()), Err(refusal), "{json}");
        }
    }

    #[test]
    fn parameters_with_bytes_changed_are_refused_or_within_their_bounds() {
        let mut understood = 0;
        let texts = [
            PLAIN,
            r#"{"udp":1,"omit":3,"time":86400,"parallel":128,"len":65507,"reverse":false,
                "bidirectional":true,"bandwidth":1000000,"udp_counters_64bit":1,"nodelay":null}"#,
        ];
        for (seed, text) in (0..20_000).zip(texts.into_iter().cycle()) {
            let mut text = text.as_bytes().to_vec();
            crate::apps::damage(seed, &mut text, b"0123456789-+eE.\"{}[]:,tfnu \0\xff");
            let Ok(params) = Params::parse(&text) else {
                continue;
            };
            understood += 1;
            let text = alloc::string::String::from_utf8_lossy(&text);
            assert!((1..=256).contains(&params.streams()), "{text}");
            assert!((1..=MAX_BLOCK as usize).contains(&params.block), "{text}");
            assert!(params.patience() < Duration::from_secs(90_000), "{text}");
        }
        assert!((100..19_000).contains(&understood), "{understood}");
    }

    #[test]
    fn deeply_nested_parameters_are_an_error() {
        let nested = alloc::vec![b'['; MAX_PARAMS];
        assert_eq!(Params::parse(&nested), Err(Refusal::Params));
    }

    #[test]
    fn a_refusal_is_a_byte_and_two_numbers() {
        assert_eq!(Refusal::Params.message(), [0xfe, 0, 0, 0, 114, 0, 0, 0, 0]);
    }

    #[test]
    fn the_second_stream_has_the_number_three() {
        let message = results(
            &[Meter::default(), Meter::default(), Meter::default()],
            true,
            Duration::from_millis(1500),
        );
        let (len, text) = message.split_at(4);
        assert_eq!(
            u32::from_be_bytes(len.try_into().unwrap()) as usize,
            text.len()
        );
        let value: Value = serde_json::from_slice(text).unwrap();
        let ids: Vec<_> = value["streams"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["id"].as_u64())
            .collect();
        assert_eq!(ids, [Some(1), Some(3), Some(4)]);
        assert_eq!(value["streams"][0]["end_time"], 1.5);
        assert_eq!(value["sender_has_retransmits"], 0);
    }

    #[test]
    fn a_udp_stream_is_opened_in_either_byte_order_and_by_nothing_else() {
        assert_eq!(udp_answer(b"9876"), Some(*b"6789"));
        assert_eq!(udp_answer(b"6789"), Some(*b"9876"));
        assert_eq!(udp_answer(b"9877"), None);
        assert_eq!(udp_answer(b"98766"), None);
        assert_eq!(udp_answer(b""), None);
    }
}
