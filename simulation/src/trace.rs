//! What happened in a run, line by line: hashed always, kept only for who wants to
//! read it.
//!
//! Two runs of one seed must have the same hash; the lines hold nothing that is not
//! virtual (no addresses of memory, no clocks).

use std::fmt::Write as _;

/// The trace of a run.
pub struct Trace {
    hash: u64,
    lines: u64,
    line: String,
    print: bool,
}

/// FNV-1a; nobody attacks it here.
pub(crate) fn hash(mut state: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    for word in words.by_ref() {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        state = (state ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        state ^= state >> 29;
    }
    for byte in words.remainder() {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state
}

impl Trace {
    /// An empty trace, whose lines are printed if `print` says so.
    pub(crate) fn new(print: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: 0,
            line: String::new(),
            print,
        }
    }

    /// Adds a line that happened at `now`, in nanoseconds.
    pub(crate) fn line(&mut self, now: u64, what: std::fmt::Arguments<'_>) {
        self.line.clear();
        // A String takes everything.
        let _ = self.line.write_fmt(what);
        self.hash = hash(self.hash ^ now, self.line.as_bytes());
        self.lines += 1;
        if self.print {
            println!("{:>13.6} ms  {}", now as f64 / 1e6, self.line);
        }
    }

    /// Adds a frame that the port `from` sent and the ports `to`, as bits, were given.
    pub(crate) fn frame(&mut self, now: u64, (from, to): (usize, u64), bytes: &[u8]) {
        self.hash = hash(self.hash ^ to, bytes);
        if self.print {
            let what = describe(bytes).unwrap_or_else(|| format!("{} bytes", bytes.len()));
            println!(
                "{:>13.6} ms    frame {from} to {to:#b}: {what}",
                now as f64 / 1e6
            );
        }
    }

    /// The hash of all that was added.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many lines were added.
    pub fn lines(&self) -> u64 {
        self.lines
    }
}

/// One line about a frame, if it carries TCP.
fn describe(frame: &[u8]) -> Option<String> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let long = |at: usize| Some(u32::from(word(at)?) << 16 | u32::from(word(at + 2)?));
    let (tcp, end) = match (word(12)?, *frame.get(23)?, *frame.get(20)?) {
        (0x0800, 6, _) => (34, 14 + usize::from(word(16)?)),
        (0x86dd, _, 6) => (54, 54 + usize::from(word(18)?)),
        _ => return None,
    };
    let data = tcp + usize::from(*frame.get(tcp + 12)? >> 4) * 4;
    let flags = *frame.get(tcp + 13)?;
    let names = [(2, "SYN "), (1, "FIN "), (4, "RST "), (8, "PSH ")];
    let names = names
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name);
    Some(format!(
        "TCP {} -> {} {}seq {} ack {} window {} data {}",
        word(tcp)?,
        word(tcp + 2)?,
        names.collect::<String>(),
        long(tcp + 4)?,
        long(tcp + 8)?,
        word(tcp + 14)?,
        end.saturating_sub(data),
    ))
}
