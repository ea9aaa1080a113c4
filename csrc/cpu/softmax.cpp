// softmax, log_softmax, logsumexp, cross entropy and negative log likelihood, forward and backward.
//
// An array is [outer, n, inner], contiguous; the reduction runs over n. inner == 1: a row is
// contiguous, lanes run along it. inner > 1: lanes run over `inner`, a tile of kTile vectors at a
// time, and nothing is ever combined across lanes.
//
// Everything starts from (reference, sum): the largest element and the sum of exp(x - reference).
// Rows up to kGroupUpTo go in groups of as many as a vector has lanes, which hides the latency of
// the maximum and the sum and takes one logarithm or division for all; rows from kSplitFrom on are
// cut into pieces that threads share. Rows up to kOnlineFrom are read twice (from cache), longer
// ones once, block by block: the sum is rescaled when a block raises the reference. Blocks are
// summed in T, their sums in double.
// Cross entropy keeps only these two numbers per row; backward makes exp(x - reference) again,
// subtracts the target and scales, in one pass. They are kept apart, not as their log-sum-exp,
// because at large logits that sum has lost the digits the loss is made of.
//
// A row of -inf only has reference 0 and sum 0: softmax NaN, logsumexp -inf, as in PyTorch.
//
// Floor: memory where rows are long (softmax 8 bytes per float32 element, cross entropy 4 forward,
// 8 backward), else one exp per element, about 1 cycle with AVX-512.
// Measured shares: docs/kernels/softmax.md.
#include "kernels.h"
#include "rows.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kOnlineFrom = 4096;  // elements: from here on a row does not stay in L1
constexpr int kTile = 4;  // vectors side by side for inner > 1

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

struct Layout {
  int64_t outer, n, inner;
  int64_t positions() const { return outer * inner; }
};

template <class T>
inline T log_of(T x) {
  return log(splat(x))[0];
}
template <class T>
inline T exp_of(T x) {
  return exp(splat(x))[0];
}

// f(o, j, width): columns j .. j + width of outer index o, width <= kTile * lanes<T>.
template <class T, class F>
void for_each_tile(const Layout& a, const F& f) {
  constexpr int64_t width = kTile * lanes<T>;
  const int64_t tiles = (a.inner + width - 1) / width;
  const int64_t grain = larger(1, kWork / (larger(1, a.n) * width));
  parallel_for(a.outer * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t j = t % tiles * width;
      f(t / tiles, j, smaller(a.inner - j, width));
    }
  });
}

// ---- rows ----

template <class T>
struct Exponentials {
  T reference;
  T sum;
};

template <class T>
T row_max(const T* x, int64_t n) {
  constexpr int64_t L = lanes<T>;
  vec<T> m[4];
  for (auto& v : m) v = splat(-kInfinity<T>);
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int k = 0; k < 4; ++k) m[k] = max(load(x + i + k * L), m[k]);
  for (; i + L <= n; i += L) m[0] = max(load(x + i), m[0]);
  if (i < n) m[1] = max(select(lane_mask<T>(n - i), load_n(x + i, n - i), m[1]), m[1]);
  const vec<T> all = max(max(m[0], m[1]), max(m[2], m[3]));
  return combine_lanes<half_lanes<vec<T>>>(all, [](vec<T> a, vec<T> b) { return max(a, b); })[0];
}

template <class T>
Exponentials<T> row_exponentials_online(const T* x, int64_t n) {
  T top = -kInfinity<T>, reference = 0;
  double sum = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t end = smaller(i + kBlock, n);
    const T block_top = row_max(x + i, end - i);
    if (block_top > top) {
      sum *= static_cast<double>(exp_of(top - block_top));
      top = reference = block_top;
    }
    const vec<T> r = splat(reference);
    sum += static_cast<double>(
        block_sum(x, i, end, [=](vec<T> v, int64_t, int64_t) { return exp(v - r); }));
  }
  return {reference, static_cast<T>(sum)};
}

// Pieces of a long row, put together in their order.
template <class T>
Exponentials<T> row_exponentials_split(const T* x, int64_t n) {
  Exponentials<T> parts[kParts] = {};
  for_each_piece(n, [&](int64_t i, int64_t begin, int64_t end) {
    parts[i] = row_exponentials_online(x + begin, end - begin);
  });
  T top = -kInfinity<T>;
  for (const auto& p : parts)
    if (p.sum != 0 && p.reference > top) top = p.reference;
  if (top == -kInfinity<T>) top = 0;
  double sum = 0;
  for (const auto& p : parts)
    if (p.sum != 0)
      sum += static_cast<double>(p.sum) * static_cast<double>(exp_of(p.reference - top));
  return {top, static_cast<T>(sum)};
}

