//! The stack's side of the conversation with the host: carries messages between
//! the link and [`GuestControl`], and applies what the host says.

use shm_link::control::config::NetworkConfig;
use shm_link::control::{
    ErrorCode, GuestControl, GuestEvent, GuestOffer, GuestState, Level, VersionRange,
};
use shm_link::fault::LinkError;
use shm_link::link::{Link, MAX_CONTROL_LEN};
use shm_link::offload::Offloads;
use smoltcp::time::{Duration, Instant};

use crate::config::NetConfig;
use crate::error::ConfigError;
use crate::sockets::Sockets;

/// How long an answer may take on a link that loses messages until the conversation is
/// begun anew: the longest takes a quarter of it at 9,600 baud.
const PATIENCE: Duration = Duration::from_secs(1);

/// The conversation.
pub struct Control {
    machine: GuestControl,
    config: Option<NetworkConfig>,
    changes: u64,
    /// When the conversation is begun anew, if there is no configuration until then.
    again_at: Option<Instant>,
}

impl Control {
    /// A conversation that is begun with the first poll.
    pub fn new(offer: GuestOffer) -> Self {
        Self {
            machine: GuestControl::new(offer),
            config: None,
            changes: 0,
            again_at: None,
        }
    }

    /// How far the conversation is.
    pub fn state(&self) -> GuestState {
        self.machine.state()
    }

    /// The configuration that the host gave last and that was applied.
    pub fn network_config(&self) -> Option<&NetworkConfig> {
        self.config.as_ref()
    }

    /// How many configurations were applied. It changes when
    /// [`network_config`](Self::network_config) does.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The machine itself, to report, ping or say goodbye. What it queues leaves
    /// with the next poll.
    pub fn machine(&mut self) -> &mut GuestControl {
        &mut self.machine
    }

    pub(crate) fn restart(&mut self) {
        self.machine.restart();
        self.again_at = None;
    }

    /// When a poll has something to say that nobody asked for.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.again_at
    }

    /// Begins anew where an answer may have been lost.
    fn ask_again(&mut self, now: Instant) {
        let waits = matches!(self.state(), GuestState::Greeting | GuestState::Configuring);
        match self.again_at {
            _ if !waits => self.again_at = None,
            Some(at) if now < at => {}
            at => {
                if at.is_some() {
                    self.machine.restart();
                }
                self.again_at = Some(now + PATIENCE);
            }
        }
    }

    /// Carries messages both ways until there are none, or no room.
    pub(crate) fn poll<L: Link>(
        &mut self,
        link: &mut L,
        sockets: &mut Sockets,
        now: Instant,
    ) -> Result<(), LinkError> {
        if link.may_lose() {
            self.ask_again(now);
        }
        self.transmit(link)?;
        let mut buffer = [0; MAX_CONTROL_LEN];
        // Every message may be answered; one that cannot be is left in the link.
        while self.machine.wants_input() {
            let Some(len) = link.recv_control(&mut buffer)? else {
                break;
            };
            let message = buffer.get(..len).unwrap_or_default();
            match self.machine.handle_message(message)? {
                Some(GuestEvent::Configured(config)) => {
                    let applied = self.apply(config, sockets, now);
                    // The host before this one may have died with frames in its hands,
                    // and so quickly replaced that the carrier never went.
                    sockets.link_is_back(now);
                    if let Err(error) = applied {
                        // There is no answer to a first configuration; the host
                        // reads about it in a report.
                        let words = heapless::format!(160; "{error}").unwrap_or_default();
                        let _ = self.machine.report(Level::Error, &words);
                    }
                }
                Some(GuestEvent::Changed(config)) => {
                    let serial = config.serial;
                    match self.apply(config, sockets, now) {
                        Ok(()) => self.machine.applied(serial),
                        Err(error) => {
                            let words = heapless::format!(160; "{error}").unwrap_or_default();
                            let code = code_of(error);
                            self.machine.not_applied(serial, code, &words)
                        }
                    };
                }
                Some(GuestEvent::Refused(refusal)) => log::error!("the host refused: {refusal:?}"),
                Some(GuestEvent::HostError { code, words }) => {
                    log::warn!("the host reports an error: {code:?}: {words}");
                }
                Some(GuestEvent::Pong) | None => {}
            }
            self.transmit(link)?;
        }
        // Something may have begun, or ended, the wait.
        if link.may_lose() {
            self.ask_again(now);
        }
        Ok(())
    }

    fn transmit<L: Link>(&mut self, link: &mut L) -> Result<(), LinkError> {
        while let Some(message) = self.machine.poll_transmit() {
            if !link.send_control(message)? {
                break;
            }
            self.machine.transmitted();
        }
        Ok(())
    }

    fn apply(
        &mut self,
        config: NetworkConfig,
        sockets: &mut Sockets,
        now: Instant,
    ) -> Result<(), ConfigError> {
        sockets.configure(NetConfig::try_from(&config)?, now)?;
        self.config = Some(config);
        self.changes += 1;
        Ok(())
    }
}

/// What this stack can do with frames whose checksum is unfinished or that are
/// yet to be cut, when they arrive: all kinds.
pub const CAN_RECEIVE: Offloads = Offloads::CHECKSUM.union(Offloads::SEGMENTATION);

/// The same for frames that leave.
pub const CAN_SEND: Offloads = CAN_RECEIVE;

/// An offer of all that this stack can do. `session` is a number that was not
/// used before on this link; `name` is for the host's logs, and cut if it is too
/// long.
pub fn offer(session: u32, name: &str) -> GuestOffer {
    let name = name.chars().take(15).collect();
    GuestOffer {
        session,
        versions: VersionRange::SUPPORTED,
        features: 0,
        max_mtu: u16::MAX,
        can_receive: CAN_RECEIVE,
        can_send: CAN_SEND,
        name,
    }
}

fn code_of(error: ConfigError) -> ErrorCode {
    match error {
        ConfigError::ProtocolOff | ConfigError::TooManyAddresses => ErrorCode::Failed,
        ConfigError::Mac
        | ConfigError::Mtu
        | ConfigError::Address
        | ConfigError::Gateway
        | ConfigError::Offloads => ErrorCode::Invalid,
    }
}

impl TryFrom<&NetworkConfig> for NetConfig {
    type Error = ConfigError;

    /// # Errors
    /// [`ConfigError::TooManyAddresses`].
    fn try_from(config: &NetworkConfig) -> Result<Self, ConfigError> {
        let mut net = Self::new(config.mac);
        let v4 = config.v4.iter().map(|a| (a.addr.into(), a.prefix_len));
        let v6 = config.v6.iter().map(|a| (a.addr.into(), a.prefix_len));
        for address in v4.chain(v6) {
            let pushed = net.addresses.push(address);
            pushed.map_err(|_| ConfigError::TooManyAddresses)?;
        }
        net.gateway_v4 = config.gateway4;
        net.gateway_v6 = config.gateway6;
        net.dns.extend(config.dns.iter().copied());
        net.mtu = config.mtu;
        net.carrier = config.carrier;
        net.tx_offloads = config.offloads_to_host;
        net.rx_offloads = config.offloads_to_guest;
        net.dhcp = config.dhcp4;
        net.slaac = config.slaac;
        Ok(net)
    }
}
