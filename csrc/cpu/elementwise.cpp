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

// ---- formulas that are more than an expression ----

// Where a derivative is long constant: keeps infinities away from products with zero.
template <class V>
V bounded(V x) {
  constexpr scalar<V> limit = 1e4;
  return min(splat(limit), max(splat(-limit), x));
}

template <class V>
V sign_of(V x) {  // 0 for NaN, as in PyTorch
  const V one = splat(scalar<V>(1));
  return select(x > 0, one, select(x < 0, -one, V{}));
}

template <class V>
V gelu_of(V x) {
  using T = scalar<V>;
  return T(0.5) * x * (1 + erf(x * T(0.70710678118654752)));
}

template <class V>
V gelu_slope(V unbounded) {
  using T = scalar<V>;
  const V x = bounded(unbounded);
  const V density = exp(T(-0.5) * x * x) * T(0.39894228040143268);  // 1 / sqrt(2 pi)
  return fma(x, density, T(0.5) * (1 + erf(x * T(0.70710678118654752))));
}

// (1 + tanh(u)) / 2 = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class V>
V gelu_tanh_gate(V x) {
  using T = scalar<V>;
  return sigmoid(x *
                 fma(x * x, splat(T(1.5957691216057308 * 0.044715)), splat(T(1.5957691216057308))));
}

template <class V>
V gelu_tanh_slope(V unbounded) {
  using T = scalar<V>;
  const V x = bounded(unbounded), s = gelu_tanh_gate(x);
  const V inner =
      fma(x * x, splat(T(1.5957691216057308 * 3 * 0.044715)), splat(T(1.5957691216057308)));
  return fma(x * inner, s * (1 - s), s);
}

template <class V>
V silu_slope(V unbounded) {
  const V x = bounded(unbounded), s = sigmoid(x);
  return fma(x * s, 1 - s, s);
}

template <class V>
V log_sigmoid(V x) {
  return min(V{}, x) - log1p_unit(exp(-abs(x)));
}

template <class V>
V clamp_to(V x, V low, V high) {
  const V y = select(x < low, low, x);
  return select(y > high, high, y);
}

}  // namespace

// ---- the kernels: x, a, b, g, y and the parameters p, q are vectors; V is their type ----

#define GREBE_UNARY(name, formula)                                                                 \
  void name(DType dtype, int64_t n, const void* x, int64_t sx, void* out, int64_t sy,              \
            const double* params) {                                                                \
    auto f = []<class V>(V x, [[maybe_unused]] V p, [[maybe_unused]] V q) { return formula; };     \
    if (dtype == DType::kFloat32)                                                                  \
      any_strides(n, static_cast<const float*>(x), sx, static_cast<float*>(out), sy, params, f);   \
    else                                                                                           \
      any_strides(n, static_cast<const double*>(x), sx, static_cast<double*>(out), sy, params, f); \
  }

#define GREBE_BINARY(name, a, b, formula)                                                    \
  void name(DType dtype, int64_t n, const void* pa, int64_t sa, const void* pb, int64_t sb,  \
            void* out, int64_t sy, const double* params) {                                   \
    auto f = []<class V>([[maybe_unused]] V a, [[maybe_unused]] V b, [[maybe_unused]] V p,   \
                         [[maybe_unused]] V q) { return formula; };                          \
    if (dtype == DType::kFloat32)                                                            \
      any_strides(n, static_cast<const float*>(pa), sa, static_cast<const float*>(pb), sb,   \
                  static_cast<float*>(out), sy, params, f);                                  \
    else                                                                                     \
      any_strides(n, static_cast<const double*>(pa), sa, static_cast<const double*>(pb), sb, \
                  static_cast<double*>(out), sy, params, f);                                 \
  }

// clang-format off: it takes products for pointers
GREBE_UNARY(copy, x)
GREBE_UNARY(neg, -x)
GREBE_UNARY(abs, abs(x))
GREBE_UNARY(exp, exp(x))
GREBE_UNARY(expm1, expm1(x))
GREBE_UNARY(log, log(x))
GREBE_UNARY(log1p, log1p(x))
GREBE_UNARY(log2, log2(x))
GREBE_UNARY(sqrt, sqrt(x))
GREBE_UNARY(rsqrt, 1 / sqrt(x))
GREBE_UNARY(reciprocal, 1 / x)
GREBE_UNARY(square, x * x)
GREBE_UNARY(sin, sin(x))
GREBE_UNARY(cos, cos(x))
GREBE_UNARY(tanh, tanh(x))
GREBE_UNARY(sigmoid, sigmoid(x))
GREBE_UNARY(relu, select(x <= 0, V{}, x))
GREBE_UNARY(gelu, gelu_of(x))
GREBE_UNARY(gelu_tanh, x * gelu_tanh_gate(x))
GREBE_UNARY(silu, x * sigmoid(x))
GREBE_UNARY(elu, select(x > 0, x, p * expm1(x)))
GREBE_UNARY(leaky_relu, select(x > 0, x, p * x))
GREBE_UNARY(erf, erf(x))
GREBE_UNARY(logsigmoid, log_sigmoid(x))
GREBE_UNARY(softplus, select(p * x > q, x, -log_sigmoid(-p * x) / p))
GREBE_UNARY(clamp, clamp_to(x, p, q))
GREBE_UNARY(sign, sign_of(x))
GREBE_UNARY(affine, fma(x, p, q))

GREBE_BINARY(add, a, b, a + b)
GREBE_BINARY(sub, a, b, a - b)
GREBE_BINARY(mul, a, b, a * b)
GREBE_BINARY(div, a, b, a / b)
GREBE_BINARY(maximum, a, b, max_nan(a, b))
GREBE_BINARY(minimum, a, b, min_nan(a, b))

// Gradients: g is the gradient of the result, y the result, x the input.
GREBE_BINARY(tanh_backward, g, y, g * fnma(y, y, splat(scalar<V>(1))))
GREBE_BINARY(sigmoid_backward, g, y, g * y * (1 - y))
GREBE_BINARY(relu_backward, g, y, select(y <= 0, V{}, g))
GREBE_BINARY(sqrt_backward, g, y, scalar<V>(0.5) * g / y)
GREBE_BINARY(rsqrt_backward, g, y, scalar<V>(-0.5) * g * (y * y * y))
GREBE_BINARY(reciprocal_backward, g, y, -g * (y * y))
GREBE_BINARY(gelu_backward, g, x, g * gelu_slope(x))
GREBE_BINARY(gelu_tanh_backward, g, x, g * gelu_tanh_slope(x))
GREBE_BINARY(silu_backward, g, x, g * silu_slope(x))
GREBE_BINARY(elu_backward, g, x, select(x > 0, g, g * p * exp(x)))
GREBE_BINARY(leaky_relu_backward, g, x, select(x > 0, g, g * p))
GREBE_BINARY(logsigmoid_backward, g, x, g * sigmoid(-x))
GREBE_BINARY(softplus_backward, g, x, select(p * x > q, g, g * sigmoid(p * x)))
GREBE_BINARY(clamp_backward, g, x, select((x >= p) & (x <= q), g, V{}))
GREBE_BINARY(abs_backward, g, x, g * sign_of(x))
GREBE_BINARY(erf_backward, g, x, g * (exp(-x * x) * scalar<V>(1.1283791670955126)))
GREBE_BINARY(log1p_backward, g, x, g / (1 + x))
GREBE_BINARY(sin_backward, g, x, g * cos(x))
GREBE_BINARY(cos_backward, g, x, -g * sin(x))
// clang-format on

}  // namespace grebe::GREBE_ISA
