#!/bin/bash
# The rings between two threads under ThreadSanitizer, and the unsafe code of shm-link
# under AddressSanitizer.
#
# Sanitizers are not stable in Rust, but every toolchain for x86-64 Linux brings their
# runtimes; RUSTC_BOOTSTRAP lets the same compiler use them. The standard library is not
# instrumented: ThreadSanitizer sees no order that std's locks and channels make, so only
# what synchronises by atomics of its own can be judged, which is shm-link. It knows no
# fences either: the sleep flags are loom's (tests/loom_cursor.rs).
set -euo pipefail
cd "$(dirname "$0")/.."

host=x86_64-unknown-linux-gnu
runtimes=$(rustc --print sysroot)/lib/rustlib/$host/lib
for sanitizer in tsan asan; do
    if ! compgen -G "$runtimes/librustc-*_rt.$sanitizer.a" >/dev/null; then
        echo "skipped: this toolchain has no $sanitizer for $host"
        exit 0
    fi
done

# under SANITIZER ARGUMENTS...: tests, built with it.
under() {
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=$1 -Cunsafe-allow-abi-mismatch=sanitizer" \
        cargo test --locked --all-features --target "$host" \
        --target-dir "${CARGO_TARGET_DIR:-target}/$1" --quiet "${@:2}"
}

export TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.supp"
under thread -p shm-link --lib --test two_threads
# Tests leave regions behind on purpose: a peer may hold them for ever.
export ASAN_OPTIONS=detect_leaks=0
under address -p shm-link --lib --test two_threads --test stream_fd
