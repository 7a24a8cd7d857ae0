# shellcheck shell=bash disable=SC2034
# THE table of guests. One function guest_NAME each; its name becomes the ctest case numa_vm_NAME (CMakeLists.txt looks
# for lines that begin with "guest_"). It sets:
#
#   smp         QEMU's -smp. Keep cores and sockets powers of two, or use more than 8 CPUs: else the boot hangs.
#   node_cpus   the CPUs of each node; "" for memory alone
#   node_mib    the memory of each node; 0 for CPUs alone. Linux keeps some 15 to 75 MiB of it, node 0 the image too
#   distances   one row for each node; the diagonal is 10
#   steps       what runs inside: functions step_NAME of job.sh, each with its check_NAME in checks.sh
#   used_nodes  the nodes that cpuinfer is to place memory on, in its order; the CPUs of all nodes are to work
# and for the step `refused`: refused_context, for which node refused_node is too small.

# What every guest runs.
common_steps=(topology plan demo tiny placement placement_expert)

guest_nodes1() {
  smp=2,sockets=1,cores=2
  node_cpus=(0-1)
  node_mib=(768)
  distances=("10")
  used_nodes=(0)
  steps=("${common_steps[@]}")
}

guest_nodes2() {
  smp=4,sockets=2,cores=2
  node_cpus=(0-1 2-3)
  node_mib=(640 384)
  distances=("10 21" "21 10")
  used_nodes=(0 1)
  steps=("${common_steps[@]}")
}

# Nothing is even: node 0 has two CPUs and the most memory, node 2 little and is far away.
guest_nodes3_uneven() {
  smp=4,sockets=4,cores=1
  node_cpus=(0-1 2 3)
  node_mib=(768 512 256)
  distances=("10 12 21" "12 10 31" "21 31 10")
  used_nodes=(0 1 2)
  steps=("${common_steps[@]}" refused)
  refused_context=340k
  refused_node=2
}

guest_nodes4() {
  smp=4,sockets=4,cores=1
  node_cpus=(0 1 2 3)
  node_mib=(640 256 256 256)
  distances=("10 21 21 21" "21 10 21 21" "21 21 10 21" "21 21 21 10")
  used_nodes=(0 1 2 3)
  steps=("${common_steps[@]}")
}

# Two packages that are three nodes each, as sub-NUMA clustering makes them.
guest_nodes6() {
  smp=12,sockets=2,cores=6
  node_cpus=(0-1 2-3 4-5 6-7 8-9 10-11)
  node_mib=(640 256 256 256 256 256)
  distances=("10 12 12 21 21 21" "12 10 12 21 21 21" "12 12 10 21 21 21"
    "21 21 21 10 12 12" "21 21 21 12 10 12" "21 21 21 12 12 10")
  used_nodes=(0 1 2 3 4 5)
  steps=("${common_steps[@]}")
}

# The third node is memory alone, as a CXL expander is.
guest_memory_only() {
  smp=4,sockets=2,cores=2
  node_cpus=(0-1 2-3 "")
  node_mib=(640 384 384)
  distances=("10 21 17" "21 10 28" "17 28 10")
  used_nodes=(0 1)
  steps=("${common_steps[@]}")
}

# The third node has CPUs and no memory: its CPU works for node 1, which is nearest.
guest_cpus_only() {
  smp=4,sockets=4,cores=1
  node_cpus=(0-1 2 3)
  node_mib=(640 384 0)
  distances=("10 21 31" "21 10 12" "31 12 10")
  used_nodes=(0 1)
  steps=("${common_steps[@]}")
}
