//! The control session of one port: which configuration holds, and what follows
//! from it for the pumps.
//!
//! [`Session`] decides and does no I/O: it wraps the control machine, and turns
//! its events into a new [`Policy`], a new [`PortState`] and things for the
//! port's task to [do](Action). The port's task moves messages and applies
//! actions.
//!
//! While a change is on its way to the guest, what held before, what it was sent
//! and what will hold is allowed: the largest MTU, the addresses of all. Once the
//! guest has acknowledged, only the new.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shm_link::control::{
    ConfigError, HostControl, HostEvent, HostOffer, Level, NetworkConfig, VersionRange,
};
use shm_link::fault::PeerFault;
use shm_link::offload::Offloads;
use tokio::sync::watch;

use crate::filter::{Filter, FilterConfig};
use crate::impair::ImpairConfig;
use crate::limit::Limits;
use crate::policy::{Policy, PolicyWatch, Stop};
use crate::tap::TCP_OFFLOADS;

/// How far a port's guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "why")]
pub enum PortState {
    /// No guest has said hello yet, or it said goodbye.
    Waiting,
    /// The guest speaks no version that this host does.
    Refused(String),
    /// The guest said hello and has no configuration yet.
    Greeted,
    /// The guest is configured: frames flow.
    Running,
    /// The port ended.
    Ended(String),
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Greeted => f.write_str("greeted"),
            Self::Running => f.write_str("running"),
            Self::Ended(why) => write!(f, "ended: {why}"),
        }
    }
}

/// What the port's task has to do after an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Set the TAP's MTU and carrier.
    SetTap(TapSettings),
    /// Let frames flow ([`Session::open`]): the TAP is as the guest was told.
    Open,
    /// The guest has answered the change with this serial.
    Answered {
        serial: u32,
        result: Result<(), String>,
    },
    /// A line for the log.
    Log { level: log::Level, text: String },
}

/// How the host's end of the link is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TapSettings {
    pub(crate) mtu: u16,
    pub(crate) carrier: bool,
    /// What the kernel may leave undone, for the guest or for the bridge.
    pub(crate) offloads: Offloads,
}

/// The session of one port.
pub(crate) struct Session {
    control: HostControl,
    /// What the guest last confirmed, if it is configured.
    confirmed: Option<NetworkConfig>,
    /// The offloads of the TAP.
    capable: Offloads,
    filter: FilterConfig,
    policy: watch::Sender<Arc<Policy>>,
    state: PortState,
}

impl Session {
    /// A session that waits for its guest. `capable` is what the TAP can leave
    /// undone and do for others.
    pub(crate) fn new(
        mut network: NetworkConfig,
        capable: Offloads,
        filter: FilterConfig,
        limits: Limits,
        impair_to_host: ImpairConfig,
        impair_to_guest: ImpairConfig,
    ) -> Result<Self, ConfigError> {
        set_offloads(&mut network, capable, &impair_to_host, &impair_to_guest);
        let policy = Policy {
            filter: filter_for(&filter, &[&network]),
            ready: false,
            carrier: network.carrier,
            mtu: network.mtu,
            offloads_to_host: Offloads::NONE,
            offloads_to_guest: Offloads::NONE,
            finishes: false,
            limits,
            impair_to_host,
            impair_to_guest,
            stop: None,
        };
        let offer = HostOffer {
            versions: VersionRange::SUPPORTED,
            features: 0,
            config: network,
        };
        Ok(Self {
            control: HostControl::new(offer)?,
            confirmed: None,
            capable,
            filter,
            policy: watch::Sender::new(Arc::new(policy)),
            state: PortState::Waiting,
        })
    }

    pub(crate) fn policy(&self) -> PolicyWatch {
        self.policy.subscribe()
    }

    pub(crate) fn state(&self) -> &PortState {
        &self.state
    }

    /// Whether the guest has a configuration, so that frames flow.
    pub(crate) fn is_running(&self) -> bool {
        self.state == PortState::Running
    }

    /// Whether no guest has said hello.
    pub(crate) fn is_waiting(&self) -> bool {
        self.state == PortState::Waiting
    }