template <class T>
T row_reference(const T* x, int64_t n) {
  const T top = row_max(x, n);
  return top == -kInfinity<T> ? T{0} : top;
}

template <class T>
Exponentials<T> row_exponentials(const T* x, int64_t n) {
  if (n >= kSplitFrom) return row_exponentials_split(x, n);
  if (n >= kOnlineFrom) return row_exponentials_online(x, n);
  const T reference = row_reference(x, n);
  const vec<T> r = splat(reference);
  return {reference, row_sum(x, n, [=](vec<T> v, int64_t, int64_t) { return exp(v - r); })};
}

template <class T>
T log_sum_exp(const Exponentials<T>& e) {
  return e.reference == kInfinity<T> ? kInfinity<T> : e.reference + log_of(e.sum);
}

template <class T>
void softmax_row(const T* x, T* y, int64_t n) {
  if (n >= kSplitFrom) {
    // exp once more is cheaper than a reload of y.
    const Exponentials<T> e = row_exponentials_split(x, n);
    const vec<T> r = splat(e.reference), s = splat(1 / e.sum);
    row_map(x, y, n, [=](vec<T> v, int64_t, int64_t) { return exp(v - r) * s; });
    return;
  }
  const vec<T> r = splat(row_reference(x, n));
  const T sum = row_sum(x, n, [=](vec<T> v, int64_t i, int64_t valid) {
    const vec<T> e = exp(v - r);
    if (valid == lanes<T>)
      store(y + i, e);
    else
      store_n(y + i, e, valid);
    return e;
  });
  const vec<T> s = splat(1 / sum);
  row_map(y, y, n, [=](vec<T> v, int64_t, int64_t) { return v * s; });
}

template <class T>
void log_softmax_row(const T* x, T* y, int64_t n) {
  const Exponentials<T> e = row_exponentials(x, n);
  const vec<T> r = splat(e.reference), s = splat(log_of(e.sum));
  row_map(x, y, n, [=](vec<T> v, int64_t, int64_t) { return v - r - s; });
}

// ---- groups of short rows ----

// Lane i belongs to row i of the group.
template <class T>
struct GroupExponentials {
  vec<T> reference, sum;
};

// seen(row, offset, exponentials, valid lanes)
template <class T, class F>
GroupExponentials<T> group_exponentials(const T* x, int64_t n, int64_t rows, const F& seen) {
  const vec<T> top = group_combine(
      n, rows, -kInfinity<T>,
      [=](int64_t, int64_t at, int64_t valid) { return load_upto(x + at, valid); },
      [](vec<T> a, vec<T> b) { return max(a, b); });
  const vec<T> reference = select(top == splat(-kInfinity<T>), vec<T>{}, top);
  T each[lanes<T>];
  store(each, reference);
  const vec<T> sum = group_sum<T>(n, rows, [&](int64_t i, int64_t at, int64_t valid) {
    const vec<T> e = exp(load_upto(x + at, valid) - splat(each[i]));
    seen(i, at, e, valid);
    return e;
  });
  return {reference, sum};
}
template <class T>
GroupExponentials<T> group_exponentials(const T* x, int64_t n, int64_t rows) {
  return group_exponentials(x, n, rows, [](int64_t, int64_t, vec<T>, int64_t) {});
}

template <class T>
void softmax_group(const T* x, T* y, int64_t n, int64_t rows) {
  T factors[lanes<T>];
  const auto keep = [=](int64_t, int64_t at, vec<T> e, int64_t valid) {
    store_upto(y + at, e, valid);
  };
  store(factors, 1 / group_exponentials(x, n, rows, keep).sum);
  for (int64_t i = 0; i < rows; ++i) {
    const vec<T> s = splat(factors[i]);
    range_map(y + i * n, y + i * n, 0, n, [=](vec<T> v, int64_t, int64_t) { return v * s; });
  }
}

template <class T>
void log_softmax_group(const T* x, T* y, int64_t n, int64_t rows) {
  const GroupExponentials<T> e = group_exponentials(x, n, rows);
  T references[lanes<T>], logs[lanes<T>];
  store(references, e.reference);
  store(logs, log(e.sum));
  for (int64_t i = 0; i < rows; ++i) {
    const vec<T> r = splat(references[i]), s = splat(logs[i]);
    range_map(x + i * n, y + i * n, 0, n, [=](vec<T> v, int64_t, int64_t) { return v - r - s; });
  }
}

