#!/usr/bin/env bash
#
# Runs every topology, one after the other, and says how many held. Stops early
# only when it is interrupted; each topology cleans up after itself.

# shellcheck source=scripts/lib.sh
. "$(dirname "$(realpath "$0")")/../lib.sh"

[ $# -eq 0 ] || die "usage: $0 (no arguments)"
find_programs
pid=''
trap 'trap "" INT TERM; [ -z "$pid" ] || { kill "$pid" 2>/dev/null; wait "$pid"; }; exit 130' INT TERM
for topology in one-guest two-guests nat lossy; do
    printf '%s\n' "$topology"
    "$ROOT/scripts/topology/$topology.sh" run &
    pid=$!
    if wait "$pid"; then
        PASSED=$((PASSED + 1))
    else
        FAILED=$((FAILED + 1))
    fi
    pid=''
done
printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
[ "$FAILED" -eq 0 ]
