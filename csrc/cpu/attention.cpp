// Scaled dot product attention, forward and backward, without the [L, S] matrix of weights.
//
//   y_i = sum_j p_ij v_j,  p_i = softmax_j(score_ij),  score_ij = modify(scale q_i . k_j) + mask_ij
//
// Forward (online softmax: Milakov, Gimelshein 2018; Dao et al. 2022): a task is up to
// kBlockQueries queries of one head. It goes over blocks of kBlockKeys keys; K^T of a block is
// packed into panels, [depth][kCols keys], and stays in L2 with the block of V, which is read where
// it is. Within the block, strips of kRows queries: scores of the strip (6 KB, L1), their maximum,
// exp, then the strip times V is added to the output, which is scaled where the maximum has grown.
// Keys that no row of the strip sees are not computed.
// Few rows (decoding): packing K would cost more than the product, so scores are dot products with
// the keys where they are, all heads of a group at once, and long caches are cut in chunks of
// kChunkKeys whose results are combined.
//
// Backward: a task is a chunk of the keys of one head (of a group: dk and dv add up over it). For
// each block of keys, blocks of queries: p = exp(score - lse) and dp = dy V^T in two buffers, then
// ds = p (dp - sum_j p dp), and three products: dv += p^T dy, dk += ds^T q, dq += ds k. Heads that
// are too few for the threads are cut in chunks of keys, each with a dq of its own, added in order.
//
// Which keys, chunks and orders: by shapes alone, so that results do not depend on threads.
// Floor: 2 L S (D + Dv) flops forward and 2.5 times that backward (half of it if causal) at the peak
// of the multiply-add units; for one query the bytes of K and V. Measured: docs/kernels/attention.md.
#include "bf16.h"
#include "gemm.h"
#include "philox.h"
#include "rows.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kBlockQueries = 192, kBlockKeys = 256;  // forward
constexpr int64_t kBackwardQueries = 96, kBackwardKeys = 192;  // multiples of kRows and kCols
constexpr int64_t kFewRows = 6, kChunkKeys = 1024;
constexpr int64_t kBackwardTasks = 8;  // heads are cut in chunks of keys to have at least so many
constexpr int64_t kDropoutGroup = 64;  // keys that share a call of philox_group
template <class T>
constexpr int64_t kStripSize = kBlockKeys + lanes<T>;  // of a row of scores

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_to(int64_t n, int64_t unit) { return divide_up(n, unit) * unit; }

template <class T>
const T* element(const View& x, int64_t b, int64_t h, int64_t i) {
  return data<T>(x) + b * x.strides[0] + h * x.strides[1] + i * x.strides[2];
}

struct Keys {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  Keys within(int64_t low, int64_t high) const { return {larger(begin, low), smaller(end, high)}; }
};

// E: float, double or bf16; T: what sums and scores are; M: what products take.
template <class E>
struct OperandOf {
  using type = E;
};
template <>
struct OperandOf<bf16> {
  using type = Bf16Operand;
};
template <class E>
using operand_of = typename OperandOf<E>::type;
template <class E>
constexpr bool kConverts = !std::is_same_v<E, operand_of<E>>;

template <class E>
struct Problem {
  using T = sum_of<E>;
  View q, k, v, mask;  // [B, H, L, D], [B, Hk, S, D], [B, Hk, S, Dv], [B, H, L, S]; dense last
  const int64_t* lengths;  // of the keys of each batch item, or nullptr
  const T* slopes;  // of each head, or nullptr
  T scale, softcap;  // softcap 0: none
  int64_t first, end;  // query i sees the keys [i + first, i + end)
  int64_t shift;  // and stands at key i + shift
  double dropout;
  uint64_t seed, offset;

  int64_t batch() const { return q.shape[0]; }
  int64_t heads() const { return q.shape[1]; }
  int64_t kv_heads() const { return k.shape[1]; }
  int64_t group() const { return heads() / kv_heads(); }
  int64_t queries() const { return q.shape[2]; }
  int64_t keys() const { return k.shape[2]; }
  int64_t depth() const { return q.shape[3]; }
  int64_t value_depth() const { return v.shape[3]; }

  int64_t length(int64_t b) const {
    return lengths ? larger(0, smaller(keys(), lengths[b])) : keys();
  }
  Keys visible(int64_t b, int64_t query) const {
    return Keys{query + first, query + end}.within(0, length(b));
  }
};

// f(n as a constant), 1 <= n <= kRows.
template <int R = kRows, class F>
inline void with_rows(int64_t n, const F& f) {
  if constexpr (R > 1)
    if (n < R) return with_rows<R - 1>(n, f);
  f(std::integral_constant<int, R>{});
}

// c[rows, n] = (a b + beta c) scales[row] for rows <= kRows, n <= kCols, operands where they are.
template <class T>
struct RowScale {
  const T* scales;  // may be nullptr
  template <int R, int V>
  [[gnu::always_inline]] void tile(vec<T> (&x)[R][V], int64_t, int64_t, int64_t) const {
    if (!scales) return;
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[i][v] = x[i][v] * scales[i];
  }
};
template <class M, int R, int V, bool kMasked, class T = sum_of<M>>
[[gnu::noinline]] void product_tile(int64_t k, const M* a, int64_t a_row, int64_t a_k, const M* b,
                                    int64_t b_k, int64_t n, T* c, int64_t ldc, T beta,
                                    const T* scales) {
  vec<T> acc[R][V] = {};
  multiply_add<M, R, V, kMasked>(k, a, a_row, a_k, b, b_k, n - (V - 1) * lanes<T>, acc);
  finish_tile(acc, c, ldc, n, Stage<T>{beta, true}, 0, 0, RowScale<T>{scales});
}
template <class M, int R, int V = kVectors, class T = sum_of<M>>
inline void product_cols(int64_t k, const M* a, int64_t a_row, int64_t a_k, const M* b, int64_t b_k,
                         int64_t n, T* c, int64_t ldc, T beta, const T* scales) {
  if constexpr (V > 1)
    if (n <= (V - 1) * lanes<T>)
      return product_cols<M, R, V - 1>(k, a, a_row, a_k, b, b_k, n, c, ldc, beta, scales);
  if (n % lanes<T> == 0)
    product_tile<M, R, V, false>(k, a, a_row, a_k, b, b_k, n, c, ldc, beta, scales);
  else
    product_tile<M, R, V, true>(k, a, a_row, a_k, b, b_k, n, c, ldc, beta, scales);
}
// Any number of columns.
template <class M, class T = sum_of<M>>
void product(int64_t rows, int64_t n, int64_t k, const M* a, int64_t a_row, int64_t a_k, const M* b,
             int64_t b_k, T* c, int64_t ldc, T beta, const T* scales = nullptr) {
  const int64_t vectors = divide_up(n, lanes<T>), panels = divide_up(vectors, kVectors);
  with_rows(rows, [&](auto count) {
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t begin = vectors * p / panels * lanes<T>;
      const int64_t stop = smaller(n, vectors * (p + 1) / panels * lanes<T>);
      product_cols<M, count>(k, a, a_row, a_k, b + begin, b_k, stop - begin, c + begin, ldc, beta,
                             scales);
    }
  });
}

