// Batch, layer, RMS and group normalisation, forward and backward.
//
// Batch norm sees two layouts: planes [N, C, inner], lanes along a plane of one channel, and rows
// [N, C] (also channels-last images), lanes along the channels. One routine serves both passes'
// reductions: the sums per channel of a and a * (x - center), where a is x - center forward and the
// gradient backward. Forward, center is the mean of a few of the channel's elements, which lies
// close enough to the mean that the sum of squares does not cancel: one read gives the variance.
// Sums are taken in T over short runs, in double beyond, per fixed segment of the batch, and the
// segments are added in order. A second pass maps: out = (x - p0) * p1 + g * p3 + p2 per channel.
// Layer norm does each row, in cache, in two passes for the moments and one for the result; backward
// four rows together, a pass for their sums and one for all gradients. RMS norm is the same without
// the mean. Group norm (instance norm: groups of one channel) does each group of
// channels of an example as such a row; backward, the two sums per channel, by batch norm's loop,
// give the row's sums as well as the parameters' gradients, so that x and grad are read twice.
// Channels-last, an example is a batch of its own for batch norm's two loops over rows; the groups'
// numbers are made from the channels' in between.
//
// Floor: memory. Bytes per float32 element: batch norm 12 forward, 20 backward; the others 8 and 12.
// Measured shares: docs/kernels/norm.md.
#include "kernels.h"
#include "rows.h"

namespace grebe::GREBE_ISA {
namespace {

struct Planes {
  int64_t n, channels, inner;  // rows layout: inner == 1
  bool rows;

  Planes(int64_t examples, int64_t c, int64_t elements)
      : n(examples), channels(c), inner(elements), rows(false) {}
  Planes(const View& x, bool channels_last) : n(x.shape[0]), channels(x.shape[1]), inner(1) {
    for (int d = 2; d < x.ndim; ++d) inner *= x.shape[d];
    rows = channels_last || inner == 1;
    if (rows) n *= inner, inner = 1;
  }
  int64_t per_channel() const { return n * inner; }
  // The batch in at most kSegments parts of at least about kRun elements per channel.
  int64_t segment() const {
    constexpr int64_t kSegments = 64, kRun = 4096;
    const int64_t few = (n + kSegments - 1) / kSegments, run = kRun / larger(1, inner);
    return larger(1, few > run ? few : run);
  }
  int64_t segments() const { return larger(1, (n + segment() - 1) / segment()); }
};

// Sums of a and a * (x - center) over one segment of one channel.
struct Sums {
  double a, ad;
};

// Slices of one scratch allocation.
struct Arena {
  char* next;
  explicit Arena(void* p) : next(static_cast<char*>(p)) {}
  template <class U>
  U* take(int64_t n) {
    U* p = reinterpret_cast<U*>(next);
    next += arena_bytes<U>(n);
    return p;
  }
  template <class U>
  static int64_t arena_bytes(int64_t n) {
    return (n * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
  }
};

// ---- batch norm: sums ----

template <class T>
struct Accumulators {
  vec<T> a[2] = {}, ad[2] = {};
  int64_t held = 0;
  Sums total{0, 0};

