// Scaled dot product attention, forward and backward.
//
//   y_i = sum_j p_ij v_j,  p_i = softmax_j(score_ij),  score_ij = modify(scale q_i . k_j) + mask_ij
//
// Idea (Dao, "FlashAttention-2", arXiv 2307.08691): a block owns 16 queries of a head and streams tiles
// of 32 keys and values through shared memory; 16 threads share a query, each two scores and a 16th
// of the output's columns, which stay in registers with the running maximum and sum. Tiles that
// nobody sees are skipped. Backward makes the weights again from the saved log-sum-exps: one kernel
// owns queries and makes dq (and the mask's gradient), one owns keys and makes dk and dv, so that no
// sum needs atomics. Scores are kept times log2(e).
//
// Floor: 4 D operations per visible pair forward, 10 backward. Not measured on a device yet; the
// products are FMAs here, tensor cores would be the next step.
#include "kernels.cuh"

namespace grebe::cuda {

bool reduce_sum(In x, Out y, double scale);  // reduce.cu

namespace {

constexpr int kOwned = 16, kTile = 32;  // rows that a block owns, rows of a tile
constexpr int kShare = kThreads / kOwned;  // threads of an owned row
constexpr int kMostColumns = 256 / kShare;  // columns of a thread: heads of up to 256
constexpr int kScores = kTile / kShare;  // scores of a thread
constexpr int64_t kDropoutGroup = 64;  // keys that share a group of Philox numbers
constexpr double kLog2e = 1.4426950408889634;

struct Strides {
  int64_t b, h, row;
};
Strides strides_of(const View& v) {
  Strides s{v.strides[0], v.strides[1], v.strides[2]};
  if (v.shape[0] == 1) s.b = 0;
  if (v.shape[1] == 1) s.h = 0;
  if (v.shape[2] == 1) s.row = 0;
  return s;
}

struct Keys {
  int64_t begin, end;
};

// E: elements. Scores, masks, slopes and log-sum-exps are Wide<E>.
template <class E>
struct Problem {
  using T = Wide<E>;
  int64_t batch, heads, group, queries, keys, depth, value_depth;  // group: heads per key head
  const E *q, *k, *v;
  Strides qs, ks, vs;
  const T* bias;
  const uint8_t* kept;
  Strides masks;
  int64_t mask_key;  // its stride along keys
  const int64_t* lengths;
  const T* slopes;
  T scale, softcap;
  int64_t first, end, shift;
  uint64_t seed, offset;
  uint32_t least;  // words below it are dropped
  T kept_factor;
  bool drops;

