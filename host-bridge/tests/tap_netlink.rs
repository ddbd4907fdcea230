//! TAP interfaces and the host's configuration, on the real kernel, each test
//! in a network namespace of its own that goes with the test's thread.
//!
//! Needs root (or CAP_SYS_ADMIN and CAP_NET_ADMIN) and /dev/net/tun; without
//! them the tests say so and pass, or fail if `REQUIRE_PRIVILEGED=1`.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use etherparse::{ArpEthIpv4Packet, ArpOperation, Ethernet2Header, ether_type};
use host_bridge::error::{NetlinkError, TapError};
use host_bridge::netlink::Netlink;
use host_bridge::tap::{RawSlice, Tap, TapKind, TapSource, TapTrouble, classify};
use rustix::thread::UnshareFlags;
use shm_link::offload::{OffloadHeader, Offloads};
use tokio::io::unix::AsyncFd;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const HOST_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Runs a test in a fresh network namespace, or says why it cannot.
fn in_namespace<F>(test: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let run = move || {
        if !enter_namespace() {
            let why = "skipped: needs CAP_NET_ADMIN and /dev/net/tun";
            let required = std::env::var_os("REQUIRE_PRIVILEGED").is_some_and(|v| v == "1");
            assert!(!required, "{why}, and REQUIRE_PRIVILEGED=1 is set");
            println!("{why}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let limit = Duration::from_secs(30);
        runtime
            .block_on(async { tokio::time::timeout(limit, test()).await })
            .expect("the test hangs");
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter_namespace() -> bool {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    // SAFETY: only this thread's network namespace changes; no descriptor table
    // is unshared.
    device.is_ok() && unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.is_ok()
}

fn create(name: &str) -> Result<Tap, TapError> {
    Tap::open(TapSource::Create {
        name: Some(name.to_owned()),
    })
}

fn attach(name: &str) -> Result<Tap, TapError> {
    Tap::open(TapSource::Existing {
        name: name.to_owned(),
    })
}

/// Runs `ip` with these arguments in the thread's namespace.
fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("these tests need iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

fn read(tap: &Tap, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is ours and as long as said.
    unsafe { tap.read_raw(buffer.as_mut_ptr(), buffer.len()) }.map(|(len, _)| len)
}

/// Writes a frame in two pieces that meet somewhere in the middle.
fn write(tap: &Tap, frame: &[u8]) -> io::Result<()> {
    let (head, rest) = frame.split_at(frame.len() / 3);
    let part = |bytes: &[u8]| RawSlice::new(bytes.as_ptr(), bytes.len());
    // SAFETY: the slices live until the call returns.
    unsafe { tap.writev_raw(OffloadHeader::NONE, [part(head), part(rest)]) }
}

fn arp_request() -> Vec<u8> {
    let header = Ethernet2Header {
        source: GUEST_MAC,
        destination: [0xff; 6],
        ether_type: ether_type::ARP,
    };
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: GUEST_MAC,
        sender_ipv4: GUEST_IP.octets(),
        target_mac: [0; 6],
        target_ipv4: HOST_IP.octets(),
    };
    [&header.to_bytes()[..], &packet.to_bytes()].concat()
}

/// A TAP that is up, with the host's address and without IPv6 noise.
async fn ready_tap(netlink: &Netlink, name: &str) -> Tap {
    let tap = create(name).unwrap();
    let index = tap.ifindex().unwrap();
    netlink.quiet_ipv6(index).await.unwrap();
    netlink
        .add_address(index, "10.77.0.1/24".parse().unwrap())
        .await
        .unwrap();
    netlink.set_up(index).await.unwrap();
    tap
}

#[test]
fn the_kernel_answers_an_arp_request_written_to_a_new_tap() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let tap = ready_tap(&netlink, "guest0").await;
        // SAFETY: a Tap owns its descriptor and keeps it until it is dropped.
        let tap = unsafe { AsyncFd::register(tap) }.unwrap();
        let request = arp_request();
        // In two parts, as from a ring that gives header and body apart.
        write(tap.get_ref(), &request).unwrap();

        let mut buffer = [0; 2000];
        let len = tap
            .async_io(tokio::io::Interest::READABLE, |tap| read(tap, &mut buffer))
            .await
            .unwrap();
        let reply = &buffer[..len];
        assert_eq!(reply[..6], GUEST_MAC, "addressed to the guest");
        assert_eq!(reply[12..14], ether_type::ARP.0.to_be_bytes());
        assert_eq!(reply[21], 2, "an ARP reply");
        assert_eq!(reply[28..32], HOST_IP.octets());
        // Nothing else was said: IPv6 is quiet.
        let error = read(tap.get_ref(), &mut buffer).unwrap_err();
        assert_eq!(classify(&error), TapTrouble::NotNow);
    });
}

#[test]
fn a_pattern_takes_the_first_free_number_and_a_closed_tap_is_gone() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let first = create("g%d").unwrap();
        let second = create("g%d").unwrap();
        assert_eq!((first.name(), second.name()), ("g0", "g1"));
        assert!(!first.is_persistent());
        assert_eq!(first.kind().header_len(), 0);
        let unnamed = Tap::open(TapSource::Create { name: None }).unwrap();
        assert_eq!(unnamed.name(), "tap0");

        let info = netlink.link_by_name("g0").await.unwrap();
        assert_eq!(Some(info.index), first.ifindex());
        assert_eq!(info.kind.as_deref(), Some("tun"));
        drop(first);
        // A command that another test starts just now holds it until it is executed.
        let error = loop {
            match netlink.link_by_name("g0").await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, NetlinkError::NoSuchLink { name } if name == "g0"));
    });
}

