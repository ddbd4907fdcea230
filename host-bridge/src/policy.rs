//! What the pumps of a port must know and may find changed at any moment.
//!
//! The port's task publishes a new [`Policy`] when the negotiation or an
//! administrator changed something; the pumps look for one before each batch
//! (one atomic load when there is none).

use std::sync::Arc;

use shm_link::link::MAX_FRAME_LEN;
use shm_link::offload::Offloads;

use crate::filter::Filter;
use crate::impair::ImpairConfig;
use crate::limit::Limits;

/// The rules for the frames of one port.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Checks frames from the guest, and those to it.
    pub(crate) filter: Filter,
    /// The guest has its configuration, and the TAP is set for it. Before that,
    /// nothing is read from the TAP for it, and its frames wait in its ring.
    pub(crate) ready: bool,
    /// The link is up.
    pub(crate) carrier: bool,
    /// Longest packet, without the 14-byte Ethernet header.
    pub(crate) mtu: u16,
    /// What frames from the guest may leave to the kernel.
    pub(crate) offloads_to_host: Offloads,
    /// What frames from the kernel may leave to the guest.
    pub(crate) offloads_to_guest: Offloads,
    /// The kernel leaves more than that: the bridge does the rest.
    pub(crate) finishes: bool,
    /// How much may pass.
    pub(crate) limits: Limits,
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
    /// Longest frame on the wire: the packet, its Ethernet header, and room for a
    /// VLAN tag.
    pub(crate) fn max_frame_len(&self) -> usize {
        usize::from(self.mtu) + 18
    }

    /// Longest frame that the kernel may have for the guest: with segmentation
    /// left to the guest, a super-frame.
    pub(crate) fn max_frame_len_to_guest(&self) -> usize {
        match self.offloads_to_guest.intersection(Offloads::SEGMENTATION) {
            Offloads::NONE => self.max_frame_len(),
            _ => MAX_FRAME_LEN,
        }
    }
}

/// How a pump receives its policy.
pub(crate) type PolicyWatch = tokio::sync::watch::Receiver<Arc<Policy>>;
