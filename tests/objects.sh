#!/usr/bin/env bash
# objects.sh BUILD_DIR: checks the kernel objects of every ISA level in a CMake build directory.
#
# A weak symbol or a static constructor in one of them could run a level's instructions on a CPU
# that does not have them: the linker keeps one copy of a weak symbol, whichever level it is from.
set -euo pipefail
export LC_ALL=C

failed=0
# expect_nothing MESSAGE TEXT
expect_nothing() {
  [ -n "$2" ] || return 0
  printf '%s: %s\n%s\n' "$object" "$1" "$(head -5 <<<"$2" | sed 's/^/    /')" >&2
  failed=1
}

find_lines() { grep -E "$@" || true; }

count=0
while IFS= read -r object; do
  level=$(sed 's/.*kernels_\([a-z0-9]*\)\.dir.*/\1/' <<<"$object")
  symbols=$(nm --demangle "$object")
  exports=$(find_lines '^[0-9a-f]+ [A-TX-Z] ' <<<"$symbols")
  expect_nothing "weak or unique symbols" "$(find_lines '^[0-9a-f ]* [WVuvw] ' <<<"$symbols")"
  expect_nothing "exports outside of namespace grebe::$level" \
    "$(find_lines -v " grebe::$level::" <<<"$exports")"
  expect_nothing "uses the C++ library" \
    "$(find_lines ' U .*(std::|operator (new|delete)|__cxa_)' <<<"$symbols")"
  expect_nothing "static constructors" \
    "$(readelf --sections --wide "$object" | find_lines '\.(init_array|ctors|preinit_array)')"
  case $level in
    baseline) foreign='%[yz]mm|%k[0-7]' ;;
    avx2) foreign='%zmm|%k[0-7]' ;;
    *) foreign='' ;;
  esac
  if [ -n "$foreign" ]; then
    expect_nothing "instructions above its level" \
      "$(objdump --disassemble "$object" | find_lines "$foreign")"
  fi
  count=$((count + 1))
done < <(find "$1" -path '*kernels_*.dir*' -name '*.o')

[ "$count" -gt 0 ] || { echo "no kernel objects under $1" >&2; exit 1; }
[ "$failed" = 0 ] || exit 1
echo "$count kernel objects: no weak symbols, no static constructors, no foreign instructions"