  void add(vec<T> x, vec<T> g, bool has_g, vec<T> center, int k) {
    const vec<T> d = x - center, v = has_g ? g : d;
    a[k] = a[k] + v;
    ad[k] = fma(v, d, ad[k]);
  }
  void flush() {
    total.a += static_cast<double>(hsum(a[0] + a[1]));
    total.ad += static_cast<double>(hsum(ad[0] + ad[1]));
    a[0] = a[1] = ad[0] = ad[1] = vec<T>{};
    held = 0;
  }
};

// One run of a plane, of at most kLongest elements.
template <class T>
void add_run(Accumulators<T>& s, const T* x, const T* g, vec<T> center, int64_t n) {
  constexpr int64_t L = lanes<T>;
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L)
    for (int k = 0; k < 2; ++k)
      s.add(load(x + i + k * L), g ? load(g + i + k * L) : vec<T>{}, g, center, k);
  if (i + L <= n) {
    s.add(load(x + i), g ? load(g + i) : vec<T>{}, g, center, 0);
    i += L;
  }
  if (i < n) {
    // Lanes past the end hold x = center: they add nothing.
    const vec<T> tail = select(lane_mask<T>(n - i), load_n(x + i, n - i), center);
    s.add(tail, g ? load_n(g + i, n - i) : vec<T>{}, g, center, 1);
  }
  s.held += n;
}

template <class T>
Sums plane_sums(const T* x, const T* g, T center, const Planes& a, int64_t c, int64_t begin,
                int64_t end) {
  constexpr int64_t kLongest = 4096;
  Accumulators<T> s;
  const vec<T> middle = splat(center);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = (i * a.channels + c) * a.inner;
    for (int64_t j = 0; j < a.inner; j += kLongest) {
      add_run(s, x + at + j, g ? g + at + j : nullptr, middle, smaller(a.inner - j, kLongest));
      if (s.held >= kLongest) s.flush();
    }
  }
  s.flush();
  return s.total;
}

constexpr int kTile = 4;  // vectors of channels side by side in the rows layout

// The next vector of a tile; without kFull only n elements of it, none where n <= 0.
template <bool kFull, class T>
inline vec<T> load_part(const T* p, int64_t n) {
  if (kFull || n >= lanes<T>) return load(p);
  return n > 0 ? load_n(p, n) : vec<T>{};
}

// Sums of `width` channels over rows [begin, end); x, g and center start at the first of them.
template <bool kFull, class T>
void tile_sums(const T* x, const T* g, const T* center, int64_t channels, int64_t begin,
               int64_t end, int64_t width, Sums* out) {
  constexpr int64_t L = lanes<T>, kRows = 64, kAhead = 16;
  vec<T> middle[kTile];
  for (int k = 0; k < kTile; ++k) middle[k] = load_part<kFull>(center + k * L, width - k * L);
  double total[2][kTile * L] = {};
  for (int64_t i = begin; i < end; i += kRows) {
    vec<T> a[kTile] = {}, ad[kTile] = {};
    for (int64_t r = i; r < smaller(i + kRows, end); ++r) {
      for (int k = 0; k < kTile; ++k) {
        const int64_t at = r * channels + k * L, left = width - k * L;
        // Far apart as rows are, the processor does not see the next ones coming.
        __builtin_prefetch(x + at + kAhead * channels);
        if (g) __builtin_prefetch(g + at + kAhead * channels);
        const vec<T> d = load_part<kFull>(x + at, left) - middle[k];
        const vec<T> v = g ? load_part<kFull>(g + at, left) : d;
        a[k] = a[k] + v;
        ad[k] = fma(v, d, ad[k]);
      }
    }
    T flat[2][kTile * L];
    for (int k = 0; k < kTile; ++k) store(flat[0] + k * L, a[k]), store(flat[1] + k * L, ad[k]);
    for (int j = 0; j < 2; ++j)
      for (int64_t c = 0; c < kTile * L; ++c) total[j][c] += static_cast<double>(flat[j][c]);
  }
  for (int64_t c = 0; c < width; ++c) out[c] = {total[0][c], total[1][c]};
}

// partial[segment][channel] for the whole batch.
template <class T>
void batch_sums(const T* x, const T* g, const T* center, const Planes& a, Sums* partial) {
  const int64_t segment = a.segment(), segments = a.segments();
  const int64_t width = a.rows ? kTile * lanes<T> : 1;
  const int64_t tiles = (a.channels + width - 1) / width;
  const int64_t grain = larger(1, kWork / larger(1, segment * a.inner * width));
  parallel_for(segments * tiles, grain, [&](int64_t first, int64_t last) {
    for (int64_t u = first; u < last; ++u) {
      const int64_t s = u / tiles, c = u % tiles * width;
      const int64_t begin = s * segment, end = smaller(begin + segment, a.n);
      Sums* out = partial + s * a.channels + c;
      if (!a.rows)
        *out = plane_sums(x, g, center[c], a, c, begin, end);
      else if (a.channels - c >= width)
        tile_sums<true>(x + c, g ? g + c : nullptr, center + c, a.channels, begin, end, width, out);
      else
        tile_sums<false>(x + c, g ? g + c : nullptr, center + c, a.channels, begin, end,
                         a.channels - c, out);
    }
  });
}

inline Sums add_segments(const Sums* partial, const Planes& a, int64_t c) {
  Sums s{0, 0};
  for (int64_t i = 0; i < a.segments(); ++i) {
    s.a += partial[i * a.channels + c].a;
    s.ad += partial[i * a.channels + c].ad;
  }
  return s;
}

// A value close to each channel's mean: the mean of up to `most` of its elements.
template <class T>
void rough_means(const T* x, const Planes& a, T* center, int64_t most = 64) {
  const int64_t rows = smaller(a.rows ? a.n : a.inner, most);
  for (int64_t c = 0; c < a.channels; ++c) center[c] = 0;
  if (a.per_channel() == 0) return;
  for (int64_t c = 0; c < a.channels && !a.rows; ++c)
    for (int64_t j = 0; j < rows; ++j) center[c] += x[c * a.inner + j];
  for (int64_t i = 0; i < rows && a.rows; ++i)
    for (int64_t c = 0; c < a.channels; ++c) center[c] += x[i * a.channels + c];
  for (int64_t c = 0; c < a.channels; ++c) center[c] /= static_cast<T>(rows);
}

// ---- batch norm: map ----

// out = (x - p[0]) * p[1] + p[2] + g * p[3], p per channel; without g the last term drops.
template <class T>
void map_plane(const T* x, const T* g, T* out, int64_t n, const T* const (&p)[4], int64_t c) {
  const vec<T> p0 = splat(p[0][c]), p1 = splat(p[1][c]), p2 = splat(p[2][c]);
  const vec<T> p3 = g ? splat(p[3][c]) : vec<T>{};
  if (!g)
    row_map(x, out, n, [=](vec<T> v, int64_t, int64_t) { return fma(v - p0, p1, p2); });
  else
    row_map(x, out, n, [=](vec<T> v, int64_t i, int64_t valid) {
      return fma(v - p0, p1, fma(load_upto(g + i, valid), p3, p2));
    });
}

template <class T>
void map_row(const T* x, const T* g, T* out, int64_t channels, const T* const (&p)[4]) {
  row_map(x, out, channels, [&](vec<T> v, int64_t c, int64_t valid) {
    vec<T> add = load_upto(p[2] + c, valid);
    if (g) add = fma(load_upto(g + c, valid), load_upto(p[3] + c, valid), add);
    return fma(v - load_upto(p[0] + c, valid), load_upto(p[1] + c, valid), add);
  });
}

template <class T>
void batch_map(const T* x, const T* g, T* out, const Planes& a, const T* const (&p)[4]) {
  if (a.rows) {
    for_each_row(a.n, a.channels, [&](int64_t i) {
      const int64_t at = i * a.channels;
      map_row(x + at, g ? g + at : nullptr, out + at, a.channels, p);
    });
    return;
  }
  for_each_row(a.n * a.channels, a.inner, [&](int64_t i) {
    const int64_t at = i * a.inner;
    map_plane(x + at, g ? g + at : nullptr, out + at, a.inner, p, i % a.channels);
  });
}

// ---- batch norm ----

struct BatchNormArrays {
  OptIn weight, bias;
  OptOut running_mean, running_var;
  Out mean, invstd;
};

// Mean and 1 / sqrt(var + eps) of the batch; moves the running statistics.
template <class T>
bool batch_statistics(const T* x, const Planes& a, const BatchNormArrays& v, double momentum,
                      double eps) {
  const int64_t bytes =
      Arena::arena_bytes<Sums>(a.segments() * a.channels) + Arena::arena_bytes<T>(a.channels);
  Arena arena(scratch(static_cast<size_t>(bytes)));
  if (!arena.next) return false;
  Sums* partial = arena.take<Sums>(a.segments() * a.channels);
  T* center = arena.take<T>(a.channels);
  rough_means(x, a, center);
  batch_sums<T>(x, nullptr, center, a, partial);
  const double count = static_cast<double>(a.per_channel());
  for (int64_t c = 0; c < a.channels; ++c) {
    const Sums s = add_segments(partial, a, c);
    const double shift = s.a / count, mean = static_cast<double>(center[c]) + shift;
    double squares = s.ad - shift * s.a;
    if (squares < 0) squares = 0;
    data<T>(v.mean)[c] = static_cast<T>(mean);
    data<T>(v.invstd)[c] = static_cast<T>(1 / __builtin_sqrt(squares / count + eps));
    auto move = [&](OptOut running, double value) {
      T& r = data<T>(running)[c];
      r = static_cast<T>((1 - momentum) * static_cast<double>(r) + momentum * value);
    };
    if (v.running_mean.data) move(v.running_mean, mean);
    if (v.running_var.data) move(v.running_var, squares / (count - 1));
  }
  return true;
}

template <class T>
bool batch_norm_any(In input, Out output, const BatchNormArrays& v, bool training, double momentum,
                    double eps, bool channels_last) {
  const Planes a(input, channels_last);
  T *mean = data<T>(v.mean), *invstd = data<T>(v.invstd);
  if (training) {
    if (!batch_statistics(data<T>(input), a, v, momentum, eps)) return false;
  } else {
    for (int64_t c = 0; c < a.channels; ++c) {
      mean[c] = data<T>(v.running_mean)[c];
      const double variance = static_cast<double>(data<T>(v.running_var)[c]);
      invstd[c] = static_cast<T>(1 / __builtin_sqrt(variance + eps));
    }
  }
  Arena arena(scratch(static_cast<size_t>(2 * Arena::arena_bytes<T>(a.channels))));
  if (!arena.next) return false;
  T *scale = arena.take<T>(a.channels), *bias = arena.take<T>(a.channels);
  for (int64_t c = 0; c < a.channels; ++c) {
    scale[c] = v.weight.data ? invstd[c] * data<T>(v.weight)[c] : invstd[c];
    bias[c] = v.bias.data ? data<T>(v.bias)[c] : T{0};
  }
  batch_map<T>(data<T>(input), nullptr, data<T>(output), a, {mean, scale, bias, nullptr});
  return true;
}

struct BatchNormGrads {
  OptOut input, weight, bias;
};

// In evaluation the statistics are constants, so the input's gradient is grad * scale.
template <class T>
bool batch_norm_backward_any(In grad, In input, OptIn weight, In saved_mean, In saved_invstd,
                             const BatchNormGrads& out, bool training, bool channels_last) {
  const Planes a(input, channels_last);
  const T *x = data<T>(input), *g = data<T>(grad);
  const T *mean = data<T>(saved_mean), *invstd = data<T>(saved_invstd);
  const int64_t channels = a.channels;
  Arena arena(scratch(static_cast<size_t>(Arena::arena_bytes<Sums>(a.segments() * channels) +
                                          4 * Arena::arena_bytes<T>(channels))));
  if (!arena.next) return false;
  Sums* partial = arena.take<Sums>(a.segments() * channels);
  T* p[4];
  for (auto& q : p) q = arena.take<T>(channels);
  const bool sums = training || out.weight.data || out.bias.data;
  if (sums) batch_sums(x, g, mean, a, partial);
  const double count = static_cast<double>(a.per_channel());
  for (int64_t c = 0; c < channels; ++c) {
    const Sums s = sums ? add_segments(partial, a, c) : Sums{0, 0};
    const double inv = static_cast<double>(invstd[c]);
    const double scale = weight.data ? inv * static_cast<double>(data<T>(weight)[c]) : inv;
    if (out.weight.data) data<T>(out.weight)[c] = static_cast<T>(s.ad * inv);
    if (out.bias.data) data<T>(out.bias)[c] = static_cast<T>(s.a);
    p[0][c] = training ? mean[c] : T{0};
    p[1][c] = static_cast<T>(training ? -scale * inv * inv * s.ad / count : scale);
    p[2][c] = static_cast<T>(training ? -scale * s.a / count : 0.0);
    p[3][c] = static_cast<T>(scale);
  }
  if (!out.input.data) return true;
  const T* const parameters[4] = {p[0], p[1], p[2], p[3]};
  if (training)
    batch_map(x, g, data<T>(out.input), a, parameters);
  else
    batch_map<T>(g, nullptr, data<T>(out.input), a, parameters);
  return true;
}

// ---- layer norm ----

// kCentred: layer norm; else RMS norm, whose mean is 0.
template <bool kCentred, class T>
T row_mean(const T* x, int64_t n) {
  if (!kCentred) return 0;
  return row_sum(x, n, [](vec<T> v, int64_t, int64_t) { return v; }) / static_cast<T>(n);
}

template <class T>
T row_invstd(const T* x, int64_t n, T mean, double eps) {
  const vec<T> m = splat(mean);
  const T squares = row_sum(x, n, [=](vec<T> v, int64_t, int64_t) { return (v - m) * (v - m); });
  const double variance = static_cast<double>(squares / static_cast<T>(n));
  return static_cast<T>(1 / __builtin_sqrt(variance + eps));
}

template <bool kCentred, class T>
void layer_norm_any(In input, OptIn weight, OptIn bias, Out output, OptOut mean, Out invstd,
                    int64_t rows, int64_t n, double eps) {
  const T *w = data<T>(weight), *b = data<T>(bias);
  for_each_row(rows, n, [=](int64_t i) {
    const T* x = data<T>(input) + i * n;
    const T m = row_mean<kCentred>(x, n), inv = row_invstd(x, n, m, eps);
    if (kCentred) data<T>(mean)[i] = m;
    data<T>(invstd)[i] = inv;
    const vec<T> middle = splat(m), s = splat(inv);
    row_map(x, data<T>(output) + i * n, n, [=](vec<T> v, int64_t j, int64_t valid) {
      vec<T> r = (v - middle) * s;
      if (w) r = r * load_upto(w + j, valid);
      return b ? r + load_upto(b + j, valid) : r;
    });
  });
}

// What backward needs of a row: xhat = (x - mean) invstd, gx = invstd (h - a - xhat b), where
// h = g weight, a = mean(h), b = mean(h xhat).
template <class T>
struct NormRow {
  const T *g, *x;
  T* gx;
  T mean, invstd, a, b;
};

// a and b of columns [begin, end), not yet divided, by blocks that are added in double.
template <bool kCentred, class T>
void add_row_sums(const NormRow<T>& r, const T* weight, int64_t begin, int64_t end, double* sums) {
  constexpr int64_t L = lanes<T>;
  const vec<T> m = splat(r.mean), s = splat(r.invstd);
  for (int64_t i = begin; i < end;) {
    const int64_t stop = smaller(i + kBlock, end);
    vec<T> a[2] = {}, b[2] = {};
    auto step = [&](int k, int64_t j, int64_t n) {
      vec<T> h = load_upto(r.g + j, n);
      if (weight) h = h * load_upto(weight + j, n);
      if (kCentred) a[k] = a[k] + h;
      b[k] = fma(h, (load_upto(r.x + j, n) - m) * s, b[k]);  // past the end h is 0
    };
    for (; i + 2 * L <= stop; i += 2 * L)
      for (int k = 0; k < 2; ++k) step(k, i + k * L, L);
    for (; i < stop; i += L) step(0, i, smaller(stop - i, L));
    i = stop;
    if (kCentred) sums[0] += static_cast<double>(hsum(a[0] + a[1]));
    sums[1] += static_cast<double>(hsum(b[0] + b[1]));
  }
}

template <bool kCentred, class T>
void set_row_means(NormRow<T>& r, const T* weight, int64_t n) {
  double sums[2] = {};
  if (n < kSplitFrom) {
    add_row_sums<kCentred>(r, weight, 0, n, sums);
  } else {
    double parts[kParts][2] = {};
    for_each_piece(n, [&](int64_t k, int64_t begin, int64_t end) {
      add_row_sums<kCentred>(r, weight, begin, end, parts[k]);
    });
    for (const auto& part : parts) sums[0] += part[0], sums[1] += part[1];
  }
  r.a = static_cast<T>(sums[0] / static_cast<double>(n));
  r.b = static_cast<T>(sums[1] / static_cast<double>(n));
}

// gx of kRows rows, and their share of the parameters' gradients, in columns [begin, end).
template <int kRows, class T>
void layer_norm_backward_rows(const NormRow<T>* rows, const T* weight, T* gw, T* gb, int64_t begin,
                              int64_t end) {
  constexpr int64_t L = lanes<T>;
  for (int64_t j = begin; j < end; j += L) {
    const int64_t n = smaller(end - j, L);
    const vec<T> w = weight ? load_upto(weight + j, n) : splat(T(1));
    vec<T> sum_w{}, sum_b{};
#pragma GCC unroll 4
    for (int k = 0; k < kRows; ++k) {
      const NormRow<T>& r = rows[k];
      const vec<T> g = load_upto(r.g + j, n), s = splat(r.invstd);
      const vec<T> xhat = (load_upto(r.x + j, n) - splat(r.mean)) * s;
      sum_w = fma(g, xhat, sum_w);
      sum_b = sum_b + g;
      if (r.gx) store_upto(r.gx + j, (fma(g, w, -splat(r.a)) - xhat * r.b) * s, n);
    }
    if (!gw) continue;
    store_upto(gw + j, load_upto(static_cast<const T*>(gw) + j, n) + sum_w, n);
    store_upto(gb + j, load_upto(static_cast<const T*>(gb) + j, n) + sum_b, n);
  }
}

template <bool kCentred, class T>
bool layer_norm_backward_any(In grad, In input, OptIn weight, OptIn mean, In invstd,
                             OptOut grad_input, OptOut grad_weight, OptOut grad_bias, int64_t rows,
                             int64_t n) {
  constexpr int64_t kSegments = 64, kRows = 16, kTogether = 4;
  const T* w = data<T>(weight);
  T* gx = data<T>(grad_input);
  const int64_t few = (rows + kSegments - 1) / kSegments, segment = few > kRows ? few : kRows;
  const int64_t segments = (rows + segment - 1) / segment;
  const bool parameters = grad_weight.data || grad_bias.data;
  T* partial = nullptr;  // [segment][2][n]
  if (parameters) {
    partial = static_cast<T*>(scratch(sizeof(T) * static_cast<size_t>(2 * n * segments + 1)));
    if (!partial) return false;
  }
  const int64_t grain = larger(1, kWork / larger(1, segment * n));
  parallel_for(segments, grain, [&](int64_t first, int64_t last) {
    for (int64_t u = first; u < last; ++u) {
      T* gw = partial ? partial + 2 * u * n : nullptr;
      if (gw) __builtin_memset(gw, 0, sizeof(T) * static_cast<size_t>(2 * n));
      const int64_t stop = smaller((u + 1) * segment, rows);
      for (int64_t i = u * segment; i < stop; i += kTogether) {
        const int64_t count = smaller(stop - i, kTogether);
        NormRow<T> r[kTogether];
        for (int64_t k = 0; k < count; ++k) {
          const int64_t at = (i + k) * n;
          r[k] = {data<T>(grad) + at,
                  data<T>(input) + at,
                  gx ? gx + at : nullptr,
                  kCentred ? data<T>(mean)[i + k] : T{0},
                  data<T>(invstd)[i + k],
                  T{0},
                  T{0}};
          if (gx) set_row_means<kCentred>(r[k], w, n);
        }
        auto write = [&](int64_t, int64_t begin, int64_t end) {
          T* gb = gw ? gw + n : nullptr;
          if (count == kTogether)
            return layer_norm_backward_rows<kTogether>(r, w, gw, gb, begin, end);
          for (int64_t k = 0; k < count; ++k)
            layer_norm_backward_rows<1>(r + k, w, gw, gb, begin, end);
        };
        n < kSplitFrom ? write(0, 0, n) : for_each_piece(n, write);
      }
    }
  });
  for (int64_t c = 0; c < n && parameters; ++c) {
    double sum_weight = 0, sum_bias = 0;
    for (int64_t u = 0; u < segments; ++u) {
      sum_weight += static_cast<double>(partial[2 * u * n + c]);
      sum_bias += static_cast<double>(partial[(2 * u + 1) * n + c]);
    }
    if (grad_weight.data) data<T>(grad_weight)[c] = static_cast<T>(sum_weight);
    if (grad_bias.data) data<T>(grad_bias)[c] = static_cast<T>(sum_bias);
  }
  return true;
}

// ---- group norm ----

// Rows are groups of `size` channels of an example; a channel has `inner` elements.
struct Groups {
  int64_t examples, groups, size, inner;
  int64_t rows() const { return examples * groups; }
  int64_t channels() const { return groups * size; }
  int64_t row() const { return size * inner; }
  int64_t example() const { return groups * row(); }
};

template <class T>
void group_norm_any(In input, OptIn weight, OptIn bias, Out output, Out mean, Out invstd,
                    const Groups& a, double eps) {
  const T *w = data<T>(weight), *b = data<T>(bias);
  for_each_row(a.rows(), a.row(), [=](int64_t i) {
    const T* x = data<T>(input) + i * a.row();
    T* y = data<T>(output) + i * a.row();
    const T m = row_mean<true>(x, a.row()), inv = row_invstd(x, a.row(), m, eps);
    data<T>(mean)[i] = m;
    data<T>(invstd)[i] = inv;
    for (int64_t k = 0; k < a.size; ++k) {
      const int64_t c = i % a.groups * a.size + k;
      const T scale = w ? inv * w[c] : inv, shift = b ? b[c] : T{0};
      const T* const p[4] = {&m, &scale, &shift, nullptr};
      map_plane<T>(x + k * a.inner, nullptr, y + k * a.inner, a.inner, p, 0);
    }
  });
}

// The numbers of gx = (x - mean) * slope + shift + g * invstd * weight in one group, from the sums
// of each of its channels.
template <class T>
struct RowMap {
  T slope, shift;

