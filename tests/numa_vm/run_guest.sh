#!/bin/bash
# Boots one guest of guests.sh under QEMU, in software (KVM is not used even where there is one), runs its steps and
# checks what they printed. Exit 0, 1, or 77 where QEMU or a kernel cannot be had.
# Usage: run_guest.sh GUEST IMAGE_DIR [HOST_FMA_LIBRARY]
#
# IMAGE_DIR is what make_guest.sh made. Kernel log, output and the QEMU command stay in IMAGE_DIR/GUEST.
# shellcheck disable=SC2054,SC2154
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest=$1
images=$(realpath "$2")
host_fma=${3:+$(realpath "$3")}
time_limit=250 # seconds; a guest takes some 10 on an idle machine

# shellcheck source=/dev/null
. "$here/guests.sh"
# shellcheck source=/dev/null
. "$here/checks.sh"

say() { echo "$guest: $*"; }

# with_logs: shows the end of what the guest said.
with_logs() {
  echo "--- end of the kernel log ($work/kernel.log)"
  tail -n 25 "$work/kernel.log" | tr -d '\r'
  echo "--- end of the output ($work/output)"
  tail -n 25 "$work/output" | tr -d '\r'
}

die() {
  say "FAILED: $*"
  with_logs
  exit 1
}

# QEMU's options for the nodes of the guest.
machine_options() {
  local node other memory=0 row
  options=(-smp "$smp,threads=1")
  for node in "${!node_cpus[@]}"; do
    local numa=node,nodeid=$node cpus
    if ((node_mib[node] > 0)); then
      options+=(-object "memory-backend-ram,id=memory$node,size=${node_mib[node]}M")
      numa+=,memdev=memory$node
      memory=$((memory + node_mib[node]))
    fi
    for cpus in ${node_cpus[node]}; do numa+=,cpus=$cpus; done
    options+=(-numa "$numa")
  done
  for node in "${!distances[@]}"; do
    read -r -a row <<<"${distances[node]}"
    for other in "${!row[@]}"; do
      if ((other != node)); then options+=(-numa "dist,src=$node,dst=$other,val=${row[other]}"); fi
    done
  done
  options+=(-m "${memory}M")
}

# What each word of the command line is for: README.md.
kernel_command_line() {
  local steps_list
  steps_list=$(IFS=, && echo "${steps[*]}")
  echo "console=ttyS0,115200 quiet loglevel=4 panic=-1 mitigations=off nokaslr init_on_alloc=0" \
    "transparent_hugepage=madvise numa_balancing=disable initramfs_async=0 random.trust_cpu=on tsc=reliable" \
    "no_timer_check lpj=4600000 cryptomgr.notests audit=0 apparmor=0 rcupdate.rcu_expedited=1" \
    "steps=$steps_list refused_context=${refused_context:-}"
}

# thread=single: with a thread for each CPU QEMU 7.2 hangs now and then. The vendor: else there are no dies and the
# caches do not follow the nodes.
boot() {
  local options status=0
  machine_options
  local command=(qemu-system-x86_64 -accel tcg,thread=single -M q35
    -cpu "max,vendor=GenuineIntel,family=6,model=143,stepping=8" "${options[@]}"
    -nodefaults -no-user-config -display none -monitor none -no-reboot
    -serial file:kernel.log -serial file:output
    -kernel ../kernel -initrd ../image -append "$(kernel_command_line)")
  cd "$work" # QEMU's options would need commas in a path doubled
  : >kernel.log
  : >output
  printf '%q ' "${command[@]}" >qemu.command
  LD_PRELOAD=$host_fma timeout -k 5 "$time_limit" "${command[@]}" >qemu.log 2>&1 </dev/null || status=$?
  if ((status == 124 || status == 137)); then die "did not end within $time_limit s"; fi
  if ((status != 0)); then
    cat qemu.log
    die "QEMU ended with $status"
  fi
  tr -d '\r' <output >lines
  grep -qx "all steps done" lines || die "the guest ended before its steps did"
}

if [[ -s $images/skipped ]]; then
  cat "$images/skipped"
  exit 77
fi
[[ -s $images/image && -s $images/kernel ]] || { say "there is no image in $images; make_guest.sh makes it" && exit 1; }
declare -F "guest_$guest" >/dev/null || { say "guests.sh has no guest of that name" && exit 1; }

work=$images/$guest
mkdir -p "$work"
"guest_$guest"
boot
for step in "${steps[@]}"; do
  sed -n "/^begin $step\$/,/^end $step\$/p" "$work/lines" >"$work/step"
  grep -qx "end $step" "$work/step" || die "step $step did not end"
  "check_$step"
done
say "passed in $SECONDS s: ${steps[*]}"