    pub(crate) fn guest_name(&self) -> String {
        printable(self.control.guest_name())
    }

    /// What a guest is to have.
    pub(crate) fn offered(&self) -> &NetworkConfig {
        self.control.offered()
    }

    /// What the guest has, or is about to have.
    pub(crate) fn agreed(&self) -> Option<&NetworkConfig> {
        self.control.agreed()
    }

    pub(crate) fn impairments(&self) -> (ImpairConfig, ImpairConfig) {
        let policy = self.policy.borrow();
        (
            policy.impair_to_host.clone(),
            policy.impair_to_guest.clone(),
        )
    }

    pub(crate) fn limits(&self) -> Limits {
        self.policy.borrow().limits
    }

    /// Changes how much may pass; the guest need not know.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.change_policy(|policy| policy.limits = limits);
    }

    pub(crate) fn wants_input(&self) -> bool {
        self.control.wants_input()
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<&[u8]> {
        self.control.poll_transmit()
    }

    /// Whether the guest has an update to answer.
    pub(crate) fn awaits_answer(&self) -> bool {
        self.control.under_way().is_some()
    }

    /// Says an unanswered update once more.
    pub(crate) fn repeat_update(&mut self) {
        self.control.repeat_update();
    }

    pub(crate) fn transmitted(&mut self) {
        self.control.transmitted();
    }

    /// Takes one message of the guest.
    pub(crate) fn handle_message(&mut self, bytes: &[u8]) -> Result<Vec<Action>, PeerFault> {
        let under_way = self.control.under_way().cloned();
        let Some(event) = self.control.handle_message(bytes)? else {
            return Ok(Vec::new());
        };
        let info = |text| Action::Log {
            level: log::Level::Info,
            text,
        };
        Ok(match event {
            HostEvent::Hello {
                version, restarted, ..
            } => {
                self.state = PortState::Greeted;
                self.not_ready();
                let again = if restarted { " again" } else { "" };
                vec![info(format!(
                    "the guest says hello{again}, version {version}"
                ))]
            }
            HostEvent::Refused(refusal) => {
                let why = refusal.to_string();
                self.state = PortState::Refused(why.clone());
                self.not_ready();
                vec![Action::Log {
                    level: log::Level::Warn,
                    text: format!("refused: {why}"),
                }]
            }
            HostEvent::Configured(config) => {
                self.state = PortState::Running;
                let text = format!("{} is configured: {}", self.who(), summary(&config));
                let tap = Action::SetTap(self.tap_settings(&config));
                self.confirmed = Some(config);
                self.apply_policy();
                vec![tap, Action::Open, info(text)]
            }
            HostEvent::Acknowledged { serial } => {
                self.confirmed = under_way.or(self.confirmed.take());
                let mut actions = vec![Action::Answered {
                    serial,
                    result: Ok(()),
                }];
                if let Some(config) = &self.confirmed {
                    actions.push(Action::SetTap(self.tap_settings(config)));
                    actions.push(info(format!(
                        "{} applied a change: {}",
                        self.who(),
                        summary(config)
                    )));
                }
                self.apply_policy();
                actions
            }
            HostEvent::SessionLost => {
                self.state = PortState::Waiting;
                self.not_ready();
                // The next guest is told, as where there was none.
                vec![Action::Answered {
                    serial: self.control.offered().serial,
                    result: Ok(()),
                }]
            }
            HostEvent::Rejected {
                serial,
                code,
                words,
            } => {
                let why = format!("{code}: {}", printable(words));
                let text = format!("{} did not apply a change: {why}", self.who());
                self.take_back(serial);
                vec![
                    Action::Answered {
                        serial,
                        result: Err(why),
                    },
                    Action::Log {
                        level: log::Level::Warn,
                        text,
                    },
                ]
            }
            HostEvent::Report { level, text } => {
                let level = match level {
                    Level::Panic | Level::Error => log::Level::Error,
                    Level::Warn => log::Level::Warn,
                    Level::Info => log::Level::Info,
                    Level::Debug => log::Level::Debug,
                    Level::Trace | Level::Other(_) => log::Level::Trace,
                };
                vec![Action::Log {
                    level,
                    text: format!("{} says: {}", self.who(), printable(text)),
                }]
            }
            HostEvent::Goodbye { code, words } => {
                self.state = PortState::Waiting;
                let text = format!("{} says goodbye ({code}): {}", self.who(), printable(words));
                self.not_ready();
                let mtu = self.policy.borrow().mtu;
                vec![
                    Action::SetTap(TapSettings {
                        mtu,
                        carrier: false,
                        offloads: Offloads::NONE,
                    }),
                    info(text),
                ]
            }
            HostEvent::Pong => Vec::new(),
        })
    }

    /// Changes what the guest is to have, and the fault injection; `None` leaves
    /// a direction as it is. All or nothing. Says the serial by which a later
    /// [`Action::Answered`] names the change, if the guest has to know of it; it
    /// comes only if the guest is running.
    pub(crate) fn update(
        &mut self,
        change: impl FnOnce(&mut NetworkConfig) -> Result<(), String>,
        to_host: Option<ImpairConfig>,
        to_guest: Option<ImpairConfig>,
    ) -> Result<Option<u32>, String> {
        let current = self.impairments();
        let to_host = to_host.unwrap_or(current.0);
        let to_guest = to_guest.unwrap_or(current.1);
        let mut network = self.control.offered().clone();
        change(&mut network)?;
        set_offloads(&mut network, self.capable, &to_host, &to_guest);
        let before = self.control.offered().serial;
        let serial = self
            .control
            .update(network)
            .map_err(|error| error.to_string())?;
        self.change_policy(|policy| {
            policy.impair_to_host = to_host;
            policy.impair_to_guest = to_guest;
        });
        self.apply_policy();
        Ok((serial != before).then_some(serial))
    }

    /// The guest would not have the change: what it confirmed still holds. A
    /// newer change that waits behind it is left alone.
    fn take_back(&mut self, serial: u32) {
        if self
            .control
            .agreed()
            .is_some_and(|agreed| agreed.serial == serial)
            && let Some(confirmed) = self.confirmed.clone()
        {
            // The host's own maximum is not what was agreed: keep it.
            let mtu = self.control.offered().mtu.max(confirmed.mtu);
            if self
                .control
                .update(NetworkConfig { mtu, ..confirmed })
                .is_err()
            {
                log::error!("a configuration that held before is now invalid");
            }
        }
        self.apply_policy();
    }

    /// Ends the session and tells the pumps to end.
    pub(crate) fn end(&mut self, why: String, stop: Stop) {
        self.state = PortState::Ended(why);
        self.not_ready();
        self.change_policy(|policy| policy.stop = Some(stop));
    }

    /// How the TAP is to be, if there is a guest that was told.
    pub(crate) fn agreed_tap(&self) -> Option<TapSettings> {
        self.agreed().map(|agreed| self.tap_settings(agreed))
    }

    fn tap_settings(&self, config: &NetworkConfig) -> TapSettings {
        TapSettings {
            mtu: config.mtu,
            carrier: config.carrier,
            offloads: self.left_by_kernel(config),
        }
    }

    /// What the kernel is to leave undone: what the guest takes, if that is what TCP
    /// needs, so that frames go from the TAP into its ring as they are. Else as much as
    /// there is, and the pumps finish it.
    fn left_by_kernel(&self, config: &NetworkConfig) -> Offloads {
        match config.offloads_to_guest.contains(TCP_OFFLOADS) {
            true => config.offloads_to_guest,
            false => self.capable,
        }
    }

    fn not_ready(&mut self) {
        self.confirmed = None;
        self.change_policy(|policy| policy.ready = false);
    }

    /// Lets frames flow. Not before the TAP carries packets: a guest that comes back
    /// has frames in its ring already, and the kernel would lose its answers to them,
    /// the question for the guest's address among them, which it repeats a second later.
    pub(crate) fn open(&mut self) {
        if self.confirmed.is_some() {
            self.change_policy(|policy| policy.ready = true);
        }
    }

    /// Derives the pumps' rules from what is confirmed and what is agreed.
    fn apply_policy(&mut self) {
        let Some(agreed) = self.control.agreed() else {
            return;
        };
        let held = self.confirmed.as_ref().unwrap_or(agreed);
        // The guest may have applied it before its answer is seen.
        let under_way = self.control.under_way().unwrap_or(agreed);
        let all = [held, under_way, agreed];
        let filter = filter_for(&self.filter, &all);
        let carrier = agreed.carrier;
        let mtu = all.map(|config| config.mtu).into_iter().max().unwrap_or(0);
        let offloads = all.map(|config| config.offloads_to_host);
        let to_host = offloads.into_iter().fold(Offloads::NONE, Offloads::union);
        let to_guest = agreed.offloads_to_guest;
        let finishes = self.left_by_kernel(agreed) != to_guest;
        self.change_policy(|policy| {
            policy.filter = filter;
            policy.carrier = carrier;
            policy.mtu = mtu;
            policy.offloads_to_host = to_host;
            policy.offloads_to_guest = to_guest;
            policy.finishes = finishes;
        });
    }

    fn change_policy(&self, change: impl FnOnce(&mut Policy)) {
        self.policy
            .send_modify(|policy| change(Arc::make_mut(policy)));
    }

    fn who(&self) -> String {
        match self.control.guest_name() {
            "" => "the guest".to_owned(),
            name => format!("guest {}", printable(name)),
        }
    }
}

