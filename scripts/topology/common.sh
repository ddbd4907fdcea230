# shellcheck shell=bash
#
# What every topology does: commands, namespaces, the bridge and its guests,
# checks, and cleaning up. A topology sources this file, defines
#
#   TOOLS        an array of TOOL=PACKAGE beyond the common ones
#   bring_up     makes namespaces, starts the bridge and guests, waits for them
#   run_checks   calls `check` for everything that must hold
#
# and ends with `main "$@"`.
#
# An instance of a topology is a directory, $BASE/TOPOLOGY.ID: records of its
# processes and namespaces, logs, sockets. The ID of `run` is its process, so
# runs never meet, and whoever finds the directory can tell that a run is dead.

# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/topology/checks.sh
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

TOPOLOGY=$(basename "$0" .sh)

usage() {
    cat <<TEXT
usage: $0 run [--id NAME]
       $0 up|check|down [--id NAME]

  run    up, check and down; cleans up however it ends
  up     makes the topology and leaves it standing
  check  tests a topology that stands
  down   removes it, and what dead runs left behind; also when there is nothing

Instances with different names stand side by side (default name: main).
Exit code: 0 all held, 1 something failed, 2 nothing could be tested.
TEXT
    exit 2
}

# ---- Privilege and state -----------------------------------------------------

# Root of the machine, not of a user namespace.
is_root() {
    local _ count
    read -r _ _ count </proc/self/uid_map
    [ "$EUID" -eq 0 ] && [ "$count" -eq 4294967295 ]
}

# Without root everything happens in a user namespace, which has a /run of its
# own for the names of network namespaces.
enter_user_namespace() {
    if [ "${TOPOLOGY_PRIVATE:-}" = 1 ]; then
        { mount -t tmpfs tmpfs /run && mkdir /run/netns; } || die "no private /run"
        export TOPOLOGY_PRIVATE=entered
    fi
    if [ -n "${TOPOLOGY_PRIVATE:-}" ] || is_root; then
        return
    fi
    need unshare=util-linux nsenter=util-linux
    if [ "$COMMAND" = check ]; then
        # Where `up` was: with its processes.
        recorded bridge || die "$TOPOLOGY ($ID) is not up"
        TOPOLOGY_PRIVATE=entered exec nsenter --preserve-credentials --user --mount --net \
            --target "$PID" -- "$BASH" "$SCRIPT" "$COMMAND" --id "$ID"
    fi
    unshare --user --map-root-user --mount --net true 2>/dev/null ||
        die "needs root: this user gets no user namespace (see sysctl user.max_user_namespaces," \
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    TOPOLOGY_PRIVATE=1 exec unshare --user --map-root-user --mount --net -- \
        "$BASH" "$SCRIPT" "$COMMAND" ${GIVEN_ID:+--id "$GIVEN_ID"}
}

choose_base() {
    BASE=${TOPOLOGY_STATE:-}
    if [ -z "$BASE" ] && is_root; then
        BASE=/run/host-bridge-topology
    elif [ -z "$BASE" ]; then
        BASE=/tmp/host-bridge-topology-$EUID
    fi
    export TOPOLOGY_STATE=$BASE
    # Others must not tell us which processes to end.
    [ ! -e "$BASE" ] || { [ -d "$BASE" ] && [ ! -L "$BASE" ] && [ -O "$BASE" ]; } ||
        die "$BASE is there and not ours: remove it, or set TOPOLOGY_STATE"
}

# remove_instance DIRECTORY: removes what it records, then the directory.
remove_instance() {
    local file name
    # Twice, should a process have been about to record itself.
    end_processes "$1"
    for file in "$1"/*.netns; do
        name=$(basename "$file" .netns)
        if [ -e "/run/netns/$name" ]; then
            ip netns del "$name" || continue
        fi
        rm -f "$file"
    done
    if ! end_processes "$1" || compgen -G "$1/*.netns" >/dev/null; then
        printf '%s: could not remove everything that %s records\n' "${0##*/}" "$1" >&2
        return 1
    fi
    rm -rf "$1"
    # Stays while there are other instances.
    rmdir "$BASE" 2>/dev/null
    return 0
}

