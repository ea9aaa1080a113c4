// Batch and group normalisation, forward and backward, and layer norm's rows of any length.
//
// Three steps, each a kernel: sums over chunks of the channels, the numbers p that follow from them,
// and the map out = (x - p0) p1 + p2 + g p3 with the numbers of the element's channel. Forward the
// sums are those of x - k and (x - k)^2 around some element k, taken by runs of a few elements in
// registers around the run's own mean and moved to k in float64: one read, and nothing cancels.
// Backward they are those of g and g (x - mean). The chunks depend on the shape only and are added
// in order.
//
// Two layouts: planes [n, units, inner], where a warp or a block goes along the elements of a unit
// (a channel, a group of channels, a row), and pixels [examples, pixels, channels], where the
// threads of a block stand side by side on channels and go down. A group of channels is a row of
// chunks like a single channel, so batch norm is group norm with groups of one channel and all
// examples in one. Groups that fit into a block's registers are rows of layer_norm.cu.
//
// Floor: memory. Bytes per float32 element: batch norm 12 forward, 20 backward; group norm 8 and
// 12, here as batch norm but for what the second-level cache holds, forward 8 for short groups.
// Not measured on a device yet.
#include "norm.cuh"

namespace grebe::cuda {
namespace {

constexpr int64_t kEnoughBlocks = 132 * 8;
constexpr int64_t kChunk = 4096;  // elements of a unit before it is cut
constexpr int64_t kFewRows = 64;  // rows per thread before pixels are cut
constexpr int64_t kThreadsInFlight = int64_t{1} << 20;
constexpr int64_t kManySegments = 32;

// Sums of a and a (x - center).
struct Sums {
  double a, ad;
};
DEVICE Sums operator+(Sums x, Sums y) { return {x.a + y.a, x.ad + y.ad}; }

// In all lanes of a warp: the sum of n neighbours.
DEVICE Sums warp_total(const Sums* sums, int64_t n) {
  Sums s{0, 0};
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) s = s + sums[i];
  return {warp_combine(s.a, Plus{}), warp_combine(s.ad, Plus{})};
}

// Some elements of a channel around their own mean: it is close, so that their squares are small.
template <class W>
struct Run {
  W mean = 0, rest = 0, squares = 0;

  DEVICE void add(W x) {
    const W d = x - mean;
    rest += d;
    squares = fma(d, d, squares);
  }
  DEVICE Sums around(double center, int count) const {
    const double d = static_cast<double>(mean) - center, r = static_cast<double>(rest);
    return {count * d + r, static_cast<double>(squares) + 2 * d * r + count * d * d};
  }
};

// ---- sums over planes ----

// Unit u's element e is number j = e % inner of plane e / inner: x[(e / inner * units + u) * inner + j].
template <class T>
struct PlaneSums {
  const T *x, *g;  // g: backward
  const Wide<T>* center;  // backward: of center_size units each; nullptr: 0
  const Wide<T>* weight;  // backward: factors of g, per element of a unit; or nullptr
  bool around_zero;  // forward: center 0, not the unit's first element
  int64_t units, center_size, count, chunk, chunks;
  int lanes;  // 32 or kThreads
  Divider inner;  // in packs, as are count and chunk
};

template <int kCount, bool kBackward, class T>
__global__ void __launch_bounds__(kThreads, 2) plane_sums(PlaneSums<T> a, Sums* partials) {
  using W = Wide<T>;
  constexpr int kRun = kCount > 1 ? 4 : 8;
  Shared shared;
  Sums* warps = shared.take<Sums>(kThreads / 32);
  const int lane = static_cast<int>(threadIdx.x) % a.lanes;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / a.lanes) +
                       static_cast<int>(threadIdx.x) / a.lanes;
  const bool valid = item < a.units * a.chunks;
  const int64_t unit = valid ? item / a.chunks : 0, begin = valid ? item % a.chunks * a.chunk : 0;
  const int64_t stop = begin + a.chunk, end = !valid ? 0 : stop < a.count ? stop : a.count;
  double center = 0;
  if (kBackward)
    center = a.center ? static_cast<double>(a.center[unit / a.center_size]) : 0;
  else if (!a.around_zero && a.count > 0)
    center = static_cast<double>(widen(a.x[unit * a.inner.divisor * kCount]));