/// Offers what the TAP is capable of; nothing under fault injection: it is to
/// meet the packets of the wire, not super-frames, and a flipped bit is not to be
/// covered by a checksum that is made afterwards.
fn set_offloads(
    network: &mut NetworkConfig,
    capable: Offloads,
    to_host: &ImpairConfig,
    to_guest: &ImpairConfig,
) {
    let offloads = match to_host.is_transparent() && to_guest.is_transparent() {
        true => capable,
        false => Offloads::NONE,
    };
    network.offloads_to_host = offloads;
    network.offloads_to_guest = offloads;
}

/// A filter that lets the guest use the addresses of all these configurations.
fn filter_for(config: &FilterConfig, networks: &[&NetworkConfig]) -> Filter {
    let mut config = config.clone();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for network in networks {
        addresses.extend(network.v4.iter().map(|a| IpAddr::V4(a.addr)));
        addresses.extend(network.v6.iter().map(|a| IpAddr::V6(a.addr)));
        config.allow_dhcp |= network.dhcp4;
        config.allow_slaac |= network.slaac;
    }
    addresses.sort();
    addresses.dedup();
    // The MAC never changes while a port lives.
    let mac = networks.first().map_or([0; 6], |network| network.mac);
    Filter::new(config, mac, &addresses)
}

