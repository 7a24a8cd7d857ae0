#!/bin/bash
# rules_self_test.sh SCRIPTS_DIR COMPILER: every rule must pass a clean tree and fail on a planted violation, with a
# message that names it.
set -euo pipefail

scripts=$1
compiler=$2
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# A small clean tree.
plant() { # plant FILE TEXT
  mkdir -p "$tree/$(dirname "$1")"
  printf '%b\n' "$2" >"$tree/$1"
}
clean_tree() {
  rm -rf "${tree:?}"/*
  plant base/result.h '#pragma once\n// never exit() here: "abort()" is only named'
  plant base/json.cc '#include <nlohmann/json.hpp>\n\n#include "base/result.h"'
  plant numa/team.cc '#include <omp.h>\n\n#include "base/result.h"\n\nvoid f() {\n#pragma omp parallel\n  f();\n}'
  plant kernels/pack.h '#pragma once\n\n#include "base/result.h"'
  plant engine/model/ops.cc '#include "kernels/pack.h"\nint snprintf_(int);\nstatic_assert(sizeof(int) == 4);'
  plant tests/kernels/pack_test.cc '#include "kernels/pack.h"'
  plant cmake/isa.cmake 'set(CPUINFER_ISA_FLAGS_avx512 -mavx512f)  # never -march=native'
}

passes() { # passes RULE
  local output status=0
  output=$("$scripts/check_sources.sh" "$tree" "$1" 2>&1) || status=$?
  if ((status != 0)) && ! [[ $1 == format && $status == 77 ]]; then fail "$1 on a clean tree: $output"; fi
}
catches() { # catches RULE TEXT-OF-THE-MESSAGE
  local output status=0
  output=$("$scripts/check_sources.sh" "$tree" "$1" 2>&1) || status=$?
  if ((status != 1)) || [[ $output != *"$2"* ]]; then
    fail "$1 does not say \"$2\" (exit $status): $output"
  fi
  clean_tree
}

cp "$scripts/../../.clang-format" "$tree/.clang-format"
clean_tree
for rule in layering third_party lengths words library_calls flags format; do passes $rule; done

plant kernels/pack.cc '#include "numa/team.h"'
plant numa/team.h '#pragma once'
catches layering 'kernels/pack.cc:1: kernels must not include numa ("numa/team.h")'
plant base/up.cc '\n  #  include "engine/model/ops.h"'
plant engine/model/ops.h '#pragma once'
catches layering 'base/up.cc:2: base must not include engine/model'
plant engine/serve/http.cc '#include "engine/jobs/store.h"'
plant engine/jobs/store.h '#pragma once'
catches layering 'engine/serve must not include engine/jobs'
plant engine/model/x.cc '#include "tests/kernels/pack_test.cc"'
catches layering 'engine/model must not include tests'
plant engine/model/x.cc '#include <kernels/pack.h>'
catches layering 'included with quotes'
plant bench/x.cc '#include "tools/options.h"'
plant tools/options.h '#pragma once'
catches layering 'bench must not include tools'
plant kernels/x.cc '#include "pack.h"'
catches layering 'relative to the root'
plant extra/x.cc '#include "base/result.h"'
catches layering 'extra/x.cc: is in no layer'

plant engine/model/x.cc '#include <nlohmann/json.hpp>'
catches third_party 'engine/model/x.cc:1: includes <nlohmann/json.hpp>, which belongs to base/json.cc'
plant engine/load/x.cc '#include <liburing.h>'
catches third_party 'which belongs to engine/storage/'
plant engine/storage/x.cc '#include "numa/team.h"'
plant numa/team.h '#pragma once'
catches layering 'engine/storage must not include numa'
plant tools/x.cc '#include <hwloc.h>'
catches third_party 'which belongs to numa/'
plant kernels/avx512/x.cc '#include <xsimd/xsimd.hpp>'
catches third_party 'which belongs to kernels/portable/'
plant engine/model/x.cc 'void f() {\n#pragma omp parallel\n}'
catches third_party "engine/model/x.cc: has a '#pragma omp'"
plant tools/a.cc '#include <CLI/CLI.hpp>'
catches third_party 'which belongs to tools/option_table.cc'

plant base/long.cc "$(yes 'int x();' | head -801)"
catches lengths 'base/long.cc: 801 lines'

plant docs/notes.md 'later: TO''DO'
catches words 'docs/notes.md:1:TO''DO'
plant base/x.cc '// FIX''ME: all of it'
catches words 'base/x.cc:1:FIX''ME'

for call in 'exit(1);' 'std::abort();' 'printf("x");' 'std::fprintf(stderr, "x");' 'std::cerr << 1;' 'assert(x);'; do
  plant engine/model/x.cc "void f() {\n  $call\n}"
  catches library_calls 'engine/model/x.cc:2:'
done

plant base/CMakeLists.txt 'add_compile_options(-march=native)'
catches flags 'base/CMakeLists.txt:1:-march=native'
plant base/CMakeLists.txt 'add_compile_options(-mavx2)'
catches flags 'base/CMakeLists.txt:1:-mavx2'
plant cmake/isa.cmake 'set(CPUINFER_ISA_FLAGS_avx512 -march=native)'
catches flags 'cmake/isa.cmake:1:-march=native'

if command -v clang-format-19 >/dev/null; then
  plant base/x.cc 'int   f( )  ;'
  catches format 'base/x.cc: is not formatted'
else
  echo "skipped: the format rule, clang-format-19 is not installed"
fi

rm -rf "${tree:?}"/*
status=0
"$scripts/check_sources.sh" "$tree" layering >/dev/null || status=$?
((status == 2)) || fail "an empty tree must not pass"

# Objects, for the rule on instruction sets.
compile() { # compile NAME FLAGS TEXT
  printf '%b\n' "$3" >"$tree/$1.cc"
  # shellcheck disable=SC2086
  "$compiler" -O2 $2 -c "$tree/$1.cc" -o "$tree/$1.o"
}
isa_catches() { # isa_catches ARGUMENT TEXT
  local output status=0
  output=$("$scripts/isa_symbols_test.sh" "$1" 2>&1) || status=$?
  if ((status != 1)) || [[ $output != *"$2"* ]]; then fail "isa_symbols does not say \"$2\" (exit $status): $output"; fi
}
zmm='#include <immintrin.h>\nextern "C" void f(float* p) { _mm512_storeu_ps(p, _mm512_setzero_ps()); }'
compile clean '' 'int f(int x) { return x + 1; }'
compile wide '-mavx512f' "$zmm"
compile weak '-mavx512f' "$zmm\nint g(int);\ninline int h(int x) { return g(x) * g(x + 1); }\nint (*p)(int) = h;"
compile masked '-mavx2 -mavx512f -mavx512vl' \
  '#include <immintrin.h>\nvoid f(float* p, __mmask8 m, __m256 v) { _mm256_mask_storeu_ps(p, m, v); }'
compile ymm '-mavx2' '#include <immintrin.h>\nvoid f(float* p) { _mm256_storeu_ps(p, _mm256_set1_ps(1)); }'
compile dot '-mavx512f -mavx512bf16' \
  '#include <immintrin.h>\n__m512 f(__m512 c, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(c, a, b); }'
compile tile '-mamx-tile' '#include <immintrin.h>\nvoid f() { _tile_zero(1); }'
"$scripts/isa_symbols_test.sh" "plain=$tree/clean.o" "avx512=$tree/wide.o,$tree/clean.o" "portable=$tree/ymm.o" \
  "avx512_bf16=$tree/dot.o" "amx=$tree/tile.o,$tree/dot.o" >/dev/null || fail "isa_symbols on clean objects"
isa_catches "avx512=$tree/weak.o" 'weak symbols in an object for avx512: h(int)'
isa_catches "plain=$tree/ymm.o" 'instructions that plain does not have'
isa_catches "reference=$tree/wide.o" 'instructions that reference does not have'
isa_catches "portable=$tree/masked.o" 'instructions that portable does not have'
isa_catches "avx512=$tree/dot.o" 'instructions that avx512 does not have'
isa_catches "avx512_bf16=$tree/tile.o" 'instructions that avx512_bf16 does not have'
isa_catches "avx512=$tree/clean.o" 'is the folder compiled with its flags?'
isa_catches "amx=" 'amx: no objects'
isa_catches "avx9000=$tree/clean.o" "'avx9000' has no row"

((failures == 0)) && echo "every rule passes a clean tree and catches its violations"
