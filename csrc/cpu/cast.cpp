// Casts between float32 and bfloat16, the two ends of operations that have no bfloat16 kernel.
//
// Rounded to nearest even; NaN stays NaN. One pass of whole vectors. Floor: memory, 6 bytes per
// element.
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kWork = 32768;  // elements that make a chunk for a thread

}  // namespace

// y = x, one of them float32 and the other bfloat16, both contiguous and of one size.
void cast_bfloat16(In x, Out y) {
  const bool narrow = y.dtype == DType::kBFloat16;
  parallel_for(numel(x), kWork, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += lanes<float>) {
      const int64_t n = end - i < lanes<float> ? end - i : lanes<float>;
      if (narrow)
        store_narrowed(data<bf16>(y) + i, load_n(data<float>(x) + i, n), n);
      else
        store_n(data<float>(y) + i, load_widened(data<bf16>(x) + i, n), n);
    }
  });
}

}  // namespace grebe::GREBE_ISA
