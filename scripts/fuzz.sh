#!/bin/bash
# Runs the fuzzer: scripts/fuzz.sh [SECONDS [TARGET...]]; default 60 seconds for each
# target. Needs cargo-fuzz (`cargo install cargo-fuzz`) and a C++ compiler; a nightly
# toolchain is not needed. New inputs go to fuzz/target/corpus, what fails to
# fuzz/artifacts: put a failing input into fuzz/corpus/TARGET together with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in cargo-fuzz c++; do
    command -v "$tool" >/dev/null || {
        echo "fuzz: $tool is missing: cargo install cargo-fuzz; apt-get install g++" >&2
        exit 1
    }
done
seconds=${1:-60}
shift || true
# cargo-fuzz instruments by flags that a stable compiler takes only with this.
export RUSTC_BOOTSTRAP=1
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
failed=()
for target in "${targets[@]}"; do
    printf '\n== %s\n' "$target"
    mkdir -p "fuzz/target/corpus/$target"
    cargo fuzz run --features fuzzer "$target" "fuzz/target/corpus/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -max_len=8192 -print_final_stats=1 || failed+=("$target")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "fuzz: failed: ${failed[*]}" >&2
    exit 1
fi
