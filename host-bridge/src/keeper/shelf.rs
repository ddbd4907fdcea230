//! Descriptors with names, and the lines by which a worker puts them here.
//!
//! The lines are those of `sd_notify(3)` that concern descriptors, and `READY=1`; of
//! others nothing is made. Names mean nothing here.

use std::os::fd::OwnedFd;

/// Longest name, in bytes, as systemd has it.
const NAME_LEN: usize = 255;

/// What is kept.
#[derive(Debug, Default)]
pub struct Shelf(Vec<(String, OwnedFd)>);

/// What a message says besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// The worker serves.
    Ready,
    /// Nothing.
    Nothing,
}

impl Shelf {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a descriptor, beside others of the same name.
    pub fn keep(&mut self, name: impl Into<String>, fd: OwnedFd) {
        self.0.push((name.into(), fd));
    }

    /// How many descriptors are kept.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Names and descriptors, the oldest first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &OwnedFd)> {
        self.0.iter().map(|(name, fd)| (name.as_str(), fd))
    }

    /// Does what a message says with the descriptors that came with it. Those that are
    /// not kept are closed, which is how `BARRIER=1` is answered.
    pub fn hear(&mut self, message: &[u8], fds: Vec<OwnedFd>) -> Said {
        let text = String::from_utf8_lossy(message);
        let value = |key: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        let name = value("FDNAME").filter(|name| is_name(name));
        if value("FDSTOREREMOVE") == Some("1")
            && let Some(name) = name
        {
            self.0.retain(|(kept, _)| kept != name);
        } else if value("FDSTORE") == Some("1") {
            let name = name.unwrap_or("stored");
            for fd in fds {
                self.keep(name, fd);
            }
        }
        match value("READY") {
            Some("1") => Said::Ready,
            _ => Said::Nothing,
        }
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    (1..=NAME_LEN).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn names(shelf: &Shelf) -> Vec<&str> {
        shelf.entries().map(|(name, _)| name).collect()
    }

    #[test]
    fn descriptors_are_kept_by_name_until_their_name_is_removed() {
        let mut shelf = Shelf::new();
        let said = shelf.hear(b"FDSTORE=1\nFDPOLL=0\nFDNAME=a.tap", vec![fd()]);
        assert_eq!(said, Said::Nothing);
        shelf.hear(b"FDNAME=b.tap\nFDSTORE=1", vec![fd()]);
        shelf.hear(b"FDSTORE=1\nFDNAME=a.tap", vec![fd()]);
        assert_eq!(names(&shelf), ["a.tap", "b.tap", "a.tap"]);
        shelf.hear(b"FDSTOREREMOVE=1\nFDNAME=a.tap", vec![]);
        assert_eq!(names(&shelf), ["b.tap"]);
        shelf.hear(b"FDSTOREREMOVE=1\nFDNAME=c", vec![]);
        assert_eq!(names(&shelf), ["b.tap"]);
    }

    #[test]
    fn a_barrier_is_answered_by_closing_what_came_with_it() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        Shelf::new().hear(b"BARRIER=1", vec![theirs.into()]);
        assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn ready_is_heard_and_nonsense_keeps_nothing() {
        let mut shelf = Shelf::new();
        assert_eq!(shelf.hear(b"STATUS=fine\nREADY=1\n", vec![]), Said::Ready);
        for nonsense in [
            &b""[..],
            b"\xff\xfe",
            b"READY=0",
            b"FDSTORE=2\nFDNAME=a",
            b"FDSTOREREMOVE=1",
            b"FDSTORE",
        ] {
            assert_eq!(shelf.hear(nonsense, vec![fd()]), Said::Nothing);
        }
        assert!(shelf.is_empty());
        shelf.hear(b"FDSTORE=1\nFDNAME=with:colon", vec![fd()]);
        assert_eq!(names(&shelf), ["stored"]);
    }
}