  // The keys that queries [begin, stop) see at most.
  DEVICE Keys visible(int64_t b, int64_t begin, int64_t stop) const {
    int64_t most = keys;
    if (lengths && lengths[b] < most) most = lengths[b] < 0 ? 0 : lengths[b];
    const int64_t low = begin + first, high = stop - 1 + end;
    return {low < 0 ? 0 : low, high < most ? high : most};
  }
  // The queries that see keys [begin, stop) at most.
  DEVICE Keys watching(int64_t begin, int64_t stop) const {
    const int64_t low = begin - end + 1, high = stop - first;
    return {low < 0 ? 0 : low, high < queries ? high : queries};
  }
  // The score times log2(e) of a product; change: d score / d (scale product), of natural scores.
  DEVICE T score(int64_t b, int64_t h, int64_t i, int64_t j, T product, T* change) const {
    *change = 1;
    const Keys seen = visible(b, i, i + 1);
    if (i >= queries || j < seen.begin || j >= seen.end) return -infinity<T>();
    T x = product * scale;
    if (softcap != 0) {
      const T t = tanh(x / softcap);
      *change = 1 - t * t;
      x = softcap * t;
    }
    if (slopes) x -= slopes[h] * abs(static_cast<T>(j - i - shift));
    const int64_t at = b * masks.b + h * masks.h + i * masks.row + j * mask_key;
    if (bias) x += bias[at];
    if (kept && !kept[at]) return -infinity<T>();
    return x * static_cast<T>(kLog2e);
  }
  // What dropout multiplies the weight by.
  DEVICE T keep(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (!drops) return 1;
    const int64_t groups = (keys + kDropoutGroup - 1) / kDropoutGroup;
    const int64_t row = (b * heads + h) * queries + i;
    const uint32_t word =
        random_word(seed, offset, static_cast<uint64_t>(row * groups * kDropoutGroup + j));
    return word >= least ? kept_factor : T(0);
  }
};

DEVICE float power_of_two(float x) { return ::exp2f(x); }
DEVICE double power_of_two(double x) { return ::exp2(x); }

// Rows [first, first + count) of an array into shared memory, zeros beyond `limit`; a row takes one
// element more than `columns`, so that threads of neighbouring rows use different banks.
template <class E>
DEVICE void bring(Wide<E>* to, const E* from, int64_t stride, int64_t first, int64_t limit,
                  int count, int64_t columns) {
  for (int64_t e = threadIdx.x; e < count * columns; e += kThreads) {
    const int64_t row = e / columns, column = e % columns;
    to[row * (columns + 1) + column] =
        first + row < limit ? widen(from[(first + row) * stride + column]) : Wide<E>(0);
  }
}

template <class T>
DEVICE T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
  for (int64_t d = 0; d < n; ++d) sum = fma(a[d], b[d], sum);
  return sum;
}

// Combined over the kShare threads of an owned row, half a warp.
template <class T, class Combine>
DEVICE T share(T x, Combine combine) {
  return warp_combine<kShare>(x, combine);
}

// ---- forward ----

template <class E>
__global__ void __launch_bounds__(kThreads) attend(Problem<E> p, E* y, Strides ys, Wide<E>* lse) {
  using T = Wide<E>;
  Shared shared;
  T* q = shared.take<T>(kOwned * (p.depth + 1));
  T* k = shared.take<T>(kTile * (p.depth + 1));
  T* v = shared.take<T>(kTile * (p.value_depth + 1));
  T* weights = shared.take<T>(kOwned * (kTile + 1));
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kOwned, h = blockIdx.y, b = blockIdx.z;
  const int mine = threadIdx.x / kShare, lane = threadIdx.x % kShare;
  const int64_t i = first + mine;
  bring(q, p.q + b * p.qs.b + h * p.qs.h, p.qs.row, first, p.queries, kOwned, p.depth);

  T top = -infinity<T>(), sum = 0, out[kMostColumns] = {};
  const int64_t stop = first + kOwned < p.queries ? first + kOwned : p.queries;
  const Keys range = p.visible(b, first, stop);
  for (int64_t key = range.begin / kTile * kTile; key < range.end; key += kTile) {
    __syncthreads();
    bring(k, p.k + b * p.ks.b + h / p.group * p.ks.h, p.ks.row, key, p.keys, kTile, p.depth);
    bring(v, p.v + b * p.vs.b + h / p.group * p.vs.h, p.vs.row, key, p.keys, kTile, p.value_depth);
    __syncthreads();
    T scores[kScores], change, best = top;
#pragma unroll
    for (int s = 0; s < kScores; ++s) {
      const int j = lane + s * kShare;
      const T product = dot(q + mine * (p.depth + 1), k + j * (p.depth + 1), p.depth);
      scores[s] = p.score(b, h, i, key + j, product, &change);
      best = max_nan(best, scores[s]);
    }
    best = share(best, Larger{});
    const T reference = best == -infinity<T>() ? T(0) : best;
    const T rescale = power_of_two(top - reference);
    T part = 0;
#pragma unroll
    for (int s = 0; s < kScores; ++s) {
      const int j = lane + s * kShare;
      const T weight = power_of_two(scores[s] - reference);
      part += weight;
      weights[mine * (kTile + 1) + j] = weight == 0 ? weight : weight * p.keep(b, h, i, key + j);
    }
    top = best;
    sum = sum * rescale + share(part, Plus{});
    __syncwarp();
#pragma unroll
    for (int c = 0; c < kMostColumns; ++c) {
      const int64_t column = lane + c * kShare;
      if (column >= p.value_depth) break;
      T total = out[c] * rescale;
      for (int j = 0; j < kTile; ++j)
        total = fma(weights[mine * (kTile + 1) + j], v[j * (p.value_depth + 1) + column], total);
      out[c] = total;
    }
  }
  if (i >= p.queries) return;
  if (lane == 0)
    lse[(b * p.heads + h) * p.queries + i] = sum == 0 ? -infinity<T>() : top + log2(sum);
  const T factor = sum == 0 ? T(0) : 1 / sum;
  E* row = y + b * ys.b + h * ys.h + i * ys.row;
#pragma unroll
  for (int c = 0; c < kMostColumns; ++c)
    if (lane + c * kShare < p.value_depth) row[lane + c * kShare] = narrow<E>(out[c] * factor);
}

// ---- backward ----

template <class T>
struct Gradients {
  const T *grad, *lse, *delta;  // delta [B, H, L]: sums of grad y
  Strides grads;
  T* dmask;  // [B, H, L, S], or nullptr
};

// A warp per query.
template <class T>
__global__ void __launch_bounds__(kThreads)
    make_delta(Problem<T> p, const T* grad, Strides grads, const T* y, Strides ys, T* delta) {
  const int64_t row = thread_number() / 32, rows = p.batch * p.heads * p.queries;
  if (row >= rows) return;
  const int64_t i = row % p.queries, h = row / p.queries % p.heads, b = row / p.queries / p.heads;
  const T* g = grad + b * grads.b + h * grads.h + i * grads.row;
  const T* o = y + b * ys.b + h * ys.h + i * ys.row;
  T sum = 0;
  for (int64_t c = threadIdx.x % 32; c < p.value_depth; c += 32) sum = fma(g[c], o[c], sum);
  sum = warp_combine(sum, Plus{});
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// The weight of a pair with dropout, and the gradient of its natural score before the mask.
template <class T>
struct Pair {
  T weight, slope, mask_slope;
};
template <class T>
DEVICE Pair<T> pair_of(const Problem<T>& p, const Gradients<T>& g, int64_t b, int64_t h, int64_t i,
                       int64_t j, T product, T of_value) {
  T change;
  const T score = p.score(b, h, i, j, product, &change);
  const int64_t row = (b * p.heads + h) * p.queries + i;
  if (score == -infinity<T>() || g.lse[row] == -infinity<T>()) return {0, 0, 0};
  const T weight = power_of_two(score - g.lse[row]), keep = p.keep(b, h, i, j);
  const T slope = weight * (of_value * keep - g.delta[row]);
  return {weight * keep, slope * change * p.scale, slope};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_queries(Problem<T> p, Gradients<T> g, T* dq, Strides dqs) {
  Shared shared;
  T* q = shared.take<T>(kOwned * (p.depth + 1));
  T* grad = shared.take<T>(kOwned * (p.value_depth + 1));
  T* k = shared.take<T>(kTile * (p.depth + 1));
  T* v = shared.take<T>(kTile * (p.value_depth + 1));
  T* slopes = shared.take<T>(kOwned * (kTile + 1));
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kOwned, h = blockIdx.y, b = blockIdx.z;
  const int mine = threadIdx.x / kShare, lane = threadIdx.x % kShare;
  const int64_t i = first + mine;
  bring(q, p.q + b * p.qs.b + h * p.qs.h, p.qs.row, first, p.queries, kOwned, p.depth);
  bring(grad, g.grad + b * g.grads.b + h * g.grads.h, g.grads.row, first, p.queries, kOwned,
        p.value_depth);

  T out[kMostColumns] = {};
  const int64_t stop = first + kOwned < p.queries ? first + kOwned : p.queries;
  Keys range = p.visible(b, first, stop);
  if (g.dmask) range = {0, p.keys};  // every element of it is written
  for (int64_t key = range.begin / kTile * kTile; key < range.end; key += kTile) {
    __syncthreads();
    bring(k, p.k + b * p.ks.b + h / p.group * p.ks.h, p.ks.row, key, p.keys, kTile, p.depth);
    bring(v, p.v + b * p.vs.b + h / p.group * p.vs.h, p.vs.row, key, p.keys, kTile, p.value_depth);
    __syncthreads();
    for (int s = 0; s < kScores; ++s) {
      const int j = lane + s * kShare;
      Pair<T> pair{0, 0, 0};
      if (i < p.queries && key + j < p.keys) {
        const T product = dot(q + mine * (p.depth + 1), k + j * (p.depth + 1), p.depth);
        const T of_value =
            dot(grad + mine * (p.value_depth + 1), v + j * (p.value_depth + 1), p.value_depth);
        pair = pair_of(p, g, b, h, i, key + j, product, of_value);
        if (g.dmask)
          g.dmask[((b * p.heads + h) * p.queries + i) * p.keys + key + j] = pair.mask_slope;
      }
      slopes[mine * (kTile + 1) + j] = pair.slope;
    }
    __syncwarp();
#pragma unroll
    for (int c = 0; c < kMostColumns; ++c) {
      const int64_t column = lane + c * kShare;
      if (column >= p.depth) break;
      for (int j = 0; j < kTile; ++j)
        out[c] = fma(slopes[mine * (kTile + 1) + j], k[j * (p.depth + 1) + column], out[c]);
    }
  }
  if (i >= p.queries) return;
  T* row = dq + b * dqs.b + h * dqs.h + i * dqs.row;
#pragma unroll
  for (int c = 0; c < kMostColumns; ++c)
    if (lane + c * kShare < p.depth) row[lane + c * kShare] = out[c];
}

// A block owns keys of a key head and goes through the queries of all heads that share it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_keys(Problem<T> p, Gradients<T> g, T* dk, Strides dks, T* dv, Strides dvs) {
  Shared shared;
  T* k = shared.take<T>(kOwned * (p.depth + 1));
  T* v = shared.take<T>(kOwned * (p.value_depth + 1));
  T* q = shared.take<T>(kTile * (p.depth + 1));
  T* grad = shared.take<T>(kTile * (p.value_depth + 1));
  T* slopes = shared.take<T>(kOwned * (kTile + 1));
  T* weights = shared.take<T>(kOwned * (kTile + 1));
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kOwned, head = blockIdx.y;
  const int64_t b = blockIdx.z;
  const int mine = threadIdx.x / kShare, lane = threadIdx.x % kShare;
  const int64_t j = first + mine;
  bring(k, p.k + b * p.ks.b + head * p.ks.h, p.ks.row, first, p.keys, kOwned, p.depth);
  bring(v, p.v + b * p.vs.b + head * p.vs.h, p.vs.row, first, p.keys, kOwned, p.value_depth);

  T of_k[kMostColumns] = {}, of_v[kMostColumns] = {};
  const int64_t stop = first + kOwned < p.keys ? first + kOwned : p.keys;
  const Keys range = p.watching(first, stop);
  for (int64_t h = head * p.group; h < (head + 1) * p.group; ++h)
    for (int64_t query = range.begin / kTile * kTile; query < range.end; query += kTile) {
      __syncthreads();
      bring(q, p.q + b * p.qs.b + h * p.qs.h, p.qs.row, query, p.queries, kTile, p.depth);
      bring(grad, g.grad + b * g.grads.b + h * g.grads.h, g.grads.row, query, p.queries, kTile,
            p.value_depth);
      __syncthreads();
      for (int s = 0; s < kScores; ++s) {
        const int i = lane + s * kShare;
        Pair<T> pair{0, 0, 0};
        if (query + i < p.queries && j < p.keys) {
          const T product = dot(q + i * (p.depth + 1), k + mine * (p.depth + 1), p.depth);
          const T of_value =
              dot(grad + i * (p.value_depth + 1), v + mine * (p.value_depth + 1), p.value_depth);
          pair = pair_of(p, g, b, h, query + i, j, product, of_value);
        }
        slopes[mine * (kTile + 1) + i] = pair.slope;
        weights[mine * (kTile + 1) + i] = pair.weight;
      }
      __syncwarp();
#pragma unroll
      for (int c = 0; c < kMostColumns; ++c) {
        const int64_t column = lane + c * kShare;
        for (int i = 0; column < p.depth && i < kTile; ++i)
          of_k[c] = fma(slopes[mine * (kTile + 1) + i], q[i * (p.depth + 1) + column], of_k[c]);
        for (int i = 0; column < p.value_depth && i < kTile; ++i)
          of_v[c] =
              fma(weights[mine * (kTile + 1) + i], grad[i * (p.value_depth + 1) + column], of_v[c]);
      }
    }
  if (j >= p.keys) return;
  T* k_row = dk + b * dks.b + head * dks.h + j * dks.row;
  T* v_row = dv + b * dvs.b + head * dvs.h + j * dvs.row;
#pragma unroll
  for (int c = 0; c < kMostColumns; ++c) {
    const int64_t column = lane + c * kShare;
    if (column < p.depth) k_row[column] = of_k[c];
    if (column < p.value_depth) v_row[column] = of_v[c];
  }
}

// ---- launches ----

template <class E>
Problem<E> problem_of(const View& q, const View& k, const View& v, const View& mask,
                      const View& lengths, const View& slopes, double scale, double softcap,
                      int64_t first, int64_t end, int64_t shift, double dropout, int64_t seed,
                      int64_t offset) {
  using T = Wide<E>;
  Problem<E> p{};
  p.batch = q.shape[0];
  p.heads = q.shape[1];
  p.group = k.shape[1] ? p.heads / k.shape[1] : 1;
  p.queries = q.shape[2];
  p.keys = k.shape[2];
  p.depth = q.shape[3];
  p.value_depth = v.shape[3];
  if (p.depth > 256 || p.value_depth > 256)
    throw Error("scaled_dot_product_attention: heads of more than 256 elements on CUDA");
  p.q = data<E>(q);
  p.k = data<E>(k);
  p.v = data<E>(v);
  p.qs = strides_of(q);
  p.ks = strides_of(k);
  p.vs = strides_of(v);
  if (mask.data) {
    if (mask.dtype == DType::kBool)
      p.kept = data<uint8_t>(mask);
    else
      p.bias = data<T>(mask);
    p.masks = strides_of(mask);
    p.mask_key = mask.shape[3] == 1 ? 0 : mask.strides[3];
  }
  p.lengths = data<int64_t>(lengths);
  p.slopes = data<T>(slopes);
  p.scale = static_cast<T>(scale);
  p.softcap = static_cast<T>(softcap);
  p.first = first;
  p.end = end;
  p.shift = shift;
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  p.drops = dropout > 0;
  p.least = dropout < 1 ? static_cast<uint32_t>(dropout * 0x1p32) : 0;
  p.kept_factor = dropout < 1 ? static_cast<T>(1 / (1 - dropout)) : T(0);
  return p;
}

// Elements of shared memory: owned rows of `owned` columns, tiles of `tiled`, and `squares` of pairs.
template <class T>
size_t shared_bytes(int64_t owned, int64_t tiled, int squares) {
  const int64_t elements = owned * kOwned + tiled * kTile + squares * kOwned * (kTile + 1);
  return static_cast<size_t>(elements) * sizeof(T) + 6 * 16;  // arrays begin on 16 bytes
}

template <class T>
T* new_array(int64_t n) {
  return static_cast<T*>(workspace(n * static_cast<int64_t>(sizeof(T))));
}

// Sums of all pairs' slopes [B, H, L, S] over the dimensions that the mask lacks.
void sum_mask(const View& q, int64_t keys, void* slopes, const View& dmask) {
  In all{};
  all.data = slopes;
  all.dtype = dmask.dtype;
  all.ndim = 4;
  for (int d = 0; d < 3; ++d) all.shape[d] = q.shape[d];
  all.shape[3] = keys;
  all.strides[3] = 1;
  for (int d = 2; d >= 0; --d) all.strides[d] = all.strides[d + 1] * all.shape[d + 1];
  Out sums{};
  static_cast<View&>(sums) = dmask;
  reduce_sum(all, sums, 1);
}

template <class T>
void backward(const Problem<T>& p, const View& grad, const View& q, const View& y, const View& lse,
              const View& dq, const View& dk, const View& dv, const View& dmask) {
  const char* name = "scaled_dot_product_attention";
  const int64_t rows = p.batch * p.heads * p.queries;
  T* delta = new_array<T>(rows);
  const T *g = data<T>(grad), *out = data<T>(y);
  launch(name, make_delta<T>, blocks_for(rows, kThreads / 32), kThreads, 0, p, g, strides_of(grad),
         out, strides_of(y), delta);
  T* slopes = dmask.data ? new_array<T>(rows * p.keys) : nullptr;
  const Gradients<T> all{g, data<T>(lse), delta, strides_of(grad), slopes};
  const int64_t both = p.depth + p.value_depth + 2;
  const unsigned heads = static_cast<unsigned>(p.heads), batch = static_cast<unsigned>(p.batch);
  launch(name, backward_queries<T>, dim3(blocks_for(p.queries, kOwned), heads, batch), kThreads,
         shared_bytes<T>(both, both, 1), p, all, data<T>(dq), strides_of(dq));
  launch(name, backward_keys<T>,
         dim3(blocks_for(p.keys, kOwned), static_cast<unsigned>(dk.shape[1]), batch), kThreads,
         shared_bytes<T>(both, both, 2), p, all, data<T>(dk), strides_of(dk), data<T>(dv),
         strides_of(dv));
  if (slopes) sum_mask(q, p.keys, slopes, dmask);
}

}  // namespace

bool attention(In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, Out y, Out lse,
               double scale, double softcap, int64_t first, int64_t end, int64_t shift,
               double dropout, int64_t seed, int64_t offset) {
  with_float("scaled_dot_product_attention", q.dtype, [&](auto zero) {
    using E = decltype(zero);
    const Problem<E> p = problem_of<E>(q, k, v, mask, lengths, slopes, scale, softcap, first, end,
                                       shift, dropout, seed, offset);
    launch("scaled_dot_product_attention", attend<E>,
           dim3(blocks_for(p.queries, kOwned), static_cast<unsigned>(p.heads),
                static_cast<unsigned>(p.batch)),
           kThreads, shared_bytes<Wide<E>>(p.depth + 1, p.depth + p.value_depth + 2, 1), p,
           data<E>(y), strides_of(y), data<Wide<E>>(lse));
  });
  return true;
}

bool attention_backward(In grad, In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, In y,
                        In lse, Out dq, Out dk, Out dv, OptOut dmask, double scale, double softcap,
                        int64_t first, int64_t end, int64_t shift, double dropout, int64_t seed,
                        int64_t offset) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    backward(problem_of<T>(q, k, v, mask, lengths, slopes, scale, softcap, first, end, shift,
                           dropout, seed, offset),
             grad, q, y, lse, dq, dk, dv, dmask);
  };
  if (q.dtype == DType::kFloat32)
    run(float{});
  else if (q.dtype == DType::kFloat64)
    run(double{});
  else
    unsupported("scaled_dot_product_attention", q.dtype);
  return true;
}

}  // namespace grebe::cuda