template <class T>
void softmax_backward_group(const T* g, const T* y, T* gx, int64_t n, int64_t rows,
                            bool logarithm) {
  T sums[lanes<T>];
  store(sums, group_sum<T>(n, rows, [=](int64_t, int64_t at, int64_t valid) {
          const vec<T> v = load_upto(g + at, valid);
          return logarithm ? v : v * load_upto(y + at, valid);
        }));
  for (int64_t i = 0; i < rows; ++i) {
    const vec<T> s = splat(sums[i]);
    const T* row = y + i * n;
    range_map(g + i * n, gx + i * n, 0, n, [=](vec<T> v, int64_t j, int64_t valid) {
      const vec<T> u = load_upto(row + j, valid);
      return logarithm ? v - exp(u) * s : (v - s) * u;
    });
  }
}

// ---- tiles of columns ----

// kTile vectors of a row of `inner` elements, of which `width` elements are valid.
template <class T>
struct Tile {
  vec<T> v[kTile];
};

template <class T>
inline Tile<T> load_tile(const T* p, int64_t width) {
  Tile<T> t;
  for (int k = 0; k < kTile; ++k) {
    const int64_t left = width - k * lanes<T>;
    t.v[k] = left >= lanes<T> ? load(p + k * lanes<T>)
                              : (left > 0 ? load_n(p + k * lanes<T>, left) : vec<T>{});
  }
  return t;
}

template <class T>
inline void store_tile(T* p, const Tile<T>& t, int64_t width) {
  for (int k = 0; k < kTile; ++k) {
    const int64_t left = width - k * lanes<T>;
    if (left >= lanes<T>)
      store(p + k * lanes<T>, t.v[k]);
    else if (left > 0)
      store_n(p + k * lanes<T>, t.v[k], left);
  }
}

template <class T>
inline Tile<T> splat_tile(T x) {
  Tile<T> t;
  for (auto& v : t.v) v = splat(x);
  return t;
}

// Per lane the sum over c < n of f(c, k), c the row and k the vector; blocks bound the error.
template <class T, class F>
Tile<T> column_sum(int64_t n, const F& f) {
  constexpr int64_t block = 64;
  Tile<T> total = splat_tile(T{0});
  for (int64_t c = 0; c < n; c += block) {
    Tile<T> sum = splat_tile(T{0});
    for (int64_t i = c; i < smaller(c + block, n); ++i) {
      const Tile<T> add = f(i);
      for (int k = 0; k < kTile; ++k) sum.v[k] = sum.v[k] + add.v[k];
    }
    for (int k = 0; k < kTile; ++k) total.v[k] = total.v[k] + sum.v[k];
  }
  return total;
}

template <class T>
struct TileExponentials {
  Tile<T> reference, sum;
};

template <class T>
TileExponentials<T> column_exponentials(const T* x, int64_t n, int64_t inner, int64_t width) {
  Tile<T> r = splat_tile(-kInfinity<T>);
  for (int64_t c = 0; c < n; ++c) {
    const Tile<T> t = load_tile(x + c * inner, width);
    for (int k = 0; k < kTile; ++k) r.v[k] = max(t.v[k], r.v[k]);
  }
  for (auto& v : r.v) v = select(v == splat(-kInfinity<T>), vec<T>{}, v);
  const Tile<T> sum = column_sum<T>(n, [&](int64_t c) {
    Tile<T> t = load_tile(x + c * inner, width);
    for (int k = 0; k < kTile; ++k) t.v[k] = exp(t.v[k] - r.v[k]);
    return t;
  });
  return {r, sum};
}

// y = f(x vector, k) for all rows of a tile.
template <class T, class F>
void column_map(const T* x, T* y, int64_t n, int64_t inner, int64_t width, const F& f) {
  for (int64_t c = 0; c < n; ++c) {
    Tile<T> t = load_tile(x + c * inner, width);
    for (int k = 0; k < kTile; ++k) t.v[k] = f(t.v[k], k);
    store_tile(y + c * inner, t, width);
  }
}

// ---- forward ----

