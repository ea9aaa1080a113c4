// Casts between float32 and bfloat16.
//
// Rounded to nearest even; NaN stays NaN. Floor: memory, 6 bytes per element. Not measured on a
// device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

constexpr int kCount = 4;  // elements of a thread

template <class From, class To>
__global__ void __launch_bounds__(kThreads) cast_elements(int64_t n, const From* x, To* y) {
  const int64_t begin = thread_number() * kCount;
  if (begin + kCount <= n) {
    const Pack<From, kCount> from = *reinterpret_cast<const Pack<From, kCount>*>(x + begin);
    Pack<To, kCount> to;
#pragma unroll
    for (int i = 0; i < kCount; ++i) to.v[i] = static_cast<To>(static_cast<float>(from.v[i]));
    *reinterpret_cast<Pack<To, kCount>*>(y + begin) = to;
    return;
  }
  for (int64_t i = begin; i < n; ++i) y[i] = static_cast<To>(static_cast<float>(x[i]));
}

// A thread's elements are aligned where both arrays begin on a whole pack.
template <class From, class To>
__global__ void __launch_bounds__(kThreads) cast_single(int64_t n, const From* x, To* y) {
  const int64_t i = thread_number();
  if (i < n) y[i] = static_cast<To>(static_cast<float>(x[i]));
}

template <class From, class To>
void cast(const View& x, const View& y) {
  const int64_t n = numel(x);
  const From* from = data<From>(x);
  To* to = data<To>(y);
  if (is_aligned(from) && is_aligned(to))
    launch("cast", cast_elements<From, To>, blocks_for(n, kThreads * kCount), kThreads, 0, n, from,
           to);
  else
    launch("cast", cast_single<From, To>, blocks_for(n, kThreads), kThreads, 0, n, from, to);
}

}  // namespace

void cast_bfloat16(In x, Out y) {
  if (y.dtype == DType::kBFloat16)
    cast<float, bf16>(x, y);
  else
    cast<bf16, float>(x, y);
}

}  // namespace grebe::cuda
