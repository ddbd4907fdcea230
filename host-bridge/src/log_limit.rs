//! A bound on the lines that somebody else can make the daemon log.
//!
//! What a guest or a client causes is logged through here. Who it was is known to the
//! caller.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// Log it.
    Say,
    /// Log it and say that it is the last for now.
    Last,
    /// Do not log it.
    Silent,
}

/// So many lines per second, and silence for the rest of it.
#[derive(Debug)]
pub(crate) struct LogLimit {
    per_second: u32,
    window: Option<Instant>,
    lines: u32,
}

impl LogLimit {
    /// `per_second` lines in each second, at least one.
    pub(crate) const fn new(per_second: u32) -> Self {
        Self {
            per_second,
            window: None,
            lines: 0,
        }
    }

    /// What becomes of one more line.
    fn allows(&mut self, now: Instant) -> Lines {
        let fresh = self
            .window
            .is_some_and(|began| now.saturating_duration_since(began) < Duration::from_secs(1));
        if !fresh {
            (self.window, self.lines) = (Some(now), 0);
        }
        self.lines = self.lines.saturating_add(1);
        match self.lines.cmp(&self.per_second.max(1)) {
            std::cmp::Ordering::Less => Lines::Say,
            std::cmp::Ordering::Equal => Lines::Last,
            std::cmp::Ordering::Greater => Lines::Silent,
        }
    }

    /// Logs a line about somebody who comes and goes, or leaves it out.
    pub(crate) fn tell(&mut self, target: &str, level: log::Level, text: impl Display) {
        self.log(target, level, text, "; more of these are not told of");
    }

    /// Logs a line, with `rest` behind it if it is the last for now, or leaves it out.
    fn log(&mut self, target: &str, level: log::Level, text: impl Display, rest: &str) {
        let rest = match self.allows(Instant::now()) {
            Lines::Say => "",
            Lines::Last => rest,
            Lines::Silent => return,
        };
        log::log!(target: target, level, "{text}{rest}");
    }
}

/// Where those lines come from, for whoever filters the log.
const TARGET: &str = "host_bridge::port";

/// The lines about one port, of which so many are logged per second, however often its
/// guest comes and goes. Clones are the same.
#[derive(Debug, Clone)]
pub struct PortLog {
    name: Arc<str>,
    limit: Arc<Mutex<LogLimit>>,
}

impl PortLog {
    /// `per_second` lines in each second about the port with this name.
    pub(crate) fn new(name: &str, per_second: u32) -> Self {
        Self {
            name: name.into(),
            limit: Arc::new(Mutex::new(LogLimit::new(per_second))),
        }
    }

    /// Logs a line, or leaves it out.
    pub(crate) fn log(&self, level: log::Level, text: impl Display) {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let name = &self.name;
        let text = format_args!("port {name}: {text}");
        let rest = " (its further lines of this second are left out)";
        limit.log(TARGET, level, text, rest);
    }

    /// Something that is in order.
    pub(crate) fn info(&self, text: impl Display) {
        self.log(log::Level::Info, text);
    }

    /// Something that is not.
    pub(crate) fn warn(&self, text: impl Display) {
        self.log(log::Level::Warn, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_last_line_of_a_second_there_is_silence_until_the_next() {
        let start = Instant::now();
        let mut limit = LogLimit::new(3);
        let mut said = |ms| limit.allows(start + Duration::from_millis(ms));
        assert_eq!(
            [said(0), said(1), said(2)],
            [Lines::Say, Lines::Say, Lines::Last]
        );
        assert_eq!([said(3), said(999)], [Lines::Silent, Lines::Silent]);
        assert_eq!([said(1000), said(1001)], [Lines::Say, Lines::Say]);
    }
}
