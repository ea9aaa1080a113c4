// The only file with intrinsics: vectors of one ISA level, on GCC/clang vector extensions.
//
// vec<T> holds lanes<T> elements; + - * / & | and comparisons are the compiler's own operators on
// vectors. A comparison gives a mask (all bits or none per lane) for select(mask, a, b). Functions
// of vectors are written once for float and double where no instruction differs. Everything is
// inline in an anonymous namespace, because a weak symbol could leak instructions of one level
// into another.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace grebe::GREBE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

typedef float f32v __attribute__((vector_size(kVectorBytes)));
typedef double f64v __attribute__((vector_size(kVectorBytes)));
typedef int32_t i32v __attribute__((vector_size(kVectorBytes)));
typedef int64_t i64v __attribute__((vector_size(kVectorBytes)));
typedef uint32_t u32v __attribute__((vector_size(kVectorBytes)));
typedef uint64_t u64v __attribute__((vector_size(kVectorBytes)));
typedef float f32half __attribute__((vector_size(kVectorBytes / 2)));  // as many as one f64v

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = f32v;
  using mask = i32v;
};
template <>
struct VectorOf<double> {
  using type = f64v;
  using mask = i64v;
};
template <class T>
using vec = typename VectorOf<T>::type;
template <class T>
using mask_of = typename VectorOf<T>::mask;  // also the integers of the lanes' width
template <class T>
constexpr int64_t lanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

// The other direction: element type and integer vector of f32v and f64v.
template <class V>
struct ScalarOf;
template <>
struct ScalarOf<f32v> {
  using type = float;
};
template <>
struct ScalarOf<f64v> {
  using type = double;
};
template <class V>
using scalar = typename ScalarOf<V>::type;
template <class V>
using ints = mask_of<scalar<V>>;
// Their sums and differences may wrap.
template <class V>
using unsigneds = std::conditional_t<sizeof(scalar<V>) == 4, u32v, u64v>;

// Operands of a multiply-add, and its sums: the same type but for bfloat16 pairs.
template <class T>
struct SumOf {
  using type = T;
};
template <class T>
using sum_of = typename SumOf<T>::type;

// bfloat16, for storage: the high half of a float.
struct bf16 {
  uint16_t bits;
};
template <>
struct SumOf<bf16> {
  using type = float;
};

#if defined(__AVX512BF16__)
// Two neighbours along the summed dimension; the first is the low half.
struct bf16pair {
  uint32_t bits;
};
template <>
struct VectorOf<bf16pair> {
  using type = i32v;
  using mask = i32v;
};
template <>
struct SumOf<bf16pair> {
  using type = float;
};
#endif

// ---- making vectors ----

template <class T>
inline vec<T> splat(T x) {
  return x - vec<T>{};  // x - 0, not x + 0: keeps the sign of zero
}

#if defined(__AVX512BF16__)
inline i32v splat(bf16pair x) { return static_cast<int32_t>(x.bits) - i32v{}; }
#endif

// 0, 1, 2, ...
template <class T>
inline vec<T> iota() {
  vec<T> v{};
  for (int64_t i = 0; i < lanes<T>; ++i) v[i] = static_cast<T>(i);
  return v;
}

// ---- memory ----

