// Batch, layer, RMS and group normalisation, forward and backward.
//
// Batch norm sees planes [N, C, inner] or rows [N, C] (also channels-last images). One kernel serves
// both passes' reductions: the sums per channel of a and a (x - center), where a is x - center forward
// and the gradient backward; forward, center is the channel's first element, close enough to the mean
// that the sum of squares does not cancel, so that one read gives the variance. Sums are in float64,
// per segment of the batch; a second kernel adds the segments in order and makes the numbers of the
// map out = (x - p0) p1 + g p3 + p2, which a third applies.
// Layer norm does a row per warp or block, from the caches; RMS norm is the same without the mean;
// group norm's row is a group of channels of an example. The parameters' gradients are sums down
// the rows, by tiles of columns and parts of the rows, added in order.
//
// Floor: memory. Bytes per float32 element: batch norm 12 forward, 20 backward; the others 8 and 12. Not
// measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

constexpr int kTile = 32, kTileRows = 8;
constexpr size_t kSpace = kThreads / 32 * sizeof(double);

template <class F>
void with_real(const char* name, DType dtype, const F& f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kFloat64) return f(double{});
  unsupported(name, dtype);
}

struct Sums {
  double a, ad;
};

// ---- batch norm ----

struct Planes {
  int64_t n, channels, inner;  // rows: inner == 1
  int64_t segments, segment;  // of n

  Planes(const View& x, bool channels_last) : n(x.shape[0]), channels(x.shape[1]), inner(1) {
    for (int d = 2; d < x.ndim; ++d) inner *= x.shape[d];
    if (channels_last) {
      n *= inner;
      inner = 1;
    }
    const int64_t run = divide_up(4096, inner ? inner : 1), few = divide_up(n, 128);
    segment = run > few ? run : few;
    segments = n ? divide_up(n, segment) : 1;
  }
  GREBE_EVERYWHERE int64_t per_channel() const { return n * inner; }
};

// Sums per segment and channel. center: per channel, or nullptr for the channel's first element.
// g null: a is x - center.
template <class T>
DEVICE void add_element(Sums& s, const T* x, const T* g, int64_t at, double center) {
  const double d = static_cast<double>(x[at]) - center;
  const double a = g ? static_cast<double>(g[at]) : d;
  s.a += a;
  s.ad = fma(a, d, s.ad);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    plane_sums(Planes p, const T* x, const T* g, const T* center, Sums* sums) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  const int64_t channel = blockIdx.x, begin = blockIdx.y * p.segment, stop = begin + p.segment;
  const int64_t end = stop < p.n ? stop : p.n;
  const double middle = p.n * p.inner == 0 ? 0 : center ? center[channel] : x[channel * p.inner];
  Sums s{0, 0};
  for (int64_t e = threadIdx.x; e < (end - begin) * p.inner; e += kThreads) {
    const int64_t i = begin + e / p.inner;
    add_element(s, x, g, (i * p.channels + channel) * p.inner + e % p.inner, middle);
  }
  s.a = block_combine(s.a, space, Plus{});
  s.ad = block_combine(s.ad, space, Plus{});
  if (threadIdx.x == 0) sums[blockIdx.y * p.channels + channel] = s;
}

template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    row_sums(Planes p, const T* x, const T* g, const T* center, Sums* sums) {
  Shared shared;
  Sums* tile = shared.take<Sums>(kTile * kTileRows);
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  const int64_t begin = blockIdx.y * p.segment, stop = begin + p.segment;
  const int64_t end = stop < p.n ? stop : p.n;
  const bool valid = channel < p.channels;
  Sums s{0, 0};
  if (valid) {
    const double middle = p.n == 0 ? 0 : center ? center[channel] : x[channel];
    for (int64_t i = begin + threadIdx.y; i < end; i += kTileRows)
      add_element(s, x, g, i * p.channels + channel, middle);
  }
  tile[threadIdx.y * kTile + threadIdx.x] = s;
  __syncthreads();
  if (threadIdx.y != 0 || !valid) return;
  for (int r = 1; r < kTileRows; ++r) {
    s.a += tile[r * kTile + threadIdx.x].a;
    s.ad += tile[r * kTile + threadIdx.x].ad;
  }
  sums[blockIdx.y * p.channels + channel] = s;
}

