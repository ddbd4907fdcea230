//! One page over HTTP/1.1 (RFC 9112), strictly.
//!
//! Enough of a client to prove that the guest's server works, and no more:
//! `GET`, `Connection: close`, a body that is as long as `Content-Length` says
//! or ends with the connection. What a browser would forgive is an error here.

use std::net::SocketAddr;
use std::time::Duration;

use super::ProbeError;
use super::stream::BoundedStream;

/// Longest answer that is read, in bytes.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;

/// A page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Fetches `path` (which begins with `/`) from the server at `addr`, within
/// `limit`.
///
/// # Errors
/// [`ProbeError`]; an answer that breaks the protocol is one, a status such as
/// 404 is not.
pub fn http_get(addr: SocketAddr, path: &str, limit: Duration) -> Result<HttpResponse, ProbeError> {
    let doing = format!("fetching http://{addr}{path}");
    let mut stream = BoundedStream::connect(addr, limit, doing)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let response = stream.read_to_end(MAX_RESPONSE)?;
    parse(&response).map_err(|what| ProbeError::answer(stream.doing(), what))
}

fn parse(response: &[u8]) -> Result<HttpResponse, String> {
    const END: &[u8] = b"\r\n\r\n";
    let end = response
        .windows(END.len())
        .position(|window| window == END)
        .ok_or("the header does not end with an empty line")?;
    let (head, rest) = response.split_at(end);
    let body = rest.get(END.len()..).unwrap_or_default();
    let head = str::from_utf8(head).map_err(|_| "the header is not text")?;
    let mut lines = head.split("\r\n");
    let status = status(lines.next().unwrap_or_default())?;
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("{line:?} is not a header field"))?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("a transfer encoding that was not asked for".into());
        }
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            let got = body.len();
            return Err(format!(
                "the length is said to be{value}, and {got} bytes came"
            ));
        }
    }
    Ok(HttpResponse {
        status,
        body: body.to_vec(),
    })
}

/// `HTTP/1.1 200 reason` (RFC 9112, section 4).
fn status(line: &str) -> Result<u16, String> {
    let code = line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.split_once(' '));
    match code.map(|(code, _reason)| (code.len(), code.parse())) {
        Some((3, Ok(status @ 100..=599))) => Ok(status),
        _ => Err(format!("{line:?} is not a status line")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread;

    fn serve(answer: &'static [u8]) -> (SocketAddr, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            stream.write_all(answer).unwrap();
            request
        });
        (addr, server)
    }

    fn get(answer: &'static [u8]) -> Result<HttpResponse, ProbeError> {
        let (addr, server) = serve(answer);
        let result = http_get(addr, "/page", Duration::from_secs(20));
        server.join().unwrap();
        result
    }

    #[test]
    fn a_page_is_fetched_with_a_proper_request() {
        let (addr, server) =
            serve(b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello");
        let page = http_get(addr, "/page", Duration::from_secs(20)).unwrap();
        assert_eq!(
            page,
            HttpResponse {
                status: 200,
                body: b"hello".to_vec()
            }
        );
        let request = server.join().unwrap();
        let host = format!("Host: {addr}");
        assert_eq!(request, ["GET /page HTTP/1.1", &host, "Connection: close"]);
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let page = get(b"HTTP/1.1 404 Not Found\r\n\r\nno such page").unwrap();
        assert_eq!((page.status, &page.body[..]), (404, &b"no such page"[..]));
    }

    #[test]
    fn answers_that_break_the_protocol_are_errors() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 999 OK\r\n\r\n",
            b"HTTP/1.1 200\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: \xff\r\n\r\n",
        ] {
            let result = get(answer);
            assert!(
                matches!(result, Err(ProbeError::Answer { .. })),
                "{result:?}"
            );
        }
    }

    #[test]
    fn a_port_where_nobody_listens_is_an_error_that_names_the_page() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let error = http_get(addr, "/", Duration::from_secs(20)).unwrap_err();
        assert!(matches!(error, ProbeError::Io { .. }));
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}
