//! `host-bridge set`: changes a port of a running daemon.

use std::io::Write;
use std::net::IpAddr;

use clap::ValueEnum;
use ipnet::IpNet;

use super::{AdminArgs, Failure, output};
use crate::impair::ImpairConfig;
use crate::limit::LimitConfig;
use crate::port::PortChange;

/// Flags of `set`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(super) struct SetArgs {
    /// The port's name, as `status` shows it.
    port: String,

    #[command(flatten)]
    admin: AdminArgs,

    /// Longest packet in bytes, without the Ethernet header.
    ///
    /// A guest that can do less gets less.
    #[arg(long, value_name = "BYTES", group = "change")]
    mtu: Option<u16>,

    /// Whether the link is up.
    #[arg(long, group = "change")]
    carrier: Option<Switch>,

    /// An address for the guest, with its prefix.
    ///
    /// Replaces all the addresses that it has; may be repeated.
    #[arg(long = "address", value_name = "CIDR", group = "change")]
    addresses: Vec<IpNet>,

    /// A default router, at most one of each family.
    ///
    /// Replaces all that the guest has.
    #[arg(long = "gateway", value_name = "IP", group = "change")]
    gateways: Vec<IpAddr>,

    /// How much the guest may send, such as rate=100mbit,frames=20000; "off" ends
    /// the limit.
    #[arg(long, value_name = "TEXT", group = "change")]
    limit_to_host: Option<LimitConfig>,

    /// The same for frames to the guest.
    #[arg(long, value_name = "TEXT", group = "change")]
    limit_to_guest: Option<LimitConfig>,

    /// Harm frames from the guest on purpose, such as loss=1%,delay=20ms; "off"
    /// ends it.
    #[arg(long, value_name = "TEXT", group = "change")]
    impair_to_host: Option<ImpairConfig>,

    /// The same for frames to the guest.
    #[arg(long, value_name = "TEXT", group = "change")]
    impair_to_guest: Option<ImpairConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

pub(super) fn main(args: SetArgs) -> Result<(), Failure> {
    let change = PortChange {
        mtu: args.mtu,
        carrier: args.carrier.map(|switch| switch == Switch::On),
        addresses: (!args.addresses.is_empty()).then_some(args.addresses),
        gateways: (!args.gateways.is_empty()).then_some(args.gateways),
        limit_to_host: args.limit_to_host,
        limit_to_guest: args.limit_to_guest,
        impair_to_host: args.impair_to_host,
        impair_to_guest: args.impair_to_guest,
    };
    let port = args.admin.client()?.change(&args.port, change)?;
    output::quietly(|out| out.write_all(output::table(&[port], None).as_bytes()))
}
