// Layer and RMS normalisation, forward and backward, and the short rows of group norm.
//
// Forward: a few lanes, a warp or a block holds a row in registers, so that x is read once: its sum,
// then the squares around the mean, then the result. Backward: the same threads hold a row of x and
// of grad, add both sums of the row, write gx and add to the parameters' gradients, which they keep
// in registers over all rows of their block. A second kernel adds the blocks' shares in order; how
// many blocks there are depends on the shape only.
// RMS norm is the same with the mean fixed at 0. Rows that don't fit are left to norm.cu; their
// parameters' gradients are sums down the columns here.
//
// Floor: memory, 8 bytes per float32 element forward and 12 backward. Not measured on a device yet.
#include "norm.cuh"

namespace grebe::cuda {
namespace {

constexpr int kForwardBlock = 1024, kBackwardBlock = 512;  // threads of a long row
// 16-byte packs of a thread forward, in a warp and in a block: no more than its registers hold.
template <class T>
constexpr int kWarpPacks = sizeof(T) == 2 ? 4 : 8;
template <class T>
constexpr int kBlockPacks = sizeof(T) == 4 ? 4 : 2;
// Backward a thread also keeps two sums per column: 16 columns, 8 of float64.
template <class T>
constexpr int kBackwardPacks = sizeof(T) == 2 ? 2 : 4;
constexpr int64_t kBackwardThreads = 132 * 1024;  // on the way at a time
constexpr int64_t kFewestRows = 8;  // of a block that keeps column sums
constexpr int kTile = 32, kTileRows = 8;

// ---- a row's threads ----

// kLanes neighbouring threads of a block of kThreads; 0: the whole block.
template <int kLanes>
DEVICE int lanes_of_row() {
  return kLanes ? kLanes : static_cast<int>(blockDim.x);
}
template <int kLanes>
DEVICE int lane_of_row() {
  return static_cast<int>(kLanes ? threadIdx.x % (kLanes ? kLanes : 1) : threadIdx.x);
}
template <int kLanes, class W>
DEVICE W row_sum(W x, W* space) {
  if constexpr (kLanes > 0)
    return warp_combine<kLanes>(x, Plus{});
  else
    return block_combine(x, space, Plus{});
}

// The part of a row of n elements that one thread holds.
template <class T, int kPacks>
struct Part {
  static constexpr int kCount = kPack<T>;
  T v[kPacks][kCount];

  DEVICE void load(const T* row, int n, bool packs, int lane, int lanes) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      load_pack<kCount>(row, (k * lanes + lane) * kCount, n, packs, v[k]);
  }
};

// ---- forward ----

template <class T>
struct Rows {
  const T* x;
  const Wide<T>*weight, *bias;
  T* y;
  Wide<T>*mean, *invstd;
  int64_t rows;
  int n;
  bool packs;  // 16-byte accesses are possible
  bool by_channel;  // the parameters are per channel, not per column
  Divider groups, inner;
  int64_t size;
  Wide<T> eps;
};

// The parameters of elements j .. j + kCount of a row.
template <int kCount, class T>
DEVICE void load_parameters(const Rows<T>& a, const Wide<T>* p, int64_t row, int j,
                            Wide<T> (&v)[kCount]) {
  if (!a.by_channel) return load_wide<kCount>(p, j, a.n, a.packs, v);
  const int64_t first = a.groups.remainder(row) * a.size;
#pragma unroll
  for (int t = 0; t < kCount; ++t) v[t] = j + t < a.n ? p[first + a.inner(j + t)] : Wide<T>(0);
}

template <int kLanes, int kPacks, class T>
__global__ void __launch_bounds__(kLanes ? kThreads : kForwardBlock) rows_forward(Rows<T> a) {
  using W = Wide<T>;
  constexpr int kCount = kPack<T>;
  Shared shared;
  W* space = shared.take<W>(kForwardBlock / 32);
  const int lanes = lanes_of_row<kLanes>(), lane = lane_of_row<kLanes>();
  const int64_t unit = kLanes ? thread_number() / lanes : blockIdx.x;
  const bool valid = unit < a.rows;
  const int64_t row = valid ? unit : 0;
  const W count = static_cast<W>(a.n);

  Part<T, kPacks> x;
  x.load(a.x + row * a.n, a.n, a.packs, lane, lanes);
  W mean = 0, sum = 0;
  if (a.mean) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      W pack = 0;
#pragma unroll
      for (int t = 0; t < kCount; ++t) pack += widen(x.v[k][t]);
      sum += pack;
    }
    mean = row_sum<kLanes>(sum, space) / count;
  }
  W squares = 0;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    W pack = 0;
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      const W d = (k * lanes + lane) * kCount + t < a.n ? widen(x.v[k][t]) - mean : W(0);
      pack = fma(d, d, pack);
    }
    squares += pack;
  }
  const W invstd = 1 / sqrt(row_sum<kLanes>(squares, space) / count + a.eps);
  if (!valid) return;
  if (lane == 0) {
    if (a.mean) a.mean[row] = mean;
    a.invstd[row] = invstd;
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int j = (k * lanes + lane) * kCount;
    if (j >= a.n) break;
    W weight[kCount], bias[kCount];
    if (a.weight) load_parameters<kCount>(a, a.weight, row, j, weight);
    if (a.bias) load_parameters<kCount>(a, a.bias, row, j, bias);
    T y[kCount];
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      W r = (widen(x.v[k][t]) - mean) * invstd;
      if (a.weight) r *= weight[t];
      if (a.bias) r += bias[t];
      y[t] = narrow<T>(r);
    }
    store_pack<kCount>(a.y + row * a.n, j, a.n, a.packs, y);
  }
}

