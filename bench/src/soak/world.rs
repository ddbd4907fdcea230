//! The daemon and the guests of a run, as processes, and what the schedule does to them.
//!
//! Used from the main thread only: children end with the thread that started them. The
//! daemon's configuration lies in memory and its sockets are abstract, so nothing is
//! left behind however this process ends.

use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use host_bridge::admin::AdminClient;
use host_bridge::child::Helper;
use host_bridge::port::{PortChange, PortState};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};

use super::load::{Place, Places};
use super::sample::Held;
use super::schedule::Event;
use super::shared::Shared;
use crate::target::{ours, tools};
use crate::{Result, procfs};

/// How long the daemon and the guests may take to come back.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the daemon may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(15);

/// See the file's head.
pub(super) struct World {
    shared: Arc<Shared>,
    /// Keeps the file in memory.
    config: std::fs::File,
    admin: AdminClient,
    daemon: Helper,
    staying: Vec<Helper>,
    passing: Option<Helper>,
    passed: u64,
}

/// Where the guest behind a byte stream attaches.
const STREAM: &str = "@bench-stream";

fn name(guest: usize) -> String {
    format!("stays{guest}")
}

/// `guests` have a socket of their own; those of the first socket come as they are: first,
/// and first again after each restart, the one behind a byte stream, then the one that
/// comes and goes.
fn config(guests: u16) -> String {
    let mut text = format!(
        "socket = {:?}\nadmin = {:?}\nstream = {STREAM:?}\nnet4 = \"10.77.0.0/24\"\nnet6 = \"fd77::/120\"\nmtu = 9000\n",
        ours::SOCKET,
        ours::ADMIN
    );
    for guest in 0..guests {
        let name = name(guest.into());
        text += &format!(
            "[[port]]\nname = {name:?}\nsocket = \"@bench-{name}\"\n\
             addresses = [\"10.90.{guest}.2/30\", \"fd90:{guest:x}::2/126\"]\n\
             gateways = [\"10.90.{guest}.1\", \"fd90:{guest:x}::1\"]\n"
        );
    }
    text
}

impl World {
    /// Starts the daemon and the guests that stay: so many that share memory, and one
    /// behind a byte stream.
    ///
    /// # Errors
    /// What does not start.
    pub(super) fn start(guests: u16, shared: Arc<Shared>) -> Result<Self> {
        let mut file = std::fs::File::from(memfd_create("soak-config", MemfdFlags::CLOEXEC)?);
        file.write_all(config(guests).as_bytes())?;
        let mut world = Self {
            daemon: daemon(&file)?,
            config: file,
            admin: ours::admin()?,
            staying: Vec::new(),
            passing: None,
            passed: 0,
            shared,
        };
        tools::until_ok("the daemon", || world.admin.status(None))?;
        for guest in 0..usize::from(guests) {
            let name = name(guest);
            world.staying.push(ours::lasting_guest(
                &["--socket", &format!("@bench-{name}")],
                &name,
            )?);
        }
        let name = name(guests.into());
        world
            .staying
            .push(ours::lasting_guest(&["--stream", STREAM], &name)?);
        world.until_there()?;
        Ok(world)
    }