template <class T>
inline void fetch_rows(const T* rows, int64_t stride, int64_t count, int64_t n) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < n; j += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(rows + i * stride + j);
}

// K or V of the keys [begin, end) as the right operand of scores: panels of kCols keys.
template <class T>
void pack_keys(const T* rows, int64_t stride, int64_t count, int64_t depth, T* panels) {
  for (int64_t j = 0; j < count; j += kCols<T>) {
    fetch_rows(rows + (j ? j + kCols<T> : 0) * stride, stride,
               smaller((j ? 1 : 2) * kCols<T>, count - j - (j ? kCols<T> : 0)), depth);
    PackRight<T>{rows + j * stride, 1, stride}(panels + j * depth, 0, smaller(kCols<T>, count - j),
                                               0, depth);
  }
}
// scores[i][begin...end) of `rows` rows with packed keys; begin is a multiple of lanes, and up to
// lanes - 1 more are written.
template <class M, class T = sum_of<M>>
void panel_scores(int64_t rows, const M* q, int64_t q_row, int64_t depth, const M* panels,
                  Keys range, T* scores, int64_t ld) {
  with_rows(rows, [&](auto count) {
    for (int64_t j = range.begin; j < range.end;) {
      const int64_t in_panel = j % kCols<M>, stop = smaller(range.end, j - in_panel + kCols<M>);
      product_cols<M, count>(depth, q, q_row, 1, panels + (j - in_panel) * depth + in_panel,
                             kCols<M>, round_to(stop - j, lanes<T>), scores + j, ld, T(0),
                             static_cast<const T*>(nullptr));
      j = stop;
    }
  });
}

// The same for keys where they are.
template <class T>
void dot_scores(int64_t rows, const T* q, int64_t q_row, int64_t depth, const T* keys,
                int64_t stride, Keys range, T* scores, int64_t ld) {
  constexpr int64_t L = lanes<T>;
  for (int64_t j = range.begin; j < range.end; j += L)
    for (int64_t i = 0; i < rows; ++i) {
      vec<T> sum[L];
      for (int64_t s = 0; s < L; ++s) {
        const T *x = q + i * q_row, *y = keys + smaller(j + s, range.end - 1) * stride;
        vec<T> dot{};
        int64_t d = 0;
        for (; d + L <= depth; d += L) dot = fma(load(x + d), load(y + d), dot);
        if (d < depth) dot = fma(load_n(x + d, depth - d), load_n(y + d, depth - d), dot);
        sum[s] = dot;
      }
      store(scores + i * ld + j, combine_each<T>(sum, [](vec<T> a, vec<T> b) { return a + b; }));
    }
}

// Scores are kept times log2(e): weights are powers of two.
constexpr float kExp2[] = {
    1, 0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f, 0x1.5bba14p-10f};
constexpr double kLog2e = 0x1.71547652b82fep+0, kLn2 = 0x1.62e42fefa39efp-1;

// 2^x, x <= 0, within 3 ulp of float; below the smallest number exactly 0.
inline f64v weight_exp2(f64v x) { return exp(x * kLn2); }
inline f32v weight_exp2(f32v x) {
  x = max(splat(-150.0f), x);  // NaN stays
  const f32v shift = integer_shift(x), t = x + shift, n = t - shift;
  return scale(polynomial(x - n, kExp2), n, as_int(t) - as_int(shift));
}

// What a row's products go through to become scores.
template <class T>
struct Modifier {
  Keys visible;
  T scale, factor, softcap, slope;
  int64_t position;  // the key that is at no distance for ALiBi
  const T* bias = nullptr;
  const uint8_t* kept = nullptr;
  int64_t keys;

  template <class E>
  Modifier(const Problem<E>& p, int64_t b, int64_t h, int64_t query)
      : visible(p.visible(b, query)),
        scale(p.scale),
        factor(p.scale * static_cast<T>(kLog2e)),
        softcap(p.softcap),
        slope(p.slopes ? p.slopes[h] : T(0)),
        position(query + p.shift),
        keys(p.keys()) {
    if (!p.mask.data) return;
    if (p.mask.dtype == DType::kBool)
      kept = element<uint8_t>(p.mask, b, h, query);
    else
      bias = element<T>(p.mask, b, h, query);
  }

  // Are scores nothing but products times `factor`?
  bool is_linear() const { return softcap == 0 && slope == 0 && !bias && !kept; }
  // And are all keys of these vectors seen?
  bool sees_all(int64_t from, int64_t to) const {
    return from >= visible.begin && round_to(to - from, lanes<T>) + from <= visible.end;
  }

  // x: products with the keys from j on. *change: d score / d (scale x), of natural scores.
  vec<T> operator()(vec<T> x, int64_t j, vec<T>* change = nullptr) const {
    constexpr int64_t L = lanes<T>;
    x = is_linear() ? x * factor : bent(x * scale, j, change) * static_cast<T>(kLog2e);
    pin(x);  // rounded here, whatever is subtracted from it
    if (j < visible.begin || j + L > visible.end)
      x = select(lane_mask<T>(visible.end - j) & ~lane_mask<T>(visible.begin - j), x, lowest());
    return x;
  }