template <class T>
Sums* channel_sums(const Planes& p, const T* x, const T* g, const T* center) {
  Sums* sums =
      static_cast<Sums*>(workspace(p.segments * p.channels * static_cast<int64_t>(sizeof(Sums))));
  const unsigned segments = static_cast<unsigned>(p.segments);
  if (p.inner == 1)
    launch("batch_norm", row_sums<T>, dim3(blocks_for(p.channels, kTile), segments),
           dim3(kTile, kTileRows), kTile * kTileRows * sizeof(Sums), p, x, g, center, sums);
  else
    launch("batch_norm", plane_sums<T>, dim3(static_cast<unsigned>(p.channels), segments), kThreads,
           kSpace, p, x, g, center, sums);
  return sums;
}

DEVICE Sums total_of(const Planes& p, const Sums* sums, int64_t channel) {
  Sums s{0, 0};
  for (int64_t k = 0; k < p.segments; ++k) {
    s.a += sums[k * p.channels + channel].a;
    s.ad += sums[k * p.channels + channel].ad;
  }
  return s;
}

// The numbers of the map per channel: p0, p1, p2, p3.
template <class T>
struct Map {
  T p[4];
};

template <class T>
struct Statistics {
  const T *weight, *bias;
  T *running_mean, *running_var, *mean, *invstd;
  bool training;
  double momentum, eps;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_statistics(Planes p, Statistics<T> v, const T* x, const Sums* sums, Map<T>* maps) {
  const int64_t c = thread_number();
  if (c >= p.channels) return;
  double mean, variance;
  if (v.training) {
    const Sums s = total_of(p, sums, c);
    const double n = static_cast<double>(p.per_channel()), shift = s.a / n;
    const double squares = s.ad - shift * s.a;
    mean = static_cast<double>(x[c * p.inner]) + shift;
    variance = (squares < 0 ? 0 : squares) / n;
    if (v.running_mean)
      v.running_mean[c] = static_cast<T>((1 - v.momentum) * v.running_mean[c] + v.momentum * mean);
    if (v.running_var) {
      const double unbiased = n > 1 ? variance * n / (n - 1) : variance;
      v.running_var[c] =
          static_cast<T>((1 - v.momentum) * v.running_var[c] + v.momentum * unbiased);
    }
  } else {
    mean = v.running_mean[c];
    variance = v.running_var[c];
  }
  const double invstd = 1 / ::sqrt(variance + v.eps);
  v.mean[c] = static_cast<T>(mean);
  v.invstd[c] = static_cast<T>(invstd);
  maps[c] = {{static_cast<T>(mean), static_cast<T>(v.weight ? invstd * v.weight[c] : invstd),
              v.bias ? v.bias[c] : T(0), T(0)}};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_gradients(Planes p, const T* weight, const T* mean, const T* invstd, bool training,
                     const Sums* sums, T* gweight, T* gbias, Map<T>* maps) {
  const int64_t c = thread_number();
  if (c >= p.channels) return;
  const Sums s = total_of(p, sums, c);
  const double inv = invstd[c], n = static_cast<double>(p.per_channel());
  const double slope = weight ? inv * weight[c] : inv;
  if (gweight) gweight[c] = static_cast<T>(s.ad * inv);
  if (gbias) gbias[c] = static_cast<T>(s.a);
  const double of_x = training ? -slope * s.ad * inv * inv / n : 0;
  maps[c] = {{mean[c], static_cast<T>(of_x), static_cast<T>(training ? -slope * s.a / n : 0),
              static_cast<T>(slope)}};
}

// out = (x - p0) p1 + g p3 + p2 with the numbers of the element's channel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    apply_map(Planes p, const Map<T>* maps, const T* x, const T* g, T* out) {
  const int64_t size = p.n * p.channels * p.inner;
  for (int64_t at = thread_number(); at < size; at += thread_count()) {
    const Map<T> m = maps[at / p.inner % p.channels];
    T v = fma(x[at] - m.p[0], m.p[1], m.p[2]);
    if (g) v = fma(g[at], m.p[3], v);
    out[at] = v;
  }
}

template <class T>
void run_map(const Planes& p, const Map<T>* maps, const T* x, const T* g, T* out) {
  launch("batch_norm", apply_map<T>, blocks_for(p.n * p.channels * p.inner, kThreads), kThreads, 0,
         p, maps, x, g, out);
}

template <class T>
Map<T>* new_maps(const Planes& p) {
  return static_cast<Map<T>*>(workspace(p.channels * static_cast<int64_t>(sizeof(Map<T>))));
}

// ---- rows: layer norm and group norm ----

// A row of `count` elements: all of them one after the other, or, channels-last, `size` neighbouring
// channels of every pixel. Element e belongs to parameter first + e / inner (or e % size).
struct Rows {
  int64_t rows, count;
  int64_t groups, size, inner;  // layer norm: 1 group of `count` channels, inner 1
  bool pixels;