  Sums total{0, 0};
  for (int64_t first = begin + lane; first < end; first += kRun * a.lanes) {
    T x[kRun][kCount], g[kRun][kCount];
    int held = 0;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      const int64_t e = first + r * a.lanes, plane = a.inner(e);
      const int64_t at = (plane * a.units + unit) * a.inner.divisor + e - plane * a.inner.divisor;
      const int64_t limit = e < end ? (at + 1) * kCount : 0;
      load_pack<kCount>(a.x, at * kCount, limit, kCount > 1, x[r]);
      if (kBackward) load_pack<kCount>(a.g, at * kCount, limit, kCount > 1, g[r]);
      held += e < end;
    }
    if (kBackward) {
      const W middle = static_cast<W>(center);
      W sum = 0, dot = 0;
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        if (r >= held) break;
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
          W grad = widen(g[r][t]);
          if (a.weight) grad *= a.weight[(first + r * a.lanes) * kCount + t];
          sum += grad;
          dot = fma(grad, widen(x[r][t]) - middle, dot);
        }
      }
      total = total + Sums{static_cast<double>(sum), static_cast<double>(dot)};
    } else {
      Run<W> run;
      W sum = 0;
#pragma unroll
      for (int r = 0; r < kRun; ++r)
#pragma unroll
        for (int t = 0; t < kCount; ++t) sum += widen(x[r][t]);
      if (!a.around_zero) run.mean = sum / static_cast<W>(held * kCount);
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        if (r >= held) break;
#pragma unroll
        for (int t = 0; t < kCount; ++t) run.add(widen(x[r][t]));
      }
      // RMS norm: an infinity must not become NaN.
      total = total + (a.around_zero ? Sums{0, static_cast<double>(run.squares)}
                                     : run.around(center, held * kCount));
    }
  }
  total = {warp_combine(total.a, Plus{}), warp_combine(total.ad, Plus{})};
  if (a.lanes > 32) {
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = total;
    __syncthreads();
    total = warps[0];
    for (int w = 1; w < kThreads / 32; ++w) total = total + warps[w];
  }
  if (valid && lane == 0) partials[item] = total;
}

// The sums of units of n planes of `inner` elements: [unit][chunks].
template <class T>
Sums* sum_planes(PlaneSums<T> a, int64_t n, int64_t inner, int64_t* chunks) {
  const bool packs = inner % kPack<T> == 0 && is_aligned(a.x) && is_aligned(a.g);
  const int64_t pack = packs ? kPack<T> : 1, elements = n * inner;
  a.lanes = elements <= kChunk / 2 ? 32 : kThreads;
  a.count = elements / pack;
  a.inner = Divider(inner / pack);
  int64_t wanted = divide_up(kEnoughBlocks, a.units > 0 ? a.units : 1);
  const int64_t most = divide_up(elements, kChunk);
  if (wanted > most) wanted = most;
  a.chunk = divide_up(a.count, wanted > 0 ? wanted : 1);
  a.chunks = a.chunk > 0 ? divide_up(a.count, a.chunk) : 1;
  *chunks = a.chunks;
  const int64_t items = a.units * a.chunks;
  Sums* partials = static_cast<Sums*>(workspace(items * static_cast<int64_t>(sizeof(Sums))));
  const auto kernel = a.g ? (packs ? plane_sums<kPack<T>, true, T> : plane_sums<1, true, T>)
                          : (packs ? plane_sums<kPack<T>, false, T> : plane_sums<1, false, T>);
  launch("batch_norm", kernel, blocks_for(items, kThreads / a.lanes), kThreads,
         kThreads / 32 * sizeof(Sums), a, partials);
  return partials;
}

// ---- sums over pixels ----

template <class T>
struct PixelSums {
  const T *x, *g;  // g: backward
  const Wide<T>* center;  // backward: of the groups of each example
  int64_t examples, pixels, channels;
  int64_t tiles, segment, segments;  // of the channels, of the pixels
  int64_t groups, size;  // groups of `size` channels
};