template <class T>
void softmax_any(In input, Out output, const Layout& a, bool logarithm) {
  const T* x = data<T>(input);
  T* y = data<T>(output);
  if (a.inner == 1 && a.n <= kGroupUpTo) {
    for_each_group<T>(a.outer, a.n, [=](int64_t i, int64_t rows) {
      logarithm ? log_softmax_group(x + i * a.n, y + i * a.n, a.n, rows)
                : softmax_group(x + i * a.n, y + i * a.n, a.n, rows);
    });
    return;
  }
  if (a.inner == 1) {
    for_each_row(a.outer, a.n, [=](int64_t i) {
      logarithm ? log_softmax_row(x + i * a.n, y + i * a.n, a.n)
                : softmax_row(x + i * a.n, y + i * a.n, a.n);
    });
    return;
  }
  for_each_tile<T>(a, [=](int64_t o, int64_t j, int64_t width) {
    const int64_t at = o * a.n * a.inner + j;
    TileExponentials<T> e = column_exponentials(x + at, a.n, a.inner, width);
    const Tile<T>& r = e.reference;
    Tile<T>& s = e.sum;
    for (auto& v : s.v) v = logarithm ? log(v) : 1 / v;
    if (logarithm)
      column_map(x + at, y + at, a.n, a.inner, width,
                 [&](vec<T> v, int k) { return v - r.v[k] - s.v[k]; });
    else
      column_map(x + at, y + at, a.n, a.inner, width,
                 [&](vec<T> v, int k) { return exp(v - r.v[k]) * s.v[k]; });
  });
}

template <class T>
void logsumexp_any(In input, Out output, const Layout& a) {
  const T* x = data<T>(input);
  T* lse = data<T>(output);
  if (a.inner == 1 && a.n <= kGroupUpTo) {
    for_each_group<T>(a.outer, a.n, [=](int64_t i, int64_t rows) {
      const GroupExponentials<T> e = group_exponentials(x + i * a.n, a.n, rows);
      const vec<T> r = e.reference;
      store_upto(lse + i, select(r == splat(kInfinity<T>), r, r + log(e.sum)), rows);
    });
    return;
  }
  if (a.inner == 1) {
    for_each_row(a.outer, a.n,
                 [=](int64_t i) { lse[i] = log_sum_exp(row_exponentials(x + i * a.n, a.n)); });
    return;
  }
  for_each_tile<T>(a, [=](int64_t o, int64_t j, int64_t width) {
    const TileExponentials<T> e =
        column_exponentials(x + o * a.n * a.inner + j, a.n, a.inner, width);
    Tile<T> y;
    for (int k = 0; k < kTile; ++k) {
      const vec<T> r = e.reference.v[k];
      y.v[k] = select(r == splat(kInfinity<T>), r, r + log(e.sum.v[k]));
    }
    store_tile(lse + o * a.inner + j, y, width);
  });
}

// ---- backward ----

template <class T>
void softmax_backward_row(const T* g, const T* y, T* gx, int64_t n) {
  const T dot = row_sum(
      g, n, [=](vec<T> v, int64_t i, int64_t valid) { return v * load_upto(y + i, valid); });
  const vec<T> d = splat(dot);
  row_map(g, gx, n,
          [=](vec<T> v, int64_t i, int64_t valid) { return (v - d) * load_upto(y + i, valid); });
}

template <class T>
void log_softmax_backward_row(const T* g, const T* y, T* gx, int64_t n) {
  const vec<T> s = splat(row_sum(g, n, [](vec<T> v, int64_t, int64_t) { return v; }));
  row_map(g, gx, n,
          [=](vec<T> v, int64_t i, int64_t valid) { return v - exp(load_upto(y + i, valid)) * s; });
}

template <class T>
void softmax_backward_tile(const T* g, const T* y, T* gx, const Layout& a, int64_t width,
                           bool logarithm) {
  const Tile<T> s = column_sum<T>(a.n, [&](int64_t c) {
    Tile<T> t = load_tile(g + c * a.inner, width);
    const Tile<T> u = load_tile(y + c * a.inner, width);
    for (int k = 0; k < kTile && !logarithm; ++k) t.v[k] = t.v[k] * u.v[k];
    return t;
  });
  for (int64_t c = 0; c < a.n; ++c) {
    Tile<T> t = load_tile(g + c * a.inner, width);
    const Tile<T> u = load_tile(y + c * a.inner, width);
    for (int k = 0; k < kTile; ++k)
      t.v[k] = logarithm ? t.v[k] - exp(u.v[k]) * s.v[k] : (t.v[k] - s.v[k]) * u.v[k];
    store_tile(gx + c * a.inner, t, width);
  }
}