template <int kLanes, int kPacks, class T>
void launch_forward(const Rows<T>& a, int threads) {
  const unsigned blocks = blocks_for(a.rows, kLanes ? kThreads / (kLanes ? kLanes : 1) : 1);
  launch("layer_norm", rows_forward<kLanes, kPacks, T>, blocks, static_cast<unsigned>(threads),
         kForwardBlock / 32 * sizeof(Wide<T>), a);
}

// Threads of a block for `packs` 16-byte packs, `each` per thread.
int block_threads(int64_t packs, int64_t each, int64_t most) {
  const int64_t threads = divide_up(divide_up(packs, each), 32) * 32;
  return static_cast<int>(threads < most ? threads : most);
}

template <class T>
void run_forward(const Rows<T>& a) {
  const int64_t packs = divide_up(a.n, kPack<T>);
  if (packs <= 2 * 8)
    launch_forward<8, 2>(a, kThreads);
  else if (packs <= 2 * 32)
    launch_forward<32, 2>(a, kThreads);
  else if (packs <= kWarpPacks<T> * 32)
    launch_forward<32, kWarpPacks<T>>(a, kThreads);
  else
    launch_forward<0, kBlockPacks<T>>(a, block_threads(packs, 2, kForwardBlock));
}

// ---- backward ----

template <class T>
struct RowGradients {
  const T *grad, *x;
  const Wide<T>*weight, *mean, *invstd;
  T* gx;  // or nullptr
  Wide<T>* partials;  // [block][2][n]: of weight and bias; or nullptr
  int64_t rows, segment;
  int n;
  bool packs;
};

// Two sums over a row's threads. space: [2][warps] pairs, used in turn, so that one barrier is
// enough: nobody is two rows ahead.
template <int kLanes, class W>
DEVICE void row_sums(W& a, W& b, W* space, int turn) {
  a = warp_combine<kLanes ? kLanes : 32>(a, Plus{});
  b = warp_combine<kLanes ? kLanes : 32>(b, Plus{});
  if (kLanes > 0 || blockDim.x == 32) return;
  const int warps = static_cast<int>(blockDim.x) / 32;
  W* pairs = space + turn * 2 * warps;
  if (threadIdx.x % 32 == 0) {
    pairs[threadIdx.x / 32 * 2] = a;
    pairs[threadIdx.x / 32 * 2 + 1] = b;
  }
  __syncthreads();
  a = pairs[0];
  b = pairs[1];
  for (int w = 1; w < warps; ++w) {
    a += pairs[2 * w];
    b += pairs[2 * w + 1];
  }
}