  RowMap(const Sums* sums, const T* w, const Groups& a, T invstd) {
    double total = 0, dot = 0;
    for (int64_t k = 0; k < a.size; ++k) {
      const double weight = w ? static_cast<double>(w[k]) : 1.0;
      total += weight * sums[k].a;
      dot += weight * sums[k].ad;
    }
    const double s = static_cast<double>(invstd), count = static_cast<double>(a.row());
    slope = static_cast<T>(-s * s * s * dot / count);
    shift = static_cast<T>(-s * total / count);
  }
};

template <class T>
void group_norm_backward_row(const T* g, const T* x, T* gx, const Sums* sums, const T* w,
                             const Groups& a, T m, T invstd) {
  const RowMap<T> map(sums, w, a, invstd);
  for (int64_t k = 0; k < a.size; ++k) {
    const T scale = w ? invstd * w[k] : invstd;
    const T* const p[4] = {&m, &map.slope, &map.shift, &scale};
    map_plane(x + k * a.inner, g + k * a.inner, gx + k * a.inner, a.inner, p, 0);
  }
}

// sums(example, channel): of g and g * (x - mean).
template <class T, class F>
void group_parameter_gradients(const Groups& a, const T* invstd, T* gw, T* gb, const F& sums) {
  for (int64_t c = 0; c < a.channels() && (gw || gb); ++c) {
    Sums total{0, 0};
    for (int64_t i = 0; i < a.examples; ++i) {
      const Sums s = sums(i, c);
      total.a += s.a;
      total.ad += s.ad * static_cast<double>(invstd[i * a.groups + c / a.size]);
    }
    if (gw) gw[c] = static_cast<T>(total.ad);
    if (gb) gb[c] = static_cast<T>(total.a);
  }
}

template <class T>
bool group_norm_backward_any(In grad, In input, OptIn weight, In mean, In invstd, OptOut grad_input,
                             OptOut grad_weight, OptOut grad_bias, const Groups& a) {
  const int64_t channels = a.channels();
  Sums* sums = static_cast<Sums*>(  // [example][channel]
      scratch(sizeof(Sums) * static_cast<size_t>(a.examples * channels + 1)));
  if (!sums) return false;
  const Planes planes(1, a.rows() * a.size, a.inner);
  for_each_row(a.rows(), a.row(), [&](int64_t i) {
    const T *g = data<T>(grad) + i * a.row(), *x = data<T>(input) + i * a.row();
    const T m = data<T>(mean)[i];
    for (int64_t k = 0; k < a.size; ++k)
      sums[i * a.size + k] = plane_sums(x, g, m, planes, k, 0, 1);
    const T* w = weight.data ? data<T>(weight) + i % a.groups * a.size : nullptr;
    if (grad_input.data)
      group_norm_backward_row(g, x, data<T>(grad_input) + i * a.row(), sums + i * a.size, w, a, m,
                              data<T>(invstd)[i]);
  });
  group_parameter_gradients(a, data<T>(invstd), data<T>(grad_weight), data<T>(grad_bias),
                            [=](int64_t i, int64_t c) { return sums[i * channels + c]; });
  return true;
}

// ---- group norm, channels-last ----

// One example as a batch of pixels, and its scratch memory: sums per segment and channel (in the
// end those of the first segment are the channels'), and four numbers per channel.
template <class T>
struct Example {
  Planes pixels;
  char* memory;
  Sums* sums = nullptr;
  T* p[4] = {};

