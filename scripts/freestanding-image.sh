#!/usr/bin/env bash
#
# Builds the image of vm-guest/ for x86_64-unknown-none, which knows no operating
# system, no SSE and no red zone, and prints where it is. What it takes, the first
# of these that is there:
#
#   the target        rustup target add x86_64-unknown-none
#   rustc's sources   rustup component add rust-src
#   Debian's          apt-get install rustc-web cargo-web rust-web-src
#
# With sources, cargo builds core and alloc for the target. That is an unstable
# feature, so RUSTC_BOOTSTRAP is set for this one build.
#
# Beside proving that the image needs no hosted target: a KVM that emulates every
# instruction knows no SSE.
#
#   freestanding-image.sh            builds
#   freestanding-image.sh --check    says what it would build with, or fails

# shellcheck source=scripts/lib.sh
. "$(dirname "$(realpath "$0")")/lib.sh"

triple=x86_64-unknown-none
at_least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/vm-guest/Cargo.toml")

# Sets how, cargo, rustc and standard.
choose() {
    cargo=cargo rustc=rustc standard=()
    if command -v cargo >/dev/null && command -v rustc >/dev/null; then
        if [ -d "$(rustc --print target-libdir --target $triple)" ]; then
            how="the installed target"
            return
        fi
        if [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
            how="this toolchain's sources"
            from_sources
            return
        fi
    fi
    # rustup's compiler comes first in PATH; the sources fit Debian's alone.
    cargo=/usr/bin/cargo rustc=/usr/bin/rustc
    [ -x $cargo ] && [ -x $rustc ] && [ -d "$($rustc --print sysroot)/lib/rustlib/src/rust/library" ] ||
        return
    local version
    version=$($rustc --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n' "$at_least" "$version" | sort -V | head -n 1)" = "$at_least" ] || return
    how="Debian's compiler and sources"
    from_sources
}

from_sources() {
    standard=(-Z build-std=core,alloc)
    # rust-lld may not come with these.
    export RUSTC_BOOTSTRAP=1 CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER=ld
}

how=''
choose
[ -n "$how" ] || die "no library for $triple: rustup target add $triple, or \
rustup component add rust-src, or on Debian apt-get install rustc-web cargo-web rust-web-src \
(version $at_least or newer)"
if [ "${1:-}" = --check ]; then
    echo "$how"
    exit
fi

need objdump=binutils
target=$(cd "$ROOT" && realpath -m "${CARGO_TARGET_DIR:-target}")/vm-guest-freestanding
# Flags of the environment would replace those of .cargo/config.toml.
unset RUSTFLAGS
cd "$ROOT/vm-guest" || exit 2
log=$(RUSTC=$rustc $cargo build --locked --release --quiet "${standard[@]}" \
    --target $triple --target-dir "$target" 2>&1) || die "the image does not build: $log"
image=$target/$triple/release/vm-guest
! objdump -d "$image" | grep -q xmm || die "SSE is used in $image"
echo "$image"