template <int kCount, bool kBackward, class T>
__global__ void __launch_bounds__(kThreads, 2) pixel_sums(PixelSums<T> a, Sums* partials) {
  using W = Wide<T>;
  constexpr int kRun = (kBackward ? 4 : 8) / (sizeof(T) == 2 ? 2 : 1);  // what registers hold
  Shared shared;
  Sums* tile = shared.take<Sums>(kThreads * kCount);
  const int64_t rest = blockIdx.x / a.tiles, segment = rest % a.segments;
  const int64_t example = rest / a.segments;
  const int64_t channel = (blockIdx.x % a.tiles * blockDim.x + threadIdx.x) * kCount;
  const int64_t begin = segment * a.segment, stop = begin + a.segment;
  const int64_t end = channel >= a.channels ? begin : stop < a.pixels ? stop : a.pixels;
  const T* x = a.x + example * a.pixels * a.channels;
  const T* g = kBackward ? a.g + example * a.pixels * a.channels : nullptr;

  Sums total[kCount];
  double center[kCount];
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    total[t] = {0, 0};
    center[t] = 0;
    const int64_t group = (channel + t) / a.size;
    if (begin >= end) continue;
    center[t] = kBackward ? static_cast<double>(a.center[example * a.groups + group])
                          : static_cast<double>(widen(x[group * a.size]));
  }
  const int64_t step = blockDim.y;
  for (int64_t first = begin + threadIdx.y; first < end; first += kRun * step) {
    T v[kRun][kCount], grad[kRun][kCount];
    int held = 0;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      const int64_t i = first + r * step, at = i * a.channels + channel;
      const int64_t limit = i < end ? at + kCount : 0;
      load_pack<kCount>(x, at, limit, kCount > 1, v[r]);
      if (kBackward) load_pack<kCount>(g, at, limit, kCount > 1, grad[r]);
      held += i < end;
    }
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      if (kBackward) {
        const W middle = static_cast<W>(center[t]);
        W sum = 0, dot = 0;
#pragma unroll
        for (int r = 0; r < kRun; ++r) {
          if (r >= held) break;
          const W of_g = widen(grad[r][t]);
          sum += of_g;
          dot = fma(of_g, widen(v[r][t]) - middle, dot);
        }
        total[t] = total[t] + Sums{static_cast<double>(sum), static_cast<double>(dot)};
      } else {
        Run<W> run;
        W sum = 0;
#pragma unroll
        for (int r = 0; r < kRun; ++r) sum += widen(v[r][t]);
        run.mean = sum / static_cast<W>(held);
#pragma unroll
        for (int r = 0; r < kRun; ++r)
          if (r < held) run.add(widen(v[r][t]));
        total[t] = total[t] + run.around(center[t], held);
      }
    }
  }
  const int width = static_cast<int>(blockDim.x) * kCount;
#pragma unroll
  for (int t = 0; t < kCount; ++t) tile[threadIdx.y * width + threadIdx.x * kCount + t] = total[t];
  __syncthreads();
  const int64_t left = blockIdx.x % a.tiles * width;
  const int self = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  for (int i = self; i < width && left + i < a.channels; i += kThreads) {
    Sums all = tile[i];
    for (unsigned r = 1; r < blockDim.y; ++r) all = all + tile[r * width + i];
    partials[(example * a.channels + left + i) * a.segments + segment] = all;
  }
}

// The sums of every channel of every example: [example][channel][segments].
template <class T>
Sums* sum_pixels(PixelSums<T> a, int64_t* segments) {
  const bool packs = a.channels % kPack<T> == 0 && is_aligned(a.x) && is_aligned(a.g);
  const int64_t pack = packs ? kPack<T> : 1, across = divide_up(a.channels, pack);
  unsigned width = 4;
  while (width < 32 && width < across) width *= 2;
  const unsigned height = kThreads / width;
  a.tiles = divide_up(across, width);
  const int64_t blocks = a.tiles * a.examples;
  int64_t wanted = divide_up(kEnoughBlocks, blocks > 0 ? blocks : 1);
  const int64_t most = divide_up(a.pixels, height * kFewRows);
  if (wanted > most) wanted = most;
  a.segment = divide_up(a.pixels, wanted > 0 ? wanted : 1);
  a.segments = a.segment > 0 ? divide_up(a.pixels, a.segment) : 1;
  *segments = a.segments;
  Sums* partials = static_cast<Sums*>(
      workspace(a.examples * a.channels * a.segments * static_cast<int64_t>(sizeof(Sums))));
  const auto kernel = a.g ? (packs ? pixel_sums<kPack<T>, true, T> : pixel_sums<1, true, T>)
                          : (packs ? pixel_sums<kPack<T>, false, T> : pixel_sums<1, false, T>);
  launch("batch_norm", kernel, static_cast<unsigned>(blocks * a.segments), dim3(width, height),
         kThreads * static_cast<size_t>(pack) * sizeof(Sums), a, partials);
  return partials;
}

// ---- the numbers of the map ----

// Per channel of every row, or one for all (batch norm, rows of layer norm).
template <class W>
struct Numbers {
  W* p[4];
};
template <class W>
Numbers<W> new_numbers(int64_t channels) {
  W* memory = static_cast<W*>(workspace(4 * (channels + 4) * static_cast<int64_t>(sizeof(W))));
  Numbers<W> numbers;
  const int64_t step = divide_up(channels, 4) * 4;  // keeps each aligned
  for (int k = 0; k < 4; ++k) numbers.p[k] = memory + k * step;
  return numbers;
}