// The column sums of a block in its slot of the partial sums: lanes of a warp that hold the same
// columns are added, then the warps one after the other.
template <int kLanes, int kPacks, class T>
DEVICE void store_partials(const RowGradients<T>& a, Wide<T> (&sums)[2][kPacks][kPack<T>],
                           Wide<T>* space) {
  using W = Wide<T>;
  constexpr int kCount = kPack<T>, kColumns = kPacks * kCount * (kLanes ? kLanes : 1);
  W* out = a.partials + static_cast<int64_t>(blockIdx.x) * 2 * a.n;
  const int lanes = lanes_of_row<kLanes>(), lane = lane_of_row<kLanes>();
  for (int warp = 0; kLanes > 0 && warp < kThreads / 32; ++warp) {
#pragma unroll
    for (int i = 0; i < 2 * kPacks * kCount; ++i) {
      W& sum = sums[i / (kPacks * kCount)][i / kCount % kPacks][i % kCount];
      if (warp == 0)
        for (int d = kLanes ? kLanes : 32; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
      const int column = ((i / kCount % kPacks) * lanes + lane) * kCount + i % kCount;
      W* to = space + i / (kPacks * kCount) * kColumns + column;
      if (static_cast<int>(threadIdx.x) / 32 == warp && static_cast<int>(threadIdx.x % 32) < lanes)
        *to = warp == 0 ? sum : *to + sum;
    }
    __syncthreads();
  }
  if constexpr (kLanes > 0) {
    for (int i = threadIdx.x; i < 2 * a.n; i += kThreads)
      out[i] = space[i < a.n ? i : kColumns + i - a.n];
  } else {
#pragma unroll
    for (int i = 0; i < 2 * kPacks * kCount; ++i) {
      const int column = ((i / kCount % kPacks) * lanes + lane) * kCount + i % kCount;
      const int which = i / (kPacks * kCount);
      if (column < a.n) out[which * a.n + column] = sums[which][i / kCount % kPacks][i % kCount];
    }
  }
}

// gx = invstd (h - mean(h) - xhat mean(h xhat)) with xhat = (x - mean) invstd and h = grad weight.
template <int kLanes, int kPacks, class T>
__global__ void __launch_bounds__(kLanes ? kThreads : kBackwardBlock)
    rows_backward(RowGradients<T> a) {
  using W = Wide<T>;
  constexpr int kCount = kPack<T>;
  Shared shared;
  W* space = shared.take<W>(kLanes ? 2 * kLanes * kPacks * kCount : 4 * kBackwardBlock / 32);
  const int lanes = lanes_of_row<kLanes>(), lane = lane_of_row<kLanes>();
  const int side_by_side = kLanes ? kThreads / lanes : 1;
  const int64_t begin = blockIdx.x * a.segment, stop = begin + a.segment;
  const int64_t end = stop < a.rows ? stop : a.rows;
  const W count = static_cast<W>(a.n);
  W sums[2][kPacks][kCount] = {};
  int turn = 0;
  for (int64_t first = begin; first < end; first += side_by_side, turn ^= 1) {
    const int64_t row = first + (kLanes ? threadIdx.x / lanes : 0);
    const bool valid = row < end;
    const int n = valid ? a.n : 0;  // rows that are none hold zeros
    Part<T, kPacks> x, g;
    x.load(a.x + row * a.n, n, a.packs, lane, lanes);
    g.load(a.grad + row * a.n, n, a.packs, lane, lanes);
    const W mean = valid && a.mean ? a.mean[row] : W(0), invstd = valid ? a.invstd[row] : W(0);

    W sum_h = 0, dot = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int j = (k * lanes + lane) * kCount;
      W weight[kCount];
      if (a.weight) load_wide<kCount>(a.weight, j, n, a.packs, weight);
      W pack_h = 0, pack_dot = 0;
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        const W grad = widen(g.v[k][t]), xhat = (widen(x.v[k][t]) - mean) * invstd;
        const W h = a.weight ? grad * weight[t] : grad;
        pack_h += h;
        pack_dot = fma(h, xhat, pack_dot);
        sums[0][k][t] = fma(grad, xhat, sums[0][k][t]);
        sums[1][k][t] += grad;
      }
      sum_h += pack_h;
      dot += pack_dot;
    }
    if (!a.gx) continue;
    row_sums<kLanes>(sum_h, dot, space, turn);
    const W mean_h = a.mean ? sum_h / count : W(0), mean_dot = dot / count;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int j = (k * lanes + lane) * kCount;
      if (j >= n) break;
      W weight[kCount];
      if (a.weight) load_wide<kCount>(a.weight, j, n, a.packs, weight);
      T out[kCount];
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        const W grad = widen(g.v[k][t]), xhat = (widen(x.v[k][t]) - mean) * invstd;
        const W h = (a.weight ? grad * weight[t] : grad) - mean_h;
        out[t] = narrow<T>(fma(-xhat, mean_dot, h) * invstd);
      }
      store_pack<kCount>(a.gx + row * a.n, j, n, a.packs, out);
    }
  }
  if (a.partials) store_partials<kLanes, kPacks>(a, sums, space);
}

