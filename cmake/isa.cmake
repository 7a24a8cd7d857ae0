# THE table: instruction set -> compiler flags. A kernel file may use the flags of its folder and no others;
# tests/rules/isa_symbols_test looks at the objects. Everything else is plain x86-64.
#
# `reference` and `portable` need AVX2 and FMA: cpuinfer refuses CPUs without them at start-up, before any kernel runs.
set(CPUINFER_ISA_FLAGS_reference -mavx2 -mfma)
set(CPUINFER_ISA_FLAGS_portable -mavx2 -mfma)
set(CPUINFER_ISA_FLAGS_avx512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq)
set(CPUINFER_ISA_FLAGS_avx512_bf16 ${CPUINFER_ISA_FLAGS_avx512} -mavx512bf16)
set(CPUINFER_ISA_FLAGS_amx ${CPUINFER_ISA_FLAGS_avx512} -mavx512bf16 -mamx-tile -mamx-bf16)

# cpuinfer_isa_sources(target isa file...): adds the files with the flags of the instruction set.
# -fvisibility=hidden and no weak symbols: see docs/architecture.md, "Kernels".
function(cpuinfer_isa_sources target isa)
  add_library(${target}_${isa} OBJECT ${ARGN})
  target_compile_options(${target}_${isa} PRIVATE ${CPUINFER_ISA_FLAGS_${isa}} -O3 -fno-exceptions -fno-rtti)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${isa}>)
endfunction()