    /// Where the guests are.
    pub(super) fn places(&self) -> Places {
        let place = |guest: usize| -> Place {
            let guest = guest as u16;
            [
                IpAddr::from([10, 90, guest as u8, 2]),
                IpAddr::from([0xfd90, guest, 0, 0, 0, 0, 0, 2]),
            ]
        };
        // The places of the socket for all: see `config`.
        let shared = |number: u8| -> Place {
            let last = 4 * number + 2;
            [
                IpAddr::from([10, 77, 0, last]),
                IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, last.into()]),
            ]
        };
        let ports = (0..self.staying.len() - 1).map(place);
        Places {
            staying: ports.chain([shared(0)]).collect(),
            passing: shared(1),
        }
    }

    /// Lets it happen.
    ///
    /// # Errors
    /// Where a run cannot go on; what must not be, and can be survived, is counted.
    pub(super) fn apply(&mut self, event: Event) -> Result<()> {
        let change = PortChange::default();
        match event {
            Event::Kill => {
                let worker = self.worker().ok_or("the keeper keeps no daemon")?;
                self.shared.daemon_is_replaced();
                kill_process(worker, Signal::KILL)?;
                self.succeeded(worker)
            }
            Event::Replace => {
                let worker = self.worker().ok_or("the keeper keeps no daemon")?;
                self.shared.daemon_is_replaced();
                if let Err(error) = self.admin.restart() {
                    let what = format!("the daemon cannot be replaced: {error}");
                    self.shared.error(what);
                }
                self.succeeded(worker)
            }
            Event::Restart => {
                self.shared.daemon_goes();
                self.daemon.signal(Signal::TERM);
                match self.daemon.wait_timeout(GRACE)? {
                    Some(status) if status.success() => {}
                    Some(status) => self.shared.error(format!("the daemon ended with {status}")),
                    None => self
                        .shared
                        .error("the daemon does not end when it is told to"),
                }
                self.daemon = daemon(&self.config)?;
                self.came_back()
            }
            Event::ComeOrGo { killed } => self.come_or_go(killed),
            Event::Impair {
                guest,
                to_host: true,
                how,
            } => self.change(
                guest,
                PortChange {
                    impair_to_host: Some(how.parse()?),
                    ..change
                },
            ),
            Event::Impair {
                guest,
                to_host: false,
                how,
            } => self.change(
                guest,
                PortChange {
                    impair_to_guest: Some(how.parse()?),
                    ..change
                },
            ),
            Event::Limit {
                guest,
                to_host: true,
                how,
            } => self.change(
                guest,
                PortChange {
                    limit_to_host: Some(how.parse()?),
                    ..change
                },
            ),
            Event::Limit {
                guest,
                to_host: false,
                how,
            } => self.change(
                guest,
                PortChange {
                    limit_to_guest: Some(how.parse()?),
                    ..change
                },
            ),
            Event::Mtu { guest, mtu } => self.change(
                guest,
                PortChange {
                    mtu: Some(mtu),
                    ..change
                },
            ),
            Event::Unplug { guest, ms } => {
                self.shared.excuse();
                self.change(
                    guest,
                    PortChange {
                        carrier: Some(false),
                        ..change.clone()
                    },
                )?;
                thread::sleep(Duration::from_millis(ms));
                self.change(
                    guest,
                    PortChange {
                        carrier: Some(true),
                        ..change
                    },
                )
            }
            Event::Calm { guest } => {
                let calm = PortChange {
                    impair_to_host: Some("off".parse()?),
                    impair_to_guest: Some("off".parse()?),
                    limit_to_host: Some("off".parse()?),
                    limit_to_guest: Some("off".parse()?),
                    ..change
                };
                self.change(guest, calm)
            }
        }
    }

    /// Changes the port of a guest that stays.
    fn change(&self, guest: u16, change: PortChange) -> Result<()> {
        let name = name(guest.into());
        let ports = self.admin.status(None).unwrap_or_default();
        let port = ports.into_iter().find(|port| port.guest == name);
        let port = port.map_or(name.clone(), |port| port.name);
        if let Err(error) = self.admin.change(&port, change) {
            self.shared
                .error(format!("{name} cannot be changed: {error}"));
        }
        Ok(())
    }

    fn come_or_go(&mut self, killed: bool) -> Result<()> {
        match self.passing.take() {
            Some(mut guest) => {
                self.shared.passed();
                if killed {
                    guest.child_mut().kill()?;
                } else if guest.stop(PATIENCE).is_err() {
                    self.shared
                        .error("the guest that comes and goes does not go");
                }
            }
            None => {
                self.passed += 1;
                let name = format!("passes{}", self.passed);
                self.passing = Some(ours::lasting_guest(&["--socket", ours::SOCKET], &name)?);
                match self.until_running(&name, PATIENCE) {
                    true => self.shared.passed(),
                    false => {
                        self.shared
                            .error("the guest that comes and goes does not come");
                        self.passing = None;
                    }
                }
            }
        }
        Ok(())
    }

    /// The daemon that the keeper runs now.
    fn worker(&mut self) -> Option<Pid> {
        let family = procfs::with_descendants(self.daemon.child_mut().id());
        Pid::from_raw(family.get(1)?.cast_signed())
    }

    /// Waits until there is another daemon than this one.
    fn succeeded(&mut self, before: Pid) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.worker().is_none_or(|now| now == before) {
            if Instant::now() > deadline {
                return Err("the keeper does not start another daemon".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.came_back()
    }

    /// There is another daemon.
    fn came_back(&mut self) -> Result<()> {
        self.until_there()?;
        self.shared.count(|done| done.restarts += 1);
        let name = format!("passes{}", self.passed);
        if self.passing.is_some() && !self.until_running(&name, PATIENCE) {
            self.shared
                .error("the guest that comes and goes did not come back");
        }
        Ok(())
    }

    /// Waits for the daemon and all guests that stay.
    fn until_there(&self) -> Result<()> {
        for guest in 0..self.staying.len() {
            if !self.until_running(&name(guest), PATIENCE) {
                return Err(format!("{} does not come back to the daemon", name(guest)).into());
            }
        }
        self.shared.daemon_is_there();
        Ok(())
    }

    fn until_running(&self, name: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let ports = self.admin.status(None).unwrap_or_default();
            if ports
                .iter()
                .any(|port| port.guest == name && port.state == PortState::Running)
            {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// What daemon and guests hold now.
    ///
    /// # Errors
    /// If one of them is gone that nobody ended.
    pub(super) fn processes(&mut self) -> Result<(Held, Vec<Held>)> {
        let daemon = procfs::with_descendants(self.daemon.child_mut().id());
        let guests = self
            .staying
            .iter_mut()
            .map(|guest| Held::of(&[guest.child_mut().id()]));
        Ok((Held::of(&daemon)?, guests.collect::<Result<_>>()?))
    }
}

fn daemon(config: &std::fs::File) -> Result<Helper> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), config.as_raw_fd());
    ours::daemon_with(&["--keep", "--config", &path])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_understands_its_configuration() {
        let options = host_bridge::settings::Options::parse(&config(16)).unwrap();
        let settings = host_bridge::settings::Settings::new(options, None).unwrap();
        assert_eq!(settings.sockets.len(), 17);
    }
}
