//! The kernel command line: `name=vm1 connect=10.0.0.1:8080 seed=17 log=debug`.
//!
//! | word | meaning | default |
//! | --- | --- | --- |
//! | `name=` | what the guest calls itself, on the host and on its page | `vm` |
//! | `connect=` | ADDRESS:PORT to which a connection is made at the start | none |
//! | `seed=` | a number that goes into the seed of everything random | 0 |
//! | `log=` | `error`, `warn`, `info`, `debug` or `trace` | `info` |
//! | `panic=` | after so many seconds the guest panics, to show what is seen then | never |
//!
//! Unknown words are ignored: loaders add their own.

use core::net::SocketAddr;

use log::LevelFilter;

/// What the command line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// `name=`.
    pub name: &'a str,
    /// `connect=`.
    pub connect: Option<SocketAddr>,
    /// `seed=`.
    pub seed: u64,
    /// `log=`.
    pub log: LevelFilter,
    /// `panic=`, in seconds.
    pub panic: Option<u32>,
}

impl<'a> Options<'a> {
    /// Reads a command line. The second part is the first word whose value makes
    /// no sense; its default holds.
    pub fn parse(line: &'a str) -> (Self, Option<&'a str>) {
        let mut options = Self {
            name: "vm",
            connect: None,
            seed: 0,
            log: LevelFilter::Info,
            panic: None,
        };
        let mut wrong = None;
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                continue;
            };
            let understood = match key {
                "name" => {
                    options.name = value;
                    !value.is_empty()
                }
                "connect" => value.parse().map(|to| options.connect = Some(to)).is_ok(),
                "seed" => value.parse().map(|seed| options.seed = seed).is_ok(),
                "log" => value.parse().map(|level| options.log = level).is_ok(),
                "panic" => value.parse().map(|s| options.panic = Some(s)).is_ok(),
                _ => true,
            };
            if !understood {
                wrong = wrong.or(Some(word));
            }
        }
        (options, wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_and_unknown_ones_are_passed_over() {
        let (options, wrong) =
            Options::parse("console=ttyS0 name=vm1 quiet connect=[fd00::1]:80 seed=7 log=debug");
        assert_eq!(wrong, None);
        assert_eq!((options.name, options.seed), ("vm1", 7));
        assert_eq!(options.connect, Some("[fd00::1]:80".parse().unwrap()));
        assert_eq!(options.log, LevelFilter::Debug);
    }

    #[test]
    fn a_value_that_makes_no_sense_is_named_and_leaves_the_default() {
        let (options, wrong) = Options::parse("connect=somewhere name=x seed=-1");
        assert_eq!(wrong, Some("connect=somewhere"));
        assert_eq!(
            (options.connect, options.name, options.seed),
            (None, "x", 0)
        );
    }
}