 private:
  vec<T> bent(vec<T> x, int64_t j, vec<T>* change) const {
    if (softcap != 0) {
      const vec<T> t = tanh(x / softcap);
      if (change) *change = fnma(t, t, splat(T(1)));
      x = softcap * t;
    }
    if (slope != 0) x = fnma(splat(slope), abs(iota<T>() + static_cast<T>(j - position)), x);
    const int64_t n = smaller(lanes<T>, keys - j);
    if (bias) x = x + (n == lanes<T> ? load(bias + j) : load_n(bias + j, n));
    return kept ? select(load_kept(j, n) != 0, x, lowest()) : x;
  }
  static vec<T> lowest() { return splat(-std::numeric_limits<T>::infinity()); }
  mask_of<T> load_kept(int64_t j, int64_t n) const {
    if (n == lanes<T>) return load_bytes<T>(kept + j);
    uint8_t some[lanes<T>] = {};
    __builtin_memcpy(some, kept + j, static_cast<size_t>(n));
    return load_bytes<T>(some);
  }
};

// p of one row, keys [range), times 0 or 1 / (1 - dropout). row: number of (b, h, query).
template <class E, class T>
void drop(const Problem<E>& p, int64_t row, int64_t key, Keys range, T* weights) {
  alignas(64) uint32_t words[kDropoutGroup];
  // Words below are dropped, as in `dropout`; where all are, by the factor.
  const uint32_t least = p.dropout < 1 ? static_cast<uint32_t>(p.dropout * 0x1p32) : 0;
  const T factor = p.dropout < 1 ? static_cast<T>(1 / (1 - p.dropout)) : T(0);
  const int64_t groups = divide_up(p.keys(), kDropoutGroup);
  auto each = [&](T* x, const uint32_t* word, int64_t n) {
    for (int64_t s = 0; s < n; ++s) x[s] = word[s] >= least ? x[s] * factor : T(0);
  };
  for (int64_t j = range.begin / kDropoutGroup * kDropoutGroup; j < range.end; j += kDropoutGroup) {
    philox_group(p.seed, p.offset, row * groups + (key + j) / kDropoutGroup, words);
    const int64_t from = larger(0, range.begin - j), stop = smaller(kDropoutGroup, range.end - j);
    if (stop - from == kDropoutGroup)
      each(weights + j, words, kDropoutGroup);
    else
      each(weights + j + from, words + from, stop - from);
  }
}

// ---- forward ----

// Consecutive queries of a head, or one query of consecutive heads.
template <class E>
struct Rows {
  int64_t b, h, query, count;
  bool across_heads;
  int64_t head(int64_t r) const { return h + (across_heads ? r : 0); }
  int64_t at(int64_t r) const { return query + (across_heads ? 0 : r); }
  const E* row(const View& x, int64_t r) const { return element<E>(x, b, head(r), at(r)); }
  int64_t stride(const View& x) const { return x.strides[across_heads ? 1 : 2]; }
};

template <class T>
vec<T> log2_of_sum(vec<T> most, vec<T> sum) {
  const vec<T> none = splat(-std::numeric_limits<T>::infinity());
  return select(sum == 0, none, most + log2(sum));
}

// Rows of `depth` elements as operands of the scores, densely.
template <class E, class M>
void convert_rows(const E* rows, int64_t stride, int64_t count, int64_t depth, M* to) {
  for (int64_t i = 0; i < count; ++i)
    convert_along(to + i * operand_depth(depth), rows + i * stride, 1, depth);
}
#if defined(__AVX512BF16__)
inline void convert_rows(const bf16* rows, int64_t stride, int64_t count, int64_t depth,
                         float* to) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < depth; d += lanes<float>) {
      const int64_t n = smaller(lanes<float>, depth - d);
      store_upto(to + i * depth + d, load_widened(rows + i * stride + d, n), n);
    }
}
#endif

template <class E>
struct Workspace {
  using T = sum_of<E>;
  int64_t depth, ld, panels, strip, out, most, sum, queries, keys, values, weights;
  int64_t size;  // offsets in elements of T, which are as large as those of M
  explicit Workspace(const Problem<E>& p) {
    depth = kConverts<E> ? operand_depth(p.depth()) : p.depth();
    ld = round_to(p.value_depth(), lanes<T>);
    panels = 0;
    strip = panels + kBlockKeys * depth;
    out = round_to(strip + kRows * kStripSize<T>, 64);
    most = out + kBlockQueries * ld;
    sum = most + kBlockQueries;
    queries = round_to(sum + kBlockQueries, 64);
    keys = queries + (kConverts<E> ? kBlockQueries * p.depth() : 0);
    values = round_to(keys + (kConverts<E> ? kBlockKeys * p.depth() : 0), 64);
    weights = values + (kConverts<E> ? kBlockKeys * ld : 0);
    size = round_to(weights + (kConverts<E> ? kRows * kStripSize<T> : 0), 64);
  }
};

template <class E>
struct Forward {
  using T = sum_of<E>;
  using M = operand_of<E>;
  static constexpr bool kPairs = !std::is_same_v<M, T>;
  const Problem<E>& p;
  const View& y;
  T* lse;
  const Workspace<E>& at;
  T* memory;

  T* out(int64_t r) const { return memory + at.out + r * at.ld; }
  // Of row r: the highest score so far, times log2(e), and the sum of 2^(score - highest).
  T* most(int64_t r) const { return memory + at.most + r; }
  T* sum(int64_t r) const { return memory + at.sum + r; }

