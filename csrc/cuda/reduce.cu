// Reductions over any dimensions of an array with any strides: sum, extrema, moments, arg-extrema.
//
// Idea: dimensions are split into kept and reduced ones, ordered by stride and merged. Where the
// fastest dimension is reduced, a group of threads (a warp, or a block for long reductions) runs
// along the elements behind one result; where it is kept, neighbouring threads hold neighbouring
// results and walk down, so that memory is read along lines either way.
//
// Sums are kept in float64: the additions cost less than the reads. Where few results have long
// reductions, these are cut into chunks that depend on the shape only, whose partial results a
// second kernel combines in order: the same bits on every run.
//
// Floor: reading x once. Not measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

constexpr int64_t kChunk = 4096;        // elements behind a result before it is cut
constexpr int64_t kEnoughBlocks = 512;  // with so many nothing is cut
constexpr int kMostChunks = 1024;
constexpr int kTile = 32, kTileRows = 8;  // threads of a block that reduces columns

// ---- how the array lies ----

struct Plan {
  int kept = 0, reduced = 0;
  int64_t outputs = 1, count = 1;  // results, and elements of x behind each
  int64_t size[kMaxDims], stride[kMaxDims], y_stride[kMaxDims], z_stride[kMaxDims];  // kept
  int64_t r_size[kMaxDims], r_stride[kMaxDims];                                      // reduced
  int64_t chunks = 1, chunk;
};

int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

// A 0-d y stands for all dimensions reduced. z: a second array of y's shape, or y again.
Plan make_plan(const View& x, const View& y, const View& z) {
  Plan p;
  int order[kMaxDims], n = 0;
  for (int d = 0; d < x.ndim; ++d) {
    if (x.shape[d] == 1) continue;
    int at = n++;
    for (; at > 0 && magnitude(x.strides[order[at - 1]]) < magnitude(x.strides[d]); --at)
      order[at] = order[at - 1];
    order[at] = d;
  }
  for (int i = 0; i < n; ++i) {
    const int d = order[i];
    const int64_t size = x.shape[d], stride = x.strides[d];
    if (y.ndim == 0 || y.shape[d] == 1) {
      const int last = p.reduced - 1;
      const bool merge = last >= 0 && p.r_stride[last] == stride * size;
      const int at = merge ? last : p.reduced++;
      p.r_size[at] = merge ? p.r_size[at] * size : size;
      p.r_stride[at] = stride;
      p.count *= size;
    } else {
      const int last = p.kept - 1;
      const bool merge = last >= 0 && p.stride[last] == stride * size &&
                         p.y_stride[last] == y.strides[d] * size &&
                         p.z_stride[last] == z.strides[d] * size;
      const int at = merge ? last : p.kept++;
      p.size[at] = merge ? p.size[at] * size : size;
      p.stride[at] = stride;
      p.y_stride[at] = y.strides[d];
      p.z_stride[at] = z.strides[d];
      p.outputs *= size;
    }
  }
  p.chunk = p.count;
  return p;
}

// Does the fastest dimension belong to the results?
bool has_columns(const Plan& p) {
  if (p.kept == 0) return false;
  if (p.reduced == 0) return true;
  return magnitude(p.stride[p.kept - 1]) < magnitude(p.r_stride[p.reduced - 1]);
}

void cut(Plan& p, int64_t blocks) {
  if (blocks >= kEnoughBlocks || p.count <= kChunk) return;
  const int64_t wanted = divide_up(kEnoughBlocks, blocks), most = divide_up(p.count, kChunk);
  p.chunks = wanted < most ? wanted : most;
  if (p.chunks > kMostChunks) p.chunks = kMostChunks;
  p.chunk = divide_up(p.count, p.chunks);
  p.chunks = divide_up(p.count, p.chunk);
}

DEVICE int64_t kept_offset(const Plan& p, int64_t output, const int64_t* strides) {
  int64_t at = 0;
  for (int d = p.kept - 1; d >= 0; --d) {
    at += output % p.size[d] * strides[d];
    output /= p.size[d];
  }
  return at;
}
DEVICE int64_t reduced_offset(const Plan& p, int64_t i) {
  if (p.reduced == 1) return i * p.r_stride[0];
  int64_t at = 0;
  for (int d = p.reduced - 1; d >= 0; --d) {
    at += i % p.r_size[d] * p.r_stride[d];
    i /= p.r_size[d];
  }
  return at;
}

// ---- what is accumulated: start, one more element, two partial results together, the results ----

struct Sum {
  using Partial = double;
  static DEVICE double start() { return 0; }
  template <class T>
  static DEVICE void add(double& sum, T x, const T*) {
    sum += widen(x);
  }
  static DEVICE double merge(double a, double b) { return a + b; }
  template <class T>
  static DEVICE void store(double sum, double scale, T* y) {
    *y = narrow<T>(static_cast<Wide<T>>(sum * scale));
  }
};

