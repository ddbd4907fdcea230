#!/usr/bin/env bash
#
# A guest that is a machine: QEMU with the image of vm-guest/, joined to the
# bridge by ivshmem-doorbell, and no network card.
#
#   namespace host                          namespace void
#   kernel ── TAP guest0 ── host-bridge ══ shared memory ══ QEMU: alpha
#          10.77.0.1, fd77::1                            10.77.0.2, fd77::2
#
# `up` leaves it standing and says how to reach it. VM_ACCEL=tcg or kvm chooses
# how QEMU executes the machine; without it KVM is tried and measured first. VM_CPU
# is QEMU's -cpu (host under KVM, max under TCG).
# VM_APPEND is added to the kernel command line (such as connect=10.77.0.1:8080);
# VM_GUEST_IMAGE names an image that was built before.

TOOLS=(qemu-system-x86_64=qemu-system-x86)
# shellcheck source=scripts/topology/common.sh
. "$(dirname "$(realpath "$0")")/topology/common.sh"

# start_vm NAME ACCELERATOR CPU
start_vm() {
    spawn "$1" ip netns exec "$NS-void" qemu-system-x86_64 -accel "$2" -cpu "$3" \
        -nodefaults -display none -m 128 -kernel "$VM_GUEST_IMAGE" \
        -append "name=$1 ${VM_APPEND:-}" \
        -chardev "socket,path=$STATE/attach,id=net" \
        -device ivshmem-doorbell,chardev=net,vectors=1 \
        -serial "file:$STATE/$1.serial" \
        -monitor "unix:$STATE/$1.monitor,server=on,wait=off"
}

# Boots it under KVM; fails, with the reason in WHY, unless the machine is there,
# and quick: a KVM that emulates every instruction is neither.
kvm_works() {
    WHY="/dev/kvm cannot be opened"
    { : <>/dev/kvm; } 2>/dev/null || return 1
    start_vm alpha kvm "${VM_CPU:-host}"
    if until_true 3 guest_is_configured alpha; then
        at host 3 curl -gsS -m 2 -o /dev/null "http://10.77.0.2/bytes/10000000" && return 0
        WHY="10 MB took longer than 2 s"
    else
        WHY="not configured after 3 s"
    fi
    [ ! -s "$STATE/alpha.log" ] || WHY="$WHY; QEMU: $(head -n 1 "$STATE/alpha.log")"
    end_processes "$STATE" alpha
    until_true 5 no_guest
    return 1
}

no_guest() {
    bridge status && ! grep -q '^guest' <<<"$OUT"
}

bring_up() {
    [ -f "$VM_GUEST_IMAGE" ] || die "no image $VM_GUEST_IMAGE: build vm-guest/, or set VM_GUEST_IMAGE"
    add_namespace host
    add_namespace void
    on host link set lo up
    # Kept, because QEMU connects once: `host-bridge restart` may follow.
    start_bridge --keep --net4 10.77.0.0/16 --net6 fd77::/64
    case ${VM_ACCEL:-} in
    '')
        if kvm_works; then
            note "KVM works here: the machine runs at full speed"
        else
            note "falling back to TCG, because under KVM: $WHY"
            start_vm alpha tcg "${VM_CPU:-max}"
        fi
        ;;
    kvm) start_vm alpha kvm "${VM_CPU:-host}" ;;
    tcg) start_vm alpha tcg "${VM_CPU:-max}" ;;
    *) die "VM_ACCEL is kvm or tcg" ;;
    esac
    setup until_true 20 guest_is_configured alpha
    note "ip netns exec $NS-host ping 10.77.0.2      (or curl, iperf3 -c, nmap, nc 10.77.0.2 7)"
    note "its serial port: $STATE/alpha.serial"
}

measures() {
    at host 15 iperf3 -c 10.77.0.2 -t 1 -f m "$@" || return 1
    DETAIL=$(sed -n 's/.* \([0-9.]* Mbits\/sec\).*receiver/\1/p' <<<"$OUT")
    [ -n "$DETAIL" ] && [ "${DETAIL%%[. ]*}" -gt 0 ]
}

# Processor time of QEMU in two seconds, in hundredths of a second. Another look
# where the kernel had questions for its neighbour.
sleeps() {
    local before after tries
    recorded alpha || return 1
    for tries in 1 2 3; do
        sleep 0.5
        before=$(processor_time "$PID")
        sleep 2
        after=$(processor_time "$PID")
        DETAIL="$((after - before)) hundredths of a second of processor time in 2 s"
        [ $((after - before)) -gt 2 ] || return 0
    done
    return 1
}

processor_time() {
    local stat
    read -r stat <"/proc/$1/stat"
    read -r -a stat <<<"${stat##*) }"
    echo $((stat[11] + stat[12]))
}

configurations() {
    grep -c 'configured: MTU' "$STATE/alpha.serial"
}

comes_back() {
    local before
    before=$(configurations)
    bounded 5 bash -c 'echo system_reset | nc -N -U "$1"' - "$STATE/alpha.monitor"
    # The TAP has no carrier until the new kernel is configured.
    until_true 10 has_configured "$((before + 1))" &&
        until_true 5 answers_pings host 10.77.0.2 1 && answers_pings host 10.77.0.2 5
}

# One connection, before and after the daemon was replaced.
keeps_its_network() {
    at host 30 bash -c '
        exec 3<>/dev/tcp/10.77.0.2/7
        echo before >&3 && read -r -t 10 first <&3
        "$1" restart --admin "$2" >/dev/null || exit 1
        echo after >&3 && read -r -t 10 second <&3
        [ "$first $second" = "before after" ]
    ' - "$HOST_BRIDGE" "$STATE/admin"
}

has_configured() {
    [ "$(configurations)" -ge "$1" ]
}

run_checks() {
    check "the machine answers pings over IPv4" answers_pings host 10.77.0.2 5
    check "the machine answers pings over IPv6" answers_pings host fd77::2 5
    check "the machine serves a page over IPv4" serves_page host 10.77.0.2 alpha
    check "the machine serves a page over IPv6" serves_page host fd77::2 alpha
    check "the machine sends 100 MB unharmed over IPv4" sends_intact host 10.77.0.2 100000000
    check "the machine sends 10 MB unharmed over IPv6" sends_intact host fd77::2 10000000
    check "the machine receives 100 MB unharmed over IPv4" takes_intact host 10.77.0.2 100000000
    check "the machine receives 10 MB unharmed over IPv6" takes_intact host fd77::2 10000000
    check "the machine echoes a stream" echoes_stream host 10.77.0.2 10000000
    check "the machine echoes a datagram over IPv4" echoes_datagrams host 10.77.0.2
    check "the machine echoes a datagram over IPv6" echoes_datagrams host fd77::2
    if command -v iperf3 >/dev/null; then
        check "iperf3 measures the way to the machine" measures
        check "iperf3 measures the way from the machine" measures --reverse
    fi
    check "the machine sleeps when there is nothing to do" sleeps
    check "its connections go on when the daemon is replaced" keeps_its_network
    check "the machine comes back after a reset" comes_back
    check "every frame is accounted for" ledger_adds_up
}

case ${1:-} in
up | run) [ -n "${TOPOLOGY_PRIVATE:-}" ] || find_image ;;
esac
main "$@"
