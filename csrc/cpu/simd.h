// The only file with intrinsics: vectors of one ISA level, on GCC/clang vector extensions.
//
// vec<T> holds lanes<T> elements; + - * / and comparisons are the compiler's own operators on
// vectors, `mask ? a : b` selects by a comparison's result. Everything is static, because a weak
// symbol could leak instructions of one level into another.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
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

typedef float f32v __attribute__((vector_size(kVectorBytes)));
typedef double f64v __attribute__((vector_size(kVectorBytes)));
typedef int32_t i32v __attribute__((vector_size(kVectorBytes)));
typedef int64_t i64v __attribute__((vector_size(kVectorBytes)));

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
constexpr int64_t lanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <class T>
inline vec<T> splat(T x) {
  return vec<T>{} + x;
}

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

// The first n < lanes<T> elements; the other lanes are zero, and their memory is not touched.
template <class T>
inline vec<T> load_n(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (vec<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  else
    return (vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
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
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// a * b + c, rounded once where the level has the instruction.
inline f32v fma(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
inline f64v fma(f64v a, f64v b, f64v c) {
#if defined(__AVX512F__)
  return (f64v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (f64v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// NaN in either operand gives NaN, as PyTorch's and NumPy's maximum do.
template <class V>
inline V max_nan(V a, V b) {
  return a > b ? a : (a != a ? a : b);
}
template <class V>
inline V min_nan(V a, V b) {
  return a < b ? a : (a != a ? a : b);
}

}  // namespace
}  // namespace grebe::GREBE_ISA
