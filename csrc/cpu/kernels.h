// Everything a kernel file includes.
//
// A kernel file is compiled once per ISA level. Rules (checked on the objects by tests/objects.sh):
// whatever is not a kernel sits in an anonymous namespace or is `static inline`: a weak symbol
// would let the linker hand AVX-512 code to an older CPU. No static constructors, no std containers.
//
// Kernel files do not see ops.def, so that a new line there rebuilds only the tables and bindings;
// a definition that does not match its line is an undefined symbol when table.cpp is linked.
#pragma once
#include <type_traits>

#include "../memory.h"
#include "../parallel.h"
#include "../random.h"
#include "../view.h"
#include "simd_math.h"

namespace grebe::GREBE_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
inline int64_t round_up(int64_t n, int64_t unit) { return divide_up(n, unit) * unit; }

// f(n as a constant), 1 <= n <= kMost.
template <int kMost, class F>
inline void with_count(int64_t n, const F& f) {
  if constexpr (kMost > 1)
    if (n < kMost) return with_count<kMost - 1>(n, f);
  f(std::integral_constant<int, kMost>{});
}

}  // namespace
}  // namespace grebe::GREBE_ISA