template <class T>
void softmax_backward_any(In grad, In output, Out grad_input, const Layout& a, bool logarithm) {
  const T *g = data<T>(grad), *y = data<T>(output);
  T* gx = data<T>(grad_input);
  if (a.inner == 1 && a.n <= kGroupUpTo) {
    for_each_group<T>(a.outer, a.n, [=](int64_t i, int64_t rows) {
      const int64_t at = i * a.n;
      softmax_backward_group(g + at, y + at, gx + at, a.n, rows, logarithm);
    });
    return;
  }
  if (a.inner == 1) {
    for_each_row(a.outer, a.n, [=](int64_t i) {
      const int64_t at = i * a.n;
      logarithm ? log_softmax_backward_row(g + at, y + at, gx + at, a.n)
                : softmax_backward_row(g + at, y + at, gx + at, a.n);
    });
    return;
  }
  for_each_tile<T>(a, [=](int64_t o, int64_t j, int64_t width) {
    const int64_t at = o * a.n * a.inner + j;
    softmax_backward_tile(g + at, y + at, gx + at, a, width, logarithm);
  });
}

template <class T>
void logsumexp_backward_any(In grad, In input, In output, Out grad_input, const Layout& a) {
  const T *g = data<T>(grad), *x = data<T>(input), *lse = data<T>(output);
  T* gx = data<T>(grad_input);
  if (a.inner == 1) {
    for_each_row(a.outer, a.n, [=](int64_t i) {
      const vec<T> s = splat(g[i]), r = splat(lse[i]);
      row_map(x + i * a.n, gx + i * a.n, a.n,
              [=](vec<T> v, int64_t, int64_t) { return exp(v - r) * s; });
    });
    return;
  }
  for_each_tile<T>(a, [=](int64_t o, int64_t j, int64_t width) {
    const int64_t at = o * a.n * a.inner + j;
    const Tile<T> s = load_tile(g + o * a.inner + j, width);
    const Tile<T> r = load_tile(lse + o * a.inner + j, width);
    column_map(x + at, gx + at, a.n, a.inner, width,
               [&](vec<T> v, int k) { return exp(v - r.v[k]) * s.v[k]; });
  });
}

// ---- losses over class labels ----

enum Reduction : int64_t { kNone, kMean, kSum };

// Target of one position: (1 - smoothing) weight[label] on the label, and for every class
// smoothing / n times its weight. An ignored position has no target.
template <class T>
struct Targets {
  const int64_t* labels;
  const T* weight;  // per class, or nullptr for ones
  int64_t ignore_index;
  T on_label, on_all;
  T weight_total;  // of all classes

  Targets(In l, OptIn w, int64_t n, int64_t ignored, double smoothing)
      : labels(data<int64_t>(l)),
        weight(data<T>(w)),
        ignore_index(ignored),
        on_label(static_cast<T>(1 - smoothing)),
        on_all(static_cast<T>(smoothing / static_cast<double>(n))) {
    double total = static_cast<double>(n);
    if (weight) {
      total = 0;
      for (int64_t c = 0; c < n; ++c) total += static_cast<double>(weight[c]);
    }
    weight_total = static_cast<T>(total);
  }
  bool ignored(int64_t i) const { return labels[i] == ignore_index; }
  T label_weight(int64_t i) const { return weight ? weight[labels[i]] : T{1}; }
  T class_weight(int64_t c) const { return weight ? weight[c] : T{1}; }
  T total(int64_t i) const { return on_label * label_weight(i) + on_all * weight_total; }
};

// Position of the first label outside [0, n) that is not ignored; -1 if all are good.
int64_t first_bad_label(const int64_t* labels, int64_t count, int64_t n, int64_t ignore_index) {
  bool bad = false;
  for (int64_t i = 0; i < count; ++i)
    bad |= (static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(n)) &
           (labels[i] != ignore_index);
  if (!bad) return -1;
  int64_t i = 0;
  while ((labels[i] >= 0 && labels[i] < n) || labels[i] == ignore_index) ++i;
  return i;
}

template <class T>
double sum_in_double(const T* x, int64_t n) {
  double s[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; ++k) s[k] += static_cast<double>(x[i + k]);
  for (; i < n; ++i) s[i & 7] += static_cast<double>(x[i]);
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

template <class T>
double used_weight(const Targets<T>& t, int64_t count) {
  double sum = 0;
  int64_t used = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (t.ignored(i)) continue;
    ++used;
    if (t.weight) sum += static_cast<double>(t.weight[t.labels[i]]);
  }
  return t.weight ? sum : static_cast<double>(used);
}