  DEVICE int64_t offset(int64_t row, int64_t e) const {
    if (!pixels) return row * count + e;
    const int64_t example = row / groups, group = row % groups;
    return (example * inner + e / size) * (groups * size) + group * size + e % size;
  }
  DEVICE int64_t channel(int64_t row, int64_t e) const {
    return row % groups * size + (pixels ? e % size : e / inner);
  }
};

// The threads of a row: a warp or a block.
template <int kLanes>
struct Group {
  int64_t row;
  int lane;
  bool valid;
  DEVICE explicit Group(int64_t rows) {
    const int64_t unit = thread_number() / kLanes;
    valid = unit < rows;
    row = valid ? unit : 0;
    lane = static_cast<int>(threadIdx.x % kLanes);
  }
  template <class F>
  DEVICE void each(int64_t count, F f) const {
    if (!valid) return;
    for (int64_t e = lane; e < count; e += kLanes) f(e);
  }
  DEVICE double sum(double x) const {
    if constexpr (kLanes == 32) {
      return warp_combine(x, Plus{});
    } else {
      Shared shared;
      const double all = block_combine(x, shared.take<double>(kLanes / 32), Plus{});
      __syncthreads();
      return all;
    }
  }
};

template <class T>
struct RowArrays {
  const T *x, *weight, *bias;
  T *y, *mean, *invstd;
  double eps;
};

// kMean false: RMS norm.
template <int kLanes, bool kMean, class T>
__global__ void __launch_bounds__(kThreads) normalize_rows(Rows a, RowArrays<T> v) {
  const Group<kLanes> g(a.rows);
  const double n = static_cast<double>(a.count);
  double part = 0, mean = 0;
  if (kMean) {
    g.each(a.count, [&](int64_t e) { part += v.x[a.offset(g.row, e)]; });
    mean = g.sum(part) / n;
  }
  part = 0;
  g.each(a.count, [&](int64_t e) {
    const double d = static_cast<double>(v.x[a.offset(g.row, e)]) - mean;
    part = fma(d, d, part);
  });
  const double invstd = 1 / ::sqrt(g.sum(part) / n + v.eps);
  const T m = static_cast<T>(mean), s = static_cast<T>(invstd);
  if (g.valid && g.lane == 0) {
    if (kMean) v.mean[g.row] = m;
    v.invstd[g.row] = s;
  }
  g.each(a.count, [&](int64_t e) {
    const int64_t at = a.offset(g.row, e), c = a.channel(g.row, e);
    const T z = (v.x[at] - m) * s;
    v.y[at] = v.weight ? fma(z, v.weight[c], v.bias ? v.bias[c] : T(0))
              : v.bias ? z + v.bias[c]
                       : z;
  });
}

template <class T>
struct RowGradients {
  const T *grad, *x, *weight, *mean, *invstd;
  T* gx;
};

template <int kLanes, bool kMean, class T>
__global__ void __launch_bounds__(kThreads) rows_backward(Rows a, RowGradients<T> v) {
  const Group<kLanes> g(a.rows);
  const double n = static_cast<double>(a.count), s = v.invstd[g.row];
  const double mean = kMean ? v.mean[g.row] : 0;
  double first = 0, second = 0;  // sums of dz and of dz z, dz = grad weight and z = (x - mean) s
  g.each(a.count, [&](int64_t e) {
    const int64_t at = a.offset(g.row, e);
    const double dz = v.weight ? static_cast<double>(v.grad[at]) * v.weight[a.channel(g.row, e)]
                               : static_cast<double>(v.grad[at]);
    first += dz;
    second = fma(dz, (static_cast<double>(v.x[at]) - mean) * s, second);
  });
  const double shift = kMean ? g.sum(first) / n : 0, slope = g.sum(second) / n;
  g.each(a.count, [&](int64_t e) {
    const int64_t at = a.offset(g.row, e);
    const double dz = v.weight ? static_cast<double>(v.grad[at]) * v.weight[a.channel(g.row, e)]
                               : static_cast<double>(v.grad[at]);
    const double z = (static_cast<double>(v.x[at]) - mean) * s;
    v.gx[at] = static_cast<T>(s * (dz - shift - z * slope));
  });
}

// Sums of grad (x - mean) invstd and of grad over parts of the rows, for every column of layer norm.
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    column_gradients(Rows a, RowGradients<T> v, int64_t part, Sums* sums) {
  Shared shared;
  Sums* tile = shared.take<Sums>(kTile * kTileRows);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  const int64_t begin = blockIdx.y * part, stop = begin + part;
  const int64_t end = stop < a.rows ? stop : a.rows;
  Sums s{0, 0};
  for (int64_t row = begin + threadIdx.y; c < a.count && row < end; row += kTileRows) {
    const double grad = v.grad[row * a.count + c], x = v.x[row * a.count + c];
    s.a += grad;
    s.ad = fma(grad, (x - (v.mean ? v.mean[row] : T(0))) * v.invstd[row], s.ad);
  }
  tile[threadIdx.y * kTile + threadIdx.x] = s;
  __syncthreads();
  if (threadIdx.y != 0 || c >= a.count) return;
  for (int r = 1; r < kTileRows; ++r) {
    s.a += tile[r * kTile + threadIdx.x].a;
    s.ad += tile[r * kTile + threadIdx.x].ad;
  }
  sums[blockIdx.y * a.count + c] = s;
}

// The same for the channels of group norm: a block per channel and part of the examples.
template <class T>
__global__ void __launch_bounds__(kThreads)
    channel_gradients(Rows a, RowGradients<T> v, int64_t examples, int64_t part, Sums* sums) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  const int64_t channels = a.groups * a.size, c = blockIdx.x;
  const int64_t begin = blockIdx.y * part, stop = begin + part;
  const int64_t end = stop < examples ? stop : examples;
  Sums s{0, 0};
  for (int64_t e = threadIdx.x; e < (end - begin) * a.inner; e += kThreads) {
    const int64_t example = begin + e / a.inner, pixel = e % a.inner;
    const int64_t row = example * a.groups + c / a.size;
    const int64_t at = a.pixels ? (example * a.inner + pixel) * channels + c
                                : (example * channels + c) * a.inner + pixel;
    const double grad = v.grad[at];
    s.a += grad;
    s.ad = fma(grad, (static_cast<double>(v.x[at]) - v.mean[row]) * v.invstd[row], s.ad);
  }
  s.a = block_combine(s.a, space, Plus{});
  s.ad = block_combine(s.ad, space, Plus{});
  if (threadIdx.x == 0) sums[blockIdx.y * channels + c] = s;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts(int64_t channels, int64_t parts, const Sums* sums, T* gweight, T* gbias) {
  const int64_t c = thread_number();
  if (c >= channels) return;
  Sums s{0, 0};
  for (int64_t k = 0; k < parts; ++k) {
    s.a += sums[k * channels + c].a;
    s.ad += sums[k * channels + c].ad;
  }
  if (gweight) gweight[c] = static_cast<T>(s.ad);
  if (gbias) gbias[c] = static_cast<T>(s.a);
}

template <class T>
void parameter_gradients(const char* name, const Rows& a, const RowGradients<T>& v, T* gweight,
                         T* gbias) {
  if (!gweight && !gbias) return;
  const int64_t channels = a.groups * a.size, examples = a.rows / (a.groups ? a.groups : 1);
  const int64_t least = a.groups == 1 && a.inner == 1 ? 64 : 1, few = divide_up(examples, 64);
  const int64_t part = few > least ? few : least, parts = examples ? divide_up(examples, part) : 1;
  Sums* sums = static_cast<Sums*>(workspace(parts * channels * static_cast<int64_t>(sizeof(Sums))));
  if (a.groups == 1 && a.inner == 1)
    launch(name, column_gradients<T>,
           dim3(blocks_for(channels, kTile), static_cast<unsigned>(parts)), dim3(kTile, kTileRows),
           kTile * kTileRows * sizeof(Sums), a, v, part, sums);
  else
    launch(name, channel_gradients<T>,
           dim3(static_cast<unsigned>(channels), static_cast<unsigned>(parts)), kThreads, kSpace, a,
           v, examples, part, sums);
  launch(name, add_parts<T>, blocks_for(channels, kThreads), kThreads, 0, channels, parts,
         static_cast<const Sums*>(sums), gweight, gbias);
}

constexpr int64_t kWarpUpTo = 1024;  // elements of a row

template <bool kMean, class T>
void run_rows(const char* name, const Rows& a, const RowArrays<T>& v) {
  if (a.count <= kWarpUpTo)
    launch(name, normalize_rows<32, kMean, T>, blocks_for(a.rows, kThreads / 32), kThreads, kSpace,
           a, v);
  else
    launch(name, normalize_rows<kThreads, kMean, T>, blocks_for(a.rows, 1), kThreads, kSpace, a, v);
}

template <bool kMean, class T>
void run_backward(const char* name, const Rows& a, const RowGradients<T>& v, T* gweight, T* gbias) {
  if (v.gx && a.count <= kWarpUpTo)
    launch(name, rows_backward<32, kMean, T>, blocks_for(a.rows, kThreads / 32), kThreads, kSpace,
           a, v);
  else if (v.gx)
    launch(name, rows_backward<kThreads, kMean, T>, blocks_for(a.rows, 1), kThreads, kSpace, a, v);
  parameter_gradients(name, a, v, gweight, gbias);
}

Rows group_rows(int64_t examples, int64_t groups, int64_t size, int64_t inner, bool channels_last) {
  return {examples * groups, size * inner, groups, size, inner, channels_last};
}

}  // namespace