struct SumSquares : Sum {
  template <class T>
  static DEVICE void add(double& sum, T x, const T*) {
    const double v = widen(x);
    sum += v * v;
  }
};

template <bool kLargest>
struct Extreme {
  using Partial = double;
  static DEVICE double start() { return kLargest ? -infinity<double>() : infinity<double>(); }
  template <class T>
  static DEVICE void add(double& best, T x, const T*) {
    best = merge(best, widen(x));
  }
  static DEVICE double merge(double a, double b) {
    return kLargest ? max_nan(a, b) : min_nan(a, b);
  }
  template <class T>
  static DEVICE void store(double best, double, T* y) {
    *y = narrow<T>(static_cast<Wide<T>>(best));
  }
};

// Sum of (x - center)^2; the centre is a result of its own, in the array z.
struct SumCentred : Sum {
  template <class T>
  static DEVICE void add(double& sum, T x, const T* center) {
    const double v = static_cast<double>(widen(x)) - static_cast<double>(widen(*center));
    sum += v * v;
  }
};

DEVICE double exchange(double x, int lanes) { return __shfl_xor_sync(~0u, x, lanes); }

// ---- kernels ----

template <class P, class T>
DEVICE void finish(const Plan& p, typename P::Partial all, T* y, double scale, int64_t output) {
  P::store(all, scale, y + kept_offset(p, output, p.y_stride));
}

// Of the result `output`, where z holds one.
template <class T>
DEVICE const T* center_of(const Plan& p, const T* z, int64_t output) {
  return z ? z + kept_offset(p, output, p.z_stride) : nullptr;
}

// kLanes threads per result and chunk, neighbours in a block of kThreads.
template <int kLanes, class P, class T>
__global__ void __launch_bounds__(kThreads)
    reduce_rows(Plan p, const T* x, T* y, const T* z, typename P::Partial* partials, double scale) {
  using Partial = typename P::Partial;
  const int64_t unit =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int64_t output = unit / p.chunks, chunk = unit % p.chunks;
  const bool valid = output < p.outputs;
  const int64_t begin = chunk * p.chunk, stop = begin + p.chunk;
  const int64_t end = !valid ? begin : stop < p.count ? stop : p.count;
  const T* row = x + (valid ? kept_offset(p, output, p.stride) : 0);
  const T* center = center_of(p, z, valid ? output : 0);
  Partial all = P::start();
  for (int64_t i = begin + threadIdx.x % kLanes; i < end; i += kLanes)
    P::add(all, row[reduced_offset(p, i)], center);
#pragma unroll
  for (int d = (kLanes < 32 ? kLanes : 32) / 2; d > 0; d /= 2)
    all = P::merge(all, exchange(all, d));
  if (kLanes > 32) {
    Shared shared;
    Partial* warps = shared.take<Partial>(kThreads / 32);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = all;
    __syncthreads();
    all = warps[0];
    for (int w = 1; w < kLanes / 32; ++w) all = P::merge(all, warps[w]);
  }
  if (!valid || threadIdx.x % kLanes != 0) return;
  if (p.chunks > 1)
    partials[unit] = all;
  else
    finish<P>(p, all, y, scale, output);
}

// A tile of neighbouring results per block; its rows of threads share the elements behind them.
template <class P, class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    reduce_columns(Plan p, const T* x, T* y, const T* z, typename P::Partial* partials,
                   double scale) {
  using Partial = typename P::Partial;
  Shared shared;
  Partial* rows = shared.take<Partial>(kTile * kTileRows);
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  const int64_t chunk = blockIdx.y, begin = chunk * p.chunk, stop = begin + p.chunk;
  const bool valid = output < p.outputs;
  const int64_t end = !valid ? begin : stop < p.count ? stop : p.count;
  const T* column = x + (valid ? kept_offset(p, output, p.stride) : 0);
  const T* center = center_of(p, z, valid ? output : 0);
  Partial all = P::start();
  for (int64_t i = begin + threadIdx.y; i < end; i += kTileRows)
    P::add(all, column[reduced_offset(p, i)], center);
  rows[threadIdx.y * kTile + threadIdx.x] = all;
  __syncthreads();
  if (threadIdx.y != 0 || !valid) return;
  for (int r = 1; r < kTileRows; ++r) all = P::merge(all, rows[r * kTile + threadIdx.x]);
  if (p.chunks > 1)
    partials[output * p.chunks + chunk] = all;
  else
    finish<P>(p, all, y, scale, output);
}

template <class P, class T>
__global__ void __launch_bounds__(kThreads)
    reduce_partials(Plan p, T* y, const typename P::Partial* partials, double scale) {
  const int64_t output = thread_number();
  if (output >= p.outputs) return;
  typename P::Partial all = partials[output * p.chunks];
  for (int64_t c = 1; c < p.chunks; ++c) all = P::merge(all, partials[output * p.chunks + c]);
  finish<P>(p, all, y, scale, output);
}