  explicit Example(const Groups& a) : pixels(a.inner, a.channels(), 1), memory(nullptr) {
    pixels.rows = true;
  }
  int64_t bytes() const {
    return Arena::arena_bytes<Sums>(pixels.segments() * pixels.channels) +
           4 * Arena::arena_bytes<T>(pixels.channels);
  }
  Example at(int64_t i) const {
    Example e = *this;
    e.memory += i * bytes();
    Arena arena(e.memory);
    e.sums = arena.take<Sums>(pixels.segments() * pixels.channels);
    for (T*& q : e.p) q = arena.take<T>(pixels.channels);
    return e;
  }
  // Sums of a and a * (x - p[0]) per channel.
  void add_up(const T* x, const T* g) const {
    batch_sums<T>(x, g, p[0], pixels, sums);
    for (int64_t c = 0; c < pixels.channels && pixels.segments() > 1; ++c)
      sums[c] = add_segments(sums, pixels, c);
  }
  void map(const T* x, const T* g, T* out) const {
    const T* const parameters[4] = {p[0], p[1], p[2], p[3]};
    batch_map(x, g, out, pixels, parameters);
  }
};

// Mean and 1 / sqrt(var + eps) of `size` channels of n elements, from each channel's sums around
// its center.
template <class T>
void group_statistics(const Sums* sums, const T* center, int64_t size, double n, double eps,
                      T* mean, T* invstd) {
  double total = 0, squares = 0;
  for (int64_t k = 0; k < size; ++k) total += static_cast<double>(center[k]) + sums[k].a / n;
  const double middle = total / static_cast<double>(size);
  for (int64_t k = 0; k < size; ++k) {
    const double shift = sums[k].a / n, d = static_cast<double>(center[k]) + shift - middle;
    squares += sums[k].ad - shift * sums[k].a + n * d * d;
  }
  if (squares < 0) squares = 0;
  *mean = static_cast<T>(middle);
  *invstd = static_cast<T>(1 / __builtin_sqrt(squares / (n * static_cast<double>(size)) + eps));
}

template <class T>
bool group_norm_pixels(In input, OptIn weight, OptIn bias, Out output, Out mean, Out invstd,
                       const Groups& a, double eps) {
  constexpr int64_t kRough = 16;
  const T *w = data<T>(weight), *b = data<T>(bias);
  Example<T> example(a);
  example.memory =
      static_cast<char*>(scratch(static_cast<size_t>(example.bytes() * a.examples + 1)));
  if (!example.memory) return false;
  for_each_row(a.examples, a.example(), [&](int64_t i) {
    const Example<T> e = example.at(i);
    const T* x = data<T>(input) + i * a.example();
    rough_means(x, e.pixels, e.p[0], kRough);
    e.add_up(x, nullptr);
    for (int64_t j = 0; j < a.groups; ++j) {
      const int64_t first = j * a.size, at = i * a.groups + j;
      T m, inv;
      group_statistics(e.sums + first, e.p[0] + first, a.size, static_cast<double>(a.inner), eps,
                       &m, &inv);
      data<T>(mean)[at] = m;
      data<T>(invstd)[at] = inv;
      for (int64_t c = first; c < first + a.size; ++c) {
        e.p[0][c] = m;
        e.p[1][c] = w ? inv * w[c] : inv;
        e.p[2][c] = b ? b[c] : T{0};
      }
    }
    e.map(x, nullptr, data<T>(output) + i * a.example());
  });
  return true;
}

template <class T>
bool group_norm_backward_pixels(In grad, In input, OptIn weight, In mean, In invstd,
                                OptOut grad_input, OptOut grad_weight, OptOut grad_bias,
                                const Groups& a) {
  Example<T> example(a);
  example.memory =
      static_cast<char*>(scratch(static_cast<size_t>(example.bytes() * a.examples + 1)));
  if (!example.memory) return false;
  for_each_row(a.examples, a.example(), [&](int64_t i) {
    const Example<T> e = example.at(i);
    const T *g = data<T>(grad) + i * a.example(), *x = data<T>(input) + i * a.example();
    for (int64_t c = 0; c < a.channels(); ++c) e.p[0][c] = data<T>(mean)[i * a.groups + c / a.size];
    e.add_up(x, g);
    if (!grad_input.data) return;
    for (int64_t j = 0; j < a.groups; ++j) {
      const int64_t first = j * a.size;
      const T* w = weight.data ? data<T>(weight) + first : nullptr;
      const T inv = data<T>(invstd)[i * a.groups + j];
      const RowMap<T> map(e.sums + first, w, a, inv);
      for (int64_t k = 0; k < a.size; ++k) {
        e.p[1][first + k] = map.slope;
        e.p[2][first + k] = map.shift;
        e.p[3][first + k] = w ? inv * w[k] : inv;
      }
    }
    e.map(x, g, data<T>(grad_input) + i * a.example());
  });
  group_parameter_gradients(a, data<T>(invstd), data<T>(grad_weight), data<T>(grad_bias),
                            [=, bytes = example.bytes()](int64_t i, int64_t c) {
                              return reinterpret_cast<Sums*>(example.memory + i * bytes)[c];
                            });
  return true;
}

}  // namespace

