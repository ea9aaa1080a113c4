// Elementwise kernels: y = f(x; p, q) and y = f(a, b; p, q) over one dimension.
//
// Idea: one loop per arity, a formula per kernel. The driver (elementwise_driver.h) has merged
// dimensions and split the work among threads; a loop sees n elements with one stride per operand.
// Dense and broadcast operands are read in place, the rest of a row is one masked vector; other
// strides go through a buffer in the first-level cache. Outputs too large for the caches are
// written past them, which saves reading each line before it is overwritten.
//
// Floor: the memory traffic, 8 bytes per element and operand of float64, 4 of float32.
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kBlock = 512;  // elements of a gathered block
// A thread's part of an output from here on is written past the caches.
constexpr int64_t kStreamBytes = int64_t{1} << 23;

template <class T>
bool use_streaming(const T* y, int64_t n, const T* a, const T* b) {
  return n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes && y != a && y != b &&
         reinterpret_cast<uintptr_t>(y) % kVectorBytes == 0;
}

template <class T>
void gather(int64_t n, const T* x, int64_t stride, T* to) {
  if (stride == 0) {
    const T repeated = *x;
    for (int64_t i = 0; i < n; ++i) to[i] = repeated;
    return;
  }
  for (int64_t i = 0; i < n; ++i) to[i] = x[i * stride];
}

template <class T>
void scatter(int64_t n, const T* from, T* y, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) y[i * stride] = from[i];
}

// f over dense y; where A (or B) is false, that operand is one element for all of y.
template <bool A, bool B, class T, class F>
__attribute__((noinline)) void dense(int64_t n, const T* a, const T* b, T* y, const double* params,
                                     const F& f) {
  const vec<T> p = splat(static_cast<T>(params[0])), q = splat(static_cast<T>(params[1]));
  const vec<T> a0 = A ? vec<T>{} : splat(*a), b0 = B ? vec<T>{} : splat(*b);
  int64_t i = 0;
  if (use_streaming(y, n, a, b)) {
    for (; i + lanes<T> <= n; i += lanes<T>)
      store_streaming(y + i, f(A ? load(a + i) : a0, B ? load(b + i) : b0, p, q));
    streaming_fence();
  } else {
    for (; i + lanes<T> <= n; i += lanes<T>)
      store(y + i, f(A ? load(a + i) : a0, B ? load(b + i) : b0, p, q));
  }
  const int64_t rest = n - i;
  if (rest > 0)
    store_n(y + i, f(A ? load_n(a + i, rest) : a0, B ? load_n(b + i, rest) : b0, p, q), rest);
}

template <class T, class F>
void any_strides(int64_t n, const T* a, int64_t sa, const T* b, int64_t sb, T* y, int64_t sy,
                 const double* params, const F& f) {
  if (sy == 1 && sa == 1 && sb == 1) return dense<true, true>(n, a, b, y, params, f);
  if (sy == 1 && sa == 1 && sb == 0) return dense<true, false>(n, a, b, y, params, f);
  if (sy == 1 && sa == 0 && sb == 1) return dense<false, true>(n, a, b, y, params, f);
  T a_block[kBlock], b_block[kBlock], y_block[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t size = n - i < kBlock ? n - i : kBlock;
    if (sa != 1) gather(size, a + i * sa, sa, a_block);
    if (sb != 1) gather(size, b + i * sb, sb, b_block);
    dense<true, true>(size, sa == 1 ? a + i : a_block, sb == 1 ? b + i : b_block,
                      sy == 1 ? y + i : y_block, params, f);
    if (sy != 1) scatter(size, y_block, y + i * sy, sy);
  }
}

template <class T, class F>
void any_strides(int64_t n, const T* x, int64_t sx, T* y, int64_t sy, const double* params,
                 const F& f) {
  const T zero = 0;
  auto g = [&f](vec<T> v, vec<T>, vec<T> p, vec<T> q) { return f(v, p, q); };
  if (sy == 1 && sx == 1) return dense<true, false>(n, x, &zero, y, params, g);
  T x_block[kBlock], y_block[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t size = n - i < kBlock ? n - i : kBlock;
    if (sx != 1 && (sx != 0 || i == 0)) gather(size, x + i * sx, sx, x_block);
    dense<true, false>(size, sx == 1 ? x + i : x_block, &zero, sy == 1 ? y + i : y_block, params,
                       g);
    if (sy != 1) scatter(size, y_block, y + i * sy, sy);
  }
}

#define FORMULA inline
#include "../formulas.h"

}  // namespace

#define UNARY(name, ...)                                                                           \
  void name(DType dtype, int64_t n, const void* x, int64_t sx, void* out, int64_t sy,              \
            const double* params) {                                                                \
    auto f = []<class V>(V x, [[maybe_unused]] V p, [[maybe_unused]] V q) { return __VA_ARGS__; }; \
    if (dtype == DType::kFloat32)                                                                  \
      any_strides(n, static_cast<const float*>(x), sx, static_cast<float*>(out), sy, params, f);   \
    else                                                                                           \
      any_strides(n, static_cast<const double*>(x), sx, static_cast<double*>(out), sy, params, f); \
  }

#define BINARY(name, a, b, ...)                                                              \
  void name(DType dtype, int64_t n, const void* pa, int64_t sa, const void* pb, int64_t sb,  \
            void* out, int64_t sy, const double* params) {                                   \
    auto f = []<class V>([[maybe_unused]] V a, [[maybe_unused]] V b, [[maybe_unused]] V p,   \
                         [[maybe_unused]] V q) { return __VA_ARGS__; };                      \
    if (dtype == DType::kFloat32)                                                            \
      any_strides(n, static_cast<const float*>(pa), sa, static_cast<const float*>(pb), sb,   \
                  static_cast<float*>(out), sy, params, f);                                  \
    else                                                                                     \
      any_strides(n, static_cast<const double*>(pa), sa, static_cast<const double*>(pb), sb, \
                  static_cast<double*>(out), sy, params, f);                                 \
  }

#include "../elementwise.def"

}  // namespace grebe::GREBE_ISA
