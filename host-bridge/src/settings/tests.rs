//! Every mistake has words that name the setting.

use super::*;
use clap::Parser;
use std::io::Write;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    options: Options,
}

fn flags(text: &str) -> Options {
    let words = std::iter::once("run").chain(text.split_whitespace());
    Flags::try_parse_from(words).unwrap().options
}

fn from_flags(text: &str) -> Result<Settings, SettingsError> {
    Settings::new(flags(text), None)
}

fn from_file(text: &str) -> Result<Settings, SettingsError> {
    Settings::new(Options::parse(text).unwrap(), None)
}

fn plan(settings: &Settings) -> &Plan {
    match &settings.sockets[0].places {
        Places::Plan(plan) => plan,
        Places::One(_) => panic!("the first socket is one port's"),
    }
}

fn one(settings: &Settings, at: usize) -> &Assignment {
    match &settings.sockets[at].places {
        Places::One(assignment) => assignment,
        Places::Plan(_) => panic!("socket {at} is not one port's"),
    }
}

#[test]
fn without_a_word_guests_are_routed_and_the_daemon_is_administered_beside_the_socket() {
    let settings = from_flags("").unwrap();
    assert_eq!(settings.sockets.len(), 1);
    assert_eq!(settings.sockets[0].address.to_string(), DEFAULT_SOCKET);
    let admin = settings.admin.as_ref().unwrap();
    assert_eq!(admin.to_string(), "/run/host-bridge.sock.admin");
    assert!((1..=MAX_WORKERS).contains(&settings.workers));
    let plan = plan(&settings);
    assert_eq!(plan.topology, Topology::Routed);
    assert_eq!(plan.net4, DEFAULT_NET4.parse().ok());
    assert_eq!(plan.net6, DEFAULT_NET6.parse().ok());
    assert_eq!((plan.mtu, plan.max_guests), (1500, 64));
}

#[test]
fn each_flag_arrives() {
    let settings = from_flags(
        "--socket @vm --stream @st --serial /dev/ttyS0 --serial /dev/ttyS1 --admin off --bridge br0 --net4 10.1.0.0/24 --net6 fd01::/64 --dhcp --slaac \
         --mtu 9000 --dns 10.1.0.1 --dns fd01::1 --max-guests 3 --name-prefix vm --tap t1 --tap t2 \
         --ring-bytes 65536 --allow-source 10.2.0.0/16 --allow-dhcp --allow-slaac \
         --allow-dhcp-server --allow-router --allow-vlan --allow-ethertype 0x88cc --groups-per-second 7 \
         --impair-to-host loss=5% --impair-to-guest delay=20ms --workers 3 --memory 64mib",
    )
    .unwrap();
    assert_eq!(settings.admin, None);
    assert_eq!(settings.memory, Some(64 << 20));
    assert_eq!(settings.workers, 3);
    let SocketSettings {
        address,
        stream,
        serials,
        policy,
        ..
    } = &settings.sockets[0];
    assert_eq!(address.to_string(), "@vm");
    assert_eq!(stream.as_ref().unwrap().to_string(), "@st");
    assert_eq!(serials, &["/dev/ttyS0", "/dev/ttyS1"].map(PathBuf::from));
    let expected = Plan {
        topology: Topology::Bridged {
            bridge: "br0".into(),
        },
        net4: "10.1.0.0/24".parse().ok(),
        net6: "fd01::/64".parse().ok(),
        mtu: 9000,
        dhcp4: true,
        slaac: true,
        dns: vec!["10.1.0.1".parse().unwrap(), "fd01::1".parse().unwrap()],
        max_guests: 3,
        prefix: "vm".into(),
    };
    assert_eq!(plan(&settings), &expected);
    assert_eq!(policy.layout.to_host_bytes, 65536);
    assert_eq!(policy.layout.to_guest_bytes, 65536);
    let filter = &policy.filter;
    assert!(filter.enabled && filter.allow_dhcp && filter.allow_slaac);
    assert!(filter.allow_dhcp_server && filter.allow_router && filter.allow_vlan);
    assert_eq!(filter.allow_sources, ["10.2.0.0/16".parse().unwrap()]);
    assert_eq!(filter.allow_ethertypes, [0x88cc]);
    assert_eq!(filter.groups_per_second, 7);
    assert_eq!(policy.impair_to_host.to_string(), "loss=5%");
    assert_eq!(policy.impair_to_guest.to_string(), "delay=20ms");
    let taps: Vec<_> = policy.taps.iter().map(|tap| format!("{tap:?}")).collect();
    assert_eq!(taps, ["Existing(\"t1\")", "Existing(\"t2\")"]);
    let settings = from_flags("--no-filter").unwrap();
    assert!(!settings.sockets[0].policy.filter.enabled);
}