// A row is what shares mean and variance: a channel, or `size` channels of an example.
template <class T>
struct Statistics {
  const Sums* partials;  // `entries` of each row
  int64_t entries, rows, groups, size;
  const T* x;  // row r's center: x[r / groups * example_step + r % groups * group_step]
  int64_t example_step, group_step;
  bool around_zero;  // RMS norm
  double count, momentum, eps;
  const Wide<T>*weight, *bias;
  Wide<T>*running_mean, *running_var, *mean, *invstd;  // each may be nullptr
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    find_numbers(Statistics<T> v, Numbers<Wide<T>> numbers) {
  using W = Wide<T>;
  const int64_t row = thread_number() / 32;
  if (row >= v.rows) return;
  const Sums s = warp_total(v.partials + row * v.entries, v.entries);
  const int64_t group = row % v.groups;
  double center = 0;
  if (!v.around_zero && v.count > 0)
    center =
        static_cast<double>(widen(v.x[row / v.groups * v.example_step + group * v.group_step]));
  const double shift = v.around_zero ? 0 : s.a / v.count, mean = center + shift;
  const double rest = s.ad - shift * s.a, squares = rest < 0 ? 0 : rest;
  const W middle = static_cast<W>(mean),
          invstd = static_cast<W>(1 / sqrt(squares / v.count + v.eps));
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane == 0) {
    const double old = 1 - v.momentum;
    if (v.mean) v.mean[row] = middle;
    v.invstd[row] = invstd;
    if (v.running_mean)
      v.running_mean[row] = static_cast<W>(old * v.running_mean[row] + v.momentum * mean);
    if (v.running_var)
      v.running_var[row] =
          static_cast<W>(old * v.running_var[row] + v.momentum * (squares / (v.count - 1)));
  }
  for (int64_t k = lane; k < v.size; k += 32) {
    const int64_t c = group * v.size + k, to = row * v.size + k;
    numbers.p[0][to] = middle;
    numbers.p[1][to] = v.weight ? invstd * v.weight[c] : invstd;
    numbers.p[2][to] = v.bias ? v.bias[c] : W(0);
  }
}

// Evaluation: the running statistics.
template <class T>
__global__ void __launch_bounds__(kThreads)
    take_numbers(Statistics<T> v, Numbers<Wide<T>> numbers) {
  using W = Wide<T>;
  const int64_t c = thread_number();
  if (c >= v.rows) return;
  const W mean = v.running_mean[c];
  const W invstd = static_cast<W>(1 / sqrt(static_cast<double>(v.running_var[c]) + v.eps));
  v.mean[c] = numbers.p[0][c] = mean;
  v.invstd[c] = invstd;
  numbers.p[1][c] = v.weight ? invstd * v.weight[c] : invstd;
  numbers.p[2][c] = v.bias ? v.bias[c] : W(0);
}

template <class W>
struct Gradients {
  const Sums* partials;  // [row][size][segments] of g and g (x - mean), nullptr: not needed
  int64_t segments, rows, groups, size;
  double count;
  bool training;
  const W *weight, *mean, *invstd;
  W *gweight, *gbias;  // of one example
  Sums* totals;  // [row][size] for more than one; or nullptr
};

// gx = (x - mean) slope + shift + g invstd weight, where slope and shift come from the row's sums of
// g weight and g weight (x - mean). In evaluation gx = g invstd weight, with g in the map's x.
template <class W>
__global__ void __launch_bounds__(kThreads)
    find_gradient_numbers(Gradients<W> v, Numbers<W> numbers) {
  const int64_t row = thread_number() / 32, group = row / v.groups * v.groups;
  if (row >= v.rows) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t first = (row - group) * v.size;
  const double inv = static_cast<double>(v.invstd[row]);
  const bool by_warp = v.size == 1 || v.segments >= kManySegments;  // a channel is a warp's work
  Sums row_total{0, 0};
  for (int64_t k = by_warp ? 0 : lane; v.partials && k < v.size; k += by_warp ? 1 : 32) {
    const Sums* part = v.partials + (row * v.size + k) * v.segments;
    Sums s{0, 0};
    if (by_warp)
      s = warp_total(part, v.segments);
    else
      for (int64_t i = 0; i < v.segments; ++i) s = s + part[i];
    const double weight = v.weight ? static_cast<double>(v.weight[first + k]) : 1;
    row_total = row_total + Sums{weight * s.a, weight * s.ad};
    if (by_warp && lane != 0) continue;
    if (v.totals) v.totals[row * v.size + k] = s;
    if (v.gweight) v.gweight[first + k] = static_cast<W>(s.ad * inv);
    if (v.gbias) v.gbias[first + k] = static_cast<W>(s.a);
  }
  if (!by_warp) row_total = {warp_combine(row_total.a, Plus{}), warp_combine(row_total.ad, Plus{})};
  if (!numbers.p[0]) return;
  const W slope = static_cast<W>(-inv * inv * inv * row_total.ad / v.count);
  const W shift = static_cast<W>(v.mean ? -inv * row_total.a / v.count : 0);
  for (int64_t k = lane; k < v.size; k += 32) {
    const W factor = v.weight ? v.invstd[row] * v.weight[first + k] : v.invstd[row];
    const int64_t to = row * v.size + k;
    numbers.p[0][to] = v.training && v.mean ? v.mean[row] : W(0);
    numbers.p[1][to] = v.training ? slope : factor;
    numbers.p[2][to] = v.training ? shift : W(0);
    numbers.p[3][to] = factor;
  }
}

