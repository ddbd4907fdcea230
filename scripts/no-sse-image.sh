#!/usr/bin/env bash
#
# Builds the image of vm-guest/ without one SSE instruction and without the red
# zone, as it would be for x86_64-unknown-none, where that target is not
# installed. Prints where it is.
#
# The standard library's bitcode is compiled anew with the image (that is what
# link-time optimisation does), so its code, too, does without. Floating point
# does not work in it: the compiler's own helpers keep to the other convention.
# Only iperf3's figures use it. The compiler warns that it will not always take
# these flags.
#
# What it is good for: a KVM that emulates every instruction knows no SSE.

# shellcheck source=scripts/lib.sh
. "$(dirname "$(realpath "$0")")/lib.sh"

need cargo=cargo objdump=binutils
target=$(cd "$ROOT" && realpath -m "${CARGO_TARGET_DIR:-target}")/vm-guest-no-sse
triple=x86_64-unknown-linux-gnu
export RUSTFLAGS='-Ctarget-feature=-mmx,-sse,-sse2,+soft-float -Cno-redzone=yes --cfg sha2_backend="soft"'
cd "$ROOT/vm-guest" || exit 2
log=$(cargo build --locked --release --quiet --target $triple --target-dir "$target" 2>&1) ||
    die "the image does not build: $log"
image=$target/$triple/release/vm-guest
# `__adddf3` and its like are what is left.
users=$(objdump -d "$image" | awk '/^[0-9a-f]+ </ { f = $2 } /xmm/ { print f }' | sort -u)
others=$(grep -vE '(add|sub|mul|div|eq|ne|lt|gt|le|ge|unord|float.*|fix.*)(df|sf|di|si)' <<<"$users")
[ -z "$others" ] || die "SSE is used in: $others"
echo "$image"
