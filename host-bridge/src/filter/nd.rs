//! The filter's rules for IPv6 neighbour discovery (RFC 4861).
//!
//! A guest may look for anybody, but may answer, and claim a link-layer
//! address, for itself only.

use std::net::Ipv6Addr;

use super::Filter;
use super::view::View;
use crate::counters::DropReason;

const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;

/// Where the options of a router solicitation begin.
const SOLICITATION_LEN: usize = 8;
/// Where the options of a neighbour message begin, behind its target.
const NEIGHBOR_LEN: usize = 24;

/// Whether a message of this ICMPv6 type may come from `::` (RFC 4861 sections
/// 4.1 and 4.3, RFC 3590).
pub(super) fn may_lack_source(message_type: u8) -> bool {
    matches!(
        message_type,
        ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION | MLD_REPORT | MLD_DONE | MLD2_REPORT
    )
}

/// Whether this ICMPv6 type belongs to neighbour discovery.
pub(super) fn is_neighbor_discovery(message_type: u8) -> bool {
    (ROUTER_SOLICITATION..=REDIRECT).contains(&message_type)
}

impl Filter {
    /// Checks a whole neighbour discovery message, from its type on.
    pub(super) fn check_nd(
        &self,
        source: Ipv6Addr,
        hop_limit: u8,
        message: View<'_>,
    ) -> Result<(), DropReason> {
        let bytes = message.first(message.len())?;
        let [message_type, code, ..] = *bytes else {
            return Err(DropReason::Truncated);
        };
        match message_type {
            ROUTER_ADVERTISEMENT if !self.config.allow_router => {
                return Err(DropReason::RogueRouter);
            }
            REDIRECT if !self.config.allow_router => return Err(DropReason::RogueRedirect),
            _ => {}
        }
        if hop_limit != 255 || code != 0 {
            return Err(DropReason::SpoofedNd);
        }
        match message_type {
            ROUTER_SOLICITATION => self.check_options(bytes, SOLICITATION_LEN),
            NEIGHBOR_SOLICITATION => {
                // Duplicate address detection makes whoever is about to take
                // that address give it up; other solicitations only ask.
                if source.is_unspecified() && !self.owns_ipv6(target(bytes)?) {
                    return Err(DropReason::SpoofedNd);
                }
                self.check_options(bytes, NEIGHBOR_LEN)
            }
            NEIGHBOR_ADVERTISEMENT => {
                if !self.owns_ipv6(target(bytes)?) {
                    return Err(DropReason::SpoofedNd);
                }
                self.check_options(bytes, NEIGHBOR_LEN)
            }
            // A guest that may be a router may say what a router says.
            _ => Ok(()),
        }
    }

    /// Checks that every link-layer address among the options behind the first
    /// `fixed_len` bytes is the guest's.
    fn check_options(&self, message: &[u8], fixed_len: usize) -> Result<(), DropReason> {
        let mut options = message.get(fixed_len..).ok_or(DropReason::Truncated)?;
        while let [option_type, units, ..] = *options {
            // RFC 4861 section 4.6: in units of eight bytes, zero is invalid.
            let len = usize::from(units) * 8;
            let (Some(option), true) = (options.get(..len), len != 0) else {
                return Err(DropReason::Malformed);
            };
            if matches!(
                option_type,
                OPTION_SOURCE_LINK_LAYER | OPTION_TARGET_LINK_LAYER
            ) && option.get(2..) != Some(&self.mac)
            {
                return Err(DropReason::SpoofedNd);
            }
            options = options.get(len..).unwrap_or_default();
        }
        if options.is_empty() {
            Ok(())
        } else {
            Err(DropReason::Malformed)
        }
    }
}

/// The target of a neighbour solicitation or advertisement.
fn target(message: &[u8]) -> Result<Ipv6Addr, DropReason> {
    let bytes: [u8; 16] = message
        .get(8..NEIGHBOR_LEN)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(DropReason::Truncated)?;
    Ok(bytes.into())
}