bool batch_norm(In x, OptIn weight, OptIn bias, OptOut running_mean, OptOut running_var, Out y,
                Out mean, Out invstd, bool training, double momentum, double eps,
                bool channels_last) {
  const BatchNormArrays v{weight, bias, running_mean, running_var, mean, invstd};
  return x.dtype == DType::kFloat32
             ? batch_norm_any<float>(x, y, v, training, momentum, eps, channels_last)
             : batch_norm_any<double>(x, y, v, training, momentum, eps, channels_last);
}

bool batch_norm_backward(In grad, In x, OptIn weight, In mean, In invstd, OptOut gx, OptOut gweight,
                         OptOut gbias, bool training, bool channels_last) {
  const BatchNormGrads out{gx, gweight, gbias};
  return x.dtype == DType::kFloat32 ? batch_norm_backward_any<float>(grad, x, weight, mean, invstd,
                                                                     out, training, channels_last)
                                    : batch_norm_backward_any<double>(grad, x, weight, mean, invstd,
                                                                      out, training, channels_last);
}

// Without a mean: RMS norm.
void layer_norm(In x, OptIn weight, OptIn bias, Out y, OptOut mean, Out invstd, int64_t rows,
                int64_t n, double eps) {
  const bool f32 = x.dtype == DType::kFloat32;
  const auto run = mean.data ? (f32 ? layer_norm_any<true, float> : layer_norm_any<true, double>)
                             : (f32 ? layer_norm_any<false, float> : layer_norm_any<false, double>);
  run(x, weight, bias, y, mean, invstd, rows, n, eps);
}