// The same sums for rows of any length: a thread goes down a column of its segment of rows.
template <class T>
__global__ void __launch_bounds__(kThreads) column_sums(RowGradients<T> a, int64_t n) {
  using W = Wide<T>;
  const int64_t column = thread_number(), begin = blockIdx.y * a.segment, stop = begin + a.segment;
  const int64_t end = stop < a.rows ? stop : a.rows;
  if (column >= n) return;
  W of_weight = 0, of_bias = 0;
#pragma unroll 4
  for (int64_t row = begin; row < end; ++row) {
    const W grad = widen(a.grad[row * n + column]), x = widen(a.x[row * n + column]);
    of_weight = fma(grad, (x - (a.mean ? a.mean[row] : W(0))) * a.invstd[row], of_weight);
    of_bias += grad;
  }
  W* out = a.partials + blockIdx.y * 2 * n;
  out[column] = of_weight;
  out[n + column] = of_bias;
}

// gweight and gbias from the partial sums; both without any are 0.
template <class W>
__global__ void __launch_bounds__(kTile* kTileRows)
    add_partials(const W* partials, int64_t count, int64_t n, W* gweight, W* gbias) {
  Shared shared;
  double* tile = shared.take<double>(kTile * kTileRows);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  double sum = 0;
  for (int64_t i = threadIdx.y; column < 2 * n && i < count; i += kTileRows)
    sum += static_cast<double>(partials[i * 2 * n + column]);
  tile[threadIdx.y * kTile + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= 2 * n) return;
  for (int r = 1; r < kTileRows; ++r) sum += tile[r * kTile + threadIdx.x];
  W* out = column < n ? gweight : gbias;
  if (out) out[column < n ? column : column - n] = static_cast<W>(sum);
}

// The rows of a block, of which `side_by_side` are worked on at a time by its `threads` threads.
int64_t rows_per_block(int64_t rows, int64_t side_by_side, int64_t threads, bool partials) {
  if (!partials) return side_by_side;
  const int64_t spread = divide_up(rows, kBackwardThreads / threads);
  const int64_t wanted = spread > kFewestRows ? spread : kFewestRows;
  return divide_up(wanted, side_by_side) * side_by_side;
}

// Launches the rows and returns how many blocks, each with its partial sums if these are wanted.
template <int kLanes, int kPacks, class T>
int64_t launch_backward(RowGradients<T>& a, bool partials, int threads) {
  using W = Wide<T>;
  const int64_t side_by_side = kLanes ? kThreads / (kLanes ? kLanes : 1) : 1;
  a.segment = rows_per_block(a.rows, side_by_side, threads, partials);
  const int64_t blocks = divide_up(a.rows, a.segment);
  if (partials)
    a.partials = static_cast<W*>(workspace(blocks * 2 * a.n * static_cast<int64_t>(sizeof(W))));
  const size_t space = kLanes ? 2 * kLanes * kPacks * kPack<T> : 4 * kBackwardBlock / 32;
  launch("layer_norm", rows_backward<kLanes, kPacks, T>, static_cast<unsigned>(blocks),
         static_cast<unsigned>(threads), space * sizeof(W), a);
  return blocks;
}

template <class T>
int64_t run_backward(RowGradients<T>& a, bool partials) {
  constexpr int kPacks = kBackwardPacks<T>, kFew = kPacks / 2;
  const int64_t packs = divide_up(a.n, kPack<T>);
  if (packs <= 8 * kFew) return launch_backward<8, kFew>(a, partials, kThreads);
  if (packs <= 32 * kPacks) return launch_backward<32, kPacks>(a, partials, kThreads);
  if (packs <= kBackwardBlock * kFew)
    return launch_backward<0, kFew>(a, partials, block_threads(packs, kFew, kBackwardBlock));
  return launch_backward<0, kPacks>(a, partials, kBackwardBlock);
}

