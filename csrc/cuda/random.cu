// Random numbers and dropout on the Philox stream of random.h: the CPU's numbers.
//
// Idea: a thread makes one Philox block of four words and serves the elements that they belong to
// (random.h), 16 apart; so the 16 threads of a group of elements read and write whole lines
// together. Elements are numbered in logical C order, whatever the strides. Uniform numbers,
// bernoulli and dropout masks have the CPU's bits; normal ones differ in the last places of log, sin
// and cos.
//
// Floor: memory for dropout of large arrays; else 10 rounds of 6 instructions for 4 words. Not
// measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {

bool reduce_sum(In x, Out y, double scale);  // reduce.cu

namespace {

constexpr int kBlocks = 16;  // Philox blocks per group of elements

// Where element i of an array in logical order lies.
struct Place {
  int ndim;
  int64_t shape[kMaxDims], strides[kMaxDims];
};
Place place_of(const View& v) {
  Place p{};
  for (int d = 0; d < v.ndim; ++d) {
    if (v.shape[d] == 1) continue;
    const bool merge = p.ndim > 0 && p.strides[p.ndim - 1] == v.strides[d] * v.shape[d];
    const int at = merge ? p.ndim - 1 : p.ndim++;
    p.shape[at] = merge ? p.shape[at] * v.shape[d] : v.shape[d];
    p.strides[at] = v.strides[d];
  }
  return p;
}
DEVICE int64_t offset_of(const Place& p, int64_t i) {
  if (p.ndim == 1) return i * p.strides[0];
  int64_t at = 0;
  for (int d = p.ndim - 1; d >= 0; --d) {
    at += i % p.shape[d] * p.strides[d];
    i /= p.shape[d];
  }
  return at;
}

struct Stream {
  uint64_t seed, offset;
};

// ---- distributions: y from the words of one Philox block ----

template <class T>
struct Uniform {
  T low, range, top;  // top: the largest number below the bound, where rounding may end
  DEVICE void operator()(const uint32_t* w, T (&y)[4 * sizeof(float) / sizeof(T)]) const;
};
DEVICE double unit_double(uint32_t high, uint32_t low) {
  return static_cast<double>((static_cast<uint64_t>(high) << 32 | low) >> 11) * 0x1p-53;
}
template <>
DEVICE void Uniform<float>::operator()(const uint32_t* w, float (&y)[4]) const {
  for (int i = 0; i < 4; ++i) {
    const double u = static_cast<double>(w[i] >> 8) * 0x1p-24;
    const float v = static_cast<float>(u * static_cast<double>(range) + static_cast<double>(low));
    y[i] = v < top ? v : top;
  }
}
// Product and sum are rounded each, as on the CPU: fused they would give other bits.
DEVICE double product_rounded(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  volatile double product = a * b;
  return product;
#endif
}
template <>
DEVICE void Uniform<double>::operator()(const uint32_t* w, double (&y)[2]) const {
  for (int i = 0; i < 2; ++i) {
    const double v = product_rounded(unit_double(w[2 * i], w[2 * i + 1]), range) + low;
    y[i] = v < top ? v : top;
  }
}

// Box and Muller: r cos(a), r sin(a) with r = sqrt(-2 log u).
template <class T>
struct Normal {
  T mean, std;
  DEVICE void operator()(const uint32_t* w, T (&y)[4 * sizeof(float) / sizeof(T)]) const;
  DEVICE void pair(T u, T turn, T* y0, T* y1) const {
    const T r = sqrt(log(u) * T(-2)) * std, angle = turn * T(6.283185307179586477);
    *y0 = r * cos(angle) + mean;
    *y1 = r * sin(angle) + mean;
  }
};
template <>
DEVICE void Normal<float>::operator()(const uint32_t* w, float (&y)[4]) const {
  for (int i = 0; i < 4; i += 2)
    pair((static_cast<float>(w[i]) + 0.5f) * 0x1p-32f, static_cast<float>(w[i + 1] >> 8) * 0x1p-24f,
         &y[i], &y[i + 1]);
}
template <>
DEVICE void Normal<double>::operator()(const uint32_t* w, double (&y)[2]) const {
  pair(unit_double(w[0], w[1]) + 0x1p-54, unit_double(w[2], w[3]), &y[0], &y[1]);
}

template <class T>
struct Bernoulli {
  uint64_t limit;  // words below it give 1
};

// A thread per Philox block: its words serve elements 16 apart.
template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    generate(int64_t n, Stream stream, Place place, T* y, F f) {
  constexpr int kCount = 4 * sizeof(float) / sizeof(T);
  for (int64_t block = thread_number(); block / kBlocks * kBlocks * kCount < n;
       block += thread_count()) {
    const Philox4 words = philox(stream.seed, block, stream.offset);
    T out[kCount];
    f(words.v, out);
    const int64_t first = block / kBlocks * kBlocks * kCount + block % kBlocks;
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      if (first + k * kBlocks < n) y[offset_of(place, first + k * kBlocks)] = out[k];
  }
}

// One word decides an element of any type.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bernoulli(int64_t n, Stream stream, Place place, T* y, Bernoulli<T> b) {
  for (int64_t block = thread_number(); block / kBlocks * kBlocks * 4 < n;
       block += thread_count()) {
    const Philox4 words = philox(stream.seed, block, stream.offset);
    const int64_t first = block / kBlocks * kBlocks * 4 + block % kBlocks;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (first + k * kBlocks < n)
        y[offset_of(place, first + k * kBlocks)] = words.v[k] < b.limit ? T(1) : T(0);
  }
}