// Runs per_position(loss array) into `loss` itself, or into scratch and reduces. info: total weight
// of the labels, position of the first bad label or -1 (then nothing else is written).
template <class T, class F>
bool reduce_loss(const Targets<T>& t, const Layout& a, int64_t reduction, Out loss, Out info,
                 const F& per_position) {
  const int64_t count = a.positions();
  double* facts = data<double>(info);
  const int64_t bad = first_bad_label(t.labels, count, a.n, t.ignore_index);
  facts[1] = static_cast<double>(bad);
  if (bad >= 0) return true;
  facts[0] = reduction == kMean ? used_weight(t, count) : 1.0;
  if (reduction == kNone) {
    per_position(data<T>(loss));
    return true;
  }
  T* each = static_cast<T*>(scratch(sizeof(T) * static_cast<size_t>(count + 1)));
  if (!each) return false;
  per_position(each);
  *data<T>(loss) = static_cast<T>(sum_in_double(each, count) / facts[0]);
  return true;
}

// sum over classes of weight * (reference - x), for the smoothed part of the loss.
template <class T>
T row_gap(const T* x, int64_t n, T reference, const T* weight) {
  const vec<T> r = splat(reference);
  return row_sum(x, n, [=](vec<T> v, int64_t i, int64_t valid) {
    return weight ? (r - v) * load_upto(weight + i, valid) : r - v;
  });
}

// Loss of position i, whose row is `x`.
template <class T>
T label_loss(const T* x, int64_t n, const Targets<T>& t, int64_t i, T reference, T log_sum) {
  if (t.ignored(i)) return 0;
  const T loss = t.on_label * t.label_weight(i) * (log_sum - (x[t.labels[i]] - reference));
  if (t.on_all == 0) return loss;
  return loss + t.on_all * (t.weight_total * log_sum + row_gap(x, n, reference, t.weight));
}

// stats: reference of every position, then sum of every position.
template <class T>
void cross_entropy_rows(const T* x, T* stats, T* loss, const Layout& a, const Targets<T>& t) {
  if (a.n <= kGroupUpTo) {
    for_each_group<T>(a.outer, a.n, [&](int64_t i, int64_t rows) {
      const GroupExponentials<T> e = group_exponentials(x + i * a.n, a.n, rows);
      store_upto(stats + i, e.reference, rows);
      store_upto(stats + a.outer + i, e.sum, rows);
      T logs[lanes<T>];
      store(logs, log(e.sum));
      for (int64_t k = i; k < i + rows; ++k)
        loss[k] = label_loss(x + k * a.n, a.n, t, k, stats[k], logs[k - i]);
    });
    return;
  }
  for_each_row(a.outer, a.n, [&](int64_t i) {
    const Exponentials<T> e = row_exponentials(x + i * a.n, a.n);
    stats[i] = e.reference;
    stats[a.outer + i] = e.sum;
    loss[i] = label_loss(x + i * a.n, a.n, t, i, e.reference, log_of(e.sum));
  });
}

template <class T>
void cross_entropy_tile(const T* x, T* stats, T* loss, const Layout& a, const Targets<T>& t,
                        int64_t first, int64_t width) {
  const TileExponentials<T> e = column_exponentials(x, a.n, a.inner, width);
  store_tile(stats + first, e.reference, width);
  store_tile(stats + a.positions() + first, e.sum, width);
  Tile<T> smooth = splat_tile(T{0}), log_sum;
  for (int k = 0; k < kTile; ++k) log_sum.v[k] = log(e.sum.v[k]);
  if (t.on_all != 0) {
    smooth = column_sum<T>(a.n, [&](int64_t c) {
      Tile<T> v = load_tile(x + c * a.inner, width);
      for (int k = 0; k < kTile; ++k) v.v[k] = (e.reference.v[k] - v.v[k]) * t.class_weight(c);
      return v;
    });
    for (int k = 0; k < kTile; ++k)
      smooth.v[k] = t.on_all * (t.weight_total * log_sum.v[k] + smooth.v[k]);
  }
  for (int64_t j = 0; j < width; ++j) {
    const int64_t i = first + j, k = j / lanes<T>, l = j % lanes<T>;
    loss[i] = 0;
    if (t.ignored(i)) continue;
    const T gap = log_sum.v[k][l] - (x[t.labels[i] * a.inner + j] - e.reference.v[k][l]);
    loss[i] = t.on_label * t.label_weight(i) * gap + smooth.v[k][l];
  }
}