  // Products of R rows become weights in place, 0 outside `range`. All rows go through each step
  // together: a row alone would leave the processor waiting for its maximum and its sum.
  template <int R>
  void softmax_rows(const Rows<E>& rows, int64_t r, int64_t key, Keys range, T* x) const {
    constexpr int64_t L = lanes<T>, ld = kStripSize<T>;
    vec<T> high[R], total[R];
    T scale[R], base[R];
    for (int i = 0; i < R; ++i) {
      const Modifier<T> modify(p, rows.b, rows.head(r + i), rows.at(r + i));
      const bool scaled_later = modify.is_linear() && modify.factor > 0 &&
                                modify.sees_all(key + range.begin, key + range.end);
      scale[i] = scaled_later ? modify.factor : T(1);
      high[i] =
          scaled_later ? highest(x + i * ld, range) : modified(modify, key, range, x + i * ld);
    }
    for (int i = 0; i < R; ++i) {
      const T before = *most(r + i), here = hmax(high[i]) * scale[i];
      const T now = before > here ? before : here;
      base[i] = now == -std::numeric_limits<T>::infinity() ? T(0) : now;
      if (*sum(r + i) != 0 && now != before) rescale(r + i, weight_exp2(splat(before - base[i])));
      *most(r + i) = now;
    }
    for (int i = 0; i < R; ++i) {
      total[i] = vec<T>{};
      for (int64_t j = range.begin; j < range.end; j += L) {
        vec<T> score = load(x + i * ld + j) * scale[i];
        pin(score);  // rounded as base was
        const vec<T> weight = weight_exp2(score - base[i]);
        store(x + i * ld + j, weight);
        total[i] = total[i] + weight;
      }
    }
    for (int i = 0; i < R; ++i) *sum(r + i) += hsum(total[i]);
    if (p.dropout != 0)
      for (int i = 0; i < R; ++i)
        drop(p, (rows.b * p.heads() + rows.head(r + i)) * p.queries() + rows.at(r + i), key, range,
             x + i * ld);
  }
  static vec<T> highest(const T* x, Keys range) {
    vec<T> most = load(x + range.begin);
    for (int64_t j = range.begin + lanes<T>; j < range.end; j += lanes<T>)
      most = max(most, load(x + j));
    return most;
  }
  static vec<T> modified(const Modifier<T>& modify, int64_t key, Keys range, T* x) {
    vec<T> most = splat(-std::numeric_limits<T>::infinity());
    for (int64_t j = range.begin; j < range.end; j += lanes<T>) {
      const vec<T> score = modify(load(x + j), key + j);
      store(x + j, score);
      most = max(most, score);
    }
    return most;
  }
  void rescale(int64_t r, vec<T> factor) const {
    *sum(r) *= factor[0];
    for (int64_t d = 0; d < at.ld; d += lanes<T>) store(out(r) + d, load(out(r) + d) * factor);
  }

  Keys seen(const Rows<E>& rows, int64_t r, int64_t n) const {  // by any of these rows
    return {p.visible(rows.b, rows.at(r)).begin, p.visible(rows.b, rows.at(r + n - 1)).end};
  }

  // ---- operands: where they are, or converted ----

  T* buffer(int64_t offset) const { return memory + offset; }
  M* operands(int64_t offset) const { return reinterpret_cast<M*>(memory + offset); }

  // Queries once per task.
  void take_queries(const Rows<E>& rows, bool few) const {
    if constexpr (kConverts<E>) {
      if (few)
        convert_rows(rows.row(p.q, 0), rows.stride(p.q), rows.count, p.depth(), buffer(at.queries));
      else
        convert_rows(rows.row(p.q, 0), rows.stride(p.q), rows.count, p.depth(),
                     operands(at.queries));
    }
  }
  // Keys and values once per block.
  void take_block(const Rows<E>& rows, int64_t key, int64_t n, bool few) const {
    const int64_t kv_head = rows.h / p.group();
    const E* k = element<E>(p.k, rows.b, kv_head, key);
    if constexpr (kConverts<E>) {
      take_values(element<E>(p.v, rows.b, kv_head, key), n);
      if (few) return convert_rows(k, p.k.strides[2], n, p.depth(), buffer(at.keys));
      convert_rows(k, p.k.strides[2], n, p.depth(), operands(at.keys));
      pack_keys(operands(at.keys), at.depth, n, at.depth, operands(at.panels));
    } else if (!few) {
      pack_keys(k, p.k.strides[2], n, p.depth(), buffer(at.panels));
    }
  }
  void take_values(const bf16* v, int64_t n) const {
    constexpr int64_t step = kPairs ? 2 : 1;
    for (int64_t j = 0; j < n; j += step) {
      const bf16* row = v + j * p.v.strides[2];
      convert_across(operands(at.values) + j / step * at.ld, row,
                     j + 1 < n ? row + p.v.strides[2] : nullptr, p.value_depth());
    }
  }

  void strip_scores(const Rows<E>& rows, int64_t r, int64_t n, int64_t key, Keys range,
                    bool few) const {
    T* const x = buffer(at.strip);
    if constexpr (kConverts<E>) {
      if (few)
        dot_scores(n, buffer(at.queries) + r * p.depth(), p.depth(), p.depth(), buffer(at.keys),
                   p.depth(), range, x, kStripSize<T>);
      else
        panel_scores(n, operands(at.queries) + r * at.depth, at.depth, at.depth,
                     operands(at.panels), range, x, kStripSize<T>);
    } else if (few) {
      dot_scores(n, rows.row(p.q, r), rows.stride(p.q), p.depth(),
                 element<T>(p.k, rows.b, rows.h / p.group(), key), p.k.strides[2], range, x,
                 kStripSize<T>);
    } else {
      panel_scores(n, rows.row(p.q, r), rows.stride(p.q), p.depth(), buffer(at.panels), range, x,
                   kStripSize<T>);
    }
  }