/// One line about a configuration.
fn summary(config: &NetworkConfig) -> String {
    let mut line = format!("MTU {}", config.mtu);
    for address in &config.v4 {
        line += &format!(", {address}");
    }
    for address in &config.v6 {
        line += &format!(", {address}");
    }
    if !config.carrier {
        line += ", no carrier";
    }
    line
}

/// A guest's text, fit for a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shm_link::control::{GuestControl, GuestEvent, GuestOffer};

    /// Gives the guest all that there is for it, and the session the answers.
    fn exchange(session: &mut Session, guest: &mut GuestControl, answers: bool) {
        for _ in 0..10 {
            while let Some(message) = session.poll_transmit().map(<[u8]>::to_vec) {
                session.transmitted();
                if let Some(GuestEvent::Changed(config)) = guest.handle_message(&message).unwrap() {
                    guest.applied(config.serial);
                }
            }
            while answers && let Some(message) = guest.poll_transmit().map(<[u8]>::to_vec) {
                guest.transmitted();
                session.handle_message(&message).unwrap();
            }
        }
    }

    /// A session and a guest that has just confirmed its configuration; what follows
    /// from that was not done yet.
    fn configured(capable: Offloads, impair_to_host: ImpairConfig) -> (Session, GuestControl) {
        let mut session = Session::new(
            NetworkConfig::new([2, 0, 0, 0, 0, 1], 1500),
            capable,
            FilterConfig::default(),
            Limits::default(),
            impair_to_host,
            ImpairConfig::default(),
        )
        .unwrap();
        let mut guest = GuestControl::new(GuestOffer {
            session: 1,
            versions: VersionRange::SUPPORTED,
            features: 0,
            max_mtu: 1500,
            can_receive: capable,
            can_send: capable,
            name: Default::default(),
        });
        exchange(&mut session, &mut guest, true);
        assert_eq!(session.state(), &PortState::Running);
        (session, guest)
    }

    #[test]
    fn frames_flow_when_the_tap_is_set_and_not_before() {
        let (mut session, _) = configured(Offloads::NONE, ImpairConfig::default());
        let policy = session.policy();
        assert!(!policy.borrow().ready);
        // Nor does a change of an administrator let them.
        let worse = Some("loss=1%".parse().unwrap());
        session.update(|_| Ok(()), worse, None).unwrap();
        assert!(!policy.borrow().ready);
        session.open();
        assert!(policy.borrow().ready);
    }

    #[test]
    fn no_frame_passes_while_a_guest_has_lost_its_configuration() {
        let (mut session, _) = configured(Offloads::NONE, ImpairConfig::default());
        session.open();
        let policy = session.policy();
        let serial = session
            .update(
                |network| {
                    network.mtu = 1400;
                    Ok(())
                },
                None,
                None,
            )
            .unwrap()
            .unwrap();
        // A guest that was started anew, and whose hello is still to come.
        let mut stranger = GuestControl::new(GuestOffer {
            session: 2,
            versions: VersionRange::SUPPORTED,
            features: 0,
            max_mtu: 1500,
            can_receive: Offloads::NONE,
            can_send: Offloads::NONE,
            name: Default::default(),
        });
        let hello = stranger.poll_transmit().unwrap().to_vec();
        stranger.transmitted();
        let mut other = configured(Offloads::NONE, ImpairConfig::default()).0;
        other.handle_message(&hello).unwrap();
        let accept = other.poll_transmit().unwrap().to_vec();
        stranger.handle_message(&accept).unwrap();
        stranger.transmitted();
        let update = session.poll_transmit().unwrap().to_vec();
        session.transmitted();
        assert!(stranger.handle_message(&update).unwrap().is_none());
        let answer = stranger.poll_transmit().unwrap().to_vec();
        let actions = session.handle_message(&answer).unwrap();
        assert!(!policy.borrow().ready);
        assert_eq!(session.state(), &PortState::Waiting);
        assert!(matches!(
            actions[..],
            [Action::Answered { serial: answered, result: Ok(()) }] if answered == serial
        ));
        assert_eq!(session.offered().mtu, 1400);
    }

    #[test]
    fn what_a_guest_was_sent_is_allowed_although_newer_changes_wait_behind_it() {
        let all = Offloads::CHECKSUM.union(Offloads::TSO4);
        let bad: ImpairConfig = "loss=1%".parse().unwrap();
        let good = ImpairConfig::default();
        let (mut session, mut guest) = configured(all, bad.clone());
        session.open();
        let policy = session.policy();
        let allowed = || policy.borrow().offloads_to_host;
        assert_eq!(allowed(), Offloads::NONE);
        let change = |session: &mut Session, impair: &ImpairConfig| {
            session
                .update(|_| Ok(()), Some(impair.clone()), None)
                .unwrap();
        };
        // The guest applies the first change; its answer is not seen yet.
        change(&mut session, &good);
        exchange(&mut session, &mut guest, false);
        change(&mut session, &bad);
        assert_eq!(allowed(), all);
        // The answer is seen: what it names holds until the next one's is.
        let answer = guest.poll_transmit().map(<[u8]>::to_vec).unwrap();
        guest.transmitted();
        session.handle_message(&answer).unwrap();
        assert_eq!(allowed(), all);
        exchange(&mut session, &mut guest, true);
        assert_eq!(allowed(), Offloads::NONE);
    }
}
