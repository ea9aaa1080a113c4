// Matrix products: c = a b + bias + beta c, with relu, for operands of any strides and batches of them.
//
// Idea: a block computes one tile of c (gemm.cuh). Operands that are dense along one dimension and
// aligned go to tensor cores, 16-bit ones directly, float32 as sums of TF32 numbers that keep its
// accuracy, or rounded to one if that is allowed; everything else is multiplied by ordinary FMAs. Products with a vector are sums along
// rows or columns, a warp or a tile of threads each. Where the tiles of c do not fill the device, k
// is cut into parts, whose sums a second kernel adds in order.
//
// Floor: 2 m n k operations at the tensor cores' peak (a third of TF32's for float32), or the bytes
// of the operands where one of m, n, k is small. Not measured on a device yet.
#include "gemm.cuh"
#include "gemm_sm90.cuh"

namespace grebe::cuda {
namespace {

constexpr int kEnoughTiles = 256;  // with so many k is not cut
constexpr int64_t kLeastPart = 256;  // of k
constexpr int kMostParts = 64;
constexpr unsigned kMostBatch = 65535;

struct Batch {
  int ndim = 0;
  int64_t count = 1;
  int64_t shape[kMaxDims], a[kMaxDims], b[kMaxDims], c[kMaxDims];
};

template <class T>
struct Problem {
  int64_t m, n, k;
  Operand<T> a, b;
  T* c;
  int64_t c_row;
  Wide<T> beta;
  const T* bias;
  int64_t bias_row, bias_column;
  bool relu;
  bool exact = true;  // float32 operands keep their digits on tensor cores
  Batch batch;
  int64_t parts, part;  // k is cut into `parts` of `part` elements
  Wide<T>* partials;  // [batch, parts, m, n]
};

// ---- kernels ----

// The operands and the result of one item of the batch.
template <class T>
struct Item {
  Operand<T> a, b;
  T* c;
};

// The problem stays in the constant bank: a copy to select an item in would be local memory.
template <class T>
DEVICE Item<T> item_of(const Problem<T>& p, int64_t index) {
  Item<T> item{p.a, p.b, p.c};
  for (int d = p.batch.ndim - 1; d >= 0; --d) {
    const int64_t i = index % p.batch.shape[d];
    index /= p.batch.shape[d];
    item.a.data += i * p.batch.a[d];
    item.b.data += i * p.batch.b[d];
    item.c += i * p.batch.c[d];
  }
  return item;
}

template <class T>
DEVICE void finish(const Problem<T>& p, T* result, int64_t i, int64_t j, Wide<T> sum) {
  T* c = result + i * p.c_row + j;
  if (p.beta != 0) sum += p.beta * widen(*c);
  if (p.bias) sum += widen(p.bias[i * p.bias_row + j * p.bias_column]);
  if (p.relu) sum = select(sum <= 0, Wide<T>(0), sum);
  *c = narrow<T>(sum);
}

// For results that are not finite: what operands of infinity really give.
template <class T>
DEVICE Wide<T> plain_dot(const Item<T>& item, int64_t i, int64_t j, int64_t begin, int64_t end) {
  Wide<T> sum = 0;
  for (int64_t k = begin; k < end; ++k) sum = fma(item.a.at(i, k), item.b.at(j, k), sum);
  return sum;
}

// A block per tile of c, part of k and item of the batch. Blocks that run together share rows of A
// and columns of B: tiles go down groups of kGroup rows.
template <class Tile, class T>
__global__ void __launch_bounds__(kThreads) matmul_tiles(Problem<T> p, int64_t tile_rows) {
  constexpr int kM = Tile::kM, kN = Tile::kN, kGroup = 8;
  const int64_t tile_columns = (p.n + kN - 1) / kN;
  const int64_t group = blockIdx.x / (kGroup * tile_columns), first = group * kGroup;
  const int64_t rows = tile_rows - first < kGroup ? tile_rows - first : kGroup;
  const int64_t within = blockIdx.x % (kGroup * tile_columns);
  const int64_t i0 = (first + within % rows) * kM, j0 = within / rows * kN;
  const int64_t part = blockIdx.y, begin = part * p.part;
  const int64_t end = begin + p.part < p.k ? begin + p.part : p.k;
  const Item<T> item = item_of(p, blockIdx.z);
  Shared shared;
  Tile tile(shared);
  if constexpr (Tile::kSplits) tile.exact = p.exact;
  tile.multiply(item.a, i0, p.m, item.b, j0, p.n, begin, end);
  Wide<T>* partial = p.partials + (blockIdx.z * p.parts + part) * p.m * p.n;
  tile.for_each([&](int i, int j, Wide<T> sum) {
    if (i0 + i >= p.m || j0 + j >= p.n) return;
    if (Tile::kSplits && sum - sum != 0) sum = plain_dot(item, i0 + i, j0 + j, begin, end);
    if (p.parts > 1)
      partial[(i0 + i) * p.n + j0 + j] = sum;
    else
      finish(p, item.c, i0 + i, j0 + j, sum);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_parts(Problem<T> p) {
  const int64_t size = p.m * p.n;
  const Wide<T>* partial = p.partials + blockIdx.z * p.parts * size;
  T* const c = item_of(p, blockIdx.z).c;
  for (int64_t at = thread_number(); at < size; at += thread_count()) {
    Wide<T> sum = 0;
    for (int64_t part = 0; part < p.parts; ++part) sum += partial[part * size + at];
    finish(p, c, at / p.n, at % p.n, sum);
  }
}

// n == 1 and rows of A dense: a warp per row.
template <class T>
__global__ void __launch_bounds__(kThreads) matvec_rows(Problem<T> p) {
  const int64_t i = thread_number() / 32;
  if (i >= p.m) return;
  const Item<T> item = item_of(p, blockIdx.z);
  const int lane = threadIdx.x % 32;
  const T* row = item.a.data + i * p.a.i_stride;
  Wide<T> sums[4] = {};  // independent chains
  int64_t k = lane;
  for (; k + 96 < p.k; k += 128)
#pragma unroll
    for (int u = 0; u < 4; ++u)
      sums[u] = fma(widen(row[(k + 32 * u) * p.a.k_stride]),
                    widen(item.b.data[(k + 32 * u) * p.b.k_stride]), sums[u]);
  for (; k < p.k; k += 32)
    sums[0] = fma(widen(row[k * p.a.k_stride]), widen(item.b.data[k * p.b.k_stride]), sums[0]);
  const Wide<T> sum = warp_combine((sums[0] + sums[1]) + (sums[2] + sums[3]), Plus{});
  if (lane == 0) finish(p, item.c, i, 0, sum);
}

// n == 1 and columns of A dense: neighbouring threads take neighbouring rows, eight threads share
// the elements of one; blocks along y take parts of k.
constexpr int kTileRows = 8;
template <class T>
__global__ void __launch_bounds__(32 * kTileRows) matvec_columns(Problem<T> p) {
  Shared shared;
  Wide<T>* sums = shared.take<Wide<T>>(32 * kTileRows);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x, part = blockIdx.y;
  const int64_t begin = part * p.part;
  const int64_t end = begin + p.part < p.k ? begin + p.part : p.k;
  const Item<T> item = item_of(p, blockIdx.z);
  Wide<T> sum = 0;
  if (i < p.m)
    for (int64_t k = begin + threadIdx.y; k < end; k += kTileRows)
      sum = fma(widen(item.a.data[i * p.a.i_stride + k * p.a.k_stride]),
                widen(item.b.data[k * p.b.k_stride]), sum);
  sums[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= p.m) return;
  for (int y = 1; y < kTileRows; ++y) sum += sums[y * 32 + threadIdx.x];
  if (p.parts > 1)
    p.partials[(blockIdx.z * p.parts + part) * p.m + i] = sum;
  else
    finish(p, item.c, i, 0, sum);
}

// ---- which way ----

// Cuts k so that `tiles` blocks become enough; by the shape alone.
template <class T>
void cut(Problem<T>& p, int64_t tiles, int64_t unit) {
  p.parts = 1;
  p.part = p.k;
  if (tiles >= kEnoughTiles / 2 || p.k < 2 * kLeastPart) return;
  int64_t parts = kEnoughTiles / tiles;
  const int64_t most = p.k / kLeastPart < kMostParts ? p.k / kLeastPart : kMostParts;
  parts = parts < most ? parts : most;
  p.part = divide_up(divide_up(p.k, parts), unit) * unit;
  p.parts = divide_up(p.k, p.part);
  if (p.parts > 1)
    p.partials = static_cast<Wide<T>*>(
        workspace(p.batch.count * p.parts * p.m * p.n * static_cast<int64_t>(sizeof(Wide<T>))));
}

template <class T>
void add_up(const Problem<T>& p) {
  if (p.parts == 1) return;
  const dim3 grid(blocks_for(p.m * p.n, kThreads), 1, static_cast<unsigned>(p.batch.count));
  launch("matmul", add_parts<T>, grid, kThreads, 0, p);
}

template <class Tile, class T>
void run_tiles(Problem<T> p) {
  const int64_t rows = divide_up(p.m, Tile::kM), tiles = rows * divide_up(p.n, Tile::kN);
  cut(p, tiles * p.batch.count, 32);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(p.parts),
                  static_cast<unsigned>(p.batch.count));
  launch("matmul", matmul_tiles<Tile, T>, grid, kThreads, Tile::kSharedBytes, p, rows);
  add_up(p);
}

template <class T>
void run_vector(Problem<T> p) {
  const unsigned batch = static_cast<unsigned>(p.batch.count);
  p.parts = 1;
  if (p.a.i_stride != 1 || p.m == 1) {
    launch("matmul", matvec_rows<T>, dim3(blocks_for(p.m, kThreads / 32), 1, batch), kThreads, 0,
           p);
    return;
  }
  const int64_t blocks = divide_up(p.m, 32);
  cut(p, blocks * p.batch.count, 1);
  launch("matmul", matvec_columns<T>,
         dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.parts), batch),
         dim3(32, kTileRows), 32 * kTileRows * sizeof(Wide<T>), p);
  add_up(p);
}

// Can 16-byte chunks of the operand be copied? Along k if that is the dense dimension.
template <class T>
bool has_chunks(const Operand<T>& x, int64_t size, int64_t k, const Batch& batch,
                const int64_t* batch_strides, bool* along_k) {
  constexpr int64_t kChunk = kPack<T>;
  if (!is_aligned(x.data)) return false;
  for (int d = 0; d < batch.ndim; ++d)
    if (batch_strides[d] % kChunk) return false;
  *along_k = x.k_stride == 1;
  if (*along_k) return x.i_stride % kChunk == 0 && k % kChunk == 0;
  return x.i_stride == 1 && x.k_stride % kChunk == 0 && size % kChunk == 0;
}

template <class T, template <bool, bool> class Tile>
bool run_tensor_cores(const Problem<T>& p) {
  bool a_along_k, b_along_k;
  if (p.m < 32 || p.n < 32 || p.k < 32) return false;
  if (!has_chunks(p.a, p.m, p.k, p.batch, p.batch.a, &a_along_k)) return false;
  if (!has_chunks(p.b, p.n, p.k, p.batch, p.batch.b, &b_along_k)) return false;
  if (a_along_k)
    b_along_k ? run_tiles<Tile<true, true>>(p) : run_tiles<Tile<true, false>>(p);
  else
    b_along_k ? run_tiles<Tile<false, true>>(p) : run_tiles<Tile<false, false>>(p);
  return true;
}

template <bool kAAlongK, bool kBAlongK>
using Bf16Tile = MmaTile<bf16, kAAlongK, kBAlongK>;
template <bool kAAlongK, bool kBAlongK>
using HalfTile = MmaTile<half, kAAlongK, kBAlongK>;

// ---- warpgroups (gemm_sm90.cuh) ----

// Batch dimensions that continue each other as one; false: more than one is left.
template <class T>
bool merge_batch(Problem<T>& p) {
  Batch& t = p.batch;
  int kept = 0;
  for (int d = 0; d < t.ndim; ++d) {
    if (t.shape[d] == 1) continue;
    const int64_t n = t.shape[d];
    const bool continues = kept > 0 && t.a[kept - 1] == n * t.a[d] && t.b[kept - 1] == n * t.b[d] &&
                           t.c[kept - 1] == n * t.c[d];
    if (!continues) t.shape[kept++] = 1;
    t.shape[kept - 1] *= n;
    t.a[kept - 1] = t.a[d];
    t.b[kept - 1] = t.b[d];
    t.c[kept - 1] = t.c[d];
  }
  t.ndim = kept;
  return kept <= 1;
}

// An operand in batches as bulk copies take it: dense in one dimension, rows and items apart.
template <class T>
struct MappedOperand {
  const T* data;
  bool along_k;
  int64_t width, rows, items, row_stride, item_stride;

