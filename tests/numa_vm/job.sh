# shellcheck shell=dash disable=SC2154
# What runs inside a guest (busybox's shell): one function step_NAME for each step of guests.sh. It only prints, a line
# for each fact with a word in front that says what it is; checks.sh, outside, judges.

# run COMMAND...: its stdout as "out ...", its stderr as "err ...", and "exit CODE".
run() {
  "$@" >/tmp/out 2>/tmp/err
  report $?
}

report() {
  sed 's/^/out /' /tmp/out
  sed 's/^/err /' /tmp/err
  echo "exit $1"
}

# run_watched COMMAND...: as run, and looks from outside at where the kernel has put the process meanwhile:
# "pages NODE LOCAL OTHER": pages of memory that was asked for from NODE, on it and elsewhere, when there were most;
# "thread ID CPU": the single CPU that a thread was bound to when it was last seen to be bound, of those that were there
# in the end.
run_watched() {
  rm -f /tmp/maps /tmp/threads
  "$@" >/tmp/out 2>/tmp/err &
  pid=$!
  sample=0
  while [ -d /proc/$pid/task ] && ! grep -q '^State:.Z' /proc/$pid/status; do
    sample=$((sample + 1))
    sed "s/^/$sample /" /proc/$pid/numa_maps >>/tmp/maps 2>/dev/null
    grep -H '^Cpus_allowed_list' /proc/$pid/task/*/status 2>/dev/null |
      sed "s|^/proc/[0-9]*/task/\\([0-9]*\\)/status:[^0-9]*|$sample \\1 |" >>/tmp/threads
    sleep 0.15
  done
  wait $pid
  report $?
  echo "samples $sample"
  awk -f /pages.awk /tmp/maps
  # Once, at the start, hwloc binds the first thread to each CPU in turn, and some threads are there to load only: what
  # was so in the end counts. In the very last sample some may have ended.
  awk '$3 ~ /^[0-9]+$/ { bound[$2] = $3 } { seen[$2] = $1; last = $1 }
    END { for (thread in bound) if (seen[thread] >= last - 1) print "thread", thread, bound[thread] }' /tmp/threads
}

step_topology() {
  for node in /sys/devices/system/node/node[0-9]*; do
    echo "node ${node##*node} $(cat "$node/cpulist")"
    echo "distances ${node##*node} $(cat "$node/distance")"
    echo "memory ${node##*node} $(sed -n 's/.*MemTotal: *\([0-9]*\) kB/\1/p' "$node/meminfo")"
  done
}

plan_demo() { run cpuinfer plan --model /demo --json "$@"; }
# One token at a time, as an answer is made.
score_demo() { run_watched cpuinfer score --model /demo --ids /demo.ids --chunk 1 --isa avx2 --json --progress none "$@"; }
# All tokens in one step, as a prompt is read.
score_tiny() { run cpuinfer score --model /tiny --ids /tiny.ids --isa avx2 --json --progress none "$@"; }
# What the program itself says about its pages and threads.
placement() { run cpuinfer doctor --placement --model /demo --isa avx2 --json "$@"; }

step_plan() { plan_demo; }
step_demo() { score_demo; }
step_tiny() { score_tiny; }
step_placement() { placement; }

# The same with whole experts on nodes, instead of a slice of every expert on each.
step_plan_expert() { plan_demo --placement expert; }
step_demo_expert() { score_demo --placement expert; }
step_tiny_expert() { score_tiny --placement expert; }
step_placement_expert() { placement --placement expert; }

# More context than a node has memory for, first planned, then tried.
step_refused() {
  run cpuinfer plan --model /demo --rope-scaling linear:256 --ctx "$refused_context" --json
  run cpuinfer score --model /demo --rope-scaling linear:256 --ctx "$refused_context" --ids /demo.ids --json
}