# Removes the runs, of any topology, whose process is dead.
remove_dead_runs() {
    local dir id
    for dir in "$BASE"/*.*.*; do
        id=${dir#"$BASE"/*.}
        [ -d "$dir" ] && ! still_runs "${id%.*}" "${id#*.}" && remove_instance "$dir"
    done
    return 0
}

# Whether somebody else is making or removing this instance.
is_busy() {
    local pid start
    read -r pid start 2>/dev/null <"$STATE/owner" && still_runs "$pid" "$start" && [ "$pid" != $$ ]
}

# Makes the instance's directory and this process its owner.
claim() {
    local tries
    for tries in 1 2 3; do
        { mkdir -p "$BASE" && mkdir "$STATE"; } 2>/dev/null && break
        [ "$tries" -lt 3 ] || die "$STATE is there already, or cannot be made"
        # `rmdir` of another instance, or an `up` that has not said who it is.
        sleep 0.1
    done
    echo "$$ $(start_time $$)" >"$STATE/owner"
}

# ---- Namespaces --------------------------------------------------------------

# add_namespace ROLE: an empty network namespace; see `ns`.
add_namespace() {
    : >"$STATE/$NS-$1.netns"
    bounded 5 ip netns add "$NS-$1" ||
        die "no network namespace: $ERR (needs root with CAP_SYS_ADMIN; in a container, --privileged)"
}

# at ROLE SECONDS COMMAND...: `bounded`, in a namespace.
at() {
    local role=$1 limit=$2
    shift 2
    bounded "$limit" ip netns exec "$NS-$role" "$@"
}

# setup COMMAND...: a step of bring_up that has to work.
setup() {
    "$@" || die "${*:1:9}: ${ERR:-failed}"
}

# on ROLE ARGUMENTS...: `ip` in a namespace, as a step of bring_up.
on() {
    local role=$1
    shift
    setup bounded 5 ip -n "$NS-$role" "$@"
}

# forward ROLE: makes a namespace a router.
forward() {
    setup at "$1" 5 sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward
                           echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
}

# wire ROLE NAME ROLE NAME: a veth pair, both ends up.
wire() {
    setup bounded 5 ip link add "$2" netns "$NS-$1" type veth peer name "$4" netns "$NS-$3"
    on "$1" link set "$2" up
    on "$3" link set "$4" up
}

# ---- The bridge and its guests -----------------------------------------------

# start_bridge ARGUMENTS...: in the namespace `host`. Guests run in the namespace
# `void`, which has no network at all: all they have is the shared memory.
start_bridge() {
    spawn bridge ip netns exec "$NS-host" "$HOST_BRIDGE" run --socket "$STATE/attach" \
        --admin "$STATE/admin" "$@"
    setup until_true 10 bridge_answers
}

bridge_answers() {
    recorded bridge || {
        ERR=$(tail -n 3 "$STATE/bridge.log" 2>/dev/null)
        [ ! -s "$STATE/bridge.log" ]
    } || return 1
    [ -S "$STATE/admin" ] && bridge status >/dev/null
}

# bridge COMMAND ARGUMENTS...: asks the running daemon; see `bounded`.
bridge() {
    local command=$1
    shift
    bounded 10 "$HOST_BRIDGE" "$command" --admin "$STATE/admin" "$@"
}

# start_guest NAME ARGUMENTS...: a guest that takes commands, and waits until it is
# configured.
# They get the ports guest0, guest1, ... in the order in which they come.
start_guest() {
    local name=$1
    shift
    [ -p "$STATE/$name.in" ] || mkfifo -m 600 "$STATE/$name.in"
    spawn "$name" ip netns exec "$NS-void" "$DEMO_GUEST" --socket "$STATE/attach" --name "$name" \
        --commands "$@"
    setup until_true 10 guest_is_configured "$name"
}

guest_is_configured() {
    bridge status && grep -Eq "^guest[0-9]+ .* running +$1 " <<<"$OUT"
}

# tell GUEST SECONDS COMMAND...: a guest does something; its answer is in OUT.
tell() {
    local guest=$1 limit=$2 before
    shift 2
    before=$(grep -cE "^(ok|failed) " "$STATE/$guest.log")
    # Opened for both, so that a dead guest does not block us.
    echo "$*" 1<>"$STATE/$guest.in"
    until_true "$limit" has_answered "$guest" "$before" || return 1
    OUT=$(grep -E "^(ok|failed) " "$STATE/$guest.log" | tail -n 1)
    [[ $OUT == "ok $*:"* ]]
}

has_answered() {
    [ "$(grep -cE "^(ok|failed) " "$STATE/$1.log")" -gt "$2" ]
}

# ---- Commands ----------------------------------------------------------------

up() {
    if [ -d "$STATE" ]; then
        ! is_busy || die "$TOPOLOGY ($ID) is being made or removed by process $(cut -d' ' -f1 "$STATE/owner")"
        if stands; then
            note "$TOPOLOGY ($ID) is up already"
            return 0
        fi
        remove_instance "$STATE" || exit 1
    fi
    claim
    trap 'clean_up' EXIT
    bring_up
    # What `check` and a second `up` must know.
    declare -p HOST_BRIDGE DEMO_GUEST >"$STATE/up"
    rm -f "$STATE/owner"
    trap - EXIT
    note "$TOPOLOGY ($ID) is up: the host's side is the network namespace $NS-host"
}

# Whether everything that was started runs.
stands() {
    [ -e "$STATE/up" ] || return 1
    local file name
    for file in "$STATE"/*.pid; do
        name=$(basename "$file" .pid)
        [ "$name" = bounded ] || recorded "$name" || return 1
    done
}

checks() {
    # shellcheck source=/dev/null
    . "$STATE/up" 2>/dev/null || die "$TOPOLOGY ($ID) is not up"
    run_checks
    printf '%s: %d ok, %d failed\n' "$TOPOLOGY" "$PASSED" "$FAILED"
    [ "$FAILED" -eq 0 ] && [ "$PASSED" -gt 0 ]
}

down() {
    [ ! -d "$STATE" ] || { ! is_busy && remove_instance "$STATE"; } ||
        die "$TOPOLOGY ($ID) could not be removed, or is being made or removed by another process"
}

# The end of `up` that did not work, and of every `run`.
clean_up() {
    local status=$?
    trap '' INT TERM HUP
    if [ $status -ne 0 ] && [ "$FAILED" -eq 0 ] && [ -s "$STATE/bridge.log" ]; then
        tail -n 5 "$STATE/bridge.log" | sed 's/^/      | /' >&2
    fi
    remove_instance "$STATE" || status=1
    exit $status
}

run() {
    claim
    trap 'clean_up' EXIT
    bring_up
    declare -p HOST_BRIDGE DEMO_GUEST >"$STATE/up"
    checks
    exit
}

main() {
    COMMAND=${1:-} GIVEN_ID=''
    SCRIPT=$(realpath "$0")
    case $COMMAND in run | up | check | down) shift ;; *) usage ;; esac
    if [ "${1:-}" = --id ]; then
        [[ ${2:-} =~ ^[A-Za-z0-9_-]{1,32}$ ]] || die "--id: letters, digits, - and _, please"
        GIVEN_ID=$2
        shift 2
    fi
    [ $# -eq 0 ] || usage
    # A run is named after its process, unless it was given a name.
    if [ "$COMMAND" = run ] && [ -z "$GIVEN_ID" ]; then
        ID=$$.$(start_time $$)
    else
        ID=${GIVEN_ID:-main}
    fi
    choose_base
    STATE=$BASE/$TOPOLOGY.$ID
    # Frees the names that the kernel shows: hbt for host-bridge topology.
    NS=hbt-$TOPOLOGY-$ID
    umask 077
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    need ip=iproute2 setsid=util-linux timeout=coreutils awk=mawk
    # shellcheck disable=SC2153 # the topology's
    local tools=(ping=iputils-ping curl=curl nc=netcat-openbsd tcpdump=tcpdump "${TOOLS[@]}")
    case $COMMAND in
    down)
        remove_dead_runs
        down
        ;;
    check)
        need "${tools[@]}"
        enter_user_namespace
        checks
        ;;
    up | run)
        need "${tools[@]}"
        nc -h 2>&1 | grep -q -- '-N' || die "nc has no -N (Debian: apt-get install netcat-openbsd)"
        [ -n "${TOPOLOGY_PRIVATE:-}" ] || find_programs
        enter_user_namespace
        { : <>/dev/net/tun; } 2>/dev/null ||
            die "/dev/net/tun cannot be opened: run as root, or let this user open it" \
                "(chmod 0666 /dev/net/tun); without the device, modprobe tun"
        remove_dead_runs
        "$COMMAND"
        ;;
    esac
}