#[test]
fn a_name_in_use_is_not_taken_over() {
    in_namespace(|| async {
        let _open = create("guest0").unwrap();
        ip("tuntap add mode tap name kept");
        ip("link add name br0 type bridge");
        for name in ["guest0", "kept", "br0", "lo"] {
            match create(name) {
                Err(TapError::NameTaken { name: taken }) => assert_eq!(taken, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_persistent_tap_is_attached_to_and_stays() {
    in_namespace(|| async {
        ip("tuntap add mode tap name kept");
        for _ in 0..2 {
            let tap = attach("kept").unwrap();
            assert!(tap.is_persistent());
            assert_eq!(tap.name(), "kept");
            assert!(matches!(attach("kept"), Err(TapError::Busy { .. })));
        }
    });
}

#[test]
fn what_cannot_be_attached_to_is_explained() {
    in_namespace(|| async {
        ip("link add name br0 type bridge");
        ip("tuntap add mode tun name level3");
        ip("tuntap add mode tap multi_queue name queues");
        let _open = create("guest0").unwrap();
        assert!(matches!(attach("none"), Err(TapError::NoSuchTap { .. })));
        for name in ["br0", "level3", "queues", "lo"] {
            match attach(name) {
                Err(TapError::NotATap { name: found }) => assert_eq!(found, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(matches!(attach("guest0"), Err(TapError::Busy { .. })));
        // A failed attempt leaves no interface behind.
        assert!(matches!(attach("none"), Err(TapError::NoSuchTap { .. })));
    });
}

/// Opens the driver and attaches it as some other program would.
fn foreign_fd(name: &str, flags: libc::c_int) -> OwnedFd {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: an ifreq is plain data, all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    file.into()
}

#[test]
fn a_descriptor_opened_elsewhere_is_adopted() {
    in_namespace(|| async {
        let fd = foreign_fd("given", libc::IFF_TAP | libc::IFF_NO_PI);
        let tap = Tap::open(TapSource::Fd(fd)).unwrap();
        assert_eq!(tap.name(), "given");
        let netlink = Netlink::connect().unwrap();
        let info = netlink.link_by_name("given").await.unwrap();
        assert_eq!(tap.ifindex(), Some(info.index));
        netlink.set_up(info.index).await.unwrap();
        // Non-blocking from here on, though it was opened blocking.
        let error = loop {
            // The kernel may have sent something of its own when it came up.
            if let Err(error) = read(&tap, &mut [0; 2000]) {
                break error;
            }
        };
        assert_eq!(classify(&error), TapTrouble::NotNow);
    });
}

#[test]
fn a_descriptor_that_is_a_tun_is_refused() {
    in_namespace(|| async {
        let fd = foreign_fd("tun", libc::IFF_TUN | libc::IFF_NO_PI);
        let error = Tap::open(TapSource::Fd(fd)).unwrap_err();
        assert!(error.to_string().contains("not an open TAP"), "{error}");
    });
}

#[test]
fn a_tap_with_a_virtio_header_takes_and_gives_offloads() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let source = TapSource::Create {
            name: Some("guest0".to_owned()),
        };
        let tap = Tap::open_as(source, TapKind::VnetHeader).unwrap();
        assert_eq!((tap.name(), tap.kind().header_len()), ("guest0", 12));
        netlink.set_up(tap.ifindex().unwrap()).await.unwrap();
        let all = Offloads::CHECKSUM
            .union(Offloads::TSO4)
            .union(Offloads::TSO6);
        assert_eq!(tap.set_offloads(all).unwrap(), all);
        assert_eq!(tap.set_offloads(Offloads::NONE).unwrap(), Offloads::NONE);
        // Behind a header that asks for nothing.
        write(&tap, &arp_request()).unwrap();
        assert_eq!(
            classify(&write(&tap, &[0; 13]).unwrap_err()),
            TapTrouble::BadFrame
        );
        // A plain TAP agrees to nothing.
        let plain = create("guest1").unwrap();
        assert_eq!(plain.set_offloads(all).unwrap(), Offloads::NONE);
        // One that was passed in is what it is.
        let fd = foreign_fd("vnet", libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        assert_eq!(
            Tap::open(TapSource::Fd(fd)).unwrap().kind(),
            TapKind::VnetHeader
        );
    });
}

#[test]
fn a_descriptor_from_another_namespace_works_but_has_no_index_here() {
    in_namespace(|| async {
        let fd = foreign_fd("away", libc::IFF_TAP | libc::IFF_NO_PI);
        // The same name exists here too, and is another interface.
        assert!(enter_namespace());
        let _here = create("away").unwrap();
        let tap = Tap::open(TapSource::Fd(fd)).unwrap();
        assert_eq!((tap.name(), tap.ifindex()), ("away", None));
    });
}

#[test]
fn trouble_on_an_open_tap_is_told_apart() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let tap = ready_tap(&netlink, "guest0").await;
        let index = tap.ifindex().unwrap();
        let trouble = |frame: &[u8]| classify(&write(&tap, frame).unwrap_err());
        assert_eq!(trouble(&[0; 13]), TapTrouble::BadFrame);

        netlink.set_down(index).await.unwrap();
        assert_eq!(trouble(&arp_request()), TapTrouble::Down);
        let error = read(&tap, &mut [0; 2000]).unwrap_err();
        assert_eq!(classify(&error), TapTrouble::NotNow);

        netlink.set_up(index).await.unwrap();
        assert!(write(&tap, &arp_request()).is_ok());

        netlink.delete_link(index).await.unwrap();
        assert_eq!(trouble(&arp_request()), TapTrouble::Gone);
        let error = read(&tap, &mut [0; 2000]).unwrap_err();
        assert_eq!(classify(&error), TapTrouble::Gone);
    });
}

#[test]
fn the_carrier_follows_what_the_tap_is_told() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let tap = ready_tap(&netlink, "guest0").await;
        for on in [true, false, true] {
            tap.set_carrier(on).unwrap();
            let info = netlink.link_by_name("guest0").await.unwrap();
            assert_eq!((info.up, info.carrier), (true, on));
        }
    });
}

#[test]
fn settings_made_over_netlink_are_read_back() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let tap = create("guest0").unwrap();
        let index = tap.ifindex().unwrap();
        netlink.set_mtu(index, 9000).await.unwrap();
        netlink.set_mac(index, [2, 0, 0, 0, 0, 9]).await.unwrap();
        netlink.set_up(index).await.unwrap();
        let info = netlink.link_by_name("guest0").await.unwrap();
        assert_eq!((info.mtu, info.mac), (9000, Some([2, 0, 0, 0, 0, 9])));
        assert_eq!((info.up, info.name.as_str()), (true, "guest0"));
        netlink.set_mtu(index, 65_521).await.unwrap();
        let error = netlink.set_mtu(index, 65_522).await.unwrap_err();
        assert!(error.to_string().contains("MTU to 65522"), "{error}");
        netlink.set_down(index).await.unwrap();
        assert!(!netlink.link_by_name("guest0").await.unwrap().up);
    });
}