#[test]
fn a_descriptor_is_the_first_guests_tap() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let settings = Settings::new(flags("--tap t1"), Some(file.into())).unwrap();
    let taps = &settings.sockets[0].policy.taps;
    assert!(matches!(&taps[..], [GivenTap::Fd(_), GivenTap::Existing(name)] if name == "t1"));
}

#[test]
fn the_file_says_the_same_and_flags_win() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(
        br#"
socket = "@file"
admin = "@file-admin"
bridge = "br0"
net4 = "10.1.0.0/24"
mtu = 9000
dns = ["10.1.0.1"]
max_guests = 3
name_prefix = "vm"
taps = ["t1"]
impair_to_host = "loss=5%"
workers = 2
memory = "20mib"

[filter]
allow_vlan = true
"#,
    )
    .unwrap();
    let path = file.path().display();
    let read = |more: &str| {
        let options = flags(&format!("--config {path} {more}"));
        Settings::new(options.with_file().unwrap(), None).unwrap()
    };
    let settings = read("");
    assert_eq!(settings.sockets[0].address.to_string(), "@file");
    assert_eq!(settings.admin.as_ref().unwrap().to_string(), "@file-admin");
    assert_eq!(settings.workers, 2);
    assert_eq!(settings.memory, Some(20 << 20));
    assert_eq!((plan(&settings).mtu, plan(&settings).max_guests), (9000, 3));
    assert_eq!(plan(&settings).prefix, "vm");
    assert_eq!(settings.sockets[0].policy.taps.len(), 1);
    assert!(settings.sockets[0].policy.filter.allow_vlan);

    let settings = read(
        "--socket @flag --admin @flag-admin --bridge br1 --net4 10.2.0.0/24 --mtu 1400 \
         --dns 10.2.0.1 --max-guests 4 --name-prefix g --tap t2 --impair-to-host off --workers 1 \
         --allow-dhcp",
    );
    assert_eq!(settings.sockets[0].address.to_string(), "@flag");
    assert_eq!(settings.admin.as_ref().unwrap().to_string(), "@flag-admin");
    assert_eq!(settings.workers, 1);
    let policy = &settings.sockets[0].policy;
    assert!(policy.filter.allow_vlan && policy.filter.allow_dhcp);
    assert!(policy.impair_to_host.is_transparent());
    assert!(matches!(&policy.taps[..], [GivenTap::Existing(name)] if name == "t2"));
    let expected = Plan {
        topology: Topology::Bridged {
            bridge: "br1".into(),
        },
        net4: "10.2.0.0/24".parse().ok(),
        net6: None,
        mtu: 1400,
        dhcp4: false,
        slaac: false,
        dns: vec!["10.2.0.1".parse().unwrap()],
        max_guests: 4,
        prefix: "g".into(),
    };
    assert_eq!(plan(&settings), &expected);
}

