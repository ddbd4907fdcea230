//! Commands on standard input, one a line, and their answers on standard output.
//!
//! The main loop waits for the input together with its other descriptors, and
//! calls [`Commands::read`] when there is some. Each command runs as a task;
//! its answer is `ok COMMAND: RESULT` or `failed COMMAND: REASON`.

use std::io::{self, Stdin, Write, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use demo_guest::apps::client::{Client, Command};
use demo_guest::executor::Spawner;
use guest_stack::face::platform::Platform;
use rustix::io::Errno;
use shm_link::link::Link;

/// Longest line.
const MAX_LINE: usize = 1024;

#[derive(Default)]
struct Tally {
    running: AtomicUsize,
    failed: AtomicBool,
}

/// The commands of one guest.
pub(crate) struct Commands<L: Link, P: Platform> {
    client: Client<L, P>,
    input: Option<Stdin>,
    /// What was read of a line that has no end yet.
    held: Vec<u8>,
    tally: Arc<Tally>,
}

impl<L: Link + Send + 'static, P: Platform> Commands<L, P> {
    pub(crate) fn new(client: Client<L, P>) -> Self {
        Self {
            client,
            input: Some(stdin()),
            held: Vec::new(),
            tally: Arc::default(),
        }
    }

    /// What to wait for; nothing after its end.
    pub(crate) fn input(&self) -> Option<&Stdin> {
        self.input.as_ref()
    }

    /// After the last command's answer: whether all went well.
    pub(crate) fn ended(&self) -> Option<bool> {
        let running = self.tally.running.load(Ordering::Relaxed) > 0;
        (self.input.is_none() && !running).then(|| !self.tally.failed.load(Ordering::Relaxed))
    }

    /// Takes what has arrived and starts the commands in it.
    ///
    /// # Errors
    /// The input's, and a line without end.
    pub(crate) fn read(&mut self, spawner: &Spawner<P::RawMutex>) -> io::Result<()> {
        let Some(input) = &self.input else {
            return Ok(());
        };
        let mut buffer = [0; MAX_LINE];
        let n = match rustix::io::read(input, &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            n => n?,
        };
        self.held.extend_from_slice(&buffer[..n]);
        if n == 0 {
            self.input = None;
            self.held.push(b'\n');
        }
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.held.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if !line.is_empty() {
                self.start(line, spawner);
            }
        }
        if self.held.len() > MAX_LINE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a command is too long",
            ));
        }
        Ok(())
    }

    fn start(&self, line: String, spawner: &Spawner<P::RawMutex>) {
        let (client, tally) = (self.client.clone(), self.tally.clone());
        tally.running.fetch_add(1, Ordering::Relaxed);
        spawner.spawn(async move {
            let result = match line.parse::<Command>() {
                Ok(command) => client.run(&command).await,
                Err(error) => Err(error.to_string()),
            };
            let answer = match &result {
                Ok(done) => format!("ok {line}: {done}\n"),
                Err(reason) => format!("failed {line}: {reason}\n"),
            };
            // Nobody may be listening any more.
            let printed = stdout().write_all(answer.as_bytes());
            if result.is_err() || printed.is_err() {
                tally.failed.store(true, Ordering::Relaxed);
            }
            tally.running.fetch_sub(1, Ordering::Relaxed);
        });
    }
}
