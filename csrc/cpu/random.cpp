// Random numbers and dropout on the Philox stream of random.h.
//
// Idea: sixteen Philox blocks at a time, two or more per vector, give 64 words; which word belongs
// to which element (random.h) is chosen so that vectors of any width store them without shuffling.
// The words go through a small buffer to loops that the compiler vectorises. uniform, bernoulli and
// dropout give the same bits on every ISA level and for any number of threads; normal differs
// between levels in the last places of log, sin and cos.
//
// Arrays are visited in logical C order, so that an element's number does not depend on strides.
// Dropout takes 16 bits per element, and where they equal the threshold 32 more; with bias and
// residual it is one pass.
//
// Floor: 10 rounds of 6 instructions for 8 blocks; for dropout of large arrays the memory traffic.
// Measured: docs/kernels/random.md.
#include "philox.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements, a multiple of every group

// ---- visiting arrays in logical order ----

// Dimensions of y and x merged where both allow it.
struct Order {
  int ndim = 0;
  int64_t shape[kMaxDims], ys[kMaxDims], xs[kMaxDims];

  Order(const View& y, const View& x) {
    for (int d = 0; d < y.ndim; ++d) {
      if (y.shape[d] == 1) continue;
      const bool merge = ndim > 0 && ys[ndim - 1] == y.strides[d] * y.shape[d] &&
                         xs[ndim - 1] == x.strides[d] * x.shape[d];
      const int at = merge ? ndim - 1 : ndim++;
      shape[at] = merge ? shape[at] * y.shape[d] : y.shape[d];
      ys[at] = y.strides[d];
      xs[at] = x.strides[d];
    }
  }
  bool dense() const { return ndim == 0 || (ndim == 1 && ys[0] == 1 && xs[0] == 1); }

  // f(position in the range, y offset, x offset) for n elements from `begin` on.
  template <class F>
  void each(int64_t begin, int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) {
      int64_t rest = begin + i, y = 0, x = 0;
      for (int d = ndim - 1; d >= 0; --d) {
        const int64_t at = rest % shape[d];
        rest /= shape[d];
        y += at * ys[d];
        x += at * xs[d];
      }
      f(i, y, x);
    }
  }
};

// f(words, x, y) makes kSize elements of y from the words of one group and kSize elements of x.
template <int kSize, class T, class F>
void generate(const View& y, const View& x, int64_t seed, int64_t offset, const F& f) {
  const Order order(y, x);
  parallel_for(numel(y), kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kWords];
    alignas(64) T from[kSize] = {}, to[kSize];
    for (int64_t i = begin; i < end; i += kSize) {
      const int64_t n = end - i < kSize ? end - i : kSize;
      philox_group(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), i / kSize, words);
      if (order.dense() && n == kSize) {
        f(words, data<T>(x) + i, data<T>(y) + i);
        continue;
      }
      order.each(i, n, [&](int64_t j, int64_t, int64_t at) { from[j] = data<T>(x)[at]; });
      f(words, from, to);
      order.each(i, n, [&](int64_t j, int64_t at, int64_t) { data<T>(y)[at] = to[j]; });
    }
  });
}

// ---- distributions ----

constexpr int kDoubles = kWords / 2;

// 53 bits of element j of a group of doubles.
inline double unit_double(const uint32_t* words, int j) {
  const int at = j / kBlocks * 2 * kBlocks + j % kBlocks;
  const uint64_t bits = uint64_t{words[at]} << 32 | words[at + kBlocks];
  return static_cast<double>(static_cast<int64_t>(bits >> 11)) * 0x1p-53;
}

// The largest number below `high`: u (high - low) + low may round up to it.
template <class T>
T just_below(T high, T low) {
  const T below = sizeof(T) == 4 ? static_cast<T>(__builtin_nextafterf(high, low))
                                 : static_cast<T>(__builtin_nextafter(high, low));
  return low < high ? below : high;
}

