#!/bin/bash
# check_sources.sh ROOT RULE: checks one rule over the source tree. Prints one line per violation; exit 1 if there are
# any, 77 if the rule cannot be checked here (and why). rules_self_test.sh plants a violation of each.
set -euo pipefail

root=$1
rule=$2
cd "$root"

violations=0
violation() {
  echo "$*"
  violations=$((violations + 1))
}

# All C++ files of the project, or those below the given folders.
cpp_files() {
  local folder
  for folder in "${@:-.}"; do
    [[ -d $folder ]] || continue
    find "$folder" \( -name .git -o -name 'build*' \) -prune -o -type f \( -name '*.h' -o -name '*.cc' \) -print
  done | sed 's|^\./||' | sort
}

# file:line:target of every #include; target keeps its quotes or angle brackets.
includes_of() {
  sed -n -E '/^[[:space:]]*#[[:space:]]*include[[:space:]]*(["<][^">]*[">]).*/{=;s//\1/;p}' "$1" |
    paste -d: - - | sed "s|^|$1:|"
}

# --- layering: who may include whom -------------------------------------------------------------------------------
# A layer may include itself and what is listed; docs/architecture.md has the picture.
declare -A below=(
  [base]=""
  [numa]="base"
  [kernels]="base"
  [engine/storage]="base"
  [engine/checkpoint]="base"
  [engine/model]="base numa kernels engine/checkpoint"
  [engine/load]="base numa kernels engine/storage engine/checkpoint engine/model"
  [engine/run]="base numa kernels engine/storage engine/checkpoint engine/model engine/load"
  [engine/serve]="base numa kernels engine/storage engine/checkpoint engine/model engine/load engine/run"
  [engine/jobs]="base numa kernels engine/storage engine/checkpoint engine/model engine/load engine/run"
  [bench]="base numa kernels engine/storage engine/checkpoint engine/model engine/load engine/run"
  [tools]="base numa kernels engine/storage engine/checkpoint engine/model engine/load engine/run engine/serve engine/jobs bench"
  [tests]="base numa kernels engine/storage engine/checkpoint engine/model engine/load engine/run engine/serve engine/jobs bench tools"
)

layer_of() {
  local inside=${1#engine/}
  case $1 in
    engine/*/*) echo "engine/${inside%%/*}" ;;
    */*) echo "${1%%/*}" ;;
    *) echo "the root" ;;
  esac
}

check_layering() {
  local file line target layer target_layer
  while IFS=: read -r file line target; do
    layer=$(layer_of "$file")
    if [[ ! -v below[$layer] ]]; then
      violation "$file: is in no layer ($layer)"
      continue
    fi
    case $target in
      \<base/* | \<numa/* | \<kernels/* | \<engine/* | \<bench/* | \<tools/* | \<tests/*)
        violation "$file:$line: includes $target: the project's own headers are included with quotes"
        continue
        ;;
      \<*) continue ;;
    esac
    target=${target//\"/}
    if [[ ! -f $target ]]; then
      violation "$file:$line: includes \"$target\", which is no file of the project: includes are relative to the root"
      continue
    fi
    target_layer=$(layer_of "$target")
    if [[ $target_layer != "$layer" && " ${below[$layer]} " != *" $target_layer "* ]]; then
      violation "$file:$line: $layer must not include $target_layer (\"$target\")"
    fi
  done < <(cpp_files | while read -r file; do includes_of "$file"; done)
}

# --- third party: each library behind one adapter ------------------------------------------------------------------
# header pattern -> where it may be included (a file, or a folder with its slash), and tests of that folder
third_party=(
  '<nlohmann/*     base/json.cc'
  '<fmt/*          base/format.h'
  '<hwloc*         numa/'
  '<numa.h>        numa/'
  '<numaif.h>      numa/'
  '<omp.h>         numa/'
  '<dnnl*          kernels/onednn/'
  '<oneapi/dnnl*   kernels/onednn/'
  '<xsimd/*        kernels/portable/'
  '<toml*          engine/checkpoint/model_directory.cc'
  '<utf8proc.h>    engine/checkpoint/'
  '<liburing*      engine/storage/'
  '<xxhash.h>      engine/storage/digest.cc'
  '<blake2.h>      engine/storage/page_key.cc'
  '<CLI/*          tools/option_table.cc'
  '<doctest/*      tests/'
)

check_third_party() {
  local file line target entry pattern place
  while IFS=: read -r file line target; do
    for entry in "${third_party[@]}"; do
      read -r pattern place <<<"$entry"
      # shellcheck disable=SC2053
      [[ $target == $pattern ]] || continue
      if [[ $place == */ && $file != "$place"* && $file != "tests/$place"* ]] ||
        [[ $place != */ && $file != "$place" ]]; then
        violation "$file:$line: includes $target, which belongs to $place"
      fi
    done
  done < <(cpp_files | while read -r file; do includes_of "$file"; done)
  while IFS= read -r file; do
    [[ $file == numa/team.cc ]] || violation "$file: has a '#pragma omp', which belongs to numa/team.cc"
  done < <(cpp_files | xargs -r grep -lE '^[[:space:]]*#[[:space:]]*pragma[[:space:]]+omp\b' || true)
}

