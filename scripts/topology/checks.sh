# shellcheck shell=bash
#
# What topologies check. Sourced by common.sh, whose `at`, `bounded`, `bridge` and
# `tell` do the work. A check succeeds or fails, may set DETAIL, and leaves what
# it saw in OUT and ERR; lib.sh's `check` prints the line.

# SHA-256 of the pattern that guests send, seed 0, made by another program.
declare -A PATTERN_SHA256=(
    [1000000]=b3d0a1f7938cd4d8413a4dcffd4313e2e8ac0cb61cb1090eb140ea8e9154befb
    [10000000]=688f5dc4e87a59431f9201e48f83eb3d7bc68c815a108292bfe76ba19af01390
    [100000000]=250f404dbeb86450579855234de9d3b3cb523ed6bd3325fd4cb13e3add7850d4
)

# url ADDRESS PORT PATH
url() {
    case $1 in
    *:*) echo "http://[$1]:$2$3" ;;
    *) echo "http://$1:$2$3" ;;
    esac
}

# answers_pings ROLE ADDRESS [COUNT]: every one. They leave at once: ping waits one
# interval for the last answer, and a busy machine can stand still for longer than
# a short one.
answers_pings() {
    local count=${3:-5}
    at "$1" 20 ping -n -c "$count" -l "$count" -i 2 -W 2 "$2" || return 1
    DETAIL=$(sed -n 's/.*= \([^/]*\)\/\([^/]*\)\/.*/fastest \1 ms, mean \2 ms/p' <<<"$OUT")
    grep -q " $count received" <<<"$OUT"
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
# line, in the file $CAPTURE. Without root there is none: tcpdump wants to change
# its user, and a user namespace has no other.
start_capture() {
    CAPTURE=$STATE/capture.log
    spawn capture ip netns exec "$NS-$1" tcpdump -i "$2" -Z root -n -l --immediate-mode "$3"
    if until_true 5 grep -Eq "^listening on|Couldn't change to" "$CAPTURE" 2>/dev/null &&
        grep -q "Couldn't change to" "$CAPTURE"; then
        note "tcpdump runs as root only: what it would see here is not checked"
        CAPTURE=''
    fi
}

end_capture() {
    end_processes "$STATE" capture
}

# check_seen TEXT COUNT PATTERN: at least so many packets, in the capture.
check_seen() {
    [ -z "$CAPTURE" ] || check "$1" until_true 2 captured "$2" "$3"
}

captured() {
    [ "$(grep -cE "$2" "$CAPTURE")" -ge "$1" ]
}

# check_unseen TEXT PATTERN: no such packet, though there are others.
check_unseen() {
    [ -z "$CAPTURE" ] || check "$1" not_captured "$2"
}

not_captured() {
    captured 1 ' > ' && ! grep -E "$1" "$CAPTURE"
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
