# shellcheck shell=bash disable=SC2034,SC2154
# Steps that tools/quickstart and tools/check share. To be sourced; needs `set -euo pipefail` and $root.
# Every step says what it does and how long it took; a failure is one sentence that says what to do.

# What the program needs, by Debian 12's names.
build_packages=(cmake g++ ninja-build libfmt-dev nlohmann-json3-dev libhwloc-dev libnuma-dev libdnnl-dev libxsimd-dev
  libcli11-dev libtomlplusplus-dev libutf8proc-dev liburing-dev
  libxxhash-dev libb2-dev)
# What its tests need in addition.
# qemu-user stands in for other CPUs, the rest from there on for machines with NUMA nodes (tests/numa_vm).
test_packages=(doctest-dev clang-format-19 qemu-user qemu-system-x86 busybox-static cpio lz4)

say() { echo "$(basename "$0"): $*" >&2; }
die() {
  say "$*"
  exit 1
}

# seconds_since START: whole seconds since $SECONDS was START.
seconds_since() { echo $((SECONDS - $1)); }

# On the machine: x86-64 with AVX2 and FMA, or it is of no use to go on.
require_cpu() {
  [[ $(uname -s) == Linux ]] || die "cpuinfer runs on Linux only; this is $(uname -s)."
  [[ $(uname -m) == x86_64 ]] || die "cpuinfer runs on x86-64 only; this is $(uname -m)."
  if ! grep -qw avx2 /proc/cpuinfo || ! grep -qw fma /proc/cpuinfo; then
    die "this CPU has no AVX2 and FMA, which cpuinfer needs (Intel since 2013, AMD since 2015)."
  fi
}

# install_packages PACKAGE...: those that are missing, by apt-get. Needs root only when something is missing.
install_packages() {
  local missing=() package start=$SECONDS
  if ! command -v dpkg-query >/dev/null; then
    die "this system has no dpkg, so it is no Debian 12; install the equivalents of these by hand and use" \
      "--no-packages: $*"
  fi
  for package in "$@"; do
    if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) != installed ]]; then
      missing+=("$package")
    fi
  done
  if ((${#missing[@]} == 0)); then
    say "packages: all $# are installed"
    return
  fi

  local id version
  id=$(. /etc/os-release && echo "${ID:-unknown}")
  version=$(. /etc/os-release && echo "${VERSION_ID:-unknown}")
  if [[ $id != debian || $version != 12 ]]; then
    die "this is $id $version and the package names are Debian 12's; install these by hand (g++ 12 or later) and use" \
      "--no-packages: ${missing[*]}"
  fi
  command -v apt-get >/dev/null || die "apt-get is missing; install these by hand and use --no-packages: ${missing[*]}"

  local sudo=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "installing packages needs root; run as root: apt-get install ${missing[*]}"
    sudo=(sudo)
    # Without a terminal nobody can type a password.
    [[ -t 0 ]] || sudo=(sudo -n)
  fi
  say "packages: installing ${missing[*]}"
  local log
  log=$(mktemp "${TMPDIR:-/tmp}/cpuinfer-packages.XXXXXX.log")
  # A failing update (one broken repository of many) matters only if the packages cannot be had then.
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update >"$log" 2>&1 </dev/null || true
  if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" \
    >>"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    die "apt-get could not install the packages; its output is in $log. Is the network up, and is this user allowed to?"
  fi
  rm -f "$log"
  say "packages: installed in $(seconds_since "$start") s"
}

require_compiler() {
  local compiler=${CXX:-g++} version
  command -v "$compiler" >/dev/null || die "there is no compiler '$compiler'; install g++ 12 or set CXX."
  version=$("$compiler" -dumpversion | cut -d. -f1)
  if ((version < 12)); then die "$compiler is version $version; C++23 needs g++ 12 or later (set CXX to choose another)."; fi
  command -v cmake >/dev/null || die "cmake is missing; install it (3.25 or later)."
  command -v ninja >/dev/null || die "ninja is missing; install ninja-build."
}

# One job per CPU, but not more than one per 1.5 GiB of free memory: the compiler is killed otherwise.
job_count() {
  local cpus memory
  cpus=$(nproc)
  memory=$(awk '/^MemAvailable:/ { print int($2 / 1572864) }' /proc/meminfo)
  ((memory >= 1)) || memory=1
  echo $((cpus < memory ? cpus : memory))
}

# Shows ninja's counters on a terminal, nothing elsewhere.
show_progress() {
  if [[ -t 2 ]]; then
    awk '/^\[[0-9]+\/[0-9]+\]/ { printf "\r  %s ", $1; fflush(); shown = 1 } END { if (shown) printf "\r%20s\r", "" }' >&2
  else
    cat >/dev/null
  fi
}

# build DIRECTORY TARGET CMAKE-OPTION...: configures and builds $root/DIRECTORY.
build() {
  local directory=$1 target=$2 start=$SECONDS log options=()
  shift 2
  options=("$@")
  if command -v ccache >/dev/null; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  mkdir -p "$root/$directory"
  log=$root/$directory/build.log
  say "build: $target in $directory/ with $(job_count) jobs; output in $directory/build.log"
  if ! cmake -S "$root" -B "$root/$directory" -G Ninja "${options[@]}" >"$log" 2>&1 </dev/null; then
    grep -A 6 'CMake Error' "$log" >&2 || tail -n 15 "$log" >&2
    die "cmake could not configure $directory/; the whole output is in $directory/build.log. If the directory comes from" \
      "another tree or generator, remove it."
  fi
  if ! cmake --build "$root/$directory" --target "$target" -j "$(job_count)" 2>&1 </dev/null | tee -a "$log" |
    show_progress; then
    grep -m 20 -E 'error|Error|FAILED' "$log" >&2 || tail -n 20 "$log" >&2
    die "the build failed; the whole output is in $directory/build.log."
  fi
  say "build: done in $(seconds_since "$start") s"
}