// Radius and angle of Box and Muller: y0 = r cos(a), y1 = r sin(a) with r = sqrt(-2 log u).
template <class T>
inline void normal_pair(vec<T> u, vec<T> turn, T mean, T std, T* y0, T* y1) {
  const vec<T> r = sqrt(log(u) * T(-2)) * std, angle = turn * T(6.283185307179586477);
  store(y0, r * cos(angle) + mean);
  store(y1, r * sin(angle) + mean);
}

void normal_group(const uint32_t* words, float mean, float std, float* y) {
  alignas(64) float u[kWords];
  for (int pair = 0; pair < kWords; pair += 2 * kBlocks) {
    for (int j = 0; j < kBlocks; ++j) {
      // (0, 1]: small values keep their relative resolution, so the tail reaches 6.6 std.
      u[pair + j] = (static_cast<float>(words[pair + j]) + 0.5f) * 0x1p-32f;
      const int32_t turn = static_cast<int32_t>(words[pair + kBlocks + j] >> 8);
      u[pair + kBlocks + j] = static_cast<float>(turn) * 0x1p-24f;
    }
    for (int j = pair; j < pair + kBlocks; j += lanes<float>)
      normal_pair<float>(load(u + j), load(u + j + kBlocks), mean, std, y + j, y + j + kBlocks);
  }
}

void normal_group(const uint32_t* words, double mean, double std, double* y) {
  alignas(64) double u[kDoubles];
  for (int j = 0; j < kDoubles; ++j) u[j] = unit_double(words, j) + (j < kBlocks ? 0x1p-54 : 0);
  for (int j = 0; j < kBlocks; j += lanes<double>)
    normal_pair<double>(load(u + j), load(u + j + kBlocks), mean, std, y + j, y + j + kBlocks);
}

// Words below the threshold have probability p; 2^32 takes them all.
uint64_t threshold(double p) { return static_cast<uint64_t>(p * 0x1p32); }

// ---- dropout ----

// Sixteen bits decide an element, so that a word serves two: in groups of 128 elements, element j
// takes the low (j % 32 < 16) or high half of word j / 32 of block j % 16. Where they equal the
// threshold, which is once in 65536, a word of a stream apart decides: p is exact to 2^-48.
constexpr int kHalves = 2 * kWords;

struct Dropout {
  uint64_t seed, offset;
  int32_t limit;  // halves below are dropped
  uint32_t rest;  // share of those that equal the limit
  double scale;

  Dropout(double p, int64_t s, int64_t o)
      : seed(static_cast<uint64_t>(s)), offset(static_cast<uint64_t>(o)), scale(1 / (1 - p)) {
    const uint64_t drop = static_cast<uint64_t>(p * 0x1p48);
    limit = static_cast<int32_t>(drop >> 32);
    rest = static_cast<uint32_t>(drop);
  }

  // bits[j] < limit where element `first` + j is dropped.
  void decide(int64_t first, int32_t* bits) const {
    alignas(64) uint32_t words[kWords];
    philox_group(seed, offset, first / kHalves, words);
    int32_t ties = 0;
    for (int w = 0; w < 4; ++w) {
      for (int b = 0; b < kBlocks; ++b) {
        const uint32_t word = words[w * kBlocks + b];
        const int32_t low = static_cast<int32_t>(word & 0xFFFFu);
        const int32_t high = static_cast<int32_t>(word >> 16);
        bits[2 * w * kBlocks + b] = low;
        bits[(2 * w + 1) * kBlocks + b] = high;
        ties |= static_cast<int32_t>(low == limit) | static_cast<int32_t>(high == limit);
      }
    }
    if (__builtin_expect(ties != 0, 0)) {
      for (int j = 0; j < kHalves; ++j) {
        if (bits[j] != limit) continue;
        const uint64_t apart = uint64_t{1} << 63 | static_cast<uint64_t>(first + j);
        if (philox(seed, apart, offset).v[0] < rest) bits[j] = -1;
      }
    }
  }
};

// to = (from + bias) / (1 - p) where kept, else 0; plus `add`. bias and add may be nullptr.
template <bool kBias, bool kAdd, class T>
inline void drop_group(const int32_t* bits, int32_t limit, T scale, const T* from, const T* bias,
                       const T* add, T* to) {
  for (int j = 0; j < kHalves; ++j) {
    const T kept = (kBias ? from[j] + bias[j] : from[j]) * scale;
    const T y = bits[j] >= limit ? kept : T(0);
    to[j] = kAdd ? y + add[j] : y;
  }
}

