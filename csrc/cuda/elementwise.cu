// Elementwise kernels: y = f(x; p, q) and y = f(a, b; p, q) with broadcasting.
//
// Idea: the formulas are the CPU's (elementwise.def), one element at a time. Where the operands are
// dense in one order (or a single element) a thread takes 16 bytes of each; otherwise it finds its
// element in the merged dimensions by division. 16-bit numbers are computed in float32.
//
// Floor: the memory traffic. Not measured on a device yet.
#include "elementwise.h"

#include "kernels.cuh"

namespace grebe::cuda {
namespace {

#define FORMULA DEVICE
#include "../formulas.h"

constexpr int64_t kThreadsInFlight = int64_t{1} << 20;  // a larger grid takes several turns

// An operand for reading: an array, or one number for all elements (data null).
template <class T>
struct Operand {
  const T* data;
  Wide<T> number;
  bool repeated;  // all elements are the first one
};

// How the operands lie, output first; strides in elements.
struct Space {
  int ndim;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxOperands][kMaxDims];
};

template <class T>
DEVICE Wide<T> first(const Operand<T>& x) {
  return x.data ? widen(x.data[0]) : x.number;
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    dense(int64_t n, Operand<T> a, Operand<T> b, T* y, Wide<T> p, Wide<T> q, F f) {
  constexpr int kCount = kPack<T>;
  using Vector = Pack<T, kCount>;
  const Wide<T> a0 = a.repeated ? first(a) : 0, b0 = b.repeated ? first(b) : 0;
  for (int64_t i = thread_number() * kCount; i < n; i += thread_count() * kCount) {
    if (i + kCount > n) {
      for (int64_t j = i; j < n; ++j)
        y[j] = narrow<T>(
            f(a.repeated ? a0 : widen(a.data[j]), b.repeated ? b0 : widen(b.data[j]), p, q));
      break;
    }
    Vector va, vb, vy;
    if (!a.repeated) va = *reinterpret_cast<const Vector*>(a.data + i);
    if (!b.repeated) vb = *reinterpret_cast<const Vector*>(b.data + i);
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      vy.v[j] =
          narrow<T>(f(a.repeated ? a0 : widen(va.v[j]), b.repeated ? b0 : widen(vb.v[j]), p, q));
    *reinterpret_cast<Vector*>(y + i) = vy;
  }
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    strided(int64_t n, Space space, Operand<T> a, Operand<T> b, T* y, Wide<T> p, Wide<T> q, F f) {
  for (int64_t i = thread_number(); i < n; i += thread_count()) {
    int64_t rest = i, at[kMaxOperands] = {};
    for (int d = space.ndim - 1; d >= 0; --d) {
      const int64_t index = rest % space.shape[d];
      rest /= space.shape[d];
      for (int k = 0; k < kMaxOperands; ++k) at[k] += index * space.strides[k][d];
    }
    y[at[0]] = narrow<T>(f(a.data ? widen(a.data[at[1]]) : a.number,
                           b.data ? widen(b.data[at[2]]) : b.number, p, q));
  }
}

template <class T>
Operand<T> operand(const Iteration& it, const double* numbers, int k) {
  Operand<T> x{nullptr, 0, true};
  if (k >= it.operands) return x;
  x.data = reinterpret_cast<const T*>(it.data[k]);
  if (!x.data) x.number = static_cast<Wide<T>>(numbers[k - 1]);
  for (int d = 0; d < it.ndim; ++d) x.repeated = x.repeated && it.strides[k][d] == 0;
  return x;
}

// `it` is coalesced.
template <class T, class F>
void run(const char* name, const Iteration& it, const double* numbers, const double* params, F f) {
  const int64_t size = sizeof(T);
  int64_t n = 1;
  for (int d = 0; d < it.ndim; ++d) n *= it.shape[d];
  const Operand<T> a = operand<T>(it, numbers, 1), b = operand<T>(it, numbers, 2);
  T* y = reinterpret_cast<T*>(it.data[0]);
  const auto p = static_cast<Wide<T>>(params[0]), q = static_cast<Wide<T>>(params[1]);

  bool is_dense = it.ndim <= 1 && is_aligned(y);
  for (int k = 0; k < it.operands && is_dense; ++k) {
    const int64_t stride = it.ndim ? it.strides[k][0] : size;
    is_dense = (stride == size && reinterpret_cast<uintptr_t>(it.data[k]) % 16 == 0) ||
               (k > 0 && stride == 0);
  }
  if (is_dense) {
    const int64_t threads = divide_up(n, kPack<T>);
    const unsigned blocks =
        blocks_for(threads < kThreadsInFlight ? threads : kThreadsInFlight, kThreads);
    return launch(name, dense<T, F>, blocks, kThreads, 0, n, a, b, y, p, q, f);
  }
  Space space{it.ndim, {}, {}};
  for (int d = 0; d < it.ndim; ++d) {
    space.shape[d] = it.shape[d];
    for (int k = 0; k < it.operands; ++k) space.strides[k][d] = it.strides[k][d] / size;
  }
  const unsigned blocks = blocks_for(n < kThreadsInFlight ? n : kThreadsInFlight, kThreads);
  launch(name, strided<T, F>, blocks, kThreads, 0, n, space, a, b, y, p, q, f);
}

template <class F>
struct Run {
  const char* name;
  const Iteration& it;
  const double* numbers;
  const double* params;
  template <class T>
  void operator()(T) const {
    run<T>(name, it, numbers, params, F{});
  }
};

// ---- the formulas as function objects ----

#define UNARY(name, ...)                                                            \
  struct name##_formula {                                                           \
    template <class V>                                                              \
    DEVICE V operator()(V x, V, [[maybe_unused]] V p, [[maybe_unused]] V q) const { \
      return __VA_ARGS__;                                                           \
    }                                                                               \
  };
#define BINARY(name, a, b, ...)                                                           \
  struct name##_formula {                                                                 \
    template <class V>                                                                    \
    DEVICE V operator()([[maybe_unused]] V a, [[maybe_unused]] V b, [[maybe_unused]] V p, \
                        [[maybe_unused]] V q) const {                                     \
      return __VA_ARGS__;                                                                 \
    }                                                                                     \
  };
#include "../elementwise.def"
#undef UNARY
#undef BINARY
}  // namespace

#define UNARY(name, ...)                                                                     \
  void name(DType dtype, const Iteration& it, const double* numbers, const double* params) { \
    with_float(#name, dtype, Run<name##_formula>{#name, it, numbers, params});               \
  }
#define BINARY(name, ...) UNARY(name)
#include "../elementwise.def"

}  // namespace grebe::cuda