  // to = (to +) weights times values, times `factors`.
  void add_values(const Rows<E>& rows, int64_t n, int64_t key, Keys range, T* to, int64_t ld,
                  bool first, const T* factors) const {
    T* const x = buffer(at.strip) + range.begin;
    const int64_t count = range.end - range.begin;
    if constexpr (kPairs) {
      bf16* const narrow = reinterpret_cast<bf16*>(memory + at.weights);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < count; j += lanes<T>)
          store_narrowed(narrow + 2 * i * kStripSize<T> + j, load(x + i * kStripSize<T> + j),
                         lanes<T>);
      product(n, p.value_depth(), divide_up(count, 2), operands(at.weights), kStripSize<T>, 1,
              operands(at.values) + range.begin / 2 * at.ld, at.ld, to, ld, T(!first), factors);
    } else if constexpr (kConverts<E>) {
      product(n, p.value_depth(), count, x, kStripSize<T>, 1,
              operands(at.values) + range.begin * at.ld, at.ld, to, ld, T(!first), factors);
    } else {
      product(n, p.value_depth(), count, x, kStripSize<T>, 1,
              element<E>(p.v, rows.b, rows.h / p.group(), key + range.begin), p.v.strides[2], to,
              ld, T(!first), factors);
    }
  }

  // ---- the walk ----

  // Adds the keys [range) of the block at `key`; `keys` are all that count for these rows.
  void strip(const Rows<E>& rows, int64_t r, int64_t n, int64_t key, Keys range, Keys keys,
             bool few, bool partial) const {
    const bool first = key + range.begin == keys.begin, last = key + range.end == keys.end;
    range.begin = range.begin / lanes<T> * lanes<T>;
    strip_scores(rows, r, n, key, range, few);
    if (first) forget(r, n);
    with_rows(n, [&](auto count) { softmax_rows<count>(rows, r, key, range, buffer(at.strip)); });
    T factors[kRows];
    for (int64_t i = 0; i < n; ++i) factors[i] = *sum(r + i) == 0 ? T(0) : 1 / *sum(r + i);
    const bool finish = last && !partial;
    if constexpr (!kConverts<E>) {
      if (first && finish)  // nothing to add to or to add later
        return add_values(rows, n, key, range, y_row(rows, r), rows.stride(y), true, factors);
    }
    add_values(rows, n, key, range, out(r), at.ld, first, finish ? factors : nullptr);
    for (int64_t i = r; finish && i < r + n; ++i) store_row(out(i), y_row(rows, i));
  }
  void store_row(const T* from, E* to) const {
    const int64_t n = p.value_depth();
    if constexpr (std::is_same_v<E, T>)
      __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
    else
      for (int64_t d = 0; d < n; d += lanes<T>)
        store_narrowed(to + d, load(from + d), smaller(lanes<T>, n - d));
  }
  void forget(int64_t r, int64_t n) const {
    for (int64_t i = r; i < r + n; ++i) {
      *most(i) = -std::numeric_limits<T>::infinity();
      *sum(i) = 0;
    }
  }
  E* y_row(const Rows<E>& rows, int64_t r) const { return const_cast<E*>(rows.row(y, r)); }

  // y and lse of all rows; if they are partial, only out and state, for the keys [keys).
  void run(const Rows<E>& rows, Keys keys, bool few, bool partial) const {
    const int64_t strips = divide_up(rows.count, kRows);
    const Keys all = seen(rows, 0, rows.count).within(keys.begin, keys.end);
    take_queries(rows, few);
    for (int64_t key = all.begin / kBlockKeys * kBlockKeys; key < all.end; key += kBlockKeys) {
      const int64_t stop = smaller(all.end, key + kBlockKeys);
      take_block(rows, key, stop - key, few);
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t r = rows.count * s / strips, n = rows.count * (s + 1) / strips - r;
        const Keys mine = seen(rows, r, n).within(keys.begin, keys.end);
        const Keys range = mine.within(key, stop);
        if (!range.empty())
          strip(rows, r, n, key, {range.begin - key, range.end - key}, mine, few, partial);
      }
    }
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t r = rows.count * s / strips, n = rows.count * (s + 1) / strips - r;
      if (seen(rows, r, n).within(keys.begin, keys.end).empty()) clear(rows, r, n, partial);
    }
    if (!partial) store_lse(rows);
  }

  // Rows that see no key.
  void clear(const Rows<E>& rows, int64_t r, int64_t n, bool partial) const {
    forget(r, n);
    for (int64_t i = r; i < r + n; ++i) {
      for (int64_t d = 0; d < at.ld; ++d) out(i)[d] = 0;
      for (int64_t d = 0; d < p.value_depth() && !partial; ++d) y_row(rows, i)[d] = E{};
    }
  }
  // Rows follow each other in lse, also across heads.
  T* lse_of(const Rows<E>& rows, int64_t r) const {
    return lse + (rows.b * p.heads() + rows.head(r)) * p.queries() + rows.at(r);
  }
  void store_lse(const Rows<E>& rows) const {
    for (int64_t r = 0; r < rows.count; r += lanes<T>)
      store_upto(lse_of(rows, r), log2_of_sum<T>(load(most(r)), load(sum(r))), rows.count - r);
  }
};

// The tasks of the forward pass.
template <class E>
struct ForwardPlan {
  bool few, across_heads;
  int64_t rows, blocks, chunks;  // of a head or group: rows, blocks of them, chunks of keys
  int64_t units;

  explicit ForwardPlan(const Problem<E>& p) {
    across_heads = p.queries() == 1;
    rows = across_heads ? p.group() : p.queries();
    few = rows <= kFewRows;
    blocks = divide_up(rows, kBlockQueries);
    chunks = few ? larger(1, divide_up(p.keys(), kChunkKeys)) : 1;
    units = p.batch() * (across_heads ? p.kv_heads() : p.heads());
  }
  int64_t tasks() const { return units * blocks * chunks; }

  // Late blocks first: causal ones have most work.
  Rows<E> task(const Problem<E>& p, int64_t t, int64_t* chunk) const {
    *chunk = t % chunks;
    const int64_t block = blocks - 1 - t / chunks % blocks, unit = t / chunks / blocks;
    const int64_t heads = across_heads ? p.kv_heads() : p.heads();
    const int64_t begin = rows * block / blocks, count = rows * (block + 1) / blocks - begin;
    const int64_t head = unit % heads * (across_heads ? p.group() : 1);
    return across_heads ? Rows<E>{unit / heads, head + begin, 0, count, true}
                        : Rows<E>{unit / heads, head, begin, count, false};
  }
};

