//! Connections per second: `wrk`, one request per connection, sixteen at once.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::target::tools::output;

/// Connections at once.
const CONNECTIONS: &str = "16";

/// Runs `wrk` and says how many connections a second were opened, answered and
/// closed. It cannot run for less than a second.
///
/// # Errors
/// If it is not installed, or counted an error.
pub fn wrk(to: SocketAddr, time: Duration) -> Result<f64> {
    let time = format!("{}s", time.as_secs().max(1));
    let url = format!("http://{to}/");
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c", CONNECTIONS, "-d", &time]);
    command.args(["-H", "Connection: close", &url]);
    parse(&output(command)?)
}

fn parse(text: &str) -> Result<f64> {
    let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name));
    if let Some(errors) = value("Socket errors:").or_else(|| value("Non-2xx or 3xx responses:")) {
        return Err(format!("wrk counted errors: {}", errors.trim()).into());
    }
    let rate = value("Requests/sec:").ok_or("wrk gave no rate")?;
    Ok(rate.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_and_errors_are_not_overlooked() {
        let good =
            "  1000 requests in 1.00s, 1MB read\nRequests/sec:  21000.50\nTransfer/sec: 1MB\n";
        assert_eq!(parse(good).unwrap(), 21000.5);
        let bad = "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec: 1\n";
        assert!(parse(bad).unwrap_err().to_string().contains("read 3"));
        assert!(parse("").is_err());
    }
}
