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

TOPOLOGY=$(basename "$0" .sh)
# SHA-256 of the pattern that guests send, seed 0, made by another program.
declare -A PATTERN_SHA256=(
    [1000000]=b3d0a1f7938cd4d8413a4dcffd4313e2e8ac0cb61cb1090eb140ea8e9154befb
    [10000000]=688f5dc4e87a59431f9201e48f83eb3d7bc68c815a108292bfe76ba19af01390
    [100000000]=250f404dbeb86450579855234de9d3b3cb523ed6bd3325fd4cb13e3add7850d4
)

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

# Without root everything happens in a user namespace, which has a /run of its
# own for the names of network namespaces.
enter_user_namespace() {
    if [ "${TOPOLOGY_PRIVATE:-}" = 1 ]; then
        { mount -t tmpfs tmpfs /run && mkdir /run/netns; } || die "no private /run"
        export TOPOLOGY_PRIVATE=entered
    fi
    if [ -n "${TOPOLOGY_PRIVATE:-}" ] || { [ "$EUID" -eq 0 ] && [ -w /run ]; }; then
        return
    fi
    need unshare=util-linux nsenter=util-linux
    if [ "$COMMAND" = check ]; then
        # Where `up` was: with its processes.
        recorded bridge || die "$TOPOLOGY ($ID) is not up"
        TOPOLOGY_PRIVATE=entered exec nsenter --preserve-credentials --user --mount \
            --target "$PID" -- "$BASH" "$SCRIPT" "$COMMAND" --id "$ID"
    fi
    unshare --user --map-root-user --mount true 2>/dev/null ||
        die "needs root: this user gets no user namespace (see sysctl user.max_user_namespaces," \
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    TOPOLOGY_PRIVATE=1 exec unshare --user --map-root-user --mount -- \
        "$BASH" "$SCRIPT" "$COMMAND" ${GIVEN_ID:+--id "$GIVEN_ID"}
}

choose_base() {
    BASE=${TOPOLOGY_STATE:-}
    if [ -z "$BASE" ] && [ "$EUID" -eq 0 ] && [ -w /run ]; then
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
        ERR=$(tail -n 3 "$STATE/bridge.log")
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

# start_guest NAME: a guest that takes commands, and waits until it is configured.
# They get the ports guest0, guest1, ... in the order in which they come.
start_guest() {
    [ -p "$STATE/$1.in" ] || mkfifo -m 600 "$STATE/$1.in"
    spawn "$1" ip netns exec "$NS-void" "$DEMO_GUEST" --socket "$STATE/attach" --name "$1" --commands
    setup until_true 10 guest_is_configured "$1"
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

# ---- Checks ------------------------------------------------------------------

# check TEXT COMMAND...: one line of the report. The command may set DETAIL.
check() {
    local text=$1
    shift
    DETAIL='' OUT='' ERR=''
    if "$@"; then
        ok "$text${DETAIL:+: $DETAIL}"
    else
        fail "$text${DETAIL:+: $DETAIL}"
        printf '%s\n' "$OUT" "$ERR" | tail -n 4 | grep . | sed 's/^/      | /'
    fi
}

# url ADDRESS PORT PATH
url() {
    case $1 in
    *:*) echo "http://[$1]:$2$3" ;;
    *) echo "http://$1:$2$3" ;;
    esac
}

# answers_pings ROLE ADDRESS [COUNT]: every one.
answers_pings() {
    at "$1" 20 ping -n -q -c "${3:-5}" -i 0.05 -W 2 "$2" || return 1
    DETAIL=$(sed -n 's/.*= \([^/]*\)\/\([^/]*\)\/.*/fastest \1 ms, mean \2 ms/p' <<<"$OUT")
    grep -q " ${3:-5} received" <<<"$OUT"
}

# serves_page ROLE ADDRESS NAME [PORT]: the page of the guest of that name.
serves_page() {
    at "$1" 10 curl -gsS -m 8 "$(url "$2" "${4:-80}" /)" && grep -q "^Hello from $3," <<<"$OUT"
}