// A row and its lse from its chunks: each its out, most and sum, `stride` apart.
// The first one's `out` becomes the row.
template <class T>
void combine_chunks(int64_t chunks, int64_t stride, T* parts, T* lse) {
  const int64_t ld = stride - 2;
  auto most = [&](int64_t c) { return parts[c * stride + ld]; };
  auto sum = [&](int64_t c) { return parts[c * stride + ld + 1]; };
  T high = -std::numeric_limits<T>::infinity(), total = 0;
  for (int64_t c = 0; c < chunks; ++c)
    if (sum(c) != 0 && !(high >= most(c))) high = most(c);
  auto factor = [&](int64_t c) { return weight_exp2(splat(most(c) - high))[0]; };
  for (int64_t c = 0; c < chunks; ++c)
    if (sum(c) != 0) total += sum(c) * factor(c);
  for (int64_t c = 0; c < chunks; ++c) {
    const T share = sum(c) == 0 ? T(0) : factor(c) / total;
    for (int64_t d = 0; d < ld; ++d)
      parts[d] = (c ? parts[d] : T(0)) + (share != 0 ? parts[c * stride + d] * share : T(0));
  }
  *lse = log2_of_sum<T>(splat(high), splat(total))[0];
}

template <class E, class T = sum_of<E>>
bool forward(const Problem<E>& p, const View& y, T* lse) {
  const ForwardPlan<E> plan(p);
  const Workspace<E> at(p);
  const int64_t work = p.batch() * p.heads() * p.queries() * p.keys() * p.depth();
  const int threads = work < kParallelWork ? 1 : num_threads();
  const bool partial = plan.chunks > 1;
  const int64_t row_size = at.ld + 2;  // of a partial result: out, most, sum
  const int64_t parts_size = partial ? plan.tasks() * plan.rows * row_size : 0;
  T* const memory =
      static_cast<T*>(scratch(static_cast<size_t>(at.size * threads + parts_size) * sizeof(T)));
  if (!memory) return false;
  T* const parts = memory + at.size * threads;  // [unit, row, chunk]
  auto part = [&](int64_t t, int64_t r) {
    return parts + ((t / plan.chunks * plan.rows + r) * plan.chunks + t % plan.chunks) * row_size;
  };
  int64_t next = 0;
  parallel_region(threads, [&](int thread, int) {
    const Forward<E> f{p, y, lse, at, memory + at.size * thread};
    for (;;) {
      const int64_t t = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (t >= plan.tasks()) return;
      int64_t chunk;
      const Rows<E> rows = plan.task(p, t, &chunk);
      if (!partial) {
        f.run(rows, {0, p.keys()}, plan.few, false);
        continue;
      }
      f.run(rows, {chunk * kChunkKeys, (chunk + 1) * kChunkKeys}, plan.few, true);
      for (int64_t r = 0; r < rows.count; ++r) {
        __builtin_memcpy(part(t, r), f.out(r), static_cast<size_t>(at.ld) * sizeof(T));
        part(t, r)[at.ld] = *f.most(r);
        part(t, r)[at.ld + 1] = *f.sum(r);
      }
    }
  });
  for (int64_t t = 0; partial && t < plan.tasks(); t += plan.chunks) {
    int64_t chunk;
    const Rows<E> rows = plan.task(p, t, &chunk);
    const Forward<E> f{p, y, lse, at, memory};
    for (int64_t r = 0; r < rows.count; ++r) {
      combine_chunks(plan.chunks, row_size, part(t, r), f.lse_of(rows, r));
      f.store_row(part(t, r), f.y_row(rows, r));
    }
  }
  return true;
}

// ---- backward ----

template <class T>
struct BackwardWorkspace {
  int64_t ld_key, ld_value, value_panels, weights, scores, dk, dv, factors, size;
  static constexpr int64_t ld = kBackwardKeys + lanes<T>;  // of weights and scores
  explicit BackwardWorkspace(const Problem<T>& p) {
    ld_key = round_to(p.depth(), lanes<T>);
    ld_value = round_to(p.value_depth(), lanes<T>);
    value_panels = kBackwardKeys * p.depth();
    weights = round_to(value_panels + kBackwardKeys * p.value_depth(), 64);
    scores = weights + kBackwardQueries * ld;
    dk = scores + kBackwardQueries * ld;
    dv = dk + kBackwardKeys * ld_key;
    factors = dv + kBackwardKeys * ld_value;
    size = round_to(factors + ld, 64);
  }
};

template <class T>
struct Backward {
  const Problem<T>& p;
  View grad, dq, dmask;  // dmask.data: nullptr if not wanted
  const T *lse, *delta;  // [B, H, L]; delta: sum of y dy
  const BackwardWorkspace<T>& at;
  T* memory;

  struct Tile {  // some queries of a head, a block of keys
    int64_t b, h, query, queries, key, keys;
  };
  static constexpr int64_t ld = BackwardWorkspace<T>::ld;
  T* weights(int64_t i) const { return memory + at.weights + i * ld; }
  T* scores(int64_t i) const { return memory + at.scores + i * ld; }

  // Products become weights p in one buffer and gradients of the products q . k in the other.
  void row(const Tile& t, int64_t i, Keys range) const {
    constexpr int64_t L = lanes<T>;
    const int64_t query = t.query + i, number = (t.b * p.heads() + t.h) * p.queries() + query;
    T *w = weights(i), *ds = scores(i), *factors = memory + at.factors;
    const T base = lse[number] == -std::numeric_limits<T>::infinity() ? T(0) : lse[number];
    const vec<T> mean = splat(delta[number]);
    const Modifier<T> modify(p, t.b, t.h, query);
    if (p.dropout == 0 && !dmask.data && modify.is_linear() &&
        modify.sees_all(t.key + range.begin, t.key + range.end)) {
      for (int64_t j = range.begin; j < range.end; j += L) {
        vec<T> score = load(w + j) * modify.factor;
        pin(score);  // as forward rounded it
        const vec<T> weight = weight_exp2(score - base);
        store(w + j, weight);
        store(ds + j, weight * p.scale * (load(ds + j) - mean));
      }
      return;
    }
    for (int64_t j = range.begin; j < range.end; ++j) factors[j] = 1;
    if (p.dropout != 0) drop(p, number, t.key, range, factors);
    T* const dm = dmask.data ? const_cast<T*>(element<T>(dmask, t.b, t.h, query)) + t.key : nullptr;
    for (int64_t j = range.begin; j < range.end; j += L) {
      vec<T> slope = splat(T(1));
      const vec<T> score = modify(load(w + j), t.key + j, &slope);
      const vec<T> weight = weight_exp2(score - base), factor = load(factors + j);
      const vec<T> change = fma(load(ds + j), factor, -mean);
      const vec<T> d = select(weight == 0, vec<T>{}, weight * change);
      store(w + j, select(weight == 0, vec<T>{}, weight * factor));
      store(ds + j, d * slope * p.scale);
      if (dm) {
        const int64_t n = smaller(L, p.keys() - t.key - j);
        store_upto(dm + j, load_upto(dm + j, n) + d, n);
      }
    }
  }

