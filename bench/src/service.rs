//! The services that ours and every peer offer to the same clients, and on which
//! port. In our guest they are `demo-guest`'s; the peers' programs have their own.

use std::fmt;
use std::str::FromStr;

/// What a server does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Reads a cycle to its end and answers how much it was.
    Count,
    /// After a first byte from the client, sends a cycle until the client goes.
    Endless,
    /// Sends back what comes.
    Echo,
    /// Answers HTTP requests for `/`.
    Http,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Count, Self::Endless, Self::Echo, Self::Http];

    /// Its TCP port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Count => 5003,
            Self::Endless => 5004,
            Self::Echo => 7,
            Self::Http => 80,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Endless => "endless",
            Self::Echo => "echo",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|service| service.name() == text);
        found.ok_or_else(|| format!("no service {text:?}"))
    }
}

/// Longest read and write of every server, in bytes; our guest's is the same.
pub const PIECE: usize = 64 << 10;

/// What every peer's HTTP server answers, about as long as our guest's page.
pub fn page() -> Vec<u8> {
    const BODY: &str = "Hello from a peer, a server of a benchmark that answers this page to all.\n\n\
        address  10.0.0.2/30\naddress  fd00::2/126\nMTU      1500\nyou      10.0.0.1:50000\n";
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        BODY.len()
    );
    (head + BODY).into_bytes()
}
