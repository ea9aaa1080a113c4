// Scaled dot product attention: what all its kernels share.
//
//   y_i = sum_j p_ij v_j,  p_i = softmax_j(score_ij),  score_ij = modify(scale q_i . k_j) + mask_ij
//
// Scores are kept times log2(e), so weights are powers of two. Which tiles, parts and orders:
// by shapes alone.
#pragma once
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

constexpr int kTile = 64;  // queries and keys of a tile; also the keys that share words for dropout
constexpr double kLog2e = 0x1.71547652b82fep+0;
constexpr int64_t kBusyBlocks = 264;  // enough for every GPU; with fewer, long rows are cut

DEVICE float exp2_of(float x) { return exp2_fast(x); }
DEVICE double exp2_of(double x) { return ::exp2(x); }
// Rounded here, whatever is added to it: forward and backward get the same score.
DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
DEVICE double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// [B, H, L, D], the last dimension dense.
template <class T>
struct Heads {
  T* data;
  int64_t batch, head, row;  // strides
  bool aligned;  // all rows start and end at multiples of 16 bytes
  DEVICE T* at(int b, int h, int i = 0) const { return data + b * batch + h * head + i * row; }
};

template <class T, class V = std::remove_const_t<T>>
Heads<T> heads_of(const View& x) {
  Heads<T> y{static_cast<T*>(x.data), x.strides[0], x.strides[1], x.strides[2], true};
  const int64_t unit = kPack<V>;
  y.aligned = is_aligned(y.data) && x.shape[3] % unit == 0;
  for (int d = 0; d < 3; ++d)
    y.aligned = y.aligned && (x.shape[d] == 1 || x.strides[d] % unit == 0);
  return y;
}
// New memory for an array of x's shape.
template <class T>
Heads<T> heads_in_workspace(const View& x) {
  Heads<T> y{nullptr, x.shape[1] * x.shape[2] * x.shape[3], x.shape[2] * x.shape[3], x.shape[3],
             x.shape[3] % kPack<T> == 0};
  y.data = static_cast<T*>(workspace(numel(x) * static_cast<int64_t>(sizeof(T))));
  return y;
}

struct Range {
  int begin, end;
};

// S: what scores are, float or double.
template <class S>
struct Problem {
  int batch, heads, group, queries, keys;  // group: query heads per key head
  int depth, value_depth;
  const S* bias;  // added to the scores, or nullptr
  const uint8_t* kept;  // 0 hides a key, or nullptr
  int64_t mask_batch, mask_head, mask_row;
  const int64_t* lengths;  // of the keys of each batch item, or nullptr
  const S* slopes;  // of each head, or nullptr
  S scale, factor, softcap;  // factor: scale log2(e); softcap 0: none
  int first, end;  // query i sees the keys [i + first, i + end)
  int shift;  // and stands at key i + shift
  bool linear;  // scores are nothing but products times `factor`
  bool drops;
  uint32_t least;  // smaller words drop their weight
  S kept_factor;  // of the other weights
  uint64_t seed, offset;

  __host__ __device__ int64_t units() const { return static_cast<int64_t>(batch) * heads; }
  __host__ __device__ int64_t rows() const { return units() * queries; }
  DEVICE int64_t row(int b, int h, int query) const {
    return (static_cast<int64_t>(b) * heads + h) * queries + query;
  }
  DEVICE int length(int b) const {
    if (!lengths) return keys;
    return lengths[b] < 0 ? 0 : lengths[b] < keys ? static_cast<int>(lengths[b]) : keys;
  }
  // The keys that any of the queries [from, to) sees.
  DEVICE Range visible(int b, int from, int to) const {
    return {max(0, from + first), min(length(b), to - 1 + end)};
  }
  // The queries that see any of the keys [from, to).
  DEVICE Range watching(int from, int to) const {
    return {max(0, from - end + 1), min(queries, to - first)};
  }
};

// What the scores of one head go through.
template <class S>
struct Modifier {
  const Problem<S>& p;
  int64_t row;  // the number of its first query among all rows
  int length;
  S slope;
  const S* bias;
  const uint8_t* kept;