bool batch_norm(In x, OptIn weight, OptIn bias, OptOut running_mean, OptOut running_var, Out y,
                Out mean, Out invstd, bool training, double momentum, double eps,
                bool channels_last) {
  const Planes p(x, channels_last);
  with_real("batch_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *from = data<T>(x), *none = nullptr;
    const Statistics<T> v{data<T>(weight),
                          data<T>(bias),
                          data<T>(running_mean),
                          data<T>(running_var),
                          data<T>(mean),
                          data<T>(invstd),
                          training,
                          momentum,
                          eps};
    const Sums* sums = training ? channel_sums(p, from, none, none) : nullptr;
    Map<T>* maps = new_maps<T>(p);
    launch("batch_norm", finish_statistics<T>, blocks_for(p.channels, kThreads), kThreads, 0, p, v,
           from, sums, maps);
    run_map(p, static_cast<const Map<T>*>(maps), from, none, data<T>(y));
  });
  return true;
}

bool batch_norm_backward(In grad, In x, OptIn weight, In mean, In invstd, OptOut gx, OptOut gweight,
                         OptOut gbias, bool training, bool channels_last) {
  const Planes p(x, channels_last);
  with_real("batch_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *from = data<T>(x), *g = data<T>(grad), *m = data<T>(mean);
    const Sums* sums = channel_sums(p, from, g, m);
    Map<T>* maps = new_maps<T>(p);
    launch("batch_norm", finish_gradients<T>, blocks_for(p.channels, kThreads), kThreads, 0, p,
           static_cast<const T*>(data<T>(weight)), m, static_cast<const T*>(data<T>(invstd)),
           training, sums, data<T>(gweight), data<T>(gbias), maps);
    if (gx.data) run_map(p, static_cast<const Map<T>*>(maps), from, g, data<T>(gx));
  });
  return true;
}

