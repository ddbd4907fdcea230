//! The filter's rules for IPv6: the walk along the extension headers, the
//! source address, DHCPv6. Neighbour discovery is next door in `nd`.

use etherparse::{
    IpAuthHeaderSlice, IpNumber, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
    UdpHeaderSlice, err, ip_number,
};

use super::ipv4::transport_header_len;
use super::view::View;
use super::{Filter, nd};
use crate::counters::DropReason;

/// Length of the fixed header.
const IPV6_LEN: usize = 40;
/// Extension headers that are walked before the packet is given up. Each kind
/// may appear once (destination options twice, RFC 8200 section 4.1).
const MAX_EXTENSIONS: usize = 8;
/// Source port of a DHCPv6 server or relay (RFC 8415 section 7.2).
const DHCPV6_SERVER: u16 = 547;

/// What stands behind the extension headers.
struct Upper<'a> {
    protocol: IpNumber,
    payload: View<'a>,
    fragment: Fragment,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragment {
    /// No fragment header.
    None,
    /// The first fragment, perhaps the only one.
    First,
    /// A later fragment: the payload starts in the middle of something.
    Later,
}

impl Filter {
    pub(super) fn check_ipv6(&self, packet: View<'_>) -> Result<(), DropReason> {
        let header = Ipv6HeaderSlice::from_slice(packet.seen()).map_err(|error| match error {
            err::ipv6::HeaderSliceError::Len(_) => packet.short(),
            err::ipv6::HeaderSliceError::Content(_) => DropReason::Malformed,
        })?;
        let payload = packet
            .skip(IPV6_LEN)?
            .cut(usize::from(header.payload_length()))?;
        let source = header.source_addr();
        if !source.is_unspecified() && !self.owns_ipv6(source) {
            return Err(DropReason::SpoofedIpv6);
        }

        let upper = walk_extensions(header.next_header(), payload)?;
        if upper.fragment == Fragment::Later {
            return if source.is_unspecified() {
                Err(DropReason::SpoofedIpv6)
            } else {
                Ok(())
            };
        }
        let needed = transport_header_len(upper.protocol);
        if upper.payload.len() < needed && upper.fragment == Fragment::First {
            return Err(DropReason::Fragment);
        }
        let transport = upper.payload.first(needed)?;
        match upper.protocol {
            ip_number::IPV6_ICMP => {
                // At least 8 bytes long, see transport_header_len.
                let message_type = transport.first().copied().unwrap_or_default();
                if source.is_unspecified() && !nd::may_lack_source(message_type) {
                    return Err(DropReason::SpoofedIpv6);
                }
                if nd::is_neighbor_discovery(message_type) {
                    if upper.fragment != Fragment::None {
                        // RFC 6980 section 5.
                        return Err(DropReason::Fragment);
                    }
                    return self.check_nd(source, header.hop_limit(), upper.payload);
                }
                Ok(())
            }
            _ if source.is_unspecified() => Err(DropReason::SpoofedIpv6),
            ip_number::UDP => {
                let udp =
                    UdpHeaderSlice::from_slice(transport).map_err(|_| DropReason::Truncated)?;
                if udp.source_port() == DHCPV6_SERVER && !self.config.allow_dhcp_server {
                    return Err(DropReason::RogueDhcp);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn walk_extensions(first: IpNumber, payload: View<'_>) -> Result<Upper<'_>, DropReason> {
    let mut upper = Upper {
        protocol: first,
        payload,
        fragment: Fragment::None,
    };
    for _ in 0..=MAX_EXTENSIONS {
        let rest = upper.payload;
        let is_extension = Ipv6RawExtHeaderSlice::header_type_supported(upper.protocol)
            || matches!(upper.protocol, ip_number::IPV6_FRAG | ip_number::AUTH);
        if !is_extension {
            return Ok(upper);
        }
        if upper.fragment != Fragment::None {
            // Headers behind a fragment header could be overwritten by a later
            // fragment; nothing legitimate needs them.
            return Err(DropReason::Fragment);
        }
        let (next, len) = match upper.protocol {
            ip_number::IPV6_FRAG => {
                let header =
                    Ipv6FragmentHeaderSlice::from_slice(rest.seen()).map_err(|_| rest.short())?;
                upper.fragment = if header.fragment_offset().value() == 0 {
                    Fragment::First
                } else {
                    Fragment::Later
                };
                (header.next_header(), header.slice().len())
            }
            ip_number::AUTH => {
                let header =
                    IpAuthHeaderSlice::from_slice(rest.seen()).map_err(|error| match error {
                        err::ip_auth::HeaderSliceError::Len(_) => rest.short(),
                        err::ip_auth::HeaderSliceError::Content(_) => DropReason::Malformed,
                    })?;
                (header.next_header(), header.slice().len())
            }
            _ => {
                let header =
                    Ipv6RawExtHeaderSlice::from_slice(rest.seen()).map_err(|_| rest.short())?;
                (header.next_header(), header.slice().len())
            }
        };
        upper.protocol = next;
        upper.payload = rest.skip(len)?;
        if upper.fragment == Fragment::Later {
            return Ok(upper);
        }
    }
    Err(DropReason::HeaderChain)
}