  DEVICE Modifier(const Problem<S>& p, int b, int h)
      : p(p),
        row(p.row(b, h, 0)),
        length(p.length(b)),
        slope(p.slopes ? p.slopes[h] : S(0)),
        bias(p.bias ? p.bias + b * p.mask_batch + h * p.mask_head : nullptr),
        kept(p.kept ? p.kept + b * p.mask_batch + h * p.mask_head : nullptr) {}

  DEVICE bool sees(int query, int key) const {
    return query < p.queries && key >= query + p.first && key < query + p.end && key < length;
  }
  // Do all queries of a tile see all keys of a tile?
  DEVICE bool sees_all(int query, int queries, int key, int keys) const {
    return query + queries <= p.queries && key >= query + queries - 1 + p.first &&
           key + keys <= query + p.end && key + keys <= length;
  }
  // The score of a key that is seen, from its product with the query. change: of the natural
  // score per change of `scale` times the product.
  DEVICE S operator()(S x, int query, int key, S& change) const {
    change = 1;
    if (p.linear) return rounded_product(x, p.factor);
    x = rounded_product(x, p.scale);
    if (p.softcap != 0) {
      const S t = tanh(x / p.softcap);
      change = fnma(t, t, S(1));
      x = p.softcap * t;
    }
    if (slope != 0) x = fnma(slope, abs(static_cast<S>(key - query - p.shift)), x);
    if (bias) x += bias[query * p.mask_row + key];
    x = rounded_product(x, static_cast<S>(kLog2e));
    return kept && !kept[query * p.mask_row + key] ? -infinity<S>() : x;
  }
  // Any key's: -inf if it is not seen.
  DEVICE S score(S x, int query, int key, bool all_seen, S& change) const {
    change = 1;
    return all_seen || sees(query, key) ? (*this)(x, query, key, change) : -infinity<S>();
  }
  // Factors of the weights of a query with the keys key + lane + {0, 16, 32, 48}; key: a multiple
  // of 64, lane < 16.
  DEVICE void kept_factors(int query, int key, int lane, S (&factor)[4]) const {
    const int64_t block = ((row + query) * ((p.keys + 63) / 64) + key / 64) * 16 + lane;
    const Philox4 words = philox(p.seed, static_cast<uint64_t>(block), p.offset);
#pragma unroll
    for (int i = 0; i < 4; ++i) factor[i] = words.v[i] >= p.least ? p.kept_factor : S(0);
  }
};

inline unsigned grid_of(int64_t blocks) {
  if (blocks > kMostBlocks) throw Error("attention: too many rows for one launch");
  return static_cast<unsigned>(blocks);
}

constexpr int64_t kFar = int64_t{1} << 29;  // no position is so far
inline int near(int64_t distance) {
  return static_cast<int>(distance < -kFar ? -kFar : distance > kFar ? kFar : distance);
}

// From a kernel's arguments. Dimensions of size 1 of the mask stand still.
template <class S>
Problem<S> problem(const View& q, const View& k, const View& v, const View& mask,
                   const View& lengths, const View& slopes, double scale, double softcap,
                   int64_t first, int64_t end, int64_t shift, double dropout, int64_t seed,
                   int64_t offset) {
  Problem<S> p{};
  if (q.shape[2] > kFar || k.shape[2] > kFar) throw Error("attention: too many positions");
  p.batch = static_cast<int>(q.shape[0]);
  p.heads = static_cast<int>(q.shape[1]);
  p.group = k.shape[1] ? p.heads / static_cast<int>(k.shape[1]) : 1;
  p.queries = static_cast<int>(q.shape[2]);
  p.keys = static_cast<int>(k.shape[2]);
  p.depth = static_cast<int>(q.shape[3]);
  p.value_depth = static_cast<int>(v.shape[3]);
  if (mask.data) {
    if (mask.dtype == DType::kBool)
      p.kept = data<const uint8_t>(mask);
    else
      p.bias = data<const S>(mask);
    p.mask_batch = mask.shape[0] == 1 ? 0 : mask.strides[0];
    p.mask_head = mask.shape[1] == 1 ? 0 : mask.strides[1];
    p.mask_row = mask.shape[2] == 1 ? 0 : mask.strides[2];
  }
  p.lengths = data<const int64_t>(lengths);
  p.slopes = data<const S>(slopes);
  p.scale = static_cast<S>(scale);
  p.factor = p.scale * static_cast<S>(kLog2e);
  p.softcap = static_cast<S>(softcap);
  p.first = near(first);
  p.end = near(end);
  p.shift = near(shift);
  p.linear = softcap == 0 && !slopes.data && !mask.data;
  p.drops = dropout != 0;
  p.least = dropout < 1 ? static_cast<uint32_t>(dropout * 0x1p32) : 0;
  p.kept_factor = dropout < 1 ? static_cast<S>(1 / (1 - dropout)) : S(0);
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  return p;
}

