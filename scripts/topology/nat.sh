#!/usr/bin/env bash
#
# Two guests behind NAT, and a machine that knows nothing of their addresses.
#
#   namespace void          namespace host                       namespace far
#   alpha ══ host-bridge ══ TAP guest0 ─┐  nftables
#   10.77.0.2, fd77::2                  ├─ masquerade ── veth ── eth0
#   beta  ══ host-bridge ══ TAP guest1 ─┘  and dnat              192.0.2.2
#   10.77.0.6, fd77::6                     192.0.2.1             2001:db8::2
#                                          2001:db8::1
#
# The host forwards its TCP ports 8081 and 8082 to the guests' web servers, 5001
# and UDP port 7 to alpha's.

TOOLS=(nft=nftables)
# shellcheck source=scripts/topology/common.sh
. "$(dirname "$(realpath "$0")")/common.sh"

RULES='
table inet hbt {
    chain forwarded_ports {
        type nat hook prerouting priority dstnat
        iifname != "uplink" return
        ip daddr 192.0.2.1 tcp dport 8081 dnat ip to 10.77.0.2:80
        ip daddr 192.0.2.1 tcp dport 8082 dnat ip to 10.77.0.6:80
        ip daddr 192.0.2.1 tcp dport 5001 dnat ip to 10.77.0.2
        ip daddr 192.0.2.1 udp dport 7 dnat ip to 10.77.0.2
        ip6 daddr 2001:db8::1 tcp dport 8081 dnat ip6 to [fd77::2]:80
        ip6 daddr 2001:db8::1 tcp dport 8082 dnat ip6 to [fd77::6]:80
        ip6 daddr 2001:db8::1 tcp dport 5001 dnat ip6 to fd77::2
        ip6 daddr 2001:db8::1 udp dport 7 dnat ip6 to fd77::2
    }
    chain one_address_for_all {
        type nat hook postrouting priority srcnat
        oifname "uplink" masquerade
    }
    chain firewall {
        type filter hook forward priority filter; policy drop
        ct state established,related accept
        iifname != "uplink" accept
        ct status dnat accept
    }
}'

bring_up() {
    add_namespace host
    add_namespace void
    add_namespace far
    on host link set lo up
    on far link set lo up
    wire host uplink far eth0
    on host address add 192.0.2.1/24 dev uplink
    on host address add 2001:db8::1/64 dev uplink nodad
    on far address add 192.0.2.2/24 dev eth0
    on far address add 2001:db8::2/64 dev eth0 nodad
    forward host
    setup at host 5 nft "$RULES"
    start_bridge --net4 10.77.0.0/16 --net6 fd77::/64
    start_guest alpha
    start_guest beta
}

is_unknown() {
    ! at far 5 ping -n -c 1 -W 1 10.77.0.2 && ! at far 5 ping -n -c 1 -W 1 fd77::2
}

# serve_once COMMAND PORT...: something in `far` that takes one connection and
# says what it saw in server.log.
serve_once() {
    spawn server ip netns exec "$NS-far" bash -c "$@"
    until_true 5 listens "$3"
}

# The kernel's tables have ports in hexadecimal, and 0A for a listener.
listens() {
    at far 2 grep -qiE ":$(printf %04X "$1") [0-9A-F:]+ 0A " /proc/net/tcp /proc/net/tcp6
}

PAGE='far away'

# gets_far_page GUEST ADDRESS PORT
gets_far_page() {
    local hash
    hash=$(printf %s "$PAGE" | sha256sum)
    # shellcheck disable=SC2016 # expanded by the inner shell
    serve_once 'printf "HTTP/1.0 200 OK\r\n\r\n%s" "$2" | nc -l -N "$0" "$1"' "$2" "$3" "$PAGE" || return 1
    tell "$1" 10 get "$(authority "$2" "$3")" / && [[ $OUT == *" 200 OK, ${#PAGE} bytes, sha256 ${hash%% *}" ]]
}

authority() {
    local url
    url=$(url "$1" "$2" /)
    url=${url#http://}
    echo "${url%/}"
}

# sends_far GUEST ADDRESS PORT BYTES
sends_far() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    serve_once 'nc -d -l "$0" "$1" | sha256sum' "$2" "$3" || return 1
    tell "$1" 60 send "$(authority "$2" "$3")" "$4" || return 1
    until_true 5 grep -q "^${PATTERN_SHA256[$4]} " "$STATE/server.log"
}

run_checks() {
    local guest
    check "far has no way to the guests' addresses" is_unknown
    start_capture far eth0 'ip or ip6'
    for guest in alpha beta; do
        check "$guest pings far over IPv4" tell "$guest" 10 ping 192.0.2.2 3
        check "$guest pings far over IPv6" tell "$guest" 10 ping 2001:db8::2 3
    done
    check_seen "far saw 6 pings from the host's address" 6 'IP 192\.0\.2\.1 > 192\.0\.2\.2: ICMP echo request'
    check_seen "far saw 6 pings from the host's IPv6 address" \
        6 'IP6 2001:db8::1 > 2001:db8::2: ICMP6, echo request'
    check_unseen "far saw no address of the guests" '10\.77\.|fd77:'
    end_capture
    check "alpha fetches a page from far over IPv4" gets_far_page alpha 192.0.2.2 8080
    check "beta fetches a page from far over IPv6" gets_far_page beta 2001:db8::2 8080
    check "alpha sends 100 MB to far unharmed over IPv4" sends_far alpha 192.0.2.2 9000 100000000
    check "beta sends 100 MB to far unharmed over IPv6" sends_far beta 2001:db8::2 9000 100000000
    # Nobody has spoken to the guests: the host has to find them itself.
    check "the host forgets its neighbours" at host 5 ip neigh flush all
    check "far reaches alpha by the host's port 8081" serves_page far 192.0.2.1 alpha 8081
    check "far reaches beta by the host's port 8082" serves_page far 192.0.2.1 beta 8082
    check "far reaches alpha over IPv6" serves_page far 2001:db8::1 alpha 8081
    check "far reaches beta over IPv6" serves_page far 2001:db8::1 beta 8082
    check "far receives 100 MB from beta unharmed" sends_intact far 192.0.2.1 100000000 60 8082
    check "alpha receives 100 MB from far unharmed" takes_intact far 192.0.2.1 100000000
    check "alpha receives 100 MB from far unharmed over IPv6" takes_intact far 2001:db8::1 100000000
    check "alpha echoes far's datagram over IPv4" echoes_datagrams far 192.0.2.1
    check "alpha echoes far's datagram over IPv6" echoes_datagrams far 2001:db8::1
    check "every frame is accounted for" ledger_adds_up
}

main "$@"