bool layer_norm_backward(In grad, In x, OptIn weight, OptIn mean, In invstd, OptOut gx,
                         OptOut gweight, OptOut gbias, int64_t rows, int64_t n) {
  const bool f32 = x.dtype == DType::kFloat32;
  const auto run =
      mean.data
          ? (f32 ? layer_norm_backward_any<true, float> : layer_norm_backward_any<true, double>)
          : (f32 ? layer_norm_backward_any<false, float> : layer_norm_backward_any<false, double>);
  return run(grad, x, weight, mean, invstd, gx, gweight, gbias, rows, n);
}

bool group_norm(In x, OptIn weight, OptIn bias, Out y, Out mean, Out invstd, int64_t examples,
                int64_t groups, int64_t size, int64_t inner, double eps, bool channels_last) {
  const Groups a{examples, groups, size, inner};
  const bool f32 = x.dtype == DType::kFloat32;
  if (channels_last)
    return (f32 ? group_norm_pixels<float> : group_norm_pixels<double>)(x, weight, bias, y, mean,
                                                                        invstd, a, eps);
  (f32 ? group_norm_any<float> : group_norm_any<double>)(x, weight, bias, y, mean, invstd, a, eps);
  return true;
}

bool group_norm_backward(In grad, In x, OptIn weight, In mean, In invstd, OptOut gx, OptOut gweight,
                         OptOut gbias, int64_t examples, int64_t groups, int64_t size,
                         int64_t inner, bool channels_last) {
  const Groups a{examples, groups, size, inner};
  const bool f32 = x.dtype == DType::kFloat32;
  const auto run =
      channels_last ? (f32 ? group_norm_backward_pixels<float> : group_norm_backward_pixels<double>)
                    : (f32 ? group_norm_backward_any<float> : group_norm_backward_any<double>);
  return run(grad, x, weight, mean, invstd, gx, gweight, gbias, a);
}

}  // namespace grebe::GREBE_ISA
