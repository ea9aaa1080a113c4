#!/usr/bin/env bash
# sass.sh NVDISASM CUBIN...: checks the machine code of warpgroup kernels (sm_90a). Each must consist of
# warpgroup products (HGMMA) fed by bulk copies (UTMALDG) and keep everything in registers (no STL, LDL).
set -euo pipefail
disassembler=$1
shift

for cubin in "$@"; do
  "$disassembler" -c "$cubin" | awk -v cubin="$(basename "$cubin")" '
    /^\.text\./ { name = $1 }
    name ~ /warpgroups/ {
      kernels[name]
      if (/HGMMA/) products[name]++
      if (/UTMALDG/) copies[name]++
      if (/ (STL|LDL)[. ]/) local[name]++
    }
    END {
      for (name in kernels) {
        count++
        if (products[name] && copies[name] && !local[name]) continue
        printf "%s: %s has %d HGMMA, %d UTMALDG, %d accesses to local memory\n", cubin, name,
          products[name], copies[name], local[name]
        failed = 1
      }
      if (!count) print cubin ": no warpgroup kernels"
      if (failed || !count) exit 1
      print cubin ": " count " warpgroup kernels"
    }'
done