# sends_intact ROLE ADDRESS BYTES [SECONDS [PORT]]: a guest's page arrives bit by bit.
sends_intact() {
    local limit=${4:-60} since=${EPOCHREALTIME/./}
    # shellcheck disable=SC2016 # expanded by the inner shell
    at "$1" $((limit + 2)) bash -c 'set -o pipefail; curl -gsS -m "$1" "$2" | sha256sum' - \
        "$limit" "$(url "$2" "${5:-80}" "/bytes/$3")" || return 1
    rate "$3" "$since"
    [ "${OUT%% *}" = "${PATTERN_SHA256[$3]}" ]
}

# The other way, bytes that count up, so that none can stand for another.
# shellcheck disable=SC2016 # expanded by an inner shell
count_up='seq 1 999999999 2>/dev/null | head -c "$1"'

# takes_intact ROLE ADDRESS BYTES [SECONDS]: a guest tells the hash of what it got.
takes_intact() {
    local limit=${4:-60} expected since
    bounded 60 bash -c "$count_up | sha256sum" - "$3" || return 1
    expected="$3 ${OUT%% *}"
    since=${EPOCHREALTIME/./}
    at "$1" "$limit" bash -c "$count_up | nc -N \"\$2\" 5001" - "$3" "$2"
    rate "$3" "$since"
    [ "$OUT" = "$expected" ]
}

# rate BYTES SINCE: sets DETAIL.
rate() {
    local micros=$((${EPOCHREALTIME/./} - $2))
    DETAIL="$(($1 / 1000)) kB in $((micros / 1000)) ms, $((8 * $1 / micros)) Mbit/s"
}

# echoes_datagrams ROLE ADDRESS [PORT]
echoes_datagrams() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    at "$1" 5 bash -c 'echo "datagram for $1" | nc -u -W 1 -w 3 "$1" "$2"' - "$2" "${3:-7}" &&
        [ "$OUT" = "datagram for $2" ]
}

# echoes_stream ROLE ADDRESS BYTES
echoes_stream() {
    local expected
    bounded 20 bash -c "$count_up | sha256sum" - "$3" || return 1
    expected=$OUT
    at "$1" 30 bash -c "$count_up | nc -N \"\$2\" 7 | sha256sum" - "$3" "$2" && [ "$OUT" = "$expected" ]
}

# start_capture ROLE INTERFACE FILTER, end_capture: what goes by, one packet a
# line, in the file $CAPTURE.
start_capture() {
    CAPTURE=$STATE/capture.log
    spawn capture ip netns exec "$NS-$1" tcpdump -i "$2" -Z root -n -l --immediate-mode "$3"
    until_true 5 grep -q '^listening on' "$CAPTURE" 2>/dev/null
}

end_capture() {
    end_processes "$STATE" capture
}

# captured COUNT PATTERN: at least so many packets; see start_capture.
captured() {
    local count=$1
    shift
    until_true 2 captured_now "$count" "$@"
}

captured_now() {
    [ "$(grep -cE "$2" "$CAPTURE")" -ge "$1" ]
}

# The ledger of every port: frames in = frames out + drops with a name.
ledger_adds_up() {
    bridge status || return 1
    grep -q '^guest' <<<"$OUT" && ! grep '^guest' <<<"$OUT" | grep -vq ' ok *$'
}

# counter PORT DIRECTION NAME: prints a number of the port's, 0 if there is none.
counter() {
    bridge status --json "$1" || return 1
    # The output has one value a line.
    awk -v direction="\"$2\":" -v name="\"$3\":" '
        $1 == direction { inside = 1 }
        inside && $1 == name { value = $2 + 0; inside = 0 }
        /"(guest_to_host|host_to_guest)":/ { inside = ($1 == direction) }
        END { print value + 0 }' <<<"$OUT"
}

# sleeps_when_idle NAME...: within some seconds there is one in which none of the
# processes wakes up. (The kernel asks for its neighbours now and then.)
sleeps_when_idle() {
    local tries before after
    for tries in {1..8}; do
        before=$(switches "$@")
        sleep 1
        after=$(switches "$@")
        DETAIL="$((after - before)) wake-ups in second $tries"
        [ "$after" -eq "$before" ] && return 0
    done
    return 1
}

# Times that the processes' threads went to sleep, all together.
switches() {
    local name sum=0 count file
    for name; do
        recorded "$name" || return 1
        for file in "/proc/$PID/task"/*/status; do
            count=$(sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p' "$file")
            sum=$((sum + count))
        done
    done
    echo "$sum"
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
