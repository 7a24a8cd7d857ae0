#!/bin/bash
# Builds what every guest boots from: a kernel, and an initial RAM disk with cpuinfer, two models and the job.
# Usage: make_guest.sh CPUINFER SOURCE_DIR OUTPUT_DIR
#
# OUTPUT_DIR/kernel stays once it is there (delete it for a newer one); all else is made anew, which takes two seconds.
# Where it cannot be had, exit 77, and OUTPUT_DIR/skipped says why.
set -euo pipefail
cpuinfer=$(realpath "$1")
source_dir=$(realpath "$2")
mkdir -p "$3"
output=$(realpath "$3")
here=$source_dir/tests/numa_vm

skip() {
  echo "SKIPPED: $*; guests with NUMA nodes were not tested" | tee "$output/skipped"
  exit 77
}

require_programs() {
  local program
  command -v qemu-system-x86_64 >/dev/null || skip "qemu-system-x86_64 (Debian package qemu-system-x86) is not installed"
  for program in busybox cpio; do
    command -v "$program" >/dev/null || skip "$program (Debian packages busybox-static and cpio) is not installed"
  done
  # QEMU translates a fused multiply-add to one of the host.
  grep -qw fma /proc/cpuinfo || skip "this CPU has no FMA"
  if ldd "$cpuinfer" 2>/dev/null | grep -qE 'lib(asan|ubsan|tsan)'; then
    skip "a program built with sanitizers has no room in a guest"
  fi
}

# u32 FILE OFFSET: the little-endian number there.
u32() { od -An -v -tu4 -j "$2" -N 4 "$1" | tr -d ' '; }

# unpack_kernel BZIMAGE ELF: QEMU boots the ELF image within directly (PVH), a second sooner than the packed one. The
# offsets are those of Linux's boot protocol: setup_sects at 0x1f1, payload_offset at 0x248, payload_length at 0x24c.
# The payload ends with its unpacked size, four bytes that are not LZ4's.
unpack_kernel() {
  local sectors begin length
  command -v lz4 >/dev/null || return 1
  sectors=$(od -An -v -tu1 -j $((0x1f1)) -N 1 "$1" | tr -d ' ')
  begin=$(((sectors + 1) * 512 + $(u32 "$1" $((0x248)))))
  length=$(u32 "$1" $((0x24c)))
  head -c $((begin + length - 4)) "$1" | tail -c $((length - 4)) | lz4 -qdcf - >"$2" 2>/dev/null
}

# A kernel of Debian's for virtual machines: downloaded as a package and unpacked, not installed.
fetch_kernel() {
  local work=$output/kernel.work package
  for package in apt-cache apt-get dpkg-deb; do
    command -v "$package" >/dev/null || skip "there is no $package to get a kernel with"
  done
  # The package names another one, with the version in its name.
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' |
    head -n 1 || true)
  [[ $package ]] || skip "apt-get knows no package linux-image-cloud-amd64 (is this Debian? run apt-get update)"
  rm -rf "$work"
  mkdir -p "$work"
  if ! (cd "$work" && timeout 300 apt-get -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 \
    download "$package") >"$work/log" 2>&1 </dev/null; then
    tail -n 3 "$work/log"
    skip "$package could not be downloaded (no network? if the version is gone: apt-get update)"
  fi
  dpkg-deb -x "$work"/*.deb "$work/files"
  if ! unpack_kernel "$work"/files/boot/vmlinuz-* "$work/kernel"; then
    cp "$work"/files/boot/vmlinuz-* "$work/kernel"
  fi
  mv "$work/kernel" "$output/kernel"
  rm -rf "$work"
  echo "kernel: $package"
}

# copy_program FILE: to /bin of the guest, and the libraries it needs to where it looks for them.
copy_program() {
  local library
  cp "$1" "$root/bin/"
  # A static program has none.
  { ldd "$1" 2>/dev/null || true; } | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -Lu "$library" "$root$library"
  done
}

# token_ids COUNT VOCABULARY: a JSON array of ids that never changes.
token_ids() {
  awk -v count="$1" -v vocabulary="$2" 'BEGIN {
    id = 7
    for (i = 0; i < count; ++i) {
      id = (id * 421 + 1663) % 7875
      printf "%s%d", i ? "," : "[", id % vocabulary
    }
    print "]"
  }'
}

# host_hash MODEL: "MODEL HASH", which a guest has to find too, by the same program on one node of this machine.
host_hash() {
  local answer
  if ! answer=$("$cpuinfer" score --model "$root/$1" --ids "$root/$1.ids" --nodes 1 --isa avx2 --json --progress none \
    2>"$output/host.log"); then
    cat "$output/host.log" >&2
    return 1
  fi
  echo "$1 $(sed -n 's/.*"logits_hash": "\([0-9a-f]*\)".*/\1/p' <<<"$answer")"
}

make_files() {
  mkdir -p "$root"/{bin,proc,sys,dev,tmp,demo}
  copy_program "$(command -v busybox)"
  copy_program "$cpuinfer"
  cp "$here"/{init,job.sh,pages.awk} "$root/"
  chmod +x "$root/init"
  cp "$source_dir"/models/demo/*.json "$source_dir"/models/demo/model.safetensors "$root/demo/"
  if ! "$cpuinfer" synth tiny -o "$root/tiny" --progress none 2>"$output/host.log"; then
    cat "$output/host.log" >&2
    return 1
  fi
  token_ids 12 2500 >"$root/demo.ids"
  # More than one block of the KV cache (256 tokens).
  token_ids 264 1500 >"$root/tiny.ids"
}

rm -f "$output/skipped"
require_programs
[[ -s $output/kernel ]] || fetch_kernel

root=$output/root
rm -rf "$root"
make_files
host_hash demo >"$output/hashes"
host_hash tiny >>"$output/hashes"
# Replaced at once: another guest may be about to read it.
(cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$output/image.new"
mv "$output/image.new" "$output/image"
rm -rf "$root"
cat "$output/hashes"
echo "image: $(($(stat -c %s "$output/image") / 1048576)) MiB"