// The parameters' gradients over examples: a warp per channel.
template <class W>
__global__ void __launch_bounds__(kThreads)
    add_examples(Gradients<W> v, int64_t examples, W* gweight, W* gbias) {
  const int64_t channel = thread_number() / 32, channels = v.groups * v.size;
  if (channel >= channels) return;
  Sums s{0, 0};
  for (int64_t i = threadIdx.x % 32; i < examples; i += 32) {
    const Sums one = v.totals[i * channels + channel];
    s = s + Sums{one.a, one.ad * static_cast<double>(v.invstd[i * v.groups + channel / v.size])};
  }
  s = {warp_combine(s.a, Plus{}), warp_combine(s.ad, Plus{})};
  if (threadIdx.x % 32 != 0) return;
  if (gweight) gweight[channel] = static_cast<W>(s.ad);
  if (gbias) gbias[channel] = static_cast<W>(s.a);
}

template <class W>
void launch_gradient_numbers(const Gradients<W>& v, const Numbers<W>& numbers) {
  launch("batch_norm", find_gradient_numbers<W>, blocks_for(v.rows, kThreads / 32), kThreads, 0, v,
         numbers);
}

// ---- the map ----

// Element e has the numbers e / inner % period, and of example e / example those of its own.
template <class T>
struct Map {
  const T *x, *g;
  T* out;
  Numbers<Wide<T>> numbers;
  int64_t count;  // in packs, as are the divisors
  bool packs, per_example;
  Divider inner, period, example;
};

enum class Mode { kSame, kNext, kAny };  // the channels of a pack: one, neighbours, whatever

template <Mode kMode, class T>
__global__ void __launch_bounds__(kThreads) apply_map(Map<T> a) {
  using W = Wide<T>;
  constexpr int kCount = kPack<T>;
  const int64_t elements = kMode == Mode::kAny ? a.count : a.count * kCount;
  for (int64_t i = thread_number(); i * kCount < elements; i += thread_count()) {
    T x[kCount], g[kCount], out[kCount];
    W p[4][kCount];
    load_pack<kCount>(a.x, i * kCount, elements, a.packs, x);
    if (a.g) load_pack<kCount>(a.g, i * kCount, elements, a.packs, g);
    if (kMode == Mode::kNext) {
      int64_t c = a.period.remainder(i);
      if (a.per_example) c += a.example(i) * a.period.divisor;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < 3 || a.g) load_wide<kCount>(a.numbers.p[k], c * kCount, INT64_MAX, true, p[k]);
    } else {
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        const int64_t e = kMode == Mode::kAny ? i * kCount + t : i;
        if (kMode == Mode::kAny && e >= elements) break;
        int64_t c = a.period.remainder(a.inner(e));
        if (a.per_example) c += a.example(e) * a.period.divisor;
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (k < 3 || a.g) p[k][t] = kMode == Mode::kSame && t > 0 ? p[k][0] : a.numbers.p[k][c];
      }
    }
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      const W add = a.g ? fma(widen(g[t]), p[3][t], p[2][t]) : p[2][t];
      out[t] = narrow<T>(fma(widen(x[t]) - p[0][t], p[1][t], add));
    }
    store_pack<kCount>(a.out, i * kCount, elements, a.packs, out);
  }
}