#[test]
fn addresses_and_routes_come_and_go() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let tap = ready_tap(&netlink, "guest0").await;
        let index = tap.ifindex().unwrap();
        let v6 = "fd77::1/64".parse().unwrap();
        netlink.add_address(index, v6).await.unwrap();
        // Usable at once, so it can be bound.
        std::net::UdpSocket::bind("[fd77::1]:0").unwrap();
        let again = netlink.add_address(index, v6).await.unwrap_err();
        assert!(again.is_already_there(), "{again}");

        let routed_to = |target: &str| {
            let output = Command::new("ip").args(["route", "get", target]).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        for (route, inside) in [("10.99.0.7/32", "10.99.0.7"), ("fd99::7/64", "fd99::1234")] {
            assert!(!routed_to(inside).contains("guest0"), "{inside}");
            netlink
                .add_route(index, route.parse().unwrap())
                .await
                .unwrap();
            assert!(routed_to(inside).contains("dev guest0"), "{inside}");
        }
        netlink.del_address(index, v6).await.unwrap();
        assert!(std::net::UdpSocket::bind("[fd77::1]:0").is_err());
        assert!(netlink.del_address(index, v6).await.is_err());
    });
}

#[test]
fn a_tap_joins_and_leaves_a_bridge() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let bridge = netlink.create_bridge("br0").await.unwrap();
        let again = netlink.create_bridge("br0").await.unwrap_err();
        assert!(again.is_already_there(), "{again}");
        let tap = create("guest0").unwrap();
        let index = tap.ifindex().unwrap();
        let master = async || netlink.link_by_name("guest0").await.unwrap().master;
        netlink.set_master(index, "br0").await.unwrap();
        assert_eq!(master().await, Some(bridge));
        netlink.clear_master(index).await.unwrap();
        assert_eq!(master().await, None);

        let error = netlink.set_master(index, "br1").await.unwrap_err();
        assert!(
            error.to_string().contains("ip link add br1 type bridge"),
            "{error}"
        );
        let error = netlink.set_master(index, "guest0").await.unwrap_err();
        assert!(
            error.to_string().contains("guest0 is not a bridge but tun"),
            "{error}"
        );
        let error = netlink.set_master(index, "lo").await.unwrap_err();
        assert!(matches!(error, NetlinkError::NotABridge { .. }), "{error}");
    });
}