#[test]
fn a_port_is_pinned_to_its_identity() {
    let settings = from_file(
        r#"
mtu = 1400
dns = ["10.0.0.53"]
impair_to_guest = "delay=1ms"
[filter]
allow_vlan = true

[[port]]
name = "web"
socket = "@web"
mac = "02:00:00:00:00:07"
addresses = ["10.9.0.2/24", "fd09::2/64"]
gateways = ["10.9.0.1", "fd09::1"]
hostname = "www"
domain = "example.org"

[[port]]
name = "db"
socket = "@db"
bridge = "br0"
addresses = ["10.8.0.2/24"]
gateways = ["10.8.0.1"]
existing_tap = "dbtap"
mtu = 9000
dns = []
dhcp = true
ring_bytes = 65536
impair_to_host = "loss=1%"
impair_to_guest = "off"
[port.filter]
allow_dhcp_server = true
"#,
    )
    .unwrap();
    let web = one(&settings, 1);
    assert_eq!(web.name, "web");
    assert_eq!(web.network.mac, [2, 0, 0, 0, 0, 7]);
    assert_eq!(web.network.v4[0].to_string(), "10.9.0.2/24");
    assert_eq!(web.network.v6[0].to_string(), "fd09::2/64");
    assert_eq!(web.network.gateway4.unwrap().to_string(), "10.9.0.1");
    assert_eq!(web.network.gateway6.unwrap().to_string(), "fd09::1");
    assert_eq!(web.network.name.as_deref(), Some("www"));
    assert_eq!(web.network.domain.as_deref(), Some("example.org"));
    assert_eq!(web.network.mtu, 1400);
    assert_eq!(
        web.network.dns[..],
        ["10.0.0.53".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(
        web.host_addresses,
        [
            "10.9.0.1/24".parse().unwrap(),
            "fd09::1/64".parse().unwrap()
        ]
    );
    let policy = &settings.sockets[1].policy;
    assert!(policy.filter.allow_vlan);
    assert_eq!(policy.impair_to_guest.to_string(), "delay=1ms");
    assert!(matches!(&policy.taps[..], [GivenTap::New(name)] if name == "web"));

    let db = one(&settings, 2);
    assert_eq!(db.master.as_deref(), Some("br0"));
    assert_eq!(db.host_addresses, []);
    assert_eq!(db.network.mac[..3], [2, 0x53, 0x4d]);
    assert_eq!(db.network.mtu, 9000);
    assert!(db.network.dns.is_empty() && db.network.dhcp4 && !db.network.slaac);
    let policy = &settings.sockets[2].policy;
    assert!(policy.filter.allow_dhcp_server && !policy.filter.allow_vlan);
    assert_eq!(policy.layout.to_guest_bytes, 65536);
    assert_eq!(policy.impair_to_host.to_string(), "loss=1%");
    assert!(policy.impair_to_guest.is_transparent());
    assert!(matches!(&policy.taps[..], [GivenTap::Existing(name)] if name == "dbtap"));
}

#[test]
fn with_ports_alone_there_is_no_shared_socket() {
    let settings = from_file(
        "max_guests = 0\n[[port]]\nname = \"web\"\nsocket = \"@web\"\naddresses = [\"10.0.0.2/24\"]\n",
    )
    .unwrap();
    assert_eq!(settings.sockets.len(), 1);
    assert_eq!(one(&settings, 0).name, "web");
}

#[test]
fn a_mistake_in_a_flag_names_the_setting_and_says_what_to_do() {
    for (text, words) in [
        ("--workers 0", "workers: 0 is out of range: give 1 to 256"),
        ("--workers 257", "workers: 257"),
        (
            "--memory 64",
            "memory: 64: write a number and a unit, such as 64mib",
        ),
        (
            "--net4 10.1.0.1/24",
            "net4: 10.1.0.1/24 is an address in a subnet: write 10.1.0.0/24",
        ),
        ("--net6 fd01::1/64", "net6: fd01::1/64"),
        ("--net4 10.1.0.0/28", "has room for 4 guests, not for 64"),
        ("--bridge br0", "bridge: guests on a bridge need addresses"),
        ("--mtu 500", "the MTU is below 576"),
        ("--mtu 1000", "below 1280"),
        ("--mtu 65535", "mtu: 65535 is more than a TAP can do: 65521"),
        ("--max-guests 0", "max_guests: 0 leaves nobody"),
        (
            "--max-guests 5000",
            "number of guests must be from 1 to 4096",
        ),
        (
            "--name-prefix much-too-long",
            "name_prefix: \"much-too-long\"",
        ),
        ("--name-prefix a/b", "name_prefix: \"a/b\""),
        ("--name-prefix=-a", "name_prefix: \"-a\""),
        (
            "--max-guests 1 --tap a --tap b",
            "taps: 2 TAPs for at most 1 guests",
        ),
        (
            "--tap a --tap a",
            "taps: a of the guests that come and go is taken",
        ),
        ("--tap guest1", "taps: guest1"),
        ("--ring-bytes 1000", "ring_bytes: 1000 is no power of two"),
        (
            "--ring-bytes 536870912",
            "ring_bytes: 536870912 is no power of two from 8192 to",
        ),
        (
            "--ring-bytes 8192 --mtu 9000",
            "ring_bytes: 8192 bytes have no room for packets of 9000 bytes: give at least 32768",
        ),
        ("--socket @x --admin @x", "socket: @x is given twice"),
        ("--socket @x --stream @x", "socket: @x is given twice"),
        (
            "--max-guests 1 --serial /dev/ttyS0 --serial /dev/ttyS1",
            "serials: 2 lines keep a place each, of 1",
        ),
        (
            "--dns 1.1.1.1 --dns 1.1.1.2 --dns 1.1.1.3 --dns 1.1.1.4 --dns 1.1.1.5",
            "at most four DNS",
        ),
        ("--dns 0.0.0.0", "0.0.0.0 cannot be a DNS"),
    ] {
        let error = from_flags(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_guest_on_a_bridge_may_go_without_addresses_only_unfiltered() {
    from_flags("--bridge br0 --no-filter").unwrap();
    from_flags("--bridge br0 --dhcp").unwrap();
    from_flags("--bridge br0 --slaac").unwrap();
}

#[test]
fn an_address_without_room_for_its_neighbour_is_refused() {
    let long = format!("/{}", "x".repeat(106));
    let error = from_flags(&format!("--socket {long}"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("admin: ") && error.contains("107"),
        "{error}"
    );
    from_flags(&format!("--socket {long} --admin off")).unwrap();
}

#[test]
fn a_mistake_in_the_file_names_its_line() {
    for (text, line, words) in [
        ("mtu = 1400\nmut = 1", "line 2", "unknown field `mut`"),
        ("mtu = \"x\"", "line 1", "invalid type"),
        ("\n\nsocket = \"x\"", "line 3", "absolute path"),
        ("net4 = \"10.0.0.0/33\"", "line 1", "invalid IP address"),
        ("impair_to_host = \"lots\"", "line 1", "has no value"),
        (
            "[filter]\nallow_dchp = true",
            "line 2",
            "unknown field `allow_dchp`",
        ),
        ("[[port]]\nnaem = \"x\"", "line 2", "unknown field `naem`"),
        ("[[port]]\nmac = \"02:00\"", "line 2", "02:12:34:56:78:9a"),
        (
            "[[port]]\nmac = \"02:00:00:00:00:00:00\"",
            "line 2",
            "02:12:34:56:78:9a",
        ),
        (
            "[[port]]\nmac = \"+2:00:00:00:00:00\"",
            "line 2",
            "02:12:34:56:78:9a",
        ),
        ("config = \"x\"", "line 1", "unknown field"),
        ("tap_fd = 3", "line 1", "unknown field"),
        ("mtu = ", "line 1", "string values must be quoted"),
    ] {
        let error = Options::parse(text).unwrap_err().to_string();
        assert!(
            error.contains(line) && error.contains(words),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_or_parsed_is_named() {
    let error = flags("--config /no/such/file")
        .with_file()
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/file"), "{error}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"nonsense").unwrap();
    let path = file.path().to_owned();
    let error = Options::read(&path).unwrap_err().to_string();
    assert!(
        error.contains(&*path.to_string_lossy()) && error.contains("line 1"),
        "{error}"
    );
}

#[test]
fn a_mistake_in_a_port_names_port_and_setting() {
    for (text, words) in [
        ("", "port \"\", name"),
        ("name = \"a b\"", "port \"a b\", name: \"a b\" will not do"),
        ("name = \"sixteen-letters-\"", "will not do"),
        ("name = \"a\"", "port \"a\", socket: it is missing"),
        (
            "name = \"a\"\nsocket = \"@a\"\ntap = \"x\"\nexisting_tap = \"y\"",
            "a port has one TAP",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\nmtu = 100",
            "port \"a\", network: the MTU is below",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\nmtu = 65535",
            "port \"a\", mtu: 65535",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\nring_bytes = 5",
            "port \"a\", ring_bytes: 5 is no power",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\nmac = \"01:00:00:00:00:00\"",
            "network: the Ethernet address",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\naddresses = [\"224.0.0.1/24\"]",
            "224.0.0.1 cannot be",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\naddresses = [\"10.0.0.2/24\", \"10.0.0.3/24\", \"10.0.0.4/24\", \"10.0.0.5/24\", \"10.0.0.6/24\"]",
            "addresses: at most four",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\ndns = [\"1.1.1.1\", \"1.1.1.2\", \"1.1.1.3\", \"1.1.1.4\", \"1.1.1.5\"]",
            "dns: at most four",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\naddresses = [\"10.0.0.2/24\"]\ngateways = [\"10.0.1.1\"]",
            "gateways: 10.0.1.1 is in none of the port's subnets",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\ngateways = [\"10.0.1.1\", \"10.0.1.2\"]",
            "10.0.1.1 and 10.0.1.2 are of one family",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\nhostname = \"a_long_way.\"",
            "the host name",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\ndomain = \"a..b\"",
            "the domain",
        ),
        (
            "name = \"guest5\"\nsocket = \"@a\"",
            "name: guest5 of port \"guest5\" is taken by guest guest5",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\ntap = \"guest5\"",
            "taps: guest5 of port \"a\" is taken",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\nmac = \"02:53:4c:00:00:05\"",
            "mac: 02:53:4c:00:00:05",
        ),
        (
            "name = \"a\"\nsocket = \"/run/host-bridge.sock\"",
            "socket: /run/host-bridge.sock is given twice",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\naddresses = [\"10.77.0.2/24\"]",
            "overlap",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\naddresses = [\"10.1.0.2/24\"]\n[[port]]\nname = \"b\"\nsocket = \"@b\"\naddresses = [\"10.1.0.3/16\"]",
            "10.1.0.0/24 of port \"a\" and 10.1.0.0/16 of port \"b\" overlap",
        ),
        (
            "name = \"a\"\nsocket = \"@a\"\nbridge = \"br0\"\naddresses = [\"10.1.0.2/24\"]\n[[port]]\nname = \"b\"\nsocket = \"@b\"\nbridge = \"br0\"\naddresses = [\"10.1.0.2/24\"]",
            "addresses: 10.1.0.2 on br0 of port \"b\" is taken by port \"a\"",
        ),
    ] {
        let error = from_file(&format!("[[port]]\n{text}\n"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn the_same_address_on_two_bridges_is_two_networks() {
    let port = |name: &str, bridge: &str| {
        format!(
            "[[port]]\nname = \"{name}\"\nsocket = \"@{name}\"\nbridge = \"{bridge}\"\naddresses = [\"10.1.0.2/24\"]\n"
        )
    };
    let file = port("a", "br0") + &port("b", "br1");
    assert_eq!(from_file(&file).unwrap().sockets.len(), 3);
}