template <class T>
void dropout_typed(const View& x, const View& y, double p, int64_t seed, int64_t offset) {
  const Dropout drop(p, seed, offset);
  const Order order(y, x);
  const T scale = static_cast<T>(drop.scale), *none = nullptr;
  parallel_for(numel(y), kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) int32_t bits[kHalves];
    alignas(64) T from[kHalves] = {}, to[kHalves];
    for (int64_t i = begin; i < end; i += kHalves) {
      const int64_t n = end - i < kHalves ? end - i : kHalves;
      drop.decide(i, bits);
      if (order.dense() && n == kHalves) {
        drop_group<false, false>(bits, drop.limit, scale, data<T>(x) + i, none, none,
                                 data<T>(y) + i);
        continue;
      }
      order.each(i, n, [&](int64_t j, int64_t, int64_t at) { from[j] = data<T>(x)[at]; });
      drop_group<false, false>(bits, drop.limit, scale, from, none, none, to);
      order.each(i, n, [&](int64_t j, int64_t at, int64_t) { data<T>(y)[at] = to[j]; });
    }
  });
}

// Rows of `period` elements in a flat array: what belongs to a column (bias, its gradient) stands
// in period + kHalves elements, so that a group that runs over a row's end finds the next one's.
template <bool kBias, bool kAdd, class T>
bool bias_dropout_typed(const View& x, const View& bias, const View& residual, const View& y,
                        const View& gbias, const Dropout& drop) {
  constexpr int64_t kParts = 64;
  const int64_t n = numel(x), period = bias.data ? numel(bias) : gbias.data ? numel(gbias) : 1;
  const int64_t wide = period + kHalves;
  const int64_t least = (n + kParts - 1) / kParts;
  const int64_t part = least > kGrain ? (least + kHalves - 1) / kHalves * kHalves : kGrain;
  const int64_t parts = gbias.data ? (n + part - 1) / part : 0;
  T* columns = static_cast<T*>(scratch(sizeof(T) * static_cast<size_t>(wide * (parts + 1))));
  if (!columns) return false;
  for (int64_t j = 0; kBias && j < wide; ++j) columns[j] = data<T>(bias)[j % period];
  const T scale = static_cast<T>(drop.scale);
  parallel_for(n, part, [&](int64_t begin, int64_t end) {
    alignas(64) int32_t bits[kHalves];
    alignas(64) T from[kHalves] = {}, add[kHalves] = {}, to[kHalves];
    for (int64_t i = begin; i < end; i += kHalves) {
      const int64_t count = end - i < kHalves ? end - i : kHalves, column = i % period;
      const bool whole = count == kHalves;
      const T *px = data<T>(x) + i, *pr = kAdd ? data<T>(residual) + i : nullptr;
      T* py = whole ? data<T>(y) + i : to;
      if (!whole) {
        for (int64_t j = 0; j < count; ++j) from[j] = px[j], add[j] = kAdd ? pr[j] : T(0);
        px = from, pr = add;
      }
      drop.decide(i, bits);
      drop_group<kBias, kAdd>(bits, drop.limit, scale, px, columns + column, pr, py);
      if (!whole)
        for (int64_t j = 0; j < count; ++j) data<T>(y)[i + j] = to[j];
      if (!gbias.data) continue;
      T* sums = columns + wide * (1 + i / part);
      if (i % part == 0) __builtin_memset(sums, 0, sizeof(T) * static_cast<size_t>(wide));
      for (int64_t j = 0; j < count; ++j) sums[column + j] += py[j];
    }
  });
  if (!gbias.data) return true;
  for (int64_t c = 0; c < period; ++c) {
    double sum = 0;
    for (int64_t k = 0; k < parts; ++k)
      for (int64_t j = c; j < wide; j += period)
        sum += static_cast<double>(columns[wide * (1 + k) + j]);
    data<T>(gbias)[c] = static_cast<T>(sum);
  }
  return true;
}

