#!/usr/bin/env bash
#
# Two guests and an ordinary machine on one Linux bridge.
#
#   namespace void         namespace host                  namespace outside
#   alpha ══ host-bridge ══ TAP guest0 ─┐
#   10.77.0.2, fd77::2                  ├─ br0 ── veth ── eth0
#   beta  ══ host-bridge ══ TAP guest1 ─┘  10.77.0.1      10.77.0.200
#   10.77.0.3, fd77::3                     fd77::1        fd77::200

TOOLS=()
# shellcheck source=scripts/topology/common.sh
. "$(dirname "$(realpath "$0")")/common.sh"

bring_up() {
    add_namespace host
    add_namespace void
    add_namespace outside
    on host link set lo up
    on host link add br0 type bridge forward_delay 0
    on host address add 10.77.0.1/24 dev br0
    on host address add fd77::1/64 dev br0 nodad
    on host link set br0 up
    wire host port outside eth0
    on host link set port master br0
    on outside address add 10.77.0.200/24 dev eth0
    on outside address add fd77::200/64 dev eth0 nodad
    start_bridge --bridge br0 --net4 10.77.0.0/24 --net6 fd77::/64
    start_guest alpha
    start_guest beta
}

bridge_knows_both() {
    bounded 5 ip netns exec "$NS-host" bridge fdb show br br0 &&
        grep -q '02:53:4c:00:00:00 dev guest0' <<<"$OUT" && grep -q '02:53:4c:00:00:01 dev guest1' <<<"$OUT"
}

gets_intact() {
    tell alpha 60 get "$1" /bytes/10000000 && [[ $OUT == *" 200 OK, 10000000 bytes, sha256 ${PATTERN_SHA256[10000000]}" ]]
}

sends_to() {
    local hash=${PATTERN_SHA256[10000000]}
    tell beta 60 send "$1" 10000000 && [[ $OUT == *"sha256 $hash, answer: 10000000 $hash" ]]
}

# Beta dies without a word while alpha sends; alpha's transfer does not notice.
neighbour_is_unharmed() {
    recorded beta || return 1
    kill -KILL "$PID"
    sends_intact outside 10.77.0.2 100000000
}

comes_back() {
    (start_guest beta) && tell beta 10 ping 10.77.0.2 3 && serves_page outside 10.77.0.3 beta
}

run_checks() {
    local guest
    for guest in 2 3; do
        check "the outside pings guest .$guest over IPv4" answers_pings outside "10.77.0.$guest"
        check "the outside pings guest ::$guest over IPv6" answers_pings outside "fd77::$guest"
    done
    check "the outside fetches alpha's page" serves_page outside 10.77.0.2 alpha
    check "the outside fetches beta's page over IPv6" serves_page outside fd77::3 beta
    check "the outside receives 100 MB from alpha unharmed" sends_intact outside 10.77.0.2 100000000
    check "beta receives 100 MB from the outside unharmed" takes_intact outside fd77::3 100000000

    start_capture host guest1 'icmp or icmp6'
    check "alpha pings beta over IPv4" tell alpha 10 ping 10.77.0.3 5
    check "alpha pings beta over IPv6" tell alpha 10 ping fd77::3 5
    check "beta pings alpha over IPv4" tell beta 10 ping 10.77.0.2 5
    check "beta pings alpha over IPv6" tell beta 10 ping fd77::2 5
    check_seen "beta's TAP carried alpha's 5 requests" 5 'IP 10\.77\.0\.2 > 10\.77\.0\.3: ICMP echo request'
    check_seen "beta's TAP carried alpha's 5 answers" 5 'IP 10\.77\.0\.2 > 10\.77\.0\.3: ICMP echo reply'
    check_seen "beta's TAP carried them over IPv6" 5 'IP6 fd77::2 > fd77::3: ICMP6, echo reply'
    end_capture
    check "alpha fetches 10 MB from beta unharmed" gets_intact 10.77.0.3:80
    check "alpha fetches 10 MB from beta unharmed over IPv6" gets_intact '[fd77::3]:80'
    check "beta sends 10 MB to alpha unharmed" sends_to 10.77.0.2:5001
    check "the bridge learned both guests' own MAC addresses" bridge_knows_both
    check "beta is killed and alpha's transfer goes on" neighbour_is_unharmed
    check "beta comes back as the machine it was" comes_back
    check "every frame is accounted for" ledger_adds_up
}

main "$@"