unsigned blocks_of(int64_t n, int elements_per_thread) {
  const int64_t groups = divide_up(n, kBlocks * elements_per_thread);
  const int64_t blocks = divide_up(groups * kBlocks, kThreads);
  return static_cast<unsigned>(blocks < 1 << 16 ? blocks : 1 << 16);
}

template <class T>
T just_below(T high, T low) {
  return low < high ? std::nextafter(high, low) : high;
}

template <class T>
void uniform(const View& y, Stream stream, double low, double high) {
  const Uniform<T> f{static_cast<T>(low), static_cast<T>(high - low),
                     just_below(static_cast<T>(high), static_cast<T>(low))};
  const int64_t n = numel(y);
  if (n > 0)
    launch("uniform", generate<T, Uniform<T>>, blocks_of(n, 4 * sizeof(float) / sizeof(T)),
           kThreads, 0, n, stream, place_of(y), data<T>(y), f);
}

template <class T>
void normal(const View& y, Stream stream, double mean, double std) {
  const Normal<T> f{static_cast<T>(mean), static_cast<T>(std)};
  const int64_t n = numel(y);
  if (n > 0)
    launch("normal", generate<T, Normal<T>>, blocks_of(n, 4 * sizeof(float) / sizeof(T)), kThreads,
           0, n, stream, place_of(y), data<T>(y), f);
}

// ---- dropout ----

// Sixteen bits decide an element, so a word serves two: in groups of 128 elements, element j takes
// the low (j % 32 < 16) or high half of word j / 32 of block j % 16. Where they equal the threshold a
// word of a stream apart decides: p is exact to 2^-48.
struct Dropout {
  Stream stream;
  uint32_t limit;  // halves below are dropped
  uint32_t rest;  // share of those that equal the limit
  double scale;

  Dropout(double p, int64_t seed, int64_t offset)
      : stream{static_cast<uint64_t>(seed), static_cast<uint64_t>(offset)}, scale(1 / (1 - p)) {
    const uint64_t drop = static_cast<uint64_t>(p * 0x1p48);
    limit = static_cast<uint32_t>(drop >> 32);
    rest = static_cast<uint32_t>(drop);
  }
  // Is element i kept, whose bits are `half`?
  DEVICE bool keeps(uint32_t half, int64_t i) const {
    if (half != limit) return half > limit;
    const uint64_t apart = uint64_t{1} << 63 | static_cast<uint64_t>(i);
    return philox(stream.seed, apart, stream.offset).v[0] >= rest;
  }
};

