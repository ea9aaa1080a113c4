// The k largest or smallest elements of rows, in order.
//
// A block per row takes the best element k times, each time the best of those that come after the
// last one in the order (value, then place; NaN is the largest). Meant for small k. Floor: reading x
// once; this reads it k times, from the caches. Not measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

template <class T>
struct Candidate {
  T value;
  int64_t index;  // -1: none
};

// Does a come before b? Larger values first, NaN before all, equal ones by place.
template <bool kLargest, class T>
DEVICE bool before(T a, int64_t i, T b, int64_t j) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan || b_nan) {
    if (a_nan && b_nan) return i < j;
    return kLargest ? a_nan : b_nan;
  }
  if (a != b) return kLargest ? a > b : a < b;
  return i < j;
}

template <bool kLargest>
struct Better {
  template <class T>
  DEVICE Candidate<T> operator()(Candidate<T> a, Candidate<T> b) const {
    if (b.index < 0) return a;
    if (a.index < 0) return b;
    return before<kLargest>(a.value, a.index, b.value, b.index) ? a : b;
  }
};

template <bool kLargest, class T>
__global__ void __launch_bounds__(kThreads)
    topk_rows(int64_t n, int64_t k, const T* x, T* values, int64_t* index) {
  Shared shared;
  Candidate<T>* warps = shared.take<Candidate<T>>(kThreads / 32);
  const T* row = x + blockIdx.x * n;
  const int lane = threadIdx.x % 32;
  Candidate<T> last{T(0), -1};
  for (int64_t j = 0; j < k; ++j) {
    Candidate<T> best{T(0), -1};
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const bool open = last.index < 0 || before<kLargest>(last.value, last.index, row[i], i);
      if (open) best = Better<kLargest>{}(best, Candidate<T>{row[i], i});
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
      best = Better<kLargest>{}(best, Candidate<T>{__shfl_xor_sync(~0u, best.value, d),
                                                   __shfl_xor_sync(~0u, best.index, d)});
    __syncthreads();
    if (lane == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    last = warps[0];
    for (int w = 1; w < kThreads / 32; ++w) last = Better<kLargest>{}(last, warps[w]);
    if (threadIdx.x == 0) {
      values[blockIdx.x * k + j] = last.value;
      index[blockIdx.x * k + j] = last.index;
    }
  }
}

template <class T>
void topk_any(In x, Out values, Out index, int64_t rows, int64_t n, int64_t k, bool largest) {
  launch("topk", largest ? topk_rows<true, T> : topk_rows<false, T>, static_cast<unsigned>(rows),
         kThreads, kThreads / 32 * sizeof(Candidate<T>), n, k, static_cast<const T*>(data<T>(x)),
         data<T>(values), data<int64_t>(index));
}

}  // namespace

void topk(In x, Out values, Out index, int64_t rows, int64_t n, int64_t k, bool largest) {
  if (x.dtype == DType::kFloat32)
    topk_any<float>(x, values, index, rows, n, k, largest);
  else
    topk_any<double>(x, values, index, rows, n, k, largest);
}

}  // namespace grebe::cuda