template <int kLanes, class P, class T>
void launch_rows(const char* name, const Plan& p, const T* x, T* y, const T* z,
                 typename P::Partial* partials, double scale) {
  launch(name, reduce_rows<kLanes, P, T>, blocks_for(p.outputs * p.chunks, kThreads / kLanes),
         kThreads, kThreads / 32 * sizeof(*partials), p, x, y, z, partials, scale);
}

template <class P, class T>
void reduce(const char* name, const View& vx, const View& vy, const View* vz, double scale) {
  using Partial = typename P::Partial;
  Plan p = make_plan(vx, vy, vz ? *vz : vy);
  if (p.outputs == 0) return;
  const T* x = data<T>(vx);
  T* y = data<T>(vy);
  const T* z = vz ? data<T>(*vz) : nullptr;
  const bool columns = has_columns(p), by_block = p.count > kChunk / 4;
  const int64_t per_block = columns ? kTile : by_block ? 1 : kThreads / 32;
  cut(p, divide_up(p.outputs, per_block));
  Partial* partials = nullptr;
  if (p.chunks > 1)
    partials = static_cast<Partial*>(
        workspace(p.outputs * p.chunks * static_cast<int64_t>(sizeof(Partial))));
  if (columns)
    launch(name, reduce_columns<P, T>,
           dim3(blocks_for(p.outputs, kTile), static_cast<unsigned>(p.chunks)),
           dim3(kTile, kTileRows), kTile * kTileRows * sizeof(Partial), p, x, y, z, partials,
           scale);
  else if (by_block)
    launch_rows<kThreads, P>(name, p, x, y, z, partials, scale);
  else
    launch_rows<32, P>(name, p, x, y, z, partials, scale);
  if (p.chunks > 1)
    launch(name, reduce_partials<P, T>, blocks_for(p.outputs, kThreads), kThreads, 0, p, y,
           static_cast<const Partial*>(partials), scale);
}

template <class P>
bool reduce_any(const char* name, const View& x, const View& y, const View* z, double scale) {
  with_float(name, x.dtype, [&](auto zero) { reduce<P, decltype(zero)>(name, x, y, z, scale); });
  return true;
}

// ---- arg-extrema ----

struct Candidate {
  double value;
  int64_t index;
};
// The better of two, the earlier one if equal; NaN wins.
template <bool kLargest>
DEVICE Candidate better(Candidate a, Candidate b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  bool take_b = kLargest ? b.value > a.value : b.value < a.value;
  take_b = (b_nan && !a_nan) || (take_b && !a_nan);
  const bool equal = a.value == b.value || (a_nan && b_nan);
  if (equal) take_b = b.index < a.index;
  return take_b ? b : a;
}

// A warp per result.
template <bool kLargest, class T>
__global__ void __launch_bounds__(kThreads) arg_rows(Plan p, const T* x, int64_t* index) {
  const int64_t output = thread_number() / 32;
  if (output >= p.outputs) return;
  const T* row = x + kept_offset(p, output, p.stride);
  const int lane = threadIdx.x % 32;
  Candidate best{kLargest ? -infinity<double>() : infinity<double>(), INT64_MAX};
  for (int64_t i = lane; i < p.count; i += 32)
    best = better<kLargest>(best, {static_cast<double>(widen(row[reduced_offset(p, i)])), i});
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const Candidate other{__shfl_xor_sync(~0u, best.value, d), __shfl_xor_sync(~0u, best.index, d)};
    best = better<kLargest>(best, other);
  }
  if (lane == 0) index[kept_offset(p, output, p.y_stride)] = best.index;
}

}  // namespace

bool reduce_sum(In x, Out y, double scale) { return reduce_any<Sum>("sum", x, y, nullptr, scale); }
bool reduce_sum_squares(In x, Out y, double scale) {
  return reduce_any<SumSquares>("norm", x, y, nullptr, scale);
}
bool reduce_max(In x, Out y) { return reduce_any<Extreme<true>>("max", x, y, nullptr, 1); }
bool reduce_min(In x, Out y) { return reduce_any<Extreme<false>>("min", x, y, nullptr, 1); }
bool reduce_moments(In x, Out mean, Out var, double correction) {
  const double results = static_cast<double>(numel(mean));
  const double n = results > 0 ? static_cast<double>(numel(x)) / results : 0;
  const double degrees = n - correction > 0 ? n - correction : 0;
  const View& center = mean;
  return reduce_any<Sum>("mean", x, mean, nullptr, 1 / n) &&
         reduce_any<SumCentred>("var", x, var, &center, 1 / degrees);
}

// One dimension is reduced: the elements along it have one stride.
bool argmax(In x, Out index, int64_t, bool largest) {
  const Plan p = make_plan(x, index, index);
  const unsigned blocks = blocks_for(p.outputs, kThreads / 32);
  with_float("argmax", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch("argmax", largest ? arg_rows<true, T> : arg_rows<false, T>, blocks, kThreads, 0, p,
           static_cast<const T*>(data<T>(x)), data<int64_t>(index));
  });
  return true;
}

}  // namespace grebe::cuda
