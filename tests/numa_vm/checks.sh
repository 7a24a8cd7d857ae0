# shellcheck shell=bash disable=SC2154
# What the steps of job.sh must have printed: one function check_NAME for each step_NAME. A check ends the test by
# `die`. It finds the guest's row of guests.sh in the variables named there, the output of its step in $work/step, and
# the hashes of this machine in $images/hashes.

# lines WORD: the lines of the step that begin with it, without it.
lines() { sed -n "s/^$1 //p" "$work/step"; }

# expand LIST: "0-2,5" to "0 1 2 5".
expand() {
  local part numbers=()
  for part in ${1//,/ }; do
    local from=${part%-*} to=${part#*-} cpu
    for ((cpu = from; cpu <= to; ++cpu)); do numbers+=("$cpu"); done
  done
  echo "${numbers[*]}"
}

# value NAME: of the JSON object in the step's output, strings without quotes. JSON here has a line for each value.
value() { lines out | sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | head -n 1; }

# planned FILTER: bytes of each used node that the plan in the step's output holds, of all purposes that the extended
# regular expression matches.
planned() {
  lines out | awk -v filter="$1" '
    /"purpose":/ { purpose = $0; sub(/.*"purpose": "/, "", purpose); sub(/".*/, "", purpose); next }
    /"node_bytes":/ { inside = 1; node = 0; next }
    /\]/ { inside = 0 }
    inside { if (purpose ~ filter) bytes[node] += $1; ++node; if (node > nodes) nodes = node }
    END { for (n = 0; n < nodes; ++n) printf "%.0f\n", bytes[n] }'
}

# free_bytes: of each used node, by the plan in the step's output.
free_bytes() { lines out | sed -n '/"node_free_bytes": \[/,/\]/p' | grep -o '[0-9]\+'; }

require_exits() {
  [[ $(lines exit | paste -sd ' ') == "$1" ]] || die "$step: exits $(lines exit | paste -sd ' '), expected $1: $(lines err)"
}

require_hash() {
  local expected found
  expected=$(sed -n "s/^$1 //p" "$images/hashes")
  found=$(value logits_hash)
  [[ $expected && $found == "$expected" ]] ||
    die "$step: the logits' hash is ${found:-missing}, on one node of this machine ${expected:-missing}"
}

# The guest is what the table says: else all other checks would be about another machine.
check_topology() {
  local node found mib
  for node in "${!node_cpus[@]}"; do
    found=$(lines "node $node")
    [[ $(expand "$found") == $(expand "${node_cpus[node]// /,}") ]] || die "node $node has CPUs $found, not ${node_cpus[node]}"
    found=$(lines "distances $node")
    [[ $found == "${distances[node]}" ]] || die "node $node has distances $found, not ${distances[node]}"
    mib=$(($(lines "memory $node") / 1024))
    ((mib <= node_mib[node] && mib >= node_mib[node] - 100)) || die "node $node has $mib MiB, not ${node_mib[node]}"
  done
  [[ $(grep -c '^node ' "$work/step") == "${#node_cpus[@]}" ]] || die "there are more nodes than the table's"
}

# The plan fits and has weights on every node that is to be used and has memory. Remembers how many for the next check
# of pages.
check_plan() {
  local i
  require_exits 0
  [[ $(value fits) == true ]] || die "the plan does not fit"
  mapfile -t planned_weights < <(planned '^(embedding and lm_head|norms and biases|attention|router|experts)$')
  ((${#planned_weights[@]} == ${#used_nodes[@]})) ||
    die "the plan is for ${#planned_weights[@]} nodes, not the ${#used_nodes[@]} nodes ${used_nodes[*]}"
  for i in "${!used_nodes[@]}"; do
    ((planned_weights[i] > 0 == node_mib[used_nodes[i]] > 0)) ||
      die "node ${used_nodes[i]} has ${node_mib[used_nodes[i]]} MiB and ${planned_weights[i]} bytes of weights"
  done
}

# Every page that was asked for from a node is there (99.9 % of all), every node has the weights that the plan puts
# there, and no other node has any.
require_pages() {
  local i node here elsewhere all_here=0 all_elsewhere=0
  local -A pages=()
  # Where there is one node nothing is asked for from it.
  if ((${#used_nodes[@]} == 1)); then return; fi
  while read -r node here elsewhere; do
    pages[$node]=$here
    all_here=$((all_here + here))
    all_elsewhere=$((all_elsewhere + elsewhere))
    [[ " ${used_nodes[*]} " == *" $node "* ]] || die "$((here + elsewhere)) pages are asked for from node $node"
  done < <(lines pages)
  ((all_here * 1000 >= (all_here + all_elsewhere) * 999)) ||
    die "$all_elsewhere of $((all_here + all_elsewhere)) pages are not on their node: $(lines pages | paste -sd ';')"
  for i in "${!used_nodes[@]}"; do
    node=${used_nodes[i]}
    ((${pages[$node]:-0} * 4096 >= planned_weights[i])) ||
      die "node $node has ${pages[$node]:-0} pages of 4 KiB, its weights have ${planned_weights[i]} bytes"
  done
  say "$all_here pages on their nodes, $all_elsewhere elsewhere, seen in $(lines samples) samples"
}

# Each CPU has one thread that may run there only.
require_threads() {
  local node cpu threads
  for node in "${!node_cpus[@]}"; do
    for cpu in $(expand "${node_cpus[node]// /,}"); do
      threads=$(lines thread | awk -v cpu="$cpu" '$2 == cpu { ++count } END { print count + 0 }')
      ((threads == 1)) || die "$threads threads are bound to CPU $cpu of node $node: $(lines thread | paste -sd ';')"
    done
  done
}

check_demo() {
  require_exits 0
  require_hash demo
  require_pages
  require_threads
}

check_tiny() {
  require_exits 0
  require_hash tiny
}

# objects NAME KEY...: the values of these keys, a line for each object of the array NAME in the step's output. A value
# that is an array is written with commas.
objects() {
  local array=$1
  shift
  lines out | tr -d ' \n' | grep -o "\"$array\":\[{[^}]*}\(,{[^}]*}\)*\]" | grep -o '{[^}]*}' |
    awk -v keys="$*" '{
      count = split(keys, key, " ")
      for (k = 1; k <= count; ++k) {
        found = "-"
        if (match($0, "\"" key[k] "\":(\\[[^]]*\\]|\"[^\"]*\"|[^,}]*)")) {
          found = substr($0, RSTART + length(key[k]) + 3, RLENGTH - length(key[k]) - 3)
          gsub(/[]["]/, "", found)
        }
        printf "%s%s", found, k < count ? " " : "\n"
      }
    }'
}

# The program's own report: 99.9 % of the pages that were touched are where they were planned, and so is every worker.
check_placement() {
  local purpose node other here elsewhere all_here=0 all_elsewhere=0 rank cpu planned cpus expected=0 workers=0
  require_exits 0
  while read -r node here elsewhere purpose; do
    [[ " ${used_nodes[*]} " == *" $node "* ]] || die "$step: $purpose on node $node, which is not to be used"
    all_here=$((all_here + here))
    all_elsewhere=$((all_elsewhere + elsewhere))
  done < <(objects placement node local_pages other_pages purpose)
  for purpose in experts attention KVcache workspace; do
    objects placement purpose local_pages | awk -v purpose="$purpose" \
      '$1 == purpose && $2 > 0 { found = 1 } END { exit !found }' || die "$step: no pages for $purpose"
  done
  ((all_here * 1000 >= (all_here + all_elsewhere) * 999)) ||
    die "$step: $all_elsewhere of $((all_here + all_elsewhere)) pages are not on their node"
  while read -r rank node cpu planned; do
    workers=$((workers + 1))
    cpus=$(expand "${node_cpus[node]// /,}")
    # CPUs of a node without memory work for another.
    for other in "${!node_cpus[@]}"; do
      if ((node_mib[other] == 0)); then cpus+=" $(expand "${node_cpus[other]// /,}")"; fi
    done
    [[ ",$planned," == *",$cpu,"* && " $cpus " == *" $cpu "* ]] ||
      die "$step: worker $rank is on CPU $cpu, planned were $planned, node $node has $cpus"
  done < <(objects workers rank node cpu planned_cpus)
  for node in "${!node_cpus[@]}"; do
    for cpu in $(expand "${node_cpus[node]// /,}"); do expected=$((expected + 1)); done
  done
  ((workers == expected)) || die "$step: $workers workers, expected $expected"
}

check_plan_expert() { check_plan; }
check_demo_expert() { check_demo; }
check_tiny_expert() { check_tiny; }
check_placement_expert() { check_placement; }

# Both commands refuse; the plan's sentences name the nodes whose column is larger than their free memory, and no other.
check_refused() {
  local i needed room short=() named
  require_exits "78 78"
  mapfile -t needed < <(planned .)
  mapfile -t room < <(free_bytes)
  for i in "${!needed[@]}"; do
    if ((needed[i] > room[i])); then short+=("${used_nodes[i]}"); fi
  done
  named=$(lines out | sed -n 's/^ *"node \([0-9]*\) needs .* short",\{0,1\}$/\1/p' | paste -sd ' ')
  [[ ${short[*]} == "$named" && $named == "$refused_node" ]] ||
    die "needed ${needed[*]}, free ${room[*]}: too small are '${short[*]}', named '$named', expected '$refused_node'"
  lines err | grep -q "node $refused_node needs .* short" || die "score does not say which node is too small"
  lines err | grep -q '^purpose  *node 0 ' || die "score shows no table"
}
