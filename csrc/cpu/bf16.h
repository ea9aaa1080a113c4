// bfloat16 as operands of a product: pairs along the summed dimension where the level multiplies
// them, floats elsewhere.
#pragma once
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

#if defined(__AVX512BF16__)
using Bf16Operand = bf16pair;
inline int64_t operand_depth(int64_t k) { return (k + 1) / 2; }

inline bf16pair pair_of(bf16 low, bf16 high) {
  return {low.bits | static_cast<uint32_t>(high.bits) << 16};
}
// dst[j] = (low[j], high[j]); no `high`: zeros.
inline void convert_across(bf16pair* dst, const bf16* low, const bf16* high, int64_t n) {
  for (int64_t j = 0; j < n; ++j) dst[j] = pair_of(low[j], high ? high[j] : bf16{0});
}
inline void convert_along(bf16pair* dst, const bf16* src, int64_t stride, int64_t k) {
  for (int64_t q = 0; q + 1 < k; q += 2)
    dst[q / 2] = pair_of(src[q * stride], src[(q + 1) * stride]);
  if (k % 2) dst[k / 2] = pair_of(src[(k - 1) * stride], bf16{0});
}
// Already pairs in memory?
inline bool is_operand(const bf16* src, int64_t n, int64_t k, int64_t stride, int64_t k_stride) {
  return k_stride == 1 && k % 2 == 0 && (n == 1 || stride % 2 == 0) &&
         reinterpret_cast<uintptr_t>(src) % sizeof(bf16pair) == 0;
}
#else
using Bf16Operand = float;
inline int64_t operand_depth(int64_t k) { return k; }

inline void convert_across(float* dst, const bf16* src, const bf16*, int64_t n) {
  for (int64_t j = 0; j < n; ++j)
    dst[j] = __builtin_bit_cast(float, static_cast<uint32_t>(src[j].bits) << 16);
}
inline void convert_along(float* dst, const bf16* src, int64_t stride, int64_t k) {
  for (int64_t q = 0; q < k; ++q)
    dst[q] = __builtin_bit_cast(float, static_cast<uint32_t>(src[q * stride].bits) << 16);
}
inline bool is_operand(const bf16*, int64_t, int64_t, int64_t, int64_t) { return false; }
#endif

// What products take for elements of type E.
template <class E>
struct OperandOf {
  using type = E;
};
template <>
struct OperandOf<bf16> {
  using type = Bf16Operand;
};
template <class E>
using operand_of = typename OperandOf<E>::type;

}  // namespace
}  // namespace grebe::GREBE_ISA
