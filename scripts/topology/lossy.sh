#!/usr/bin/env bash
#
# A bad link between a guest and a machine behind the host.
#
#   namespace far            namespace host                 namespace void
#   eth0 ──────── veth ───── uplink, TAP guest0 ── host-bridge ══ alpha
#   192.0.2.2                192.0.2.1, 10.77.0.1           10.77.0.2
#        netem, both ways                     fault injection, both ways
#
# The bridge's fault injection is always tested, netem where the kernel has it.
# `up` leaves the link with 5 % loss each way; change it while it runs:
#
#   host-bridge set --admin /run/host-bridge-topology/lossy.main/admin guest0 \
#       --impair-to-guest delay=50ms,jitter=10ms,reorder=1%,seed=7
#
# LOSSY_BYTES is how much crosses the link at 5 % loss each way: 1000000,
# 10000000 or 100000000 (default), LOSSY_SECONDS how long that may take.

TOOLS=(tc=iproute2)
# shellcheck source=scripts/topology/common.sh
. "$(dirname "$(realpath "$0")")/common.sh"

LOSSY_BYTES=${LOSSY_BYTES:-100000000}
LOSSY_SECONDS=${LOSSY_SECONDS:-300}
GUEST=10.77.0.2
MEDIUM=bridge

bring_up() {
    add_namespace host
    add_namespace void
    add_namespace far
    on host link set lo up
    wire host uplink far eth0
    on host address add 192.0.2.1/24 dev uplink
    on far address add 192.0.2.2/24 dev eth0
    on far route add 10.77.0.0/16 via 192.0.2.1
    forward host
    start_bridge --net4 10.77.0.0/16
    start_guest alpha
    harm_as_usual
}

# What the link is like when no check runs.
harm_as_usual() {
    MEDIUM=bridge
    harm to_guest loss=5%,seed=1
    harm to_host loss=5%,seed=2
}

# harm DIRECTION BRIDGE'S-TEXT [NETEM'S-WORDS...]: from now on, and nothing else.
harm() {
    local text=$2 role=far device=eth0
    [ "$1" = to_guest ] || { role=host device=uplink; }
    if [ "$MEDIUM" = bridge ]; then
        setup bridge set guest0 "--impair-${1/_/-}" "$text"
        return
    fi
    shift 2
    at "$role" 5 tc qdisc del dev "$device" root
    [ "$text" = off ] || setup at "$role" 5 tc qdisc replace dev "$device" root netem limit 10000 "$@"
}

heal() {
    harm to_guest off
    harm to_host off
}

kernel_has_netem() {
    at far 5 tc qdisc replace dev eth0 root netem loss 1% && at far 5 tc qdisc del dev eth0 root
}

# slower_by MILLISECONDS: by that and not twice that. Pings say the round trip.
slower_by() {
    local fastest
    answers_pings far $GUEST 5 || return 1
    fastest=$(sed -n 's/^[^=]*= \([0-9]*\)\..*/\1/p' <<<"$OUT")
    [ "$fastest" -ge "$1" ] && [ "$fastest" -lt $((2 * $1)) ]
}

# within MIN MAX COMMAND...: it takes so many milliseconds.
within() {
    local min=$1 max=$2 since=${EPOCHREALTIME/./} ms
    shift 2
    "$@" || return 1
    ms=$(((${EPOCHREALTIME/./} - since) / 1000))
    DETAIL="$ms ms, $DETAIL"
    [ "$ms" -ge "$min" ] && [ "$ms" -le "$max" ]
}

is_silent() {
    ! at far 5 ping -n -q -c 3 -i 0.1 -W 1 $GUEST && grep -q ' 0 received' <<<"$OUT"
}

# Answers that come twice.
sees_duplicates() {
    at far 10 ping -n -c 20 -i 0.02 -W 1 $GUEST
    DETAIL="$(grep -c 'DUP!' <<<"$OUT") of 20 pings"
    grep -q 'DUP!' <<<"$OUT"
}

# both_ways TEXT TO-GUEST-BYTES FROM-GUEST-BYTES SECONDS
both_ways() {
    check "$1: $(($2 / 1000000)) MB reach the guest unharmed" takes_intact far $GUEST "$2" "$4"
    check "$1: $(($3 / 1000000)) MB of the guest's arrive unharmed" sends_intact far $GUEST "$3" "$4"
}