  void strip(const Tile& t, int64_t i, int64_t n, Keys range) const {
    for (int64_t r = i; r < i + n; ++r)
      for (int64_t j = 0; j < round_to(t.keys, lanes<T>); ++j) weights(r)[j] = scores(r)[j] = 0;
    if (range.empty()) return;
    range.begin = range.begin / lanes<T> * lanes<T>;
    panel_scores(n, element<T>(p.q, t.b, t.h, t.query + i), p.q.strides[2], p.depth(), memory,
                 range, weights(i), ld);
    panel_scores(n, element<T>(grad, t.b, t.h, t.query + i), grad.strides[2], p.value_depth(),
                 memory + at.value_panels, range, scores(i), ld);
    for (int64_t r = i; r < i + n; ++r) row(t, r, range);
  }

  void tile(const Tile& t) const {
    const int64_t strips = divide_up(t.queries, kRows), key_strips = divide_up(t.keys, kRows);
    const T* k = element<T>(p.k, t.b, t.h / p.group(), t.key);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t i = t.queries * s / strips, n = t.queries * (s + 1) / strips - i;
      const Keys seen{p.visible(t.b, t.query + i).begin, p.visible(t.b, t.query + i + n - 1).end};
      const Keys range = seen.within(t.key, t.key + t.keys);
      strip(t, i, n, {range.begin - t.key, range.end - t.key});
      if (range.empty()) continue;
      const int64_t first = range.begin - t.key;
      product(n, p.depth(), range.end - range.begin, scores(i) + first, ld, 1,
              k + first * p.k.strides[2], p.k.strides[2],
              const_cast<T*>(element<T>(dq, t.b, t.h, t.query + i)), dq.strides[2], T(1));
    }
    for (int64_t s = 0; s < key_strips; ++s) {
      const int64_t j = t.keys * s / key_strips, n = t.keys * (s + 1) / key_strips - j;
      const int64_t from = larger(t.key + j - p.end + 1 - t.query, 0);
      const int64_t stop = smaller(t.key + j + n - p.first - t.query, t.queries);
      if (from >= stop) continue;
      product(n, p.value_depth(), stop - from, weights(from) + j, 1, ld,
              element<T>(grad, t.b, t.h, t.query + from), grad.strides[2],
              memory + at.dv + j * at.ld_value, at.ld_value, T(1));
      product(n, p.depth(), stop - from, scores(from) + j, 1, ld,
              element<T>(p.q, t.b, t.h, t.query + from), p.q.strides[2],
              memory + at.dk + j * at.ld_key, at.ld_key, T(1));
    }
  }

  // All queries that see the keys [key, key + keys) of one key head.
  void block(int64_t b, int64_t kv_head, int64_t key, int64_t keys, const View& dk,
             const View& dv) const {
    for (int64_t i = 0; i < keys * at.ld_key; ++i) memory[at.dk + i] = 0;
    for (int64_t i = 0; i < keys * at.ld_value; ++i) memory[at.dv + i] = 0;
    if (key < p.length(b)) {
      pack_keys(element<T>(p.k, b, kv_head, key), p.k.strides[2], keys, p.depth(), memory);
      pack_keys(element<T>(p.v, b, kv_head, key), p.v.strides[2], keys, p.value_depth(),
                memory + at.value_panels);
      const int64_t from = larger(key - p.end + 1, 0);
      const int64_t stop = smaller(key + keys - p.first, p.queries());
      const int64_t tiles = divide_up(larger(stop - from, 0), kBackwardQueries);
      for (int64_t h = kv_head * p.group(); h < (kv_head + 1) * p.group(); ++h)
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t begin = from + (stop - from) * i / tiles;
          tile({b, h, begin, from + (stop - from) * (i + 1) / tiles - begin, key, keys});
        }
    }
    copy_rows(memory + at.dk, at.ld_key, keys, p.depth(), dk, b, kv_head, key);
    copy_rows(memory + at.dv, at.ld_value, keys, p.value_depth(), dv, b, kv_head, key);
  }
  static void copy_rows(const T* from, int64_t ld_from, int64_t rows, int64_t n, const View& to,
                        int64_t b, int64_t h, int64_t row) {
    for (int64_t i = 0; i < rows; ++i)
      __builtin_memcpy(const_cast<T*>(element<T>(to, b, h, row + i)), from + i * ld_from,
                       static_cast<size_t>(n) * sizeof(T));
  }
};

// Items of batch and heads, grouped where they share a gradient of the mask, times chunks of keys.
template <class T>
struct BackwardPlan {
  int64_t batch_parts, head_parts, blocks, chunks;
  BackwardPlan(const Problem<T>& p, const View& dmask) {
    const bool shared_batch = dmask.data && dmask.shape[0] == 1;
    const bool shared_heads = dmask.data && dmask.shape[1] == 1;
    batch_parts = shared_batch ? smaller(1, p.batch()) : p.batch();
    head_parts = shared_heads ? smaller(1, p.kv_heads()) : p.kv_heads();
    blocks = divide_up(p.keys(), kBackwardKeys);
    const int64_t wanted = divide_up(kBackwardTasks, larger(1, batch_parts * head_parts));
    chunks = larger(1, smaller(blocks, wanted));
  }
  int64_t tasks() const { return batch_parts * head_parts * chunks; }
};

// f(row of x) for all (b, h, i) of [B, H, L, D]; number: of the row.
template <class T, class F>
void each_row(const View& x, const F& f) {
  const int64_t heads = x.shape[1], queries = x.shape[2];
  const int64_t grain = larger(1, 4096 / larger(1, x.shape[3]));
  parallel_for(x.shape[0] * heads * queries, grain, [&](int64_t number, int64_t stop) {
    for (; number < stop; ++number)
      f(number, number / queries / heads, number / queries % heads, number % queries);
  });
}