// With a bias there is a residual too.
template <class T>
bool bias_dropout_any(const View& x, const View& bias, const View& residual, const View& y,
                      const View& gbias, const Dropout& drop) {
  if (bias.data) return bias_dropout_typed<true, true, T>(x, bias, residual, y, gbias, drop);
  return residual.data ? bias_dropout_typed<false, true, T>(x, bias, residual, y, gbias, drop)
                       : bias_dropout_typed<false, false, T>(x, bias, residual, y, gbias, drop);
}

template <class T>
void bernoulli_typed(const View& y, int64_t seed, int64_t offset, double p) {
  const uint64_t limit = threshold(p);
  generate<kWords, T>(y, y, seed, offset, [=](const uint32_t* words, const T*, T* to) {
    for (int j = 0; j < kWords; ++j) to[j] = words[j] < limit ? T(1) : T(0);
  });
}

}  // namespace

// low + u (high - low), u in [0, 1) with 24 (float32) or 53 (float64) random bits.
void random_uniform(Out y, int64_t seed, int64_t offset, double low, double high) {
  if (y.dtype == DType::kFloat32) {
    const float base = static_cast<float>(low), range = static_cast<float>(high - low);
    const float top = just_below(static_cast<float>(high), base);
    generate<kWords, float>(
        y, y, seed, offset, [=](const uint32_t* words, const float*, float* to) {
          for (int j = 0; j < kWords; ++j) {
            // In double the product is exact, so a fused multiply-add gives the same bits.
            const double u = static_cast<double>(static_cast<int32_t>(words[j] >> 8)) * 0x1p-24;
            const float v = static_cast<float>(u * static_cast<double>(range) + base);
            to[j] = v < top ? v : top;
          }
        });
    return;
  }
  const double range = high - low, top = just_below(high, low);
  generate<kDoubles, double>(y, y, seed, offset,
                             [=](const uint32_t* words, const double*, double* to) {
                               double scaled[kDoubles];
                               for (int j = 0; j < kDoubles; ++j)
                                 scaled[j] = unit_double(words, j) * range;
                               keep_rounding(scaled);
                               for (int j = 0; j < kDoubles; ++j)
                                 to[j] = scaled[j] + low < top ? scaled[j] + low : top;
                             });
}

void random_normal(Out y, int64_t seed, int64_t offset, double mean, double std) {
  if (y.dtype == DType::kFloat32) {
    const float m = static_cast<float>(mean), s = static_cast<float>(std);
    generate<kWords, float>(
        y, y, seed, offset,
        [=](const uint32_t* words, const float*, float* to) { normal_group(words, m, s, to); });
  } else {
    generate<kDoubles, double>(y, y, seed, offset,
                               [=](const uint32_t* words, const double*, double* to) {
                                 normal_group(words, mean, std, to);
                               });
  }
}

// 1 with probability p, else 0.
void random_bernoulli(Out y, int64_t seed, int64_t offset, double p) {
  y.dtype == DType::kFloat32 ? bernoulli_typed<float>(y, seed, offset, p)
                             : bernoulli_typed<double>(y, seed, offset, p);
}

// y = x / (1 - p) where the element's bits keep it (probability 1 - p), else 0. The mask does not
// depend on the dtype; the same call on the gradient is the backward pass.
void dropout(In x, Out y, double p, int64_t seed, int64_t offset) {
  x.dtype == DType::kFloat32 ? dropout_typed<float>(x, y, p, seed, offset)
                             : dropout_typed<double>(x, y, p, seed, offset);
}

// y = dropout(x + bias) + residual, with dropout's mask. Backward: x is the gradient, without bias
// and residual, y the input's gradient and gbias the bias's.
bool bias_dropout_add(In x, OptIn bias, OptIn residual, Out y, OptOut gbias, double p, int64_t seed,
                      int64_t offset) {
  const Dropout drop(p, seed, offset);
  return x.dtype == DType::kFloat32 ? bias_dropout_any<float>(x, bias, residual, y, gbias, drop)
                                    : bias_dropout_any<double>(x, bias, residual, y, gbias, drop);
}

}  // namespace grebe::GREBE_ISA