# counted DIRECTION NAME: the bridge says that it did it.
counted() {
    DETAIL=$(counter guest0 "$@") && [ "$DETAIL" -gt 0 ]
}

# Which of 40 pings are answered. Other frames, such as multicast reports, use up
# random numbers too.
survivors() {
    harm to_guest loss=50%,seed="$1"
    at far 10 ping -n -c 40 -l 40 -i 0.5 -W 1 $GUEST
    sed -n 's/.*icmp_seq=\([0-9]*\) .*/\1/p' <<<"$OUT" | tr '\n' ' '
    harm to_guest off
}

seed_decides() {
    local first second other tries
    on far neigh replace 192.0.2.1 lladdr "$(address_of host uplink)" dev eth0
    on host neigh replace $GUEST lladdr 02:53:4c:00:00:00 dev guest0
    for tries in 1 2 3; do
        first=$(survivors 11) second=$(survivors 11) other=$(survivors 12)
        DETAIL="$(wc -w <<<"$first") of 40 pings survive"
        [ "$first" = "$second" ] && [ "$first" != "$other" ] && return 0
    done
    return 1
}

address_of() {
    at "$1" 5 cat "/sys/class/net/$2/address" && echo "$OUT"
}

all_kinds() {
    local via=$MEDIUM
    heal
    check "$via: a good link answers every ping" answers_pings far $GUEST 20

    harm to_guest loss=5%,seed=1 loss 5%
    harm to_host loss=5%,seed=2 loss 5%
    both_ways "$via: loss of 5 % each way" "$LOSSY_BYTES" "$LOSSY_BYTES" "$LOSSY_SECONDS"
    heal

    harm to_guest delay=30ms delay 30ms
    check "$via: a delay of 30 ms to the guest" slower_by 30
    harm to_host delay=30ms delay 30ms
    check "$via: and 30 ms to the host" slower_by 60
    harm to_guest off
    check "$via: and to the host only" slower_by 30
    harm to_guest delay=10ms,jitter=5ms,seed=3 delay 10ms 5ms
    harm to_host delay=10ms,jitter=5ms,seed=4 delay 10ms 5ms
    both_ways "$via: delay with jitter" 10000000 1000000 60
    heal

    harm to_guest delay=1ms,reorder=5%,gap=3,seed=5 delay 1ms reorder 5%
    harm to_host delay=1ms,reorder=5%,gap=3,seed=6 delay 1ms reorder 5%
    both_ways "$via: reordering" 10000000 1000000 60
    heal

    harm to_guest dup=20%,seed=7 duplicate 20%
    harm to_host dup=20%,seed=8 duplicate 20%
    check "$via: duplication shows" sees_duplicates
    both_ways "$via: duplication" 10000000 10000000 60
    heal

    harm to_guest corrupt=1%,seed=9 corrupt 1%
    harm to_host corrupt=1%,seed=10 corrupt 1%
    both_ways "$via: corruption" 10000000 1000000 120
    heal

    harm to_guest rate=20mbit rate 20mbit
    check "$via: 20 Mbit/s to the guest: 1 MB takes its time" within 300 2000 takes_intact far $GUEST 1000000
    harm to_guest off
    harm to_host rate=20mbit rate 20mbit
    check "$via: 20 Mbit/s to the host: 1 MB takes its time" within 300 2000 sends_intact far $GUEST 1000000
    heal

    harm to_guest loss=100% loss 100%
    check "$via: a dead link to the guest answers no ping" is_silent
    heal
    harm to_host loss=100% loss 100%
    check "$via: a dead link to the host answers no ping" is_silent
    heal
    check "$via: a link that is good again answers every ping" answers_pings far $GUEST 20
}

run_checks() {
    MEDIUM=bridge
    all_kinds
    check "bridge: losses to the guest were counted" counted host_to_guest impair-loss
    check "bridge: losses to the host were counted" counted guest_to_host impair-loss
    check "bridge: duplicates to the guest were counted" counted host_to_guest duplicated
    check "bridge: duplicates to the host were counted" counted guest_to_host duplicated
    check "bridge: the seed decides which frames are lost" seed_decides
    if kernel_has_netem; then
        MEDIUM=netem
        all_kinds
    else
        note "this kernel has no netem: only the bridge's fault injection was tested"
    fi
    check "every frame is accounted for" ledger_adds_up
    harm_as_usual
}

main "$@"