template <class T>
bool cross_entropy_any(In x, In labels, OptIn weight, Out stats, Out loss, Out info,
                       const Layout& a, int64_t ignore_index, double smoothing, int64_t reduction) {
  const Targets<T> t(labels, weight, a.n, ignore_index, smoothing);
  return reduce_loss(t, a, reduction, loss, info, [&](T* each) {
    if (a.inner == 1) {
      cross_entropy_rows(data<T>(x), data<T>(stats), each, a, t);
      return;
    }
    for_each_tile<T>(a, [&](int64_t o, int64_t j, int64_t width) {
      cross_entropy_tile(data<T>(x) + o * a.n * a.inner + j, data<T>(stats), each, a, t,
                         o * a.inner + j, width);
    });
  });
}

// Gradient of one loss per position: a scalar for all, or one each; times `factor`.
template <class T>
struct LossGrad {
  const T* grad;
  int64_t stride;
  T factor;
  LossGrad(In g, double f)
      : grad(data<T>(g)), stride(numel(g) == 1 ? 0 : 1), factor(static_cast<T>(f)) {}
  T operator()(int64_t i) const { return grad[i * stride] * factor; }
};

template <class T>
void cross_entropy_backward_row(const T* x, T* gx, int64_t n, const Targets<T>& t, int64_t i,
                                T reference, T sum, T scale) {
  const vec<T> r = splat(reference), s = splat(t.total(i) * scale / sum);
  const vec<T> all = splat(t.on_all * scale);
  if (t.on_all == 0)
    row_map(x, gx, n, [=](vec<T> v, int64_t, int64_t) { return exp(v - r) * s; });
  else if (!t.weight)
    row_map(x, gx, n, [=](vec<T> v, int64_t, int64_t) { return exp(v - r) * s - all; });
  else
    row_map(x, gx, n, [=, &t](vec<T> v, int64_t c, int64_t valid) {
      return exp(v - r) * s - all * load_upto(t.weight + c, valid);
    });
  gx[t.labels[i]] -= t.on_label * t.label_weight(i) * scale;
}

template <class T>
void cross_entropy_backward_tile(const T* x, const T* stats, T* gx, const Layout& a,
                                 const Targets<T>& t, const LossGrad<T>& grad, int64_t first,
                                 int64_t width) {
  constexpr int64_t W = kTile * lanes<T>;
  T scale[W] = {}, total[W] = {};
  for (int64_t j = 0; j < width; ++j) {
    if (t.ignored(first + j)) continue;
    scale[j] = grad(first + j);
    total[j] = t.total(first + j) * scale[j];
  }
  const Tile<T> r = load_tile(stats + first, width);
  const Tile<T> sum = load_tile(stats + a.positions() + first, width);
  Tile<T> s = load_tile(total, W), all = load_tile(scale, W);
  for (int k = 0; k < kTile; ++k) {
    s.v[k] = select(s.v[k] == vec<T>{}, vec<T>{}, s.v[k] / sum.v[k]);
    all.v[k] = all.v[k] * t.on_all;
  }
  for (int64_t c = 0; c < a.n; ++c) {
    Tile<T> v = load_tile(x + c * a.inner, width);
    const T w = t.class_weight(c);
    for (int k = 0; k < kTile; ++k) v.v[k] = exp(v.v[k] - r.v[k]) * s.v[k] - all.v[k] * w;
    store_tile(gx + c * a.inner, v, width);
  }
  for (int64_t j = 0; j < width; ++j) {
    if (t.ignored(first + j)) {
      for (int64_t c = 0; c < a.n; ++c) gx[c * a.inner + j] = 0;
    } else {
      gx[t.labels[first + j] * a.inner + j] -= t.on_label * t.label_weight(first + j) * scale[j];
    }
  }
}

template <class T>
void cross_entropy_backward_any(In x, In labels, OptIn weight, In stats, In grad, Out gx,
                                const Layout& a, int64_t ignore_index, double smoothing,
                                double factor) {
  const Targets<T> t(labels, weight, a.n, ignore_index, smoothing);
  const LossGrad<T> scale(grad, factor);
  const T* s = data<T>(stats);
  if (a.inner == 1) {
    for_each_row(a.outer, a.n, [&](int64_t i) {
      T* row = data<T>(gx) + i * a.n;
      if (t.ignored(i))
        row_map(row, row, a.n, [](vec<T>, int64_t, int64_t) { return vec<T>{}; });
      else
        cross_entropy_backward_row(data<T>(x) + i * a.n, row, a.n, t, i, s[i], s[a.outer + i],
                                   scale(i));
    });
    return;
  }
  for_each_tile<T>(a, [&](int64_t o, int64_t j, int64_t width) {
    const int64_t at = o * a.n * a.inner + j;
    cross_entropy_backward_tile(data<T>(x) + at, s, data<T>(gx) + at, a, t, scale, o * a.inner + j,
                                width);
  });
}

