#!/usr/bin/env bash
# Other CPUs than this one, by QEMU's user emulation: one without AVX2 is refused with one sentence; a Haswell (AVX2, no
# AVX-512) runs and gives the bits that docs/numerics.md pins.
# Usage: other_cpus_test.sh CPUINFER SOURCE_DIR
set -euo pipefail
cpuinfer=$1
golden=$2/tests/data/goldens/moe_basic

if ! command -v qemu-x86_64 >/dev/null; then
  echo "SKIPPED: qemu-x86_64 (Debian package qemu-user) is not installed; the refusal of old CPUs was not tested"
  exit 77
fi

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

status=0
output=$(qemu-x86_64 -cpu Nehalem "$cpuinfer" --model "$golden" --prompt hello 2>&1) || status=$?
[[ $status == 78 ]] || fail "without AVX2: exit $status, expected 78"
[[ $output == "cpuinfer: this CPU has no AVX2 and FMA, which cpuinfer needs (Intel since 2013, AMD since 2015)" ]] ||
  fail "without AVX2: $output"

ids=$(mktemp)
trap 'rm -f "$ids"' EXIT
od -An -v -t d4 -w4 "$golden/tokens.i32" | paste -sd, | sed 's/^/[/; s/$/]/' >"$ids"
for pinned in dp:34df219a9684959a amx:7e5066ad35343c7e; do
  output=$(qemu-x86_64 -cpu Haswell "$cpuinfer" score --model "$golden" --ids "$ids" --json \
    --numerics "${pinned%:*}" 2>&1) || fail "Haswell, ${pinned%:*}: $output"
  grep -q 'kernels   portable' <<<"$output" || fail "Haswell does not run the portable kernels: $output"
  grep -q "\"logits_hash\": \"${pinned#*:}\"" <<<"$output" || fail "Haswell, ${pinned%:*}: other bits: $output"
done
echo "a CPU without AVX2 is refused; an emulated Haswell gives the pinned bits in both profiles"