// Elements [examples, inner, channels] (pixels) or [examples, channels, inner]; the numbers are
// [channels], or [examples, channels].
template <class T>
void run_map(const T* x, const T* g, T* out, const Numbers<Wide<T>>& numbers, int64_t examples,
             int64_t channels, int64_t inner, bool pixels, bool per_example) {
  constexpr int kCount = kPack<T>;
  Map<T> a{x,  g,  out, numbers, examples * channels * inner, false, per_example && pixels,
           {}, {}, {}};
  a.packs = a.count % kCount == 0 && is_aligned(x) && is_aligned(g) && is_aligned(out);
  const bool same = a.packs && !pixels && inner % kCount == 0;
  const bool next = a.packs && pixels && channels % kCount == 0;
  const int64_t pack = same || next ? kCount : 1;
  a.count /= pack;
  a.inner = Divider(pixels ? 1 : inner / pack);
  a.period = Divider(pixels ? channels / pack : per_example ? examples * channels : channels);
  a.example = Divider(channels * inner / pack);
  const int64_t threads = pack > 1 ? a.count : divide_up(a.count, kCount);
  const auto kernel = same   ? apply_map<Mode::kSame, T>
                      : next ? apply_map<Mode::kNext, T>
                             : apply_map<Mode::kAny, T>;
  launch("batch_norm", kernel,
         blocks_for(threads < kThreadsInFlight ? threads : kThreadsInFlight, kThreads), kThreads, 0,
         a);
}

// out = (x - p0) p1 + p2 with the numbers of the row and, per column, weight for p1 and bias for p2;
// with g: (x - p0) p1 + p2 + g weight p3.
template <class T>
__global__ void __launch_bounds__(kThreads)
    map_rows(const T* x, const T* g, T* out, const Wide<T>* weight, const Wide<T>* bias,
             Numbers<Wide<T>> numbers, Divider n, int64_t count) {
  using W = Wide<T>;
  for (int64_t e = thread_number(); e < count; e += thread_count()) {
    const int64_t row = n(e), j = e - row * n.divisor;
    const W w = weight ? weight[j] : W(1),
            v = (widen(x[e]) - numbers.p[0][row]) * numbers.p[1][row];
    W r = g ? fma(widen(g[e]) * w, numbers.p[3][row], numbers.p[2][row]) + v : v * w;
    if (bias) r += bias[j];
    out[e] = narrow<T>(r);
  }
}

template <class T>
void run_map_rows(const T* x, const T* g, T* out, const Wide<T>* weight, const Wide<T>* bias,
                  const Numbers<Wide<T>>& numbers, int64_t rows, int64_t n) {
  const int64_t count = rows * n;
  launch("layer_norm", map_rows<T>,
         blocks_for(count < kThreadsInFlight ? count : kThreadsInFlight, kThreads), kThreads, 0, x,
         g, out, weight, bias, numbers, Divider(n), count);
}

// ---- the operations ----

// [examples, channels, inner], or pixels: [examples, inner, channels]. Batch norm over pixels takes
// all examples for one.
struct Images {
  int64_t examples, channels, inner;
  bool pixels;

  Images(const View& x, bool channels_last)
      : examples(x.shape[0]), channels(x.shape[1]), inner(1), pixels(channels_last) {
    for (int d = 2; d < x.ndim; ++d) inner *= x.shape[d];
    if (pixels || inner == 1) {
      inner *= examples;
      examples = 1;
      pixels = channels > 1;
    }
  }
  int64_t per_channel() const { return examples * inner; }
};

// Sums of x, or g, per channel: [channel][segments].
template <class T>
Sums* channel_sums(const Images& a, const T* x, const T* g, const Wide<T>* mean,
                   int64_t* segments) {
  if (a.pixels) {
    PixelSums<T> p{x, g, mean, 1, a.inner, a.channels, 0, 0, 0, a.channels, 1};
    return sum_pixels(p, segments);
  }
  PlaneSums<T> p{};
  p.x = x;
  p.g = g;
  p.center = mean;
  p.center_size = 1;
  p.units = a.channels;
  return sum_planes(p, a.examples, a.inner, segments);
}

template <class T>
void batch_norm_any(const Images& a, const T* x, T* y, Statistics<T> v, bool training) {
  const Numbers<Wide<T>> numbers = new_numbers<Wide<T>>(a.channels);
  v.rows = v.groups = a.channels;
  v.size = 1;
  v.x = x;
  v.group_step = a.pixels ? 1 : a.inner;
  v.count = static_cast<double>(a.per_channel());
  if (training) {
    v.partials = channel_sums<T>(a, x, nullptr, nullptr, &v.entries);
    launch("batch_norm", find_numbers<T>, blocks_for(v.rows, kThreads / 32), kThreads, 0, v,
           numbers);
  } else {
    launch("batch_norm", take_numbers<T>, blocks_for(v.rows, kThreads), kThreads, 0, v, numbers);
  }
  run_map<T>(x, nullptr, y, numbers, a.examples, a.channels, a.inner, a.pixels, false);
}