// ---- long rows in parts ----

// Keys are cut into `count` parts of `keys`; with more than one the results are partial.
template <class S>
struct Cut {
  int count, keys;
  S* out;  // [count][rows][E], not divided by the sums
  S* state;  // [count][rows][2]: the highest score, the sum of the weights
};

template <class S>
Cut<S> make_cut(const Problem<S>& p, int64_t blocks, int64_t least, int64_t most) {
  const int64_t wanted = divide_up(kBusyBlocks, blocks > 0 ? blocks : 1);
  int64_t keys = divide_up(divide_up(p.keys, wanted), kTile) * kTile;
  keys = keys < least ? least : keys > most ? most : keys;
  Cut<S> cut{p.keys > keys ? static_cast<int>(divide_up(p.keys, keys)) : 1, static_cast<int>(keys),
             nullptr, nullptr};
  if (cut.count == 1) {
    cut.keys = p.keys;
    return cut;
  }
  const int64_t rows = cut.count * p.rows();
  const int64_t size = static_cast<int64_t>(sizeof(S));
  cut.state = static_cast<S*>(workspace(rows * 2 * size));
  cut.out = static_cast<S*>(workspace(rows * p.value_depth * size));
  return cut;
}

template <class S>
DEVICE S log2_of_sum(S most, S sum) {
  return sum == 0 ? -infinity<S>() : most + log2(sum);
}
template <class S>
DEVICE S base_of(S most) {
  return most == -infinity<S>() ? S(0) : most;
}
template <class S>
struct HigherScore {  // NaN never
  DEVICE S operator()(S a, S b) const { return b > a ? b : a; }
};

// ---- between 16 bits and float32, for shapes that the tensor cores' kernels don't take ----

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    convert_heads(Heads<const From> x, Heads<To> y, int64_t heads, int64_t rows, int64_t depth,
                  int64_t size) {
  for (int64_t i = thread_number(); i < size; i += thread_count()) {
    const int64_t d = i % depth, at = i / depth;
    const int row = static_cast<int>(at % rows), h = static_cast<int>(at / rows % heads);
    const int b = static_cast<int>(at / rows / heads);
    y.at(b, h, row)[d] = static_cast<To>(static_cast<float>(x.at(b, h, row)[d]));
  }
}
template <class T>
Heads<const T> constant(const Heads<T>& x) {
  return {x.data, x.batch, x.head, x.row, x.aligned};
}
// shape: of the array that one side is.
template <class From, class To>
void convert(const View& shape, Heads<const From> x, Heads<To> y) {
  const int64_t size = numel(shape);
  launch("attention", convert_heads<From, To>, blocks_for(size, kThreads), kThreads, 0, x, y,
         shape.shape[1], shape.shape[2], shape.shape[3], size);
}
template <class T>
Heads<const float> widened(const View& x) {
  const Heads<float> y = heads_in_workspace<float>(x);
  convert<T, float>(x, heads_of<const T>(x), y);
  return constant(y);
}

}  // namespace
}  // namespace grebe::cuda