  bool set(const Operand<T>& x, int64_t size, int64_t k, int64_t count, int64_t step) {
    data = x.data;
    along_k = x.k_stride == 1;
    if (!along_k && x.i_stride != 1) return false;
    width = along_k ? k : size;
    rows = along_k ? size : k;
    row_stride = along_k ? x.i_stride : x.k_stride;
    items = step == 0 ? 1 : count;
    item_stride = step == 0 ? row_stride : step;
    return is_aligned(data) && row_stride >= width && row_stride % kPack<T> == 0 &&
           item_stride > 0 && item_stride % kPack<T> == 0;
  }
  TensorMap map(int box_rows) const {
    const int64_t shape[3] = {width, rows, items}, strides[3] = {1, row_stride, item_stride};
    const int box[3] = {64, box_rows, 1};
    return make_tensor_map(data, 3, shape, strides, box);
  }
};

template <class Tile, class T>
void launch_warpgroups(Problem<T> p, const MappedOperand<T>& a, const MappedOperand<T>& b) {
  const int64_t rows = divide_up(p.m, Tile::kM * Tile::kCluster) * Tile::kCluster;
  const int64_t columns = divide_up(p.n, Tile::kN);
  cut(p, rows * columns * p.batch.count, Tile::kDepth);
  const int64_t c_item = p.batch.ndim ? p.batch.c[0] : 0;
  WarpgroupProblem<T> q{};
  q.m = static_cast<int>(p.m);
  q.n = static_cast<int>(p.n);
  q.k = static_cast<int>(p.k);
  q.tile_rows = static_cast<int>(rows);
  q.tile_columns = static_cast<int>(columns);
  q.items = static_cast<int>(p.batch.count);
  q.parts = static_cast<int>(p.parts);
  q.part = static_cast<int>(p.part);
  q.a_step = a.items > 1;
  q.b_step = b.items > 1;
  q.c = p.c;
  q.c_row = p.c_row;
  q.c_column = 1;
  q.c_item = c_item;
  q.wide = is_aligned(p.c) && p.c_row % kPack<T> == 0 && c_item % kPack<T> == 0;
  q.beta = p.beta;
  q.bias = p.bias;
  q.bias_row = p.bias_row;
  q.bias_column = p.bias_column;
  q.relu = p.relu;
  q.partials = p.parts > 1 ? p.partials : nullptr;
  const int64_t work = rows * columns * p.parts * p.batch.count;
  const int64_t most = multiprocessors() / Tile::kCluster * Tile::kCluster;
  const int64_t blocks = work < most ? work : most;
  launch_clusters("matmul", Tile::kCluster, matmul_warpgroups<Tile>,
                  dim3(static_cast<unsigned>(blocks)), Tile::kBlock, Tile::kSharedBytes,
                  a.map(Tile::kARows), b.map(Tile::kBRows), q);
  add_up(p);
}

template <int kN, int kCluster, class T>
void choose_layout(const Problem<T>& p, const MappedOperand<T>& a, const MappedOperand<T>& b) {
  if (a.along_k)
    b.along_k ? launch_warpgroups<WarpgroupTile<T, kN, true, true, kCluster>>(p, a, b)
              : launch_warpgroups<WarpgroupTile<T, kN, true, false, kCluster>>(p, a, b);
  else
    b.along_k ? launch_warpgroups<WarpgroupTile<T, kN, false, true, kCluster>>(p, a, b)
              : launch_warpgroups<WarpgroupTile<T, kN, false, false, kCluster>>(p, a, b);
}

template <class T>
bool run_warpgroups(Problem<T> p) {
  constexpr int64_t kMostSize = int64_t{1} << 30, kEnoughWideTiles = 100;
  if (compute_capability() != 90) return false;
  if (p.m < 128 || p.n < 128 || p.k < 64) return false;
  if (p.m > kMostSize || p.n > kMostSize || p.k > kMostSize || !merge_batch(p)) return false;
  MappedOperand<T> a, b;
  const bool batched = p.batch.ndim > 0;
  if (!a.set(p.a, p.m, p.k, p.batch.count, batched ? p.batch.a[0] : 0)) return false;
  if (!b.set(p.b, p.n, p.k, p.batch.count, batched ? p.batch.b[0] : 0)) return false;
  const int64_t wide_tiles = divide_up(p.m, 128) * divide_up(p.n, 256) * p.batch.count;
  if (wide_tiles >= kEnoughWideTiles)
    choose_layout<256, 2>(p, a, b);
  else
    choose_layout<128, 1>(p, a, b);
  return true;
}

bool try_tensor_cores(const Problem<double>&) { return false; }
bool try_tensor_cores(const Problem<float>& p) {
  return compute_capability() >= 80 && run_tensor_cores<float, Tf32Tile>(p);
}
bool try_tensor_cores(const Problem<bf16>& p) {
  return run_warpgroups(p) || (compute_capability() >= 80 && run_tensor_cores<bf16, Bf16Tile>(p));
}
bool try_tensor_cores(const Problem<half>& p) {
  return run_warpgroups(p) || run_tensor_cores<half, HalfTile>(p);
}

template <class T>
void run(Problem<T> p) {
  if (p.n == 1) return run_vector(p);
  if (try_tensor_cores(p)) return;
  if constexpr (sizeof(T) == 4)
    if (p.m > 64 && p.n > 64) return run_tiles<FmaTile<T, 128, 128>>(p);
  run_tiles<FmaTile<T, 64, 64>>(p);
}

// ---- problems ----

int64_t batch_stride(const View& v, int core, int dim, int ndim) {
  const int d = v.ndim - core - (ndim - dim);
  return d < 0 || v.shape[d] == 1 ? 0 : v.strides[d];
}

// The leading dimensions of c with the strides of all three; a and b stand still in those that they
// lack or have with size 1.
Batch batch_of(const View& a, int a_core, const View& b, int b_core, const View& c) {
  Batch t;
  t.ndim = c.ndim - (a_core - 1) - (b_core - 1);
  for (int d = 0; d < t.ndim; ++d) {
    t.shape[d] = c.shape[d];
    t.a[d] = batch_stride(a, a_core, d, t.ndim);
    t.b[d] = batch_stride(b, b_core, d, t.ndim);
    t.c[d] = c.strides[d];
    t.count *= c.shape[d];
  }
  return t;
}

// Inner batch dimensions that only continue the rows of a and c become rows.
template <class T>
void fold_batch_into_rows(Problem<T>& p) {
  Batch& t = p.batch;
  while (t.ndim > 0) {
    const int d = t.ndim - 1;
    if (t.shape[d] != 1 && p.m == 1) {
      p.a.i_stride = t.a[d];
      p.c_row = t.c[d];
    }
    const bool continues = t.a[d] == p.m * p.a.i_stride && t.c[d] == p.m * p.c_row;
    if (t.shape[d] != 1 && (t.b[d] != 0 || !continues || p.bias_row != 0)) return;
    p.m *= t.shape[d];
    t.count /= t.shape[d];
    --t.ndim;
  }
}

// A single row is a column of the transposed product.
template <class T>
void turn_row(Problem<T>& p) {
  if (p.m != 1 || p.n == 1) return;
  const Operand<T> a = p.a;
  p.a = p.b;
  p.b = a;
  p.m = p.n;
  p.n = 1;
  p.c_row = 1;
  p.bias_row = p.bias_column;
  p.bias_column = 0;
  for (int d = 0; d < p.batch.ndim; ++d) {
    const int64_t stride = p.batch.a[d];
    p.batch.a[d] = p.batch.b[d];
    p.batch.b[d] = stride;
  }
}

// More items than a grid has room for go one outer dimension at a time.
template <class T>
void run_batch(const Problem<T>& p) {
  if (p.batch.count <= kMostBatch) return run(p);
  Problem<T> q = p;
  const int64_t items = p.batch.shape[0];
  --q.batch.ndim;
  q.batch.count /= items;
  for (int d = 0; d < q.batch.ndim; ++d) {
    q.batch.shape[d] = p.batch.shape[d + 1];
    q.batch.a[d] = p.batch.a[d + 1];
    q.batch.b[d] = p.batch.b[d + 1];
    q.batch.c[d] = p.batch.c[d + 1];
  }
  if (q.batch.ndim == 0) {  // one long dimension: cut it
    for (int64_t first = 0; first < items; first += kMostBatch) {
      Problem<T> r = p;
      r.batch.shape[0] = r.batch.count = items - first < kMostBatch ? items - first : kMostBatch;
      r.a.data += first * p.batch.a[0];
      r.b.data += first * p.batch.b[0];
      r.c += first * p.batch.c[0];
      run(r);
    }
    return;
  }
  for (int64_t i = 0; i < items; ++i) {
    q.a.data = p.a.data + i * p.batch.a[0];
    q.b.data = p.b.data + i * p.batch.b[0];
    q.c = p.c + i * p.batch.c[0];
    run_batch(q);
  }
}

template <class T>
void multiply(const View& a, const View& b, const View& bias, const View& c, int64_t activation,
              double beta) {
  const int a_core = a.ndim == 1 ? 1 : 2, b_core = b.ndim == 1 ? 1 : 2;
  Problem<T> p{};
  p.m = a_core == 2 ? a.shape[a.ndim - 2] : 1;
  p.k = a.shape[a.ndim - 1];
  p.n = b_core == 2 ? b.shape[b.ndim - 1] : 1;
  p.a = {data<T>(a), a_core == 2 ? a.strides[a.ndim - 2] : 0, a.strides[a.ndim - 1]};
  p.b = {data<T>(b), b_core == 2 ? b.strides[b.ndim - 1] : 0, b.strides[b.ndim - b_core]};
  p.c = data<T>(c);
  p.c_row = a_core == 2 && p.m > 1 ? c.strides[c.ndim - b_core] : p.n;
  p.beta = static_cast<Wide<T>>(beta);
  p.bias = data<T>(bias);
  p.bias_row = bias.ndim == 2;  // a column
  p.bias_column = bias.ndim == 1;
  p.relu = activation == 1;
  p.exact = !tf32_allowed();
  p.batch = batch_of(a, a_core, b, b_core, c);
  if (p.m == 0 || p.n == 0 || p.batch.count == 0) return;
  fold_batch_into_rows(p);
  turn_row(p);
  run_batch(p);
}

}  // namespace

bool matmul(In a, In b, OptIn bias, Out c, int64_t activation, double beta) {
  with_float("matmul", a.dtype,
             [&](auto zero) { multiply<decltype(zero)>(a, b, bias, c, activation, beta); });
  return true;
}

}  // namespace grebe::cuda
