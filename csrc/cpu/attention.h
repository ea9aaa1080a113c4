// Scaled dot product attention: what forward (attention.cpp) and backward (attention_backward.cpp)
// share.
//
//   y_i = sum_j p_ij v_j,  p_i = softmax_j(score_ij),  score_ij = modify(scale q_i . k_j) + mask_ij
//
// Neither holds the [L, S] matrix of weights. Which blocks, chunks and orders: by shapes alone, so
// that results do not depend on threads.
#pragma once
#include "bf16.h"
#include "gemm.h"
#include "philox.h"
#include "rows.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kDropoutGroup = 64;  // keys that share a call of philox_group

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
  with_count<kRows>(rows, [&](auto count) {
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
  with_count<kRows>(rows, [&](auto count) {
    for (int64_t j = range.begin; j < range.end;) {
      const int64_t in_panel = j % kCols<M>, stop = smaller(range.end, j - in_panel + kCols<M>);
      product_cols<M, count>(depth, q, q_row, 1, panels + (j - in_panel) * depth + in_panel,
                             kCols<M>, round_up(stop - j, lanes<T>), scores + j, ld, T(0),
                             static_cast<const T*>(nullptr));
      j = stop;
    }
  });
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
    return from >= visible.begin && round_up(to - from, lanes<T>) + from <= visible.end;
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
    if (bias) x = x + load_upto(bias + j, n);
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

// Dimensions of size 1 stand still.
inline View broadcast(View x) {
  for (int d = 0; d < x.ndim; ++d)
    if (x.shape[d] == 1 && d + 1 < x.ndim) x.strides[d] = 0;
  return x;
}

// From a kernel's arguments.
template <class E, class T = sum_of<E>>
Problem<E> problem(const View& q, const View& k, const View& v, const View& mask,
                   const View& lengths, const View& slopes, double scale, double softcap,
                   int64_t first, int64_t end, int64_t shift, double dropout, int64_t seed,
                   int64_t offset) {
  return {q,
          k,
          v,
          broadcast(mask),
          data<int64_t>(lengths),
          data<T>(slopes),
          static_cast<T>(scale),
          static_cast<T>(softcap),
          first,
          end,
          shift,
          dropout,
          static_cast<uint64_t>(seed),
          static_cast<uint64_t>(offset)};
}

}  // namespace
}  // namespace grebe::GREBE_ISA
