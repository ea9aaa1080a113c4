// Transcendental functions on vectors: exp, expm1, log, log2, log1p, tanh, sigmoid, erf, sin, cos.
//
// At most 2 ulp from the exact value over all floats and doubles, denormals, infinities and NaN
// included, with or without FMA (tests/test_simd.py sweeps them). Method: argument reduction in the
// style of fdlibm (Sun Microsystems), then a polynomial. Coefficients of exp, log and erf of
// doubles were made by Remez exchange in 50 digits; those of tanh come from Cephes (S. Moshier), of
// sin and cos from fdlibm, of the float erf from N. Juffa's public erff.
#pragma once
#include <type_traits>

#include "simd.h"

namespace grebe::GREBE_ISA {
namespace {

// ---- constants ----

template <class T>
struct Math;

template <>
struct Math<float> {
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr int32_t kSqrtHalf = 0x3f3504f3;
  static constexpr float kTiny = 0x1p-126f, kDenormalScale = 0x1p25f, kDenormalShift = 25;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kLog2e = 0x1.715476p+0f;
  static constexpr float kExpLowest = -104, kExpHighest = 89;
  static constexpr float kExpm1Lowest = -20, kExpm1Identity = 0x1p-25f;
  static constexpr float kExp[] = {0.5f, 0.166665182f, 0.0416662022f, 0.00836891867f,
                                   0.0013950587f};
  static constexpr float kLog[] = {0.666666627f, 0.400003374f, 0.285372049f, 0.235842407f};
  static constexpr float kTanhP[] = {-3.33332819422e-1f, 1.33314422036e-1f, -5.37397155531e-2f,
                                     2.06390887954e-2f, -5.70498872745e-3f};
  static constexpr float kTanhQ[] = {1};
  static constexpr float kTanhOne = 10;  // from here on tanh rounds to 1
  static constexpr float kErfSplit = 0.927734375f, kErfOne = 4;
  static constexpr float kErfSmall[] = {1.28379166e-1f,  -3.76125336e-1f, 1.12819925e-1f,
                                        -2.67681349e-2f, 4.99119423e-3f,  -5.96761703e-4f};
  static constexpr float kErfLarge[] = {-1.28717512e-1f, -6.34846687e-1f, -1.06777877e-1f,
                                        2.42546219e-2f,  -3.88396438e-3f, 3.83197126e-4f,
                                        -1.72853470e-5f};
};

template <>
struct Math<double> {
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kTiny = 0x1p-1022, kDenormalScale = 0x1p54, kDenormalShift = 54;
  static constexpr double kLn2High = 6.93147180369123816490e-01;  // 32 bits: products are exact
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLog2e = 0x1.71547652b82fep+0;
  static constexpr double kExpLowest = -746, kExpHighest = 710;
  static constexpr double kExpm1Lowest = -40, kExpm1Identity = 0x1p-54;
  static constexpr double kExp[] = {
      0x1.000000000000cp-1,  0x1.5555555555561p-3,  0x1.555555554ffeep-5,  0x1.111111110d5c7p-7,
      0x1.6c16c185b65a5p-10, 0x1.a01a01bb07281p-13, 0x1.a01996697cd36p-16, 0x1.71dddf7df5120p-19,
      0x1.28b0717351fc6p-22, 0x1.af85fc2a9e389p-26};
  static constexpr double kLog[] = {
      0x1.5555555555593p-1, 0x1.999999997f9f3p-2, 0x1.249249422a727p-2, 0x1.c71c51d7b3828p-3,
      0x1.746649b4ed104p-3, 0x1.39a094f565dabp-3, 0x1.2f118615e52d8p-3};
  static constexpr double kTanhP[] = {-1.61468768441708447952e3, -9.92877231001918586564e1,
                                      -9.64399179425052238628e-1};
  static constexpr double kTanhQ[] = {4.84406305325125486048e3, 2.23548839060100448583e3,
                                      1.12811678491632931402e2, 1};
  static constexpr double kTanhOne = 20;
  static constexpr double kErfSplit = 1, kErfOne = 6;
  static constexpr double kErfSmall[] = {
      0x1.06eba8214db68p-3,  -0x1.812746b0379c2p-2,  0x1.ce2f21a041018p-4,  -0x1.b82ce312062bcp-6,
      0x1.565bccfa9a825p-8,  -0x1.c02db072f3fe0p-11, 0x1.f9a2bf73f0c68p-14, -0x1.f4ca94990cb86p-17,
      0x1.b9827b1885f9bp-20, -0x1.5c16e30fb0d45p-23, 0x1.d784936618cc2p-27, -0x1.acdff90b8ebd8p-31};
  static constexpr double kErfLarge[] = {
      -0x1.06eba039d39d8p-3,  -0x1.45f317cca1df1p-1,  -0x1.a4f2e9ba94817p-4,  0x1.3956c220cddf8p-6,
      0x1.bdb9af6e107f9p-13,  -0x1.bbe1da33b6a8ap-10, 0x1.2da3eeaa87083p-11,  0x1.e0d7e529a3769p-22,
      -0x1.8f2589fc0e7b6p-14, 0x1.d4c7bd3cf4f3ep-15,  -0x1.54728b3d24fe2p-16, 0x1.6837673b36537p-18,
      -0x1.2051aac712eadp-20, 0x1.5c91cd4375b5dp-23,  -0x1.35ed47dd083dep-26, 0x1.7f4bfe1832b3bp-30,
      -0x1.26b9eb6419dd0p-34, 0x1.a86f38fd50e79p-40};
};

template <class V>
using math = Math<scalar<V>>;

// c[0] + c[1] x + c[2] x^2 + ...
template <class V, class T, int N>
inline V polynomial(V x, const T (&c)[N]) {
  V y = splat(c[N - 1]);
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, splat(c[i]));
  return y;
}

// ---- exponentials ----

// e^x = 2^n (1 + p) with |p| < 0.42.
template <class V>
struct ExpParts {
  V n, p;
  ints<V> k;  // n as integers
};

template <class V>
inline ExpParts<V> exp_parts(V x) {
  using M = math<V>;
  const V shift = integer_shift(x);
  const V t = fma(x, splat(M::kLog2e), shift);
  const V n = t - shift;
  const V high = fnma(n, splat(M::kLn2High), x), low = n * M::kLn2Low;
  const V r = high - low;
  const V lost = (high - r) - low;  // what r was rounded by
  return {n, r + fma(r * r, polynomial(r, M::kExp), lost), as_int(t) - as_int(shift)};
}

// 2^k for exponents of normal numbers.
template <class V>
inline V power_of_two(ints<V> k) {
  return (V)((k + math<V>::kBias) << math<V>::kMantissa);
}

// y 2^n, correct for results that are denormal or overflow.
inline f32v scale(f32v y, [[maybe_unused]] f32v n, [[maybe_unused]] i32v k) {
#if defined(__AVX512F__)
  return (f32v)_mm512_maskz_scalef_ps(-1, (__m512)y, (__m512)n);
#else
  const i32v half = (i32v)((u32v)(k + 1024) >> 1) - 512;
  return y * power_of_two<f32v>(half) * power_of_two<f32v>(k - half);
#endif
}
inline f64v scale(f64v y, [[maybe_unused]] f64v n, [[maybe_unused]] i64v k) {
#if defined(__AVX512F__)
  return (f64v)_mm512_maskz_scalef_pd(-1, (__m512d)y, (__m512d)n);
#else
  const i64v half = (i64v)((u64v)(k + 4096) >> 1) - 2048;
  return y * power_of_two<f64v>(half) * power_of_two<f64v>(k - half);
#endif
}

template <class V>
inline V exp_clamp(V x) {  // in this order of operands NaN stays
  return min(splat(math<V>::kExpHighest), max(splat(math<V>::kExpLowest), x));
}

template <class V>
inline V exp(V x) {
  const ExpParts<V> e = exp_parts(exp_clamp(x));
  return scale(1 + e.p, e.n, e.k);
}

template <class V>
inline V expm1(V x) {
  using M = math<V>;
  const V clamped = min(splat(M::kExpHighest), max(splat(M::kExpm1Lowest), x));
  const ExpParts<V> e = exp_parts(clamped);
  const V half = power_of_two<V>(e.k - 1);  // half of 2^k, which may be past the largest number
  const V y = 2 * fma(e.p, half, half - scalar<V>(0.5));
  return select(abs(x) < M::kExpm1Identity, x, y);
}

// ---- logarithms ----

// x = 2^k m with m in [sqrt(1/2), sqrt(2)), for positive finite x.
template <class V>
struct LogParts {
  V m, k;
};

template <class V>
inline LogParts<V> log_parts(V x) {
  using M = math<V>;
  using I = ints<V>;
  const auto tiny = x < M::kTiny;
  const V normal = select(tiny, x * M::kDenormalScale, x);
  const I one = as_int(splat(scalar<V>(1))), root = I{} + M::kSqrtHalf;
  using Unsigned = unsigneds<V>;  // infinity overflows
  const I bits = (I)((Unsigned)as_int(normal) + (Unsigned)(one - root));
  const I exponent = (I)((Unsigned)bits >> M::kMantissa) - M::kBias;
  const I mantissa = bits & ~((I{} - 1) << M::kMantissa);
  const V k = to_float(exponent) - select(tiny, splat(M::kDenormalShift), V{});
  return {(V)(mantissa + root), k};
}

// log((1 + f) 2^k) + c, for 1 + f in [sqrt(1/2), sqrt(2)).
template <class V>
inline V log_of_parts(V f, V k, V c) {
  using M = math<V>;
  const V s = f / (2 + f), z = s * s;
  const V half_square = scalar<V>(0.5) * f * f;
  const V tail = fma(s, fma(z, polynomial(z, M::kLog), half_square), fma(k, splat(M::kLn2Low), c));
  return k * M::kLn2High - ((half_square - tail) - f);
}

template <class V>
inline V log(V x) {
  using T = scalar<V>;
  constexpr T inf = std::numeric_limits<T>::infinity();
  const LogParts<V> parts = log_parts(x);
  const V y = log_of_parts(parts.m - 1, parts.k, V{});
  const V special = select(x == inf, x, select(x == 0, splat(-inf), splat(T(__builtin_nan("")))));
  return select((x > 0) & (x < inf), y, special);
}

// log(m) / log(2) + k: exact at powers of two.
template <class V>
inline V log2(V x) {
  using T = scalar<V>;
  const LogParts<V> parts = log_parts(x);
  const V y = log_of_parts(parts.m - 1, V{}, V{}) * math<V>::kLog2e + parts.k;
  const auto regular = (x > 0) & (x < std::numeric_limits<T>::infinity());
  return select(regular, y, log(x));
}

template <class V>
inline V log1p(V x) {
  using T = scalar<V>;
  constexpr T inf = std::numeric_limits<T>::infinity();
  const V u = 1 + x;
  const LogParts<V> parts = log_parts(u);
  const V lost = select(x >= 1, 1 - (u - x), x - (u - 1));  // what u was rounded by
  const auto direct = parts.k == 0;
  const V f = select(direct, x, parts.m - 1);
  const V y = log_of_parts(f, parts.k, select(direct, V{}, lost / u));
  // x + x: zeros and infinity as they are, NaN made quiet.
  const V special =
      select(x == -1, splat(-inf), select(x < -1, splat(T(__builtin_nan(""))), x + x));
  return select((x > -1) & (x < inf) & (x != 0), y, special);
}

// log1p for x in [0, 1], where it takes half the instructions.
template <class V>
inline V log1p_unit(V x) {
  using T = scalar<V>;
  const auto large = x > T(0.41421356237309505);
  const V f = select(large, (x - 1) * T(0.5), x);
  return log_of_parts(f, select(large, splat(T(1)), V{}), V{});
}

// ---- tanh, sigmoid, erf ----

// x + x^3 P(x^2)/Q(x^2) near 0, else 1 - 2 / (e^2x + 1); one division serves both.
template <class V>
inline V tanh(V x) {
  using M = math<V>;
  const V a = abs(x), z = a * a;
  const auto small = a < scalar<V>(0.625);
  const V e = exp(2 * min(splat(M::kTanhOne), a));
  const V numerator = select(small, a * z * polynomial(z, M::kTanhP), splat(scalar<V>(-2)));
  const V denominator = select(small, polynomial(z, M::kTanhQ), e + 1);
  const V base = select(small, a, splat(scalar<V>(1)));
  return copysign(base + numerator / denominator, x);
}

// e / (1 + e) or 1 / (1 + e) with e = exp(-|x|), and the rounding errors of e and 1 + e taken back
// to first order: without that the error reaches 2.3 ulp.
template <class V>
inline V sigmoid(V x) {
  const ExpParts<V> parts = exp_parts(exp_clamp(-abs(x)));
  const V rounded = 1 + parts.p;
  const V e = scale(rounded, parts.n, parts.k);
  const V e_lost = scale(parts.p - (rounded - 1), parts.n, parts.k);
  const V sum = 1 + e, sum_lost = (e - (sum - 1)) + e_lost;
  const auto negative = x < 0;
  const V y = select(negative, e, splat(scalar<V>(1))) / sum;
  const V inverse = select(negative, 1 - y, y);  // 1 / sum
  return fma(fnma(y, sum_lost, select(negative, e_lost, V{})), inverse, y);
}

// x + x P(x^2) near 0, else 1 - exp(x P(x) - x).
template <class V>
inline V erf(V x) {
  using M = math<V>;
  const V a = abs(x), t = min(splat(M::kErfOne), a);
  const V near = fma(a, polynomial(a * a, M::kErfSmall), a);
  const V far = 1 - exp(fma(polynomial(t, M::kErfLarge), t, -t));
  return copysign(select(a < M::kErfSplit, near, far), x);
}

// ---- sine and cosine ----

constexpr double kTwoOverPi = 6.36619772367581382433e-01;
// pi/2 in pieces of 33 bits, so that products with integers below 2^20 are exact, and a rest.
constexpr double kHalfPi1 = 1.57079632673412561417e+00, kHalfPi1Rest = 6.07710050650619224932e-11;
constexpr double kHalfPi2 = 6.07710050630396597660e-11, kHalfPi3 = 2.02226624871116645580e-21;
constexpr double kHalfPi3Rest = 8.47842766036889956997e-32;
constexpr double kTrigLimit = 1e6;  // beyond, lanes go one by one through the C library

constexpr double kSin[] = {8.33333333332248946124e-03, -1.98412698298579493134e-04,
                           2.75573137070700676789e-06, -2.50507602534068634195e-08,
                           1.58969099521155010221e-10};
constexpr double kCos[] = {4.16666666666666019037e-02, -1.38888888888741095749e-03,
                           2.48015872894767294178e-05, -2.75573143513906633035e-07,
                           2.08757232129817482790e-09, -1.13596475577881948265e-11};
constexpr double kSinShort[] = {-0x15555554cbac77.0p-55, 0x111110896efbb2.0p-59,
                                -0x1a00f9e2cae774.0p-65, 0x16cd878c3b46a7.0p-71};
constexpr double kCosShort[] = {-0x1ffffffd0c5e81.0p-54, 0x155553e1053a42.0p-57,
                                -0x16c087e80f1e27.0p-62, 0x199342e0ee5069.0p-68};

// a - b = *difference + the returned error, exactly.
inline f64v two_difference(f64v a, f64v b, f64v* difference) {
  const f64v d = a - b, bb = a - d, aa = d + bb;
  *difference = d;
  return (a - aa) - (b - bb);
}

// For sine (shift 0) and cosine (shift 1): quadrant 0 sin, 1 cos, 2 -sin, 3 -cos of the rest.
inline f64v quadrant_select(i64v quadrant, f64v sine, f64v cosine) {
  const f64v y = select((quadrant & 1) != 0, cosine, sine);
  return (f64v)((i64v)y ^ ((quadrant & 2) << 62));
}

// To double precision, for |x| <= kTrigLimit.
inline f64v sin_double(f64v x, int64_t shift) {
  const f64v q = fma(x, splat(kTwoOverPi), integer_shift(x)) - integer_shift(x);
  f64v r;
  const f64v start = fnma(q, splat(kHalfPi1), x);  // exact
  const f64v e1 = two_difference(start, q * kHalfPi2, &r);
  const f64v e2 = two_difference(r, q * kHalfPi3, &r);
  const f64v rest = (e1 + e2) - q * kHalfPi3Rest;
  const f64v high = r + rest, low = (r - high) + rest, z = high * high, cube = z * high;
  const f64v s = high - ((z * (0.5 * low - cube * polynomial(z, kSin)) - low) +
                         cube * 1.66666666666666324348e-01);
  const f64v half = 0.5 * z, w = 1 - half;
  const f64v c = w + (((1 - w) - half) + (z * (z * polynomial(z, kCos)) - high * low));
  return quadrant_select(to_int(q) + shift, s, c);
}

// To more than float precision.
inline f64v sin_short(f64v x, int64_t shift) {
  const f64v q = fma(x, splat(kTwoOverPi), integer_shift(x)) - integer_shift(x);
  const f64v r = fnma(q, splat(kHalfPi1Rest), fnma(q, splat(kHalfPi1), x)), z = r * r;
  const f64v s = fma(r * z, polynomial(z, kSinShort), r);
  const f64v c = fma(z, polynomial(z, kCosShort), splat(1.0));
  return quadrant_select(to_int(q) + shift, s, c);
}

template <class V>
inline V sin_shifted(V x, int64_t shift) {
  V y;
  if constexpr (sizeof(x[0]) == 4) {
    const f64pair wide = widen(x);
    y = narrow({sin_short(wide.low, shift), sin_short(wide.high, shift)});
  } else {
    y = sin_double(x, shift);
  }
  const auto far = ~(abs(x) <= scalar<V>(kTrigLimit));
  if (__builtin_expect(any(far), 0)) {
    for (int i = 0; i < static_cast<int>(lanes<scalar<V>>); ++i)
      if (far[i]) y[i] = static_cast<scalar<V>>(shift ? __builtin_cos(x[i]) : __builtin_sin(x[i]));
  }
  return select(x == 0, shift ? y : x, y);  // keeps the sign of zero
}
template <class V>
inline V sin(V x) {
  return sin_shifted(x, 0);
}
template <class V>
inline V cos(V x) {
  return sin_shifted(x, 1);
}

}  // namespace
}  // namespace grebe::GREBE_ISA
