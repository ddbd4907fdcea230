#!/usr/bin/env bash
#
# One guest, reached by the kernel through a TAP of its own; and one more, whose
# stack knows nothing of offloads.
#
#   namespace host                          namespace void
#   kernel ┬─ TAP guest0 ┬─ host-bridge ══ shared memory ══ alpha
#          │  10.77.0.1  │                                  10.77.0.2, fd77::2
#          │  fd77::1    │
#          └─ TAP guest1 ┘              ══ shared memory ══ beta
#             10.77.0.5, fd77::5                            10.77.0.6, fd77::6

TOOLS=()
# shellcheck source=scripts/topology/common.sh
. "$(dirname "$(realpath "$0")")/common.sh"

bring_up() {
    add_namespace host
    add_namespace void
    on host link set lo up
    start_bridge --net4 10.77.0.0/16 --net6 fd77::/64
    start_guest alpha
    start_guest beta --no-offloads
}

has_no_interface() {
    at void 5 ip -o link && ! grep -v ' lo: .*state DOWN' <<<"$OUT" | grep -q .
}

# is_cut_for PORT: the kernel hands over many segments at once, and the guest gets one
# after the other.
is_cut_for() {
    local directory=/sys/class/net/$1/statistics from_kernel to_guest
    at host 5 cat "$directory/tx_bytes" "$directory/tx_packets" || return 1
    from_kernel=$((${OUT/$'\n'//}))
    to_guest=$(($(counter "$1" host_to_guest bytes_out) / $(counter "$1" host_to_guest frames_out)))
    DETAIL="frames of $from_kernel bytes from the kernel, on average, of $to_guest to the guest"
    [ "$from_kernel" -gt 3000 ] && [ "$to_guest" -le 1514 ]
}

# iperf3 ARGUMENTS...: one second. The last rate that it prints is the receiver's.
measures() {
    at host 15 iperf3 -c 10.77.0.2 -t 1 -f m "$@" || return 1
    DETAIL=$(sed -n 's/.* \([0-9.]* Mbits\/sec\).*receiver/\1/p' <<<"$OUT")
    [ -n "$DETAIL" ] && [ "${DETAIL%%[. ]*}" -gt 0 ]
}

run_checks() {
    check "the guest's process has no network interface" has_no_interface

    start_capture host guest0 'arp or icmp or icmp6'
    on host neigh flush dev guest0
    check "the guest answers pings over IPv4" answers_pings host 10.77.0.2 5
    check "the guest answers pings over IPv6" answers_pings host fd77::2 5
    check_seen "the TAP carried the guest's ARP reply" 1 'ARP, Reply 10\.77\.0\.2 is-at'
    check_seen "the TAP carried 5 ICMP echo replies" 5 'IP 10\.77\.0\.2 > 10\.77\.0\.1: ICMP echo reply'
    check_seen "the TAP carried 5 ICMPv6 echo replies" 5 'IP6 fd77::2 > fd77::1: ICMP6, echo reply'
    end_capture

    check "the guest pings the host over IPv4" tell alpha 10 ping 10.77.0.1 3
    check "the guest pings the host over IPv6" tell alpha 10 ping fd77::1 3
    check "the guest serves a page over IPv4" serves_page host 10.77.0.2 alpha
    check "the guest serves a page over IPv6" serves_page host fd77::2 alpha
    check "the guest sends 100 MB unharmed over IPv4" sends_intact host 10.77.0.2 100000000
    check "the guest sends 100 MB unharmed over IPv6" sends_intact host fd77::2 100000000
    check "the guest receives 100 MB unharmed over IPv4" takes_intact host 10.77.0.2 100000000
    check "the guest receives 100 MB unharmed over IPv6" takes_intact host fd77::2 100000000
    check "the guest echoes a stream" echoes_stream host 10.77.0.2 10000000
    check "the guest echoes a datagram over IPv4" echoes_datagrams host 10.77.0.2
    check "the guest echoes a datagram over IPv6" echoes_datagrams host fd77::2
    if command -v iperf3 >/dev/null; then
        check "iperf3 measures the way to the guest" measures
        check "iperf3 measures the way from the guest" measures --reverse
    else
        note "no iperf3 here (Debian: apt-get install iperf3): not measured"
    fi
    check "a guest without offloads receives 100 MB unharmed over IPv4" takes_intact host 10.77.0.6 100000000
    check "a guest without offloads receives 100 MB unharmed over IPv6" takes_intact host fd77::6 100000000
    check "a guest without offloads sends 10 MB unharmed over IPv4" sends_intact host 10.77.0.6 10000000
    check "a guest without offloads sends 10 MB unharmed over IPv6" sends_intact host fd77::6 10000000
    check "a guest without offloads echoes a datagram over IPv4" echoes_datagrams host 10.77.0.6
    check "a guest without offloads echoes a datagram over IPv6" echoes_datagrams host fd77::6
    check "the bridge cuts for it what the kernel hands over" is_cut_for guest1
    check "every frame is accounted for" ledger_adds_up
    check "bridge and guest sleep when there is nothing to do" sleeps_when_idle bridge alpha beta
}

main "$@"
