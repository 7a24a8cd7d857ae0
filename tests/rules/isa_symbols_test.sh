#!/bin/bash
# isa_symbols_test.sh ISA=OBJECT[,OBJECT...]...: looks into the objects of each instruction-set folder, and into those
# of everything else as ISA "plain". A file compiled for AVX-512 that emits a weak symbol (an inline function, a template
# of the standard library) may win at link time and then runs on CPUs without AVX-512; so there must be none. And code
# may use the registers and instructions of its own row of cmake/isa.cmake only.
set -euo pipefail

# What each row must not contain, as extended regular expressions over objdump's text.
evex='%zmm[0-9]|%[xy]mm(1[6-9]|2[0-9]|3[01])\b|%k[0-7]\b'
tile='%tmm[0-9]'
bf16='\<v(dpbf16ps|cvtne2?ps2?bf16|cvtneps2bf16)'
declare -A forbidden=(
  [plain]="%ymm[0-9]|$evex|$tile"
  [reference]="$evex|$tile"
  [portable]="$evex|$tile"
  [avx512]="$tile|$bf16"
  [avx512_bf16]="$tile"
  [amx]=""
)
# What the row is there for: if objdump does not show it, the check itself is broken.
declare -A expected=([portable]='%ymm[0-9]' [avx512]='%zmm[0-9]' [avx512_bf16]='\<vdpbf16ps' [amx]='%tmm[0-9]')

violations=0
objects=0
for argument in "$@"; do
  isa=${argument%%=*}
  if [[ ! -v forbidden[$isa] ]]; then
    echo "instruction set '$isa' has no row in this test"
    violations=$((violations + 1))
    continue
  fi
  seen_expected=0
  IFS=, read -r -a files <<<"${argument#*=}"
  if ((${#files[@]} == 0)); then
    echo "$isa: no objects"
    violations=$((violations + 1))
  fi
  for object in "${files[@]}"; do
    objects=$((objects + 1))
    if [[ $isa != plain ]]; then
      # V and W are defined weak symbols, u a unique global one.
      if weak=$(nm -C "$object" | grep -E '^[0-9a-f]+ [VWu] '); then
        echo "$object: weak symbols in an object for $isa: $(cut -d' ' -f3- <<<"$weak" | head -5 | paste -sd';')"
        violations=$((violations + 1))
      fi
    fi
    text=$(objdump -d --no-show-raw-insn "$object")
    if [[ -n ${forbidden[$isa]} ]] && found=$(grep -m3 -E "${forbidden[$isa]}" <<<"$text"); then
      echo "$object: instructions that $isa does not have: $(tr -s ' \t\n' ' ' <<<"$found")"
      violations=$((violations + 1))
    fi
    if [[ -v expected[$isa] ]] && grep -qE "${expected[$isa]}" <<<"$text"; then seen_expected=1; fi
  done
  if [[ -v expected[$isa] ]] && ((!seen_expected)); then
    echo "$isa: none of its objects uses ${expected[$isa]}; is the folder compiled with its flags?"
    violations=$((violations + 1))
  fi
done
if ((violations > 0)); then
  echo "isa_symbols: $violations violations in $objects objects"
  exit 1
fi
echo "isa_symbols: no violation in $objects objects"