// f(element, kept) for the eight elements of this thread's Philox block.
template <class F>
DEVICE void for_each_half(const Dropout& drop, int64_t n, int64_t block, F f) {
  const Philox4 words = philox(drop.stream.seed, block, drop.stream.offset);
  const int64_t first = block / kBlocks * kBlocks * 8 + block % kBlocks;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int64_t i = first + k * kBlocks;
    if (i >= n) return;
    const uint32_t word = words.v[k / 2];
    f(i, drop.keeps(k % 2 ? word >> 16 : word & 0xffffu, i));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    drop_elements(int64_t n, Dropout drop, Place from, Place to, const T* x, T* y) {
  const Wide<T> scale = static_cast<Wide<T>>(drop.scale);
  for (int64_t block = thread_number(); block / kBlocks * kBlocks * 8 < n; block += thread_count())
    for_each_half(drop, n, block, [&](int64_t i, bool kept) {
      const Wide<T> value = widen(x[offset_of(from, i)]) * scale;
      y[offset_of(to, i)] = narrow<T>(kept ? value : Wide<T>(0));
    });
}

// y = dropout(x + bias) + residual, all dense.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_drop_add(int64_t n, int64_t columns, Dropout drop, const T* x, const T* bias,
                  const T* residual, T* y) {
  const Wide<T> scale = static_cast<Wide<T>>(drop.scale);
  for (int64_t block = thread_number(); block / kBlocks * kBlocks * 8 < n; block += thread_count())
    for_each_half(drop, n, block, [&](int64_t i, bool kept) {
      Wide<T> value = widen(x[i]);
      if (bias) value += widen(bias[i % columns]);
      value = kept ? value * scale : Wide<T>(0);
      if (residual) value += widen(residual[i]);
      y[i] = narrow<T>(value);
    });
}

template <class T>
void dropout_typed(const View& x, const View& y, const Dropout& drop) {
  const int64_t n = numel(y);
  if (n > 0)
    launch("dropout", drop_elements<T>, blocks_of(n, 8), kThreads, 0, n, drop, place_of(x),
           place_of(y), static_cast<const T*>(data<T>(x)), data<T>(y));
}

Stream stream_of(int64_t seed, int64_t offset) {
  return {static_cast<uint64_t>(seed), static_cast<uint64_t>(offset)};
}

}  // namespace

void random_uniform(Out y, int64_t seed, int64_t offset, double low, double high) {
  if (y.dtype == DType::kFloat32)
    uniform<float>(y, stream_of(seed, offset), low, high);
  else
    uniform<double>(y, stream_of(seed, offset), low, high);
}

void random_normal(Out y, int64_t seed, int64_t offset, double mean, double std) {
  if (y.dtype == DType::kFloat32)
    normal<float>(y, stream_of(seed, offset), mean, std);
  else
    normal<double>(y, stream_of(seed, offset), mean, std);
}

void random_bernoulli(Out y, int64_t seed, int64_t offset, double p) {
  const int64_t n = numel(y);
  if (n == 0) return;
  with_float("bernoulli", y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Bernoulli<T> b{static_cast<uint64_t>(p * 0x1p32)};
    launch("bernoulli", bernoulli<T>, blocks_of(n, 4), kThreads, 0, n, stream_of(seed, offset),
           place_of(y), data<T>(y), b);
  });
}

void dropout(In x, Out y, double p, int64_t seed, int64_t offset) {
  with_float("dropout", x.dtype,
             [&](auto zero) { dropout_typed<decltype(zero)>(x, y, Dropout(p, seed, offset)); });
}

bool bias_dropout_add(In x, OptIn bias, OptIn residual, Out y, OptOut gbias, double p, int64_t seed,
                      int64_t offset) {
  const int64_t n = numel(x);
  const Dropout drop(p, seed, offset);
  const int64_t columns = bias.data ? numel(bias) : 1;
  if (n > 0)
    with_float("dropout", x.dtype, [&](auto zero) {
      using T = decltype(zero);
      launch("dropout", bias_drop_add<T>, blocks_of(n, 8), kThreads, 0, n, columns, drop,
             static_cast<const T*>(data<T>(x)), static_cast<const T*>(data<T>(bias)),
             static_cast<const T*>(data<T>(residual)), data<T>(y));
    });
  if (!gbias.data) return true;
  In rows{};  // y as [rows, columns], whose sums over the rows are the bias's gradient
  rows.data = y.data;
  rows.dtype = y.dtype;
  rows.ndim = 2;
  rows.shape[1] = rows.strides[0] = numel(gbias);
  rows.shape[0] = rows.shape[1] ? n / rows.shape[1] : 0;
  rows.strides[1] = 1;
  Out sums{};
  sums.data = gbias.data;
  sums.dtype = gbias.dtype;
  sums.ndim = 2;
  sums.shape[0] = 1;
  sums.shape[1] = sums.strides[0] = rows.shape[1];
  sums.strides[1] = 1;
  return reduce_sum(rows, sums, 1);
}

}  // namespace grebe::cuda