#[test]
fn a_quiet_interface_makes_no_link_local_address() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let addresses = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let quiet = create("quiet").unwrap();
        netlink.quiet_ipv6(quiet.ifindex().unwrap()).await.unwrap();
        let loud = create("loud").unwrap();
        for tap in [&quiet, &loud] {
            netlink.set_up(tap.ifindex().unwrap()).await.unwrap();
        }
        assert!(addresses().contains("loud"), "{}", addresses());
        assert!(!addresses().contains("quiet"), "{}", addresses());
        netlink
            .add_address(quiet.ifindex().unwrap(), "fd77::1/64".parse().unwrap())
            .await
            .unwrap();
        assert!(addresses().contains("quiet"), "{}", addresses());
    });
}

#[test]
fn a_vanished_interface_is_a_named_refusal() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let error = netlink.set_up(4242).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("4242") && text.contains("bringing it up"),
            "{text}"
        );
        assert!(matches!(error, NetlinkError::Refused { .. }));
    });
}

#[test]
fn the_socket_is_closed_with_the_last_clone() {
    in_namespace(|| async {
        // The sockets of this namespace, a heading and one line each.
        let open = || {
            let list = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
            list.lines().count()
        };
        let before = open();
        let netlink = Netlink::connect().unwrap();
        let clone = netlink.clone();
        drop(netlink);
        clone.link_by_name("lo").await.unwrap();
        assert_eq!(open(), before + 1);
        drop(clone);
        // The task that owned the socket ends at its next turn, and a command that another
        // test starts just now holds it until it is executed.
        while open() != before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}
