//! When an acknowledgement waits for the application's answer, which carries it.
//!
//! An acknowledgement alone costs the host a system call and the peer an interrupt, but one that
//! is held back may keep a peer waiting (Nagle's algorithm), and a window from growing. So it is
//! held back only where the application has lately answered each single segment at once, as
//! Linux does in what it calls ping-pong mode (RFC 9293, 3.8.6.3, and RFC 5681, 4.2, allow
//! half a second). A peer that is made to wait in vain is made to wait again only after twice as
//! many answers.
//!
//! Decides only: `egress` and `ingress` tell what came and what was sent.

use smoltcp::time::{Duration, Instant};

/// How long an acknowledgement waits for an answer at most.
const DELAY: Duration = Duration::from_millis(10);

/// An answer this soon would not have been waited for in vain, even if all takes twice as long
/// once.
const PROMPT: Duration = Duration::from_millis(5);

/// Prompt answers in a row after which acknowledgements wait for them.
const ENOUGH: u16 = 4;

/// How an application answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answers {
    /// When the segment came that has no answer yet.
    asked: Option<Instant>,
    /// Segments in a row that were answered at once, each by itself.
    prompt: u16,
    /// How many of them it takes.
    enough: u16,
}

impl Answers {
    pub(super) const fn new() -> Self {
        Self {
            asked: None,
            prompt: 0,
            enough: ENOUGH,
        }
    }

    /// A segment with data came, or several in one frame.
    pub(crate) fn asked(&mut self, now: Instant, one: bool) {
        if self.asked.is_some() || !one {
            // Two to one answer: a peer that waits for the acknowledgement of one with the
            // other, or one that sends in bulk.
            self.prompt = 0;
        }
        self.asked = Some(now);
    }

    /// The socket had its turn: whether `data` were sent for the first time, and anything that
    /// `acknowledges`.
    pub(crate) fn turned(&mut self, now: Instant, data: bool, acknowledges: bool) {
        let Some(asked) = self.asked else {
            return;
        };
        if data {
            self.asked = None;
            self.prompt = match now - asked <= PROMPT {
                true => self.prompt.saturating_add(1),
                false => 0,
            };
        } else if acknowledges && now - asked >= DELAY && self.delay().is_some() {
            self.asked = None;
            self.prompt = 0;
            self.enough = self.enough.saturating_mul(2);
        }
    }

    /// How long an acknowledgement waits; `None`: it does not.
    pub(crate) fn delay(&self) -> Option<Duration> {
        (self.prompt >= self.enough).then_some(DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Instant {
        Instant::from_micros(micros)
    }

    /// A segment and its answer after `micros`.
    fn answer(answers: &mut Answers, now: i64, micros: i64) {
        answers.asked(at(now), true);
        // The acknowledgement, where it does not wait.
        answers.turned(at(now), false, answers.delay().is_none());
        answers.turned(at(now + micros), true, true);
    }

    #[test]
    fn acknowledgements_wait_once_each_segment_was_answered_at_once() {
        let mut answers = Answers::new();
        for round in 0..4 {
            assert_eq!(answers.delay(), None, "after {round}");
            answer(&mut answers, round * 10_000, 100);
        }
        assert_eq!(answers.delay(), Some(DELAY));
        answer(&mut answers, 50_000, 5_001);
        assert_eq!(answers.delay(), None, "a late answer");
    }

    #[test]
    fn segments_in_one_frame_are_acknowledged_at_once() {
        let mut answers = Answers::new();
        for round in 0..100 {
            answers.asked(at(round * 10_000), false);
            answers.turned(at(round * 10_000 + 100), true, true);
            assert_eq!(answers.delay(), None);
        }
    }

    #[test]
    fn two_segments_to_an_answer_are_acknowledged_at_once() {
        let mut answers = Answers::new();
        for round in 0..100 {
            answers.asked(at(round * 10_000), true);
            answer(&mut answers, round * 10_000 + 50, 100);
            assert_eq!(answers.delay(), None);
        }
        for round in 100..104 {
            answer(&mut answers, round * 10_000, 100);
        }
        answers.asked(at(2_000_000), true);
        assert_eq!(answers.delay(), Some(DELAY));
        answers.asked(at(2_000_050), true);
        assert_eq!(answers.delay(), None);
    }

    #[test]
    fn who_waited_in_vain_waits_again_only_after_twice_as_many_answers() {
        let mut answers = Answers::new();
        let mut now = 0;
        let rounds = [(); 4].map(|()| {
            let mut rounds = 0;
            while answers.delay().is_none() {
                answer(&mut answers, now, 100);
                now += 10_000;
                rounds += 1;
            }
            answers.asked(at(now), true);
            answers.turned(at(now + 10_000), false, true);
            now += 20_000;
            rounds
        });
        assert_eq!(rounds, [4, 8, 16, 32]);
    }
}
