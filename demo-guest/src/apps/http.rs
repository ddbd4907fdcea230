//! A small HTTP/1.1 server (RFC 9112): GET and HEAD, connections that stay open.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use guest_stack::face::asynchronous::TcpStream;
use guest_stack::face::platform::Platform;
use guest_stack::tcp::stream::Shutdown;
use shm_link::link::Link;

use crate::pattern::Pattern;

/// Longest request head.
const MAX_HEAD: usize = 8 << 10;
/// Largest body of `/bytes/N`.
const MAX_BYTES: u64 = 1 << 40;

/// What a request asks for.
struct Request {
    head_only: bool,
    path: String,
    keep_alive: bool,
}

/// What a request that cannot be answered gets: a status.
type Refusal = &'static str;

const BAD: Refusal = "400 Bad Request";

/// Answers requests until the peer has no more.
pub(super) async fn serve<L: Link, P: Platform>(stream: TcpStream<L, P>, name: Arc<str>) {
    let mut held = Vec::new();
    loop {
        let request = match read_head(&stream, &mut held).await {
            Ok(Some(head)) => parse(&head),
            Ok(None) => break,
            Err(refusal) => Err(refusal),
        };
        let keep_alive = match request {
            Ok(request) => match answer(&stream, &request, &name).await {
                Ok(()) => request.keep_alive,
                Err(()) => return,
            },
            Err(refusal) => {
                let _ = reply(&stream, refusal, "text/plain", b"", false, false).await;
                false
            }
        };
        if !keep_alive {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Reads up to the empty line; what follows stays in `held`. Nothing if the peer has
/// no more.
async fn read_head<L: Link, P: Platform>(
    stream: &TcpStream<L, P>,
    held: &mut Vec<u8>,
) -> Result<Option<Vec<u8>>, Refusal> {
    let mut buffer = vec![0; 2048];
    loop {
        // A client of another protocol sends no empty line and waits for a word.
        judge_beginning(held)?;
        if let Some(len) = head_len(held) {
            let rest = held.split_off(len);
            return Ok(Some(core::mem::replace(held, rest)));
        }
        if held.len() > MAX_HEAD {
            return Err("431 Request Header Fields Too Large");
        }
        match stream.recv(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(n) => held.extend_from_slice(&buffer[..n]),
        }
    }
}

/// How long the head is, with its empty line, if all of it is there. A line may end
/// without its CR (RFC 9112 section 2.2).
fn head_len(held: &[u8]) -> Option<usize> {
    let mut line_begins = 0;
    for line in held.split_inclusive(|byte| *byte == b'\n') {
        line_begins += line.len();
        if matches!(line, b"\n" | b"\r\n") {
            return Some(line_begins);
        }
    }
    None
}

/// Refuses what can be no request whatever follows.
fn judge_beginning(held: &[u8]) -> Result<(), Refusal> {
    let line = held.split_inclusive(|byte| *byte == b'\n').next();
    let line = line.unwrap_or_default();
    if !line
        .iter()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\r' | b'\n'))
    {
        return Err(BAD);
    }
    match line.ends_with(b"\n") {
        true => request_line(str::from_utf8(line).map_err(|_| BAD)?.trim_end()).map(drop),
        false => Ok(()),
    }
}

/// Method, path, and whether the version keeps connections open.
fn request_line(line: &str) -> Result<(&str, &str, bool), Refusal> {
    let mut words = line.split(' ');
    let (Some(method), Some(path), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    match version {
        "HTTP/1.1" => Ok((method, path, true)),
        "HTTP/1.0" => Ok((method, path, false)),
        _ => Err("505 HTTP Version Not Supported"),
    }
}

/// Reads a request's head.
fn parse(head: &[u8]) -> Result<Request, Refusal> {
    let head = str::from_utf8(head).map_err(|_| BAD)?;
    let mut lines = head.lines();
    let (method, path, mut keep_alive) = request_line(lines.next().unwrap_or_default())?;
    for line in lines.filter(|line| !line.is_empty()) {
        let (field, value) = line.split_once(':').ok_or(BAD)?;
        if field.eq_ignore_ascii_case("connection") {
            keep_alive = value.trim().eq_ignore_ascii_case("keep-alive")
                || keep_alive && !value.trim().eq_ignore_ascii_case("close");
        }
        // A body would be taken for the next request.
        let has_body = field.eq_ignore_ascii_case("transfer-encoding")
            || field.eq_ignore_ascii_case("content-length") && value.trim() != "0";
        if has_body {
            return Err("413 Content Too Large");
        }
    }
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err("501 Not Implemented"),
    };
    Ok(Request {
        head_only,
        path: path.to_string(),
        keep_alive,
    })
}

async fn answer<L: Link, P: Platform>(
    stream: &TcpStream<L, P>,
    request: &Request,
    name: &str,
) -> Result<(), ()> {
    let Request {
        head_only,
        path,
        keep_alive,
    } = request;
    if path == "/" {
        let page = page(stream, name);
        return reply(
            stream,
            "200 OK",
            "text/plain; charset=utf-8",
            page.as_bytes(),
            *head_only,
            *keep_alive,
        )
        .await;
    }
    let wanted = path
        .strip_prefix("/bytes/")
        .and_then(|n| n.parse::<u64>().ok());
    let Some(mut left) = wanted.filter(|n| *n <= MAX_BYTES) else {
        return reply(
            stream,
            "404 Not Found",
            "text/plain",
            b"not here: try / or /bytes/1000000\n",
            *head_only,
            *keep_alive,
        )
        .await;
    };
    send(
        stream,
        head("200 OK", "application/octet-stream", left, *keep_alive).as_bytes(),
    )
    .await?;
    if *head_only {
        return Ok(());
    }
    let mut pattern = Pattern::new(0);
    let mut buffer = vec![0; 32 << 10];
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        pattern.fill(&mut buffer[..n]);
        send(stream, &buffer[..n]).await?;
        left -= n as u64;
    }
    Ok(())
}

/// What the guest tells about itself.
fn page<L: Link, P: Platform>(stream: &TcpStream<L, P>, name: &str) -> String {
    let mut page = format!("Hello from {name}, a guest with a TCP/IP stack of its own.\n\n");
    stream.network().with(|stack, _| {
        let mtu = stack.sockets().net_config().mtu;
        for (address, prefix_len) in stack.sockets().addresses() {
            page += &format!("address  {address}/{prefix_len}\n");
        }
        page += &format!("MTU      {mtu}\n");
    });
    if let Ok(peer) = stream.peer_addr() {
        page += &format!("you      {peer}\n");
    }
    page
}

fn head(status: &str, kind: &str, len: u64, keep_alive: bool) -> String {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: {connection}\r\n\r\n"
    )
}

async fn reply<L: Link, P: Platform>(
    stream: &TcpStream<L, P>,
    status: &str,
    kind: &str,
    body: &[u8],
    head_only: bool,
    keep_alive: bool,
) -> Result<(), ()> {
    // In one piece: a small answer is one segment.
    let mut bytes = head(status, kind, body.len() as u64, keep_alive).into_bytes();
    if !head_only {
        bytes.extend_from_slice(body);
    }
    send(stream, &bytes).await
}

async fn send<L: Link, P: Platform>(stream: &TcpStream<L, P>, bytes: &[u8]) -> Result<(), ()> {
    stream.send_all(bytes).await.map_err(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_header_decides_whether_to_stay() {
        let keep = |head: &str| parse(head.as_bytes()).map(|request| request.keep_alive);
        assert_eq!(keep("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Ok(true));
        assert_eq!(
            keep("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"),
            Ok(false)
        );
        assert_eq!(keep("GET / HTTP/1.0\r\n\r\n"), Ok(false));
        assert_eq!(
            keep("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"),
            Ok(true)
        );
    }

    #[test]
    fn what_is_no_request_gets_a_status_that_says_so() {
        let status = |head: &str| parse(head.as_bytes()).err();
        assert_eq!(status("nonsense\r\n\r\n"), Some("400 Bad Request"));
        assert_eq!(
            status("GET / HTTP/3\r\n\r\n"),
            Some("505 HTTP Version Not Supported")
        );
        assert_eq!(
            status("POST / HTTP/1.1\r\n\r\n"),
            Some("501 Not Implemented")
        );
        assert_eq!(
            status("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n"),
            Some("413 Content Too Large")
        );
        assert_eq!(
            status("GET / HTTP/1.1\r\nno colon\r\n\r\n"),
            Some("400 Bad Request")
        );
    }

    #[test]
    fn what_can_be_no_request_is_refused_before_its_end() {
        // A TLS client's greeting, one of SMB, a line of another protocol.
        for other in [
            &b"\x16\x03\x01\x02\x00"[..],
            b"\0\0\0\xa4\xffSMB",
            b"HELP\r\n",
        ] {
            assert_eq!(judge_beginning(other), Err(BAD), "{other:?}");
        }
        for beginning in [&b""[..], b"GE", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\nHo"] {
            assert_eq!(judge_beginning(beginning), Ok(()), "{beginning:?}");
        }
    }

    #[test]
    fn heads_with_bytes_changed_are_answered_or_refused() {
        let mut understood = 0;
        for seed in 0..20_000 {
            let text = &b"GET /bytes/1000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nmore"[..];
            let mut text = text.to_vec();
            crate::apps::damage(seed, &mut text, b"\r\n :/0123.HTPgetX\t\0\x7f\xff");
            let _ = judge_beginning(&text);
            let Some(len) = head_len(&text) else {
                continue;
            };
            assert!(len <= text.len());
            understood += u32::from(parse(&text[..len]).is_ok());
        }
        assert!((100..19_000).contains(&understood), "{understood}");
    }

    #[test]
    fn a_head_ends_at_the_empty_line_however_lines_end() {
        assert_eq!(head_len(b"GET / HTTP/1.1\r\n\r\nrest"), Some(18));
        assert_eq!(head_len(b"GET / HTTP/1.1\nHost: x\n\nrest"), Some(24));
        assert_eq!(head_len(b"GET / HTTP/1.1\r\nHost: x\r\n\r"), None);
    }
}