template <class T>
void batch_norm_backward_any(const Images& a, const T* x, const T* g, T* gx, Gradients<Wide<T>> v) {
  using W = Wide<T>;
  v.rows = v.groups = a.channels;
  v.size = 1;
  v.count = static_cast<double>(a.per_channel());
  if (v.gweight || v.gbias || (gx && v.training))
    v.partials = channel_sums<T>(a, x, g, v.mean, &v.segments);
  const Numbers<W> numbers = gx ? new_numbers<W>(a.channels) : Numbers<W>{};
  launch_gradient_numbers(v, numbers);
  if (!gx) return;
  const T* of_slope = v.training ? x : g;
  const T* direct = v.training ? g : nullptr;
  run_map<T>(of_slope, direct, gx, numbers, a.examples, a.channels, a.inner, a.pixels, false);
}

struct Groups {
  int64_t examples, groups, size, inner;
  bool pixels;
  int64_t channels() const { return groups * size; }
  int64_t rows() const { return examples * groups; }
  int64_t row() const { return size * inner; }
};

template <class T>
void group_norm_any(const Groups& a, const T* x, T* y, Statistics<T> v) {
  const Numbers<Wide<T>> numbers = new_numbers<Wide<T>>(a.examples * a.channels());
  v.rows = a.rows();
  v.groups = a.groups;
  v.size = a.size;
  v.x = x;
  v.example_step = a.groups * a.row();
  v.group_step = a.pixels ? a.size : a.row();
  v.count = static_cast<double>(a.row());
  if (a.pixels) {
    PixelSums<T> p{x, nullptr, nullptr, a.examples, a.inner, a.channels(),
                   0, 0,       0,       a.groups,   a.size};
    v.partials = sum_pixels(p, &v.entries);
    v.entries *= a.size;
  } else {
    PlaneSums<T> p{};
    p.x = x;
    p.units = a.rows();
    v.partials = sum_planes(p, 1, a.row(), &v.entries);
  }
  launch("group_norm", find_numbers<T>, blocks_for(v.rows, kThreads / 32), kThreads, 0, v, numbers);
  run_map<T>(x, nullptr, y, numbers, a.examples, a.channels(), a.inner, a.pixels, true);
}

template <class T>
void group_norm_backward_any(const Groups& a, const T* x, const T* g, T* gx, Gradients<Wide<T>> v) {
  using W = Wide<T>;
  if (a.pixels) {
    PixelSums<T> p{x, g, v.mean, a.examples, a.inner, a.channels(), 0, 0, 0, a.groups, a.size};
    v.partials = sum_pixels(p, &v.segments);
  } else {
    PlaneSums<T> p{};
    p.x = x;
    p.g = g;
    p.center = v.mean;
    p.center_size = a.size;
    p.units = a.rows() * a.size;
    v.partials = sum_planes(p, 1, a.inner, &v.segments);
  }
  v.rows = a.rows();
  v.groups = a.groups;
  v.size = a.size;
  v.count = static_cast<double>(a.row());
  v.training = true;
  W *gweight = v.gweight, *gbias = v.gbias;
  if ((gweight || gbias) && a.examples != 1) {
    v.gweight = v.gbias = nullptr;
    v.totals = static_cast<Sums*>(
        workspace(a.examples * a.channels() * static_cast<int64_t>(sizeof(Sums))));
  }
  const Numbers<W> numbers = gx ? new_numbers<W>(a.examples * a.channels()) : Numbers<W>{};
  launch_gradient_numbers(v, numbers);
  if (v.totals)
    launch("group_norm", add_examples<W>, blocks_for(a.channels(), kThreads / 32), kThreads, 0, v,
           a.examples, gweight, gbias);
  if (gx) run_map<T>(x, g, gx, numbers, a.examples, a.channels(), a.inner, a.pixels, true);
}

template <class T>
Statistics<T> statistics(const View& weight, const View& bias, const View& mean, const View& invstd,
                         double eps) {
  using W = Wide<T>;
  Statistics<T> v{};
  v.groups = 1;
  v.eps = eps;
  v.weight = data<W>(weight);
  v.bias = data<W>(bias);
  v.mean = data<W>(mean);
  v.invstd = data<W>(invstd);
  return v;
}