void layer_norm(In x, OptIn weight, OptIn bias, Out y, OptOut mean, Out invstd, int64_t rows,
                int64_t n, double eps) {
  const Rows a{rows, n, 1, n, 1, false};
  with_real("layer_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const RowArrays<T> v{data<T>(x), data<T>(weight), data<T>(bias),
                         data<T>(y), data<T>(mean),   data<T>(invstd),
                         eps};
    mean.data ? run_rows<true>("layer_norm", a, v) : run_rows<false>("rms_norm", a, v);
  });
}

bool layer_norm_backward(In grad, In x, OptIn weight, OptIn mean, In invstd, OptOut gx,
                         OptOut gweight, OptOut gbias, int64_t rows, int64_t n) {
  const Rows a{rows, n, 1, n, 1, false};
  with_real("layer_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const RowGradients<T> v{data<T>(grad), data<T>(x),      data<T>(weight),
                            data<T>(mean), data<T>(invstd), data<T>(gx)};
    T *gw = data<T>(gweight), *gb = data<T>(gbias);
    mean.data ? run_backward<true>("layer_norm", a, v, gw, gb)
              : run_backward<false>("rms_norm", a, v, gw, gb);
  });
  return true;
}

bool group_norm(In x, OptIn weight, OptIn bias, Out y, Out mean, Out invstd, int64_t examples,
                int64_t groups, int64_t size, int64_t inner, double eps, bool channels_last) {
  const Rows a = group_rows(examples, groups, size, inner, channels_last);
  with_real("group_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const RowArrays<T> v{data<T>(x), data<T>(weight), data<T>(bias),
                         data<T>(y), data<T>(mean),   data<T>(invstd),
                         eps};
    run_rows<true>("group_norm", a, v);
  });
  return true;
}

bool group_norm_backward(In grad, In x, OptIn weight, In mean, In invstd, OptOut gx, OptOut gweight,
                         OptOut gbias, int64_t examples, int64_t groups, int64_t size,
                         int64_t inner, bool channels_last) {
  const Rows a = group_rows(examples, groups, size, inner, channels_last);
  with_real("group_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const RowGradients<T> v{data<T>(grad), data<T>(x),      data<T>(weight),
                            data<T>(mean), data<T>(invstd), data<T>(gx)};
    run_backward<true>("group_norm", a, v, data<T>(gweight), data<T>(gbias));
  });
  return true;
}

}  // namespace grebe::cuda