# --- lengths: files that one can read --------------------------------------------------------------------------------
check_lengths() {
  local file lines
  while read -r file; do
    lines=$(wc -l <"$file")
    if ((lines > 800)); then violation "$file: $lines lines; the limit is 800"; fi
  done < <(cpp_files)
}

# --- words: no notes to self ---------------------------------------------------------------------------------------
check_words() {
  local found
  while IFS= read -r found; do
    violation "$found: a note to self; do it or leave it out"
  done < <(find . \( -name .git -o -name 'build*' -o -path ./tests/data -o -path ./models \) -prune -o -type f \
    \( -name '*.h' -o -name '*.cc' -o -name '*.sh' -o -name '*.py' -o -name '*.md' -o -name '*.cmake' \
    -o -name CMakeLists.txt \) -print | sed 's|^\./||' | sort |
    xargs -r grep -nHowE 'TO''DO|FIX''ME|XX''X' || true)
}

# --- library calls: libraries return errors --------------------------------------------------------------------------
check_library_calls() {
  local file found
  while read -r file; do
    case $file in base/check.cc | base/log.cc) continue ;; esac
    while IFS= read -r found; do
      violation "$file:$found: libraries return errors (base/result.h) and log (base/log.h); they never exit or print"
    done < <(sed -E 's|//.*||; s|"([^"\\]\|\\.)*"|""|g' "$file" |
      grep -noE '(^|[^A-Za-z0-9_.>])((std::)?(exit|_exit|_Exit|quick_exit|abort|terminate|printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror|assert)[[:space:]]*\(|std::(cout|cerr|clog|wcout|wcerr)\b)' ||
      true)
  done < <(cpp_files base numa kernels engine bench)
}

# --- flags: the instruction set of a file is decided in one place ----------------------------------------------------
check_flags() {
  local found
  while IFS= read -r found; do
    violation "$found: compiler flags for instruction sets belong to cmake/isa.cmake, and native to nowhere"
  done < <(find . \( -name .git -o -name 'build*' \) -prune -o -type f \
    \( -name CMakeLists.txt -o -name '*.cmake' -o -name CMakePresets.json \) -print | sed 's|^\./||' | sort |
    while read -r file; do
      if [[ $file == cmake/isa.cmake ]]; then
        sed 's|#.*||' "$file" | grep -nHoE --label="$file" -- '-m(arch|tune|cpu)=[a-z0-9-]*' || true
      else
        sed 's|#.*||' "$file" | grep -nHoE --label="$file" -- '-m(arch|tune|cpu)=[a-z0-9-]*|-m(avx|amx|fma|sse)[a-z0-9-]*' || true
      fi
    done)
}

# --- format ----------------------------------------------------------------------------------------------------------
check_format() {
  if ! command -v clang-format-19 >/dev/null; then
    echo "skipped: clang-format-19 is not installed (apt-get install clang-format-19)"
    exit 77
  fi
  local file
  while IFS= read -r file; do
    violation "$file: is not formatted; run: clang-format-19 -i $file"
  done < <(cpp_files | xargs -r clang-format-19 --dry-run 2>&1 | sed -n -E 's/^([^:]+):[0-9]+:[0-9]+: warning:.*/\1/p' |
    sort -u)
}

declare -F "check_$rule" >/dev/null || { echo "there is no rule '$rule'" && exit 2; }
count=$(cpp_files | wc -l)
((count > 0)) || { echo "no source files below $root" && exit 2; }
"check_$rule"
if ((violations > 0)); then
  echo "$rule: $violations violations in $count source files"
  exit 1
fi
echo "$rule: no violation in $count source files"
