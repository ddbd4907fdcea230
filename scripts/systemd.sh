#!/usr/bin/env bash
#
# The daemon under a real systemd, which keeps the guests: docs/host-bridge.service as it
# is, in a systemd that is process 1 of namespaces of its own. The guests are eight
# processes, and a machine under QEMU, which connects only once. Needs root.
#
# That systemd must not find the machine: a service of the distribution's that runs there
# (such as the one that clears /tmp) would do it to the machine's files. So its root is a
# tmpfs with nothing of the machine's but /usr, read-only; the only units that it can load
# are those written here; and it is not started unless all that holds.
#
# Exit code: 0 all held, 1 something failed, 2 nothing could be tested.

# shellcheck source=scripts/lib.sh
. "$(dirname "$(realpath "$0")")/lib.sh"

SYSTEMD=/usr/lib/systemd/systemd

# ---- Inside ------------------------------------------------------------------

# mount_root DIRECTORY: the root, from $STATE/bin and $STATE/units.
mount_root() {
    local name
    mount --make-rprivate / && mount -t tmpfs -o mode=755 root "$1" && cd "$1" || return 1
    mkdir -p usr etc/systemd run tmp var dev/net dev/shm proc sys root units old || return 1
    mount --rbind /usr usr && mount -o remount,bind,ro usr || return 1
    for name in bin sbin lib lib64; do
        [ ! -e "/$name" ] || ln -s "usr/$name" "$name" || return 1
    done
    mount --bind "$STATE/bin" usr/local/bin && mount -o remount,bind,ro usr/local/bin || return 1
    cp -r "$STATE"/units/* units/ && cp /etc/passwd /etc/group /etc/ld.so.cache etc/ || return 1
    : >etc/host-bridge.toml
    echo 0123456789abcdef0123456789abcdef >etc/machine-id
    for name in null zero full random urandom net/tun; do
        : >"dev/$name" && mount --bind "/dev/$name" "dev/$name" || return 1
    done
    mount -t tmpfs shm dev/shm && mount -t proc proc proc && mount -t sysfs -o ro sysfs sys &&
        mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys &&
        mount -t cgroup2 cgroup2 sys/fs/cgroup &&
        pivot_root . old && umount -l /old && rmdir /old
}

# Whether nothing of the machine's can be written, and no unit of its own be found.
is_apart() {
    local at options rest kind
    while read -r _ _ _ _ at options rest; do
        kind=${rest#*- }
        case ${kind%% *} in
        tmpfs | proc | sysfs | cgroup2 | devtmpfs) ;;
        *) [[ ,$options, = *,ro,* ]] || { echo "$at can be written" >&2 && return 1; } ;;
        esac
    done </proc/self/mountinfo
    for at in / /tmp /etc /run /var /dev; do
        [ "$(stat -c %d "$at")" = "$(stat -c %d /)" ] ||
            { echo "$at is not this root's" >&2 && return 1; }
    done
    [ "$(stat -fc %T /)" = tmpfs ]
}

if [ "${1:-}" = boot ]; then
    # Only as process 1 of namespaces of its own: this takes the old root away.
    [ $$ -eq 1 ] || exit 3
    STATE=$2
    mount_root "$STATE/root" && is_apart || exit 3
    exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin container=test SYSTEMD_UNIT_PATH=/units \
        "$SYSTEMD" --system --unit=test.target --log-target=console --show-status=no
fi

# ---- Outside -----------------------------------------------------------------

# inside SECONDS COMMAND...
inside() {
    local limit=$1
    shift
    bounded "$limit" nsenter --target "$INIT" --all -- "$@"
}

# property NAME: of the daemon's unit.
property() {
    inside 5 systemctl show --value --property "$1" host-bridge && echo "$OUT"
}

tap() {
    inside 5 cat /sys/class/net/guest0/ifindex && echo "$OUT"
}

is_up() {
    inside 5 systemctl is-active --quiet test.target
}

guests_answer() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    inside 20 bash -c 'for at; do curl -fsS -m 2 "http://$at/" || exit 1; done' - "${AT[@]}" &&
        [ "$(grep -c '^Hello from guest[1-8],' <<<"$OUT")" -eq 8 ] &&
        grep -q '^Hello from machine,' <<<"$OUT"
}

# goes_on COMMAND...: a connection and a transfer of each guest, before and after the command
# replaced the daemon. The first TAP is the same and the daemon another.
goes_on() {
    local before after
    before="$(tap)" || return 1
    after=$(property MainPID)
    # shellcheck disable=SC2016 # expanded by the inner shell
    inside 100 bash -c '
        read -ra all <<<"$1"
        shift
        echoes=()
        for at in "${all[@]}"; do
            exec {echo}<>"/dev/tcp/$at/7" && echoes+=("$echo") || exit 1
            echo before >&"$echo" && read -r -t 10 said <&"$echo" && [ "$said" = before ] || exit 1
        done
        for at in "${all[@]}"; do
            curl -fsS -m 90 --limit-rate 5M "http://$at/bytes/20000000" | sha256sum >"/run/sum.$at" &
        done
        sleep 0.5
        "$@" >/dev/null || exit 1
        sleep 1
        for echo in "${echoes[@]}"; do
            echo after >&"$echo" && read -r -t 10 said <&"$echo" && [ "$said" = after ] || exit 1
        done
        wait
        cat /run/sum.*
    ' - "${AT[*]}" "$@" && [ "$(grep -c "^$SUM " <<<"$OUT")" -eq "${#AT[@]}" ] || return 1
    DETAIL="20 MB of each guest with the right checksum meanwhile"
    [ "$(tap)" = "$before" ] && [ "$(property MainPID)" != "$after" ]
}

is_empty() {
    [ "$(property NFileDescriptorStore)" = 0 ] && ! tap &&
        ! inside 5 test -e /run/host-bridge.sock
}

stops() {
    inside 20 systemctl stop host-bridge && until_true 5 is_empty
}

starts_again() {
    # A machine that lost its daemon for good must be started anew.
    inside 20 systemctl start host-bridge && inside 20 systemctl restart machine &&
        until_true 40 guests_answer
}

# shellcheck disable=SC2317 # called by the trap
clean_up() {
    trap - EXIT
    # Process 1 takes all others with it.
    [ -z "${INIT:-}" ] || ! recorded unshare || kill -KILL "$INIT"
    end_processes "$STATE"
    [ -z "${CGROUP:-}" ] || until_true 5 remove_cgroup
    rm -rf --one-file-system "$STATE"
}

remove_cgroup() {
    find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null
    [ ! -d "$CGROUP" ]
}

need unshare=util-linux nsenter=util-linux ip=iproute2 curl=curl qemu-system-x86_64=qemu-system-x86
[ -x $SYSTEMD ] || die "missing: systemd (Debian: apt-get install systemd)"
[ "$EUID" -eq 0 ] || die "needs root"
find_programs
STATE=$(mktemp -d)
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir "$STATE"/{bin,units,root}
find_image
cp "$HOST_BRIDGE" "$DEMO_GUEST" "$VM_GUEST_IMAGE" "$STATE/bin"
cp "$ROOT/docs/host-bridge.service" "$STATE/units"
for target in test sysinit basic shutdown network-pre; do
    printf '[Unit]\nDefaultDependencies=no\n' >"$STATE/units/$target.target"
done
# There is no journal.
mkdir "$STATE/units/service.d"
printf '[Service]\nStandardError=append:/run/log\n' >"$STATE/units/service.d/log.conf"
cat >"$STATE/units/guest@.service" <<'TEXT'
[Unit]
After=host-bridge.service
[Service]
ExecStart=/usr/local/bin/demo-guest --name guest%i
TEXT
cat >"$STATE/units/machine.service" <<'TEXT'
[Unit]
After=host-bridge.service
[Service]
ExecStart=/usr/bin/qemu-system-x86_64 -accel tcg -cpu max -nodefaults -display none -m 128 \
    -kernel /usr/local/bin/vm-guest -append name=machine \
    -chardev socket,path=/run/host-bridge.sock,id=net \
    -device ivshmem-doorbell,chardev=net,vectors=1
TEXT
# Nine guests, and the first 20 MB of the pattern that they serve.
AT=()
for slot in {0..8}; do AT+=("10.77.0.$((slot * 4 + 2))"); done
SUM=1d8ceb171d0f2809ce64e94b3fb7d280d18092780723ceeae548ca9589fdd2ba

# A control group of its own, for it would move the processes of the one it finds.
HIERARCHY=$(findmnt -nt cgroup2 -o TARGET | head -n 1)
[ -n "$HIERARCHY" ] || die "no cgroup2 is mounted"
CGROUP=$HIERARCHY/host-bridge-test-$$
mkdir "$CGROUP" || die "no control group can be made"
spawn unshare bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' - "$CGROUP" \
    unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup "$BASH" "$0" boot "$STATE"
init_runs() {
    recorded unshare && INIT=$(<"/proc/$PID/task/$PID/children") && INIT=${INIT// /} &&
        [ "$(readlink "/proc/$INIT/exe")" -ef "$SYSTEMD" ] && is_up
}
until_true 10 init_runs || die "systemd does not start here: $(tail -n 3 "$STATE/unshare.log")"

inside 20 systemctl start host-bridge guest@{1..8} machine
check "the daemon is ready under systemd, and its guests answer" until_true 40 guests_answer
check "guests go on when the daemon is replaced" goes_on host-bridge restart
check "guests go on when the daemon is killed" \
    goes_on systemctl kill --kill-whom=main --signal=KILL host-bridge
check "guests go on when systemd restarts the daemon" goes_on systemctl restart host-bridge
check "what is kept is let go when the daemon is stopped" stops
check "the guests come again when the daemon is started" starts_again
printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
[ "$FAILED" -gt 0 ] || exit 0
inside 5 tail -n 40 /run/log
printf '%s\n' "$OUT"
tail -n 20 "$STATE/unshare.log"
exit 1
