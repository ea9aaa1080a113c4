// Random numbers and dropout on the Philox stream of random.h.
//
// Idea: sixteen Philox blocks at a time, two or more per vector, give 64 words; which word belongs
// to which element (random.h) is chosen so that vectors of any width store them without shuffling.
// The words go through a small buffer to loops that the compiler vectorises. uniform, bernoulli and
// dropout give the same bits on every ISA level and for any number of threads; normal differs
// between levels in the last places of log, sin and cos.
//
// Arrays are visited in logical C order, so that an element's number does not depend on strides.
// Floor: 10 rounds of 8 instructions for 4 words; for dropout of large arrays the memory traffic.
#include "philox.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements, a multiple of a group

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

template <class T>
void dropout_typed(const View& x, const View& y, double p, int64_t seed, int64_t offset) {
  const uint64_t drop = threshold(p);
  if (drop > 0xFFFFFFFFu) {
    return generate<kWords, T>(y, x, seed, offset, [](const uint32_t*, const T*, T* to) {
      for (int j = 0; j < kWords; ++j) to[j] = 0;
    });
  }
  const uint32_t limit = static_cast<uint32_t>(drop);
  const T scale = static_cast<T>(1 / (1 - p));
  generate<kWords, T>(y, x, seed, offset, [=](const uint32_t* words, const T* from, T* to) {
    for (int j = 0; j < kWords; ++j) {
      const T kept = from[j] * scale;
      to[j] = words[j] >= limit ? kept : T(0);
    }
  });
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

// y = x / (1 - p) where the element's word keeps it (probability 1 - p), else 0. The mask does not
// depend on the dtype; the same call on the gradient is the backward pass.
void dropout(In x, Out y, double p, int64_t seed, int64_t offset) {
  x.dtype == DType::kFloat32 ? dropout_typed<float>(x, y, p, seed, offset)
                             : dropout_typed<double>(x, y, p, seed, offset);
}

}  // namespace grebe::GREBE_ISA
