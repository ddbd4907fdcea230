//! What the pumps of a port must know and may find changed at any moment.
//!
//! The port's task publishes a new [`Policy`] when the negotiation or an
//! administrator changed something; the pumps look for one before each batch
//! (one atomic load when there is none).

use std::sync::Arc;

use crate::filter::Filter;
use crate::impair::ImpairConfig;

/// The rules for the frames of one port.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Checks frames from the guest, and those to it.
    pub(crate) filter: Filter,
    /// The guest has its configuration. Before that, nothing is read from the
    /// TAP for it.
    pub(crate) ready: bool,
    /// The link is up.
    pub(crate) carrier: bool,
    /// Longest packet, without the 14-byte Ethernet header.
    pub(crate) mtu: u16,
    /// Fault injection on the way from guest to host.
    pub(crate) impair_to_host: ImpairConfig,
    /// Fault injection on the way from host to guest.
    pub(crate) impair_to_guest: ImpairConfig,
    /// The pumps are to end.
    pub(crate) stop: Option<Stop>,
}

/// How the pumps leave the rings when they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Open, for whoever takes them next.
    LeaveOpen,
    /// Closed: the guest is to see that the link is over.
    Close,
}

impl Policy {
    /// Longest frame: the packet, its Ethernet header, and room for a VLAN tag.
    pub(crate) fn max_frame_len(&self) -> usize {
        usize::from(self.mtu) + 18
    }
}

/// How a pump receives its policy.
pub(crate) type PolicyWatch = tokio::sync::watch::Receiver<Arc<Policy>>;
