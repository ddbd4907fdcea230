# shellcheck shell=bash
#
# Shared by the scripts: messages, tools that must be there, the programs under
# test, and processes that are started, bounded in time and ended.
#
# Every process is recorded in the directory $STATE as `NAME.pid`, with its id
# and its start time, before it runs its program. It is ended by that id, and
# only while the start time says that it is still the same process. So a later
# script can end what a killed one left behind.

set -u
export LC_ALL=C
# Where Debian keeps ip, nft and tc; users do not have it.
PATH=$PATH:/usr/sbin:/sbin

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# ---- Messages ----------------------------------------------------------------

PASSED=0
FAILED=0

ok() {
    PASSED=$((PASSED + 1))
    printf 'ok    %s\n' "$*"
}

fail() {
    FAILED=$((FAILED + 1))
    printf 'FAIL  %s\n' "$*"
}

note() {
    printf '      %s\n' "$*"
}

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

# Exit code 2: nothing was tested.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

# ---- What must be there ------------------------------------------------------

# need TOOL=PACKAGE...
need() {
    local pair tools=() packages=()
    for pair; do
        if ! command -v "${pair%%=*}" >/dev/null; then
            tools+=("${pair%%=*}")
            packages+=("${pair#*=}")
        fi
    done
    [ ${#tools[@]} -eq 0 ] || die "missing: ${tools[*]} (Debian: apt-get install ${packages[*]})"
}

# Sets HOST_BRIDGE and DEMO_GUEST: the environment's, or freshly built ones where
# this user builds, or those that are there.
find_programs() {
    local target
    target=$(cd "$ROOT" && realpath -m "${CARGO_TARGET_DIR:-target}")/release
    if [ -z "${HOST_BRIDGE:-}" ] || [ -z "${DEMO_GUEST:-}" ]; then
        if [ -O "$ROOT/Cargo.toml" ] && command -v cargo >/dev/null; then
            (cd "$ROOT" && cargo build --quiet --release -p host-bridge -p demo-guest) ||
                die "the programs do not build"
        fi
    fi
    export HOST_BRIDGE=${HOST_BRIDGE:-$target/host-bridge} DEMO_GUEST=${DEMO_GUEST:-$target/demo-guest}
    local program
    for program in "$HOST_BRIDGE" "$DEMO_GUEST"; do
        [ -x "$program" ] ||
            die "no program $program: run cargo build --release, or set HOST_BRIDGE and DEMO_GUEST"
    done
}

# ---- Processes ---------------------------------------------------------------

# start_time PID: prints when the process started; fails if it has ended.
start_time() {
    local stat
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
    # The program's name stands in parentheses and may hold anything.
    read -r -a stat <<<"${stat##*) }"
    [[ ${stat[0]} != [ZX] ]] && echo "${stat[19]}"
}

# still_runs PID START
still_runs() {
    [ "$(start_time "$1")" = "$2" ]
}

# Records the subshell that calls it, which is about to become the process.
record() {
    # Inside $(...) it would be the id of another subshell.
    local pid=$BASHPID start
    start=$(start_time "$pid") && echo "$pid $start" 2>/dev/null >"$STATE/$1.pid"
}

# recorded NAME: sets PID; fails unless that process runs.
recorded() {
    local start
    read -r PID start 2>/dev/null <"$STATE/$1.pid" && still_runs "$PID" "$start"
}

# Sets VM_GUEST_IMAGE, freshly built where this user builds.
find_image() {
    local target
    [ -z "${VM_GUEST_IMAGE:-}" ] || return 0
    target=$(cd "$ROOT" && realpath -m "${CARGO_TARGET_DIR:-target}")/vm-guest
    if [ -O "$ROOT/Cargo.toml" ] && command -v cargo >/dev/null; then
        (cd "$ROOT/vm-guest" && cargo build --locked --quiet --release --target-dir "$target") ||
            die "the image does not build"
    fi
    export VM_GUEST_IMAGE=$target/release/vm-guest
}

# spawn NAME COMMAND...: starts a process that outlives the script. Its output
# goes to NAME.log; its input comes from the pipe NAME.in where there is one.
spawn() {
    local name=$1 input=/dev/null
    shift
    [ -p "$STATE/$name.in" ] && input=$STATE/$name.in
    (
        record "$name" || exit 1
        exec setsid "$@"
    ) <>"$input" >"$STATE/$name.log" 2>&1 &
    disown
}

# bounded SECONDS COMMAND...: runs it to its end and puts what it prints in OUT
# and ERR. Fails as the command does, with 124 when time is up. The script's
# traps run while it waits.
# shellcheck disable=SC2034 # OUT and ERR are the caller's
bounded() {
    local limit=$1 status
    shift
    (
        record bounded || exit 1
        exec setsid timeout -k 1 "$limit" "$@"
    ) </dev/null >"$STATE/out" 2>"$STATE/err" &
    wait $!
    status=$?
    rm -f "$STATE/bounded.pid"
    OUT=$(<"$STATE/out")
    ERR=$(<"$STATE/err")
    return $status
}

# until_true SECONDS COMMAND...: tries again until it succeeds.
until_true() {
    local limit=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -le "$limit" ] || return 1
        sleep 0.05
    done
}

# end_processes DIRECTORY [NAME]: ends the recorded processes and their groups,
# by force where they do not go.
# shellcheck disable=SC2086 # the name may be a pattern
end_processes() {
    local file pid start signal tries left
    for signal in TERM KILL; do
        for tries in {0..59}; do
            left=0
            for file in "$1"/${2:-*}.pid; do
                read -r pid start 2>/dev/null <"$file" || continue
                still_runs "$pid" "$start" || continue
                left=1
                # Once a second. Before its setsid it has no group of its own.
                [ $((tries % 20)) -ne 0 ] || kill -s $signal -- "-$pid" 2>/dev/null ||
                    kill -s $signal "$pid" 2>/dev/null
            done
            [ $left -ne 0 ] || {
                rm -f "$1"/${2:-*}.pid
                return 0
            }
            sleep 0.05
        done
    done
    return 1
}