template <class T>
int64_t run_column_sums(RowGradients<T>& a, int64_t n) {
  using W = Wide<T>;
  const int64_t tiles = divide_up(n, kThreads), most = divide_up(a.rows, kFewestRows);
  const int64_t wanted = divide_up(kBackwardThreads / kThreads, tiles);
  a.segment = divide_up(a.rows, wanted < most ? wanted : most);
  const int64_t segments = divide_up(a.rows, a.segment);
  a.partials = static_cast<W*>(workspace(segments * 2 * n * static_cast<int64_t>(sizeof(W))));
  launch("layer_norm", column_sums<T>,
         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(segments)), kThreads, 0, a, n);
  return segments;
}

template <class T>
bool fits_backward(int64_t n) {
  return n <= int64_t{kBackwardBlock} * kBackwardPacks<T> * kPack<T>;
}

template <class T>
void backward(const View& grad, const View& x, const View& weight, const View& mean,
              const View& invstd, const View& gx, const View& gweight, const View& gbias,
              int64_t rows, int64_t n) {
  using W = Wide<T>;
  const bool partials = gweight.data || gbias.data;
  RowGradients<T> a{};
  a.grad = data<T>(grad);
  a.x = data<T>(x);
  a.weight = data<W>(weight);
  a.mean = data<W>(mean);
  a.invstd = data<W>(invstd);
  a.gx = data<T>(gx);
  a.rows = rows;
  a.n = static_cast<int>(n);
  a.packs = n % kPack<T> == 0 && is_aligned(a.grad) && is_aligned(a.x) && is_aligned(a.weight) &&
            is_aligned(a.gx);
  int64_t count = 0;
  if (rows > 0 && n > 0 && fits_backward<T>(n)) {
    count = run_backward(a, partials);
  } else if (rows > 0 && n > 0) {
    if (gx.data) long_rows_backward(grad, x, weight, mean, invstd, gx, rows, n);
    if (partials) count = run_column_sums(a, n);
  }
  if (partials)
    launch("layer_norm", add_partials<W>, blocks_for(2 * n, kTile), dim3(kTile, kTileRows),
           kTile * kTileRows * sizeof(double), static_cast<const W*>(a.partials), count, n,
           data<W>(gweight), data<W>(gbias));
}

}  // namespace

bool rows_fit(DType dtype, int64_t n) {
  bool fits = false;
  with_float("layer_norm", dtype, [&](auto zero) {
    using T = decltype(zero);
    fits = n <= int64_t{kForwardBlock} * kBlockPacks<T> * kPack<T>;
  });
  return fits;
}

void normalize_rows(const View& x, const View& weight, const View& bias, const View& y,
                    const View& mean, const View& invstd, int64_t rows, int64_t n,
                    const RowChannels& channels, double eps) {
  with_float("layer_norm", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    Rows<T> a{};
    a.x = data<T>(x);
    a.weight = data<W>(weight);
    a.bias = data<W>(bias);
    a.y = data<T>(y);
    a.mean = data<W>(mean);
    a.invstd = data<W>(invstd);
    a.rows = rows;
    a.n = static_cast<int>(n);
    a.by_channel = channels.groups > 1 || channels.inner > 1;
    a.groups = Divider(channels.groups);
    a.inner = Divider(channels.inner);
    a.size = channels.size;
    a.eps = static_cast<W>(eps);
    a.packs = n % kPack<T> == 0 && is_aligned(a.x) && is_aligned(a.y) &&
              (a.by_channel || (is_aligned(a.weight) && is_aligned(a.bias)));
    run_forward(a);
  });
}

void layer_norm(In x, OptIn weight, OptIn bias, Out y, OptOut mean, Out invstd, int64_t rows,
                int64_t n, double eps) {
  if (rows_fit(x.dtype, n))
    normalize_rows(x, weight, bias, y, mean, invstd, rows, n, {1, n, 1}, eps);
  else
    normalize_long_rows(x, weight, bias, y, mean, invstd, rows, n, eps);
}

bool layer_norm_backward(In grad, In x, OptIn weight, OptIn mean, In invstd, OptOut gx,
                         OptOut gweight, OptOut gbias, int64_t rows, int64_t n) {
  with_float("layer_norm", x.dtype, [&](auto zero) {
    backward<decltype(zero)>(grad, x, weight, mean, invstd, gx, gweight, gbias, rows, n);
  });
  return true;
}

}  // namespace grebe::cuda