// delta[b, h, i] = sum over d of y dy: what softmax's backward subtracts.
template <class T>
void row_products(const View& y, const View& grad, T* delta) {
  const int64_t n = y.shape[3];
  each_row<T>(y, [&](int64_t number, int64_t b, int64_t h, int64_t i) {
    const T *u = element<T>(y, b, h, i), *w = element<T>(grad, b, h, i);
    vec<T> sum{};
    int64_t d = 0;
    for (; d + lanes<T> <= n; d += lanes<T>) sum = fma(load(u + d), load(w + d), sum);
    if (d < n) sum = fma(load_n(u + d, n - d), load_n(w + d, n - d), sum);
    delta[number] = hsum(sum);
  });
}

// dq += the sums of all other chunks of keys, [chunk][b][h][i][d].
template <class T>
void add_chunks(const View& dq, const T* parts, int64_t count, int64_t size) {
  each_row<T>(dq, [&](int64_t number, int64_t b, int64_t h, int64_t i) {
    T* const to = const_cast<T*>(element<T>(dq, b, h, i));
    for (int64_t c = 0; c < count; ++c)
      for (int64_t d = 0; d < dq.shape[3]; ++d) to[d] += parts[c * size + number * dq.shape[3] + d];
  });
}

template <class T>
bool backward(const Problem<T>& p, const View& grad, const View& y, const T* lse, const View& dq,
              const View& dk, const View& dv, const View& dmask) {
  const BackwardPlan<T> plan(p, dmask);
  const BackwardWorkspace<T> at(p);
  const int64_t rows = p.batch() * p.heads() * p.queries(), part = rows * p.depth();
  const int64_t work = rows * p.keys() * p.depth();
  const int threads = work < kParallelWork ? 1 : num_threads();
  const int64_t total = at.size * threads + round_to(rows, 64) + (plan.chunks - 1) * part;
  T* const memory = static_cast<T*>(scratch(static_cast<size_t>(total) * sizeof(T)));
  if (!memory) return false;
  T *const delta = memory + at.size * threads, *const parts = delta + round_to(rows, 64);
  row_products<T>(y, grad, delta);
  each_row<T>(dq, [&](int64_t, int64_t b, int64_t h, int64_t i) {
    T* const to = const_cast<T*>(element<T>(dq, b, h, i));
    for (int64_t d = 0; d < p.depth(); ++d) to[d] = 0;
  });
  for (int64_t i = 0; i < (plan.chunks - 1) * part; ++i) parts[i] = 0;
  // Chunks after the first add to arrays of their own.
  auto dq_of = [&](int64_t chunk) {
    View x = dq;
    if (chunk == 0) return x;
    x.data = parts + (chunk - 1) * part;
    x.strides[2] = p.depth();
    x.strides[1] = p.queries() * x.strides[2];
    x.strides[0] = p.heads() * x.strides[1];
    return x;
  };
  int64_t next = 0;
  parallel_region(threads, [&](int thread, int) {
    for (;;) {
      const int64_t t = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (t >= plan.tasks()) return;
      const int64_t chunk = t % plan.chunks, unit = t / plan.chunks;
      const int64_t bp = unit / plan.head_parts, hp = unit % plan.head_parts;
      const Backward<T> f{p, grad, dq_of(chunk), dmask, lse, delta, at, memory + at.size * thread};
      for (int64_t b = p.batch() * bp / plan.batch_parts;
           b < p.batch() * (bp + 1) / plan.batch_parts; ++b)
        for (int64_t h = p.kv_heads() * hp / plan.head_parts;
             h < p.kv_heads() * (hp + 1) / plan.head_parts; ++h)
          for (int64_t i = plan.blocks * chunk / plan.chunks;
               i < plan.blocks * (chunk + 1) / plan.chunks; ++i)
            f.block(b, h, i * kBackwardKeys, smaller(kBackwardKeys, p.keys() - i * kBackwardKeys),
                    dk, dv);
    }
  });
  if (plan.chunks > 1) add_chunks(dq, parts, plan.chunks - 1, part);
  return true;
}

// Dimensions of size 1 stand still.
inline View broadcast(View x) {
  for (int d = 0; d < x.ndim; ++d)
    if (x.shape[d] == 1 && d + 1 < x.ndim) x.strides[d] = 0;
  return x;
}

}  // namespace

#define GREBE_PROBLEM(E)                                                                      \
  using T = sum_of<E>;                                                                        \
  const Problem<E> p {                                                                        \
    q, k, v, broadcast(mask), data<int64_t>(lengths), data<T>(slopes), static_cast<T>(scale), \
        static_cast<T>(softcap), first, end, shift, dropout, static_cast<uint64_t>(seed),     \
        static_cast<uint64_t>(offset)                                                         \
  }

bool attention(In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, Out y, Out lse,
               double scale, double softcap, int64_t first, int64_t end, int64_t shift,
               double dropout, int64_t seed, int64_t offset) {
  if (q.dtype == DType::kFloat32) {
    GREBE_PROBLEM(float);
    return forward(p, y, data<float>(lse));
  }
  if (q.dtype == DType::kBFloat16) {
    GREBE_PROBLEM(bf16);
    return forward(p, y, data<float>(lse));
  }
  GREBE_PROBLEM(double);
  return forward(p, y, data<double>(lse));
}

bool attention_backward(In grad, In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, In y,
                        In lse, Out dq, Out dk, Out dv, OptOut dmask, double scale, double softcap,
                        int64_t first, int64_t end, int64_t shift, double dropout, int64_t seed,
                        int64_t offset) {
  if (q.dtype == DType::kFloat32) {
    GREBE_PROBLEM(float);
    return backward(p, grad, y, data<float>(lse), dq, dk, dv, broadcast(dmask));
  }
  GREBE_PROBLEM(double);
  return backward(p, grad, y, data<double>(lse), dq, dk, dv, broadcast(dmask));
}

}  // namespace grebe::GREBE_ISA