// Index of position i's label in an array [outer, n, inner].
inline int64_t label_offset(const Layout& a, int64_t i, int64_t label) {
  return (i / a.inner * a.n + label) * a.inner + i % a.inner;
}

template <class T>
bool nll_loss_any(In x, In labels, OptIn weight, Out loss, Out info, const Layout& a,
                  int64_t ignore_index, int64_t reduction) {
  const Targets<T> t(labels, weight, a.n, ignore_index, 0);
  return reduce_loss(t, a, reduction, loss, info, [&](T* each) {
    parallel_for(a.positions(), kWork, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        each[i] =
            t.ignored(i) ? T{0} : -t.label_weight(i) * data<T>(x)[label_offset(a, i, t.labels[i])];
    });
  });
}

template <class T>
void nll_loss_backward_any(In labels, OptIn weight, In grad, Out gx, const Layout& a,
                           int64_t ignore_index, double factor) {
  const Targets<T> t(labels, weight, a.n, ignore_index, 0);
  const LossGrad<T> scale(grad, factor);
  T* out = data<T>(gx);
  const int64_t block = a.n * a.inner;
  parallel_for(a.outer, larger(1, kWork / larger(1, block)), [&](int64_t begin, int64_t end) {
    __builtin_memset(out + begin * block, 0,
                     sizeof(T) * static_cast<size_t>((end - begin) * block));
    for (int64_t i = begin * a.inner; i < end * a.inner; ++i)
      if (!t.ignored(i)) out[label_offset(a, i, t.labels[i])] = -t.label_weight(i) * scale(i);
  });
}

}  // namespace

#define BY_DTYPE(array, function, ...) \
  ((array).dtype == DType::kFloat32 ? function<float>(__VA_ARGS__) : function<double>(__VA_ARGS__))

void softmax(In x, Out y, int64_t outer, int64_t n, int64_t inner, bool logarithm) {
  BY_DTYPE(x, softmax_any, x, y, Layout{outer, n, inner}, logarithm);
}

void softmax_backward(In grad, In y, Out gx, int64_t outer, int64_t n, int64_t inner,
                      bool logarithm) {
  BY_DTYPE(y, softmax_backward_any, grad, y, gx, Layout{outer, n, inner}, logarithm);
}

void logsumexp(In x, Out y, int64_t outer, int64_t n, int64_t inner) {
  BY_DTYPE(x, logsumexp_any, x, y, Layout{outer, n, inner});
}

void logsumexp_backward(In grad, In x, In y, Out gx, int64_t outer, int64_t n, int64_t inner) {
  BY_DTYPE(x, logsumexp_backward_any, grad, x, y, gx, Layout{outer, n, inner});
}

bool cross_entropy(In x, In labels, OptIn weight, Out stats, Out loss, Out info, int64_t outer,
                   int64_t n, int64_t inner, int64_t ignore_index, double smoothing,
                   int64_t reduction) {
  return BY_DTYPE(x, cross_entropy_any, x, labels, weight, stats, loss, info,
                  Layout{outer, n, inner}, ignore_index, smoothing, reduction);
}

void cross_entropy_backward(In x, In labels, OptIn weight, In stats, In grad, Out gx, int64_t outer,
                            int64_t n, int64_t inner, int64_t ignore_index, double smoothing,
                            double factor) {
  BY_DTYPE(x, cross_entropy_backward_any, x, labels, weight, stats, grad, gx,
           Layout{outer, n, inner}, ignore_index, smoothing, factor);
}

bool nll_loss(In x, In labels, OptIn weight, Out loss, Out info, int64_t outer, int64_t n,
              int64_t inner, int64_t ignore_index, int64_t reduction) {
  return BY_DTYPE(x, nll_loss_any, x, labels, weight, loss, info, Layout{outer, n, inner},
                  ignore_index, reduction);
}

void nll_loss_backward(In labels, OptIn weight, In grad, Out gx, int64_t outer, int64_t n,
                       int64_t inner, int64_t ignore_index, double factor) {
  BY_DTYPE(gx, nll_loss_backward_any, labels, weight, grad, gx, Layout{outer, n, inner},
           ignore_index, factor);
}

}  // namespace grebe::GREBE_ISA