template <class T>
inline vec<T> load(const T* p) {
  vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
inline void store(T* p, vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
#elif defined(__AVX2__)
constexpr int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
template <class T>
inline __m256i first_lanes(int64_t n) {
  const int32_t* p = kLaneMask + 8 - n * static_cast<int64_t>(sizeof(T) / 4);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
#endif

// The first n <= lanes<T> elements; the other lanes are zero, and their memory is not touched.
template <class T>
inline vec<T> load_n(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (vec<T>)_mm512_maskz_loadu_ps(first_lanes(n), p);
  else
    return (vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(n)), p);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return (vec<T>)_mm256_maskload_ps(p, first_lanes<T>(n));
  else
    return (vec<T>)_mm256_maskload_pd(p, first_lanes<T>(n));
#else
  vec<T> v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

template <class T>
inline void store_n(T* p, vec<T> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(n)), (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    _mm256_maskstore_ps(p, first_lanes<T>(n), (__m256)v);
  else
    _mm256_maskstore_pd(p, first_lanes<T>(n), (__m256d)v);
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// The next n elements, at most a vector of them.
template <class T>
inline vec<T> load_upto(const T* p, int64_t n) {
  return n >= lanes<T> ? load(p) : load_n(p, n);
}
template <class T>
inline void store_upto(T* p, vec<T> v, int64_t n) {
  n >= lanes<T> ? store(p, v) : store_n(p, v, n);
}

// Past the caches: for outputs too large to be read again soon. p must be aligned to kVectorBytes.
template <class T>
inline void store_streaming(T* p, vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}
// Makes streaming stores visible to other threads.
inline void streaming_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Elements p[0], p[stride], ...; the _n forms touch the first n only, other lanes are zero.
template <class T>
inline vec<T> load_strided(const T* p, int64_t stride) {
  vec<T> v{};
  for (int64_t i = 0; i < lanes<T>; ++i) v[i] = p[i * stride];
  return v;
}
template <class T>
inline vec<T> load_strided_n(const T* p, int64_t stride, int64_t n) {
  T buffer[lanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i * stride];
  return load(buffer);
}
template <class T>
inline void store_strided(T* p, int64_t stride, vec<T> v) {
  for (int64_t i = 0; i < lanes<T>; ++i) p[i * stride] = v[i];
}
template <class T>
inline void store_strided_n(T* p, int64_t stride, vec<T> v, int64_t n) {
  T buffer[lanes<T>];
  store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i * stride] = buffer[i];
}

// ---- masks and bits ----

template <class M, class V>
inline V select(M mask, V a, V b) {
  return mask ? a : b;
}

template <class V>
inline ints<V> as_int(V v) {
  return (ints<V>)v;
}
inline f32v as_float(i32v v) { return (f32v)v; }
inline f64v as_float(i64v v) { return (f64v)v; }

template <class M>
inline bool any(M mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__x86_64__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  const u64v bits = (u64v)mask;
  return (bits[0] | bits[1]) != 0;
#endif
}

// The first n lanes.
template <class T>
inline mask_of<T> lane_mask(int64_t n) {
  return iota<T>() < splat(static_cast<T>(n));
}

template <class V>
inline ints<V> sign_bits() {
  return as_int(splat<scalar<V>>(scalar<V>(-0.0)));
}
template <class V>
inline V abs(V v) {
  return (V)(as_int(v) & ~sign_bits<V>());
}
// Magnitude of a, sign of b.
template <class V>
inline V copysign(V a, V b) {
  return (V)((as_int(a) & ~sign_bits<V>()) | (as_int(b) & sign_bits<V>()));
}

// ---- arithmetic ----

// a * b + c, rounded once where the level has the instruction (kHasFma).
inline f32v fma(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (f32v)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
inline f64v fma(f64v a, f64v b, f64v c) {
#if defined(__AVX512F__)
  return (f64v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (f64v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (f64v)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}
#if defined(__AVX512BF16__)
// c + the products of both halves. Denormal numbers count as zero.
inline f32v fma(i32v a, i32v b, f32v c) {
  return (f32v)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
#endif
// Keeps the compiler from fusing the product that made v with a later addition.
template <class A>
inline void keep_rounding(A& v) {
  asm volatile("" : "+m"(v));
}

// Keeps v in a register: the compiler would repeat the load of a vector that several instructions
// use as the memory operand of each.
template <class V>
inline void pin(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// Product of the low halves of 64-bit lanes.
inline u64v multiply_low_halves(u64v a, u64v b) {
#if defined(__AVX512F__)
  return (u64v)_mm512_maskz_mul_epu32(-1, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (u64v)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (u64v)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & uint64_t{0xFFFFFFFFu}) * (b & uint64_t{0xFFFFFFFFu});
#endif
}

// c - a * b.
template <class V>
inline V fnma(V a, V b, V c) {
  return fma(-a, b, c);
}

// One instruction on x86: where either operand is NaN, the result is b.
template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
inline V min(V a, V b) {
  return a < b ? a : b;
}
// NaN in either operand gives NaN, as PyTorch's and NumPy's maximum do.
template <class V>
inline V max_nan(V a, V b) {
  return select(a != a, a, max(a, b));
}
template <class V>
inline V min_nan(V a, V b) {
  return select(a != a, a, min(a, b));
}

// Square root, floor, ceiling and nearest integer (ties to even): one instruction each. (The maskz
// forms are the same instruction; GCC 12 warns about its own header in the plain ones.)
#if defined(__AVX512F__)
#define GREBE_VECTOR_FN(name, f32, f64) \
  inline f32v name(f32v x) {            \
    const __m512 v = (__m512)x;         \
    return (f32v)(f32);                 \
  }                                     \
  inline f64v name(f64v x) {            \
    const __m512d v = (__m512d)x;       \
    return (f64v)(f64);                 \
  }
GREBE_VECTOR_FN(sqrt, _mm512_maskz_sqrt_ps(-1, v), _mm512_maskz_sqrt_pd(-1, v))
GREBE_VECTOR_FN(floor, _mm512_maskz_roundscale_ps(-1, v, 9), _mm512_maskz_roundscale_pd(-1, v, 9))
GREBE_VECTOR_FN(ceil, _mm512_maskz_roundscale_ps(-1, v, 10), _mm512_maskz_roundscale_pd(-1, v, 10))
GREBE_VECTOR_FN(round, _mm512_maskz_roundscale_ps(-1, v, 8), _mm512_maskz_roundscale_pd(-1, v, 8))
#elif defined(__AVX2__)
#define GREBE_VECTOR_FN(name, f32, f64) \
  inline f32v name(f32v x) {            \
    const __m256 v = (__m256)x;         \
    return (f32v)(f32);                 \
  }                                     \
  inline f64v name(f64v x) {            \
    const __m256d v = (__m256d)x;       \
    return (f64v)(f64);                 \
  }
GREBE_VECTOR_FN(sqrt, _mm256_sqrt_ps(v), _mm256_sqrt_pd(v))
GREBE_VECTOR_FN(floor, _mm256_round_ps(v, 9), _mm256_round_pd(v, 9))
GREBE_VECTOR_FN(ceil, _mm256_round_ps(v, 10), _mm256_round_pd(v, 10))
GREBE_VECTOR_FN(round, _mm256_round_ps(v, 8), _mm256_round_pd(v, 8))
#elif defined(__SSE4_1__)
#define GREBE_VECTOR_FN(name, f32, f64) \
  inline f32v name(f32v x) {            \
    const __m128 v = (__m128)x;         \
    return (f32v)(f32);                 \
  }                                     \
  inline f64v name(f64v x) {            \
    const __m128d v = (__m128d)x;       \
    return (f64v)(f64);                 \
  }
GREBE_VECTOR_FN(sqrt, _mm_sqrt_ps(v), _mm_sqrt_pd(v))
GREBE_VECTOR_FN(floor, _mm_round_ps(v, 9), _mm_round_pd(v, 9))
GREBE_VECTOR_FN(ceil, _mm_round_ps(v, 10), _mm_round_pd(v, 10))
GREBE_VECTOR_FN(round, _mm_round_ps(v, 8), _mm_round_pd(v, 8))
#elif defined(__aarch64__)
#define GREBE_VECTOR_FN(name, f32, f64)   \
  inline f32v name(f32v x) {              \
    const float32x4_t v = (float32x4_t)x; \
    return (f32v)(f32);                   \
  }                                       \
  inline f64v name(f64v x) {              \
    const float64x2_t v = (float64x2_t)x; \
    return (f64v)(f64);                   \
  }
GREBE_VECTOR_FN(sqrt, vsqrtq_f32(v), vsqrtq_f64(v))
GREBE_VECTOR_FN(floor, vrndmq_f32(v), vrndmq_f64(v))
GREBE_VECTOR_FN(ceil, vrndpq_f32(v), vrndpq_f64(v))
GREBE_VECTOR_FN(round, vrndnq_f32(v), vrndnq_f64(v))
#else
#error "needs x86-64-v2 or aarch64"
#endif
#undef GREBE_VECTOR_FN

// ---- across lanes ----

template <int kDistance, class V, size_t... I>
inline V swap_lanes(V v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (static_cast<int>(I) ^ kDistance)...);
}

// Combines lanes at distance lanes/2, then lanes/4, ..., 1: a fixed order. All lanes get the
// result.
template <int kDistance, class V, class F>
inline V combine_lanes(V v, const F& f) {
  if constexpr (kDistance == 0) {
    return v;
  } else {
    constexpr size_t n = sizeof(V) / sizeof(v[0]);
    return combine_lanes<kDistance / 2>(
        f(v, swap_lanes<kDistance>(v, std::make_index_sequence<n>{})), f);
  }
}
template <class V>
constexpr int half_lanes = static_cast<int>(lanes<scalar<V>> / 2);

template <class V>
inline scalar<V> hsum(V v) {
  return combine_lanes<half_lanes<V>>(v, [](V a, V b) { return a + b; })[0];
}
template <class V>
inline scalar<V> hmax(V v) {  // NaN in any lane gives NaN
  return combine_lanes<half_lanes<V>>(v, [](V a, V b) { return max_nan(a, b); })[0];
}
template <class V>
inline scalar<V> hmin(V v) {
  return combine_lanes<half_lanes<V>>(v, [](V a, V b) { return min_nan(a, b); })[0];
}

// Interleaves the low (high) halves of a and b: a0 b0 a1 b1 ...
template <bool kHigh, class V, size_t... I>
inline V zip(V a, V b, std::index_sequence<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(
      a, b, ((kHigh ? n / 2 : 0) + static_cast<int>(I) / 2 + static_cast<int>(I) % 2 * n)...);
}
template <class T, bool kHigh>
inline vec<T> zip(vec<T> a, vec<T> b) {
  return zip<kHigh>(a, b, std::make_index_sequence<lanes<T>>{});
}

// Lane i of the result: all lanes of r[i] combined by f, in the same order as combine_lanes does it.
// r holds lanes<T> vectors and is overwritten.
template <class T, class F>
inline vec<T> combine_each(vec<T>* r, const F& f) {
#pragma GCC unroll 4
  for (int n = lanes<T> / 2; n >= 1; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
      r[i] = f(zip<T, false>(r[i], r[i + n]), zip<T, true>(r[i], r[i + n]));
  return r[0];
}

// ---- conversion ----

struct f64pair {
  f64v low, high;
};
// A float vector as two double vectors, and back.
template <size_t... I>
inline f64pair widen(f32v v, std::index_sequence<I...>) {
  constexpr int n = sizeof...(I);
  const f32half low = __builtin_shufflevector(v, v, static_cast<int>(I)...);
  const f32half high = __builtin_shufflevector(v, v, (static_cast<int>(I) + n)...);
  return {__builtin_convertvector(low, f64v), __builtin_convertvector(high, f64v)};
}
inline f64pair widen(f32v v) { return widen(v, std::make_index_sequence<lanes<double>>{}); }

template <size_t... I>
inline f32v join(f32half low, f32half high, std::index_sequence<I...>) {
  return __builtin_shufflevector(low, high, static_cast<int>(I)...);
}
inline f32v narrow(f64pair p) {
  return join(__builtin_convertvector(p.low, f32half), __builtin_convertvector(p.high, f32half),
              std::make_index_sequence<lanes<float>>{});
}
// lanes<T> bytes as integers of the lanes' width, and back: the compiler's own conversion goes
// element by element. The levels without an instruction for 64-bit lanes keep that.
template <class T>
inline mask_of<T> load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (mask_of<T>)_mm512_maskz_cvtepu8_epi32(-1, _mm_loadu_si128((const __m128i*)p));
  else
    return (mask_of<T>)_mm512_maskz_cvtepu8_epi64(-1, _mm_loadl_epi64((const __m128i*)p));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return (mask_of<T>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  else
    return (mask_of<T>)_mm256_cvtepu8_epi64(_mm_loadu_si32(p));
#elif defined(__SSE4_1__)
  if constexpr (sizeof(T) == 4)
    return (mask_of<T>)_mm_cvtepu8_epi32(_mm_loadu_si32(p));
  else
    return (mask_of<T>)_mm_cvtepu8_epi64(_mm_loadu_si16(p));
#else
  typedef uint8_t bytes __attribute__((vector_size(lanes<T>)));
  bytes v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, mask_of<T>);
#endif
}
template <class T>
inline void store_bytes(uint8_t* p, mask_of<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    _mm_storeu_si128((__m128i*)p, _mm512_maskz_cvtepi32_epi8(-1, (__m512i)v));
  else
    _mm_storel_epi64((__m128i*)p, _mm512_maskz_cvtepi64_epi8(-1, (__m512i)v));
  return;
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v),
                                           _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
    return;
  }
#elif defined(__SSE4_1__)
  if constexpr (sizeof(T) == 4) {
    const __m128i words = _mm_packus_epi32((__m128i)v, (__m128i)v);
    _mm_storeu_si32(p, _mm_packus_epi16(words, words));
    return;
  }
#endif
  for (int64_t i = 0; i < lanes<T>; ++i) p[i] = static_cast<uint8_t>(v[i]);
}

// lanes<double> floats as doubles.
inline f64v load_widened(const float* p) {
  f32half v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, f64v);
}

typedef uint16_t u16half __attribute__((vector_size(kVectorBytes / 2)));  // as many as one f32v

inline u16half load_half(const bf16* p, int64_t n) {
  u16half v{};
  if (n == lanes<float>)
    __builtin_memcpy(&v, p, sizeof(v));
  else
    __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof(bf16));
  return v;
}
// The first n <= lanes<float> elements as floats, zeros behind them.
inline f32v load_widened(const bf16* p, int64_t n) {
  return (f32v)(__builtin_convertvector(load_half(p, n), u32v) << 16);
}
// Rounds to nearest even.
inline void store_narrowed(bf16* p, f32v v, int64_t n) {
  const u32v bits = (u32v)v;
  const u32v rounded = bits + (uint32_t{0x7FFF} + ((bits >> 16) & 1u));
  const u32v result = (u32v)select(v != v, (i32v)(bits | uint32_t{0x400000}), (i32v)rounded) >> 16;
  const u16half half = __builtin_convertvector(result, u16half);
  if (n == lanes<float>)
    __builtin_memcpy(p, &half, sizeof(half));
  else
    __builtin_memcpy(p, &half, static_cast<size_t>(n) * sizeof(bf16));
}

// Integer-valued floats to integers and back, for |x| < 2^22 (float) or 2^51 (double): adding
// 1.5 * 2^mantissa moves the integer into the low bits. Also rounds to nearest even.
inline f32v integer_shift(f32v) { return splat(0x1.8p23f); }
inline f64v integer_shift(f64v) { return splat(0x1.8p52); }
template <class V>
inline ints<V> to_int(V v) {
  using U = unsigneds<V>;  // numbers out of range wrap
  const V shift = integer_shift(v);
  return (ints<V>)((U)as_int(v + shift) - (U)as_int(shift));
}
inline f32v to_float(i32v v) { return __builtin_convertvector(v, f32v); }
inline f64v to_float(i64v v) {
  const f64v shift = integer_shift(f64v{});
  return as_float(v + as_int(shift)) - shift;
}

}  // namespace
}  // namespace grebe::GREBE_ISA