template <class W>
Gradients<W> gradients(const View& weight, const View& mean, const View& invstd,
                       const View& gweight, const View& gbias) {
  Gradients<W> v{};
  v.groups = 1;
  v.training = true;
  v.weight = data<W>(weight);
  v.mean = data<W>(mean);
  v.invstd = data<W>(invstd);
  v.gweight = data<W>(gweight);
  v.gbias = data<W>(gbias);
  return v;
}

}  // namespace

void normalize_long_rows(const View& x, const View& weight, const View& bias, const View& y,
                         const View& mean, const View& invstd, int64_t rows, int64_t n,
                         double eps) {
  with_float("layer_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const Numbers<W> numbers = new_numbers<W>(rows);
    Statistics<T> v = statistics<T>(View{}, View{}, mean, invstd, eps);
    PlaneSums<T> p{};
    p.x = v.x = data<T>(x);
    p.units = v.rows = v.groups = rows;
    p.around_zero = v.around_zero = !mean.data;
    v.partials = sum_planes(p, 1, n, &v.entries);
    v.size = 1;
    v.group_step = n;
    v.count = static_cast<double>(n);
    launch("layer_norm", find_numbers<T>, blocks_for(rows, kThreads / 32), kThreads, 0, v, numbers);
    run_map_rows<T>(p.x, nullptr, data<T>(y), data<W>(weight), data<W>(bias), numbers, rows, n);
  });
}

void long_rows_backward(const View& grad, const View& x, const View& weight, const View& mean,
                        const View& invstd, const View& gx, int64_t rows, int64_t n) {
  with_float("layer_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const Numbers<W> numbers = new_numbers<W>(rows);
    Gradients<W> v = gradients<W>(View{}, mean, invstd, View{}, View{});
    PlaneSums<T> p{};
    p.x = data<T>(x);
    p.g = data<T>(grad);
    p.center = v.mean;
    p.center_size = 1;
    p.weight = data<W>(weight);
    p.units = v.rows = v.groups = rows;
    v.partials = sum_planes(p, 1, n, &v.segments);
    v.size = 1;
    v.count = static_cast<double>(n);
    launch_gradient_numbers(v, numbers);
    run_map_rows<T>(p.x, p.g, data<T>(gx), p.weight, nullptr, numbers, rows, n);
  });
}

bool batch_norm(In x, OptIn weight, OptIn bias, OptOut running_mean, OptOut running_var, Out y,
                Out mean, Out invstd, bool training, double momentum, double eps,
                bool channels_last) {
  with_float("batch_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    Statistics<T> v = statistics<T>(weight, bias, mean, invstd, eps);
    v.running_mean = data<W>(running_mean);
    v.running_var = data<W>(running_var);
    v.momentum = momentum;
    batch_norm_any<T>(Images(x, channels_last), data<T>(x), data<T>(y), v, training);
  });
  return true;
}

bool batch_norm_backward(In grad, In x, OptIn weight, In mean, In invstd, OptOut gx, OptOut gweight,
                         OptOut gbias, bool training, bool channels_last) {
  with_float("batch_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto v = gradients<Wide<T>>(weight, mean, invstd, gweight, gbias);
    v.training = training;
    batch_norm_backward_any<T>(Images(x, channels_last), data<T>(x), data<T>(grad), data<T>(gx), v);
  });
  return true;
}

bool group_norm(In x, OptIn weight, OptIn bias, Out y, Out mean, Out invstd, int64_t examples,
                int64_t groups, int64_t size, int64_t inner, double eps, bool channels_last) {
  const Groups a{examples, groups, size, inner, channels_last && inner > 1};
  if (!a.pixels && rows_fit(x.dtype, a.row())) {
    normalize_rows(x, weight, bias, y, mean, invstd, a.rows(), a.row(), {groups, size, inner}, eps);
    return true;
  }
  with_float("group_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    group_norm_any<T>(a, data<T>(x), data<T>(y), statistics<T>(weight, bias, mean, invstd, eps));
  });
  return true;
}

bool group_norm_backward(In grad, In x, OptIn weight, In mean, In invstd, OptOut gx, OptOut gweight,
                         OptOut gbias, int64_t examples, int64_t groups, int64_t size,
                         int64_t inner, bool channels_last) {
  const Groups a{examples, groups, size, inner, channels_last && inner > 1};
  with_float("group_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    group_norm_backward_any<T>(a, data<T>(x), data<T>(grad), data<T>(gx),
                               gradients<Wide<T>>(weight, mean, invstd, gweight, gbias));
  });
  return true;
}

}  // namespace grebe::cuda
