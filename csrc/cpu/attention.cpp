// Attention forward (online softmax: Milakov, Gimelshein 2018; Dao et al. 2022).
//
// A task is up to kBlockQueries queries of one head. It goes over blocks of kBlockKeys keys; K^T of
// a block is packed into panels, [depth][kCols keys], and stays in L2 with the block of V, which is
// read where it is. Within the block, strips of kRows queries: scores of the strip (6 KB, L1),
// their maximum, exp, then the strip times V is added to the output, which is scaled where the
// maximum has grown. Keys that no row of the strip sees are not computed. Few rows (decoding):
// packing K would cost more than the product, so scores are dot products with the keys where they
// are, all heads of a group at once, and long caches are cut in chunks of kChunkKeys whose results
// are combined.
//
// Floor: 2 L S (D + Dv) flops (half of it if causal) at the peak of the multiply-add units; for one
// query the bytes of K and V. Reached, one thread: 82% at 1024 keys, 74% at 128.
#include "attention.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kBlockQueries = 192, kBlockKeys = 256;
constexpr int64_t kFewRows = 6, kChunkKeys = 1024;
template <class T>
constexpr int64_t kStripSize = kBlockKeys + lanes<T>;  // of a row of scores

// scores[i][range) of `rows` rows with keys where they are, as panel_scores.
template <class T>
void dot_scores(int64_t rows, const T* q, int64_t q_row, int64_t depth, const T* keys,
                int64_t stride, Keys range, T* scores, int64_t ld) {
  constexpr int64_t L = lanes<T>;
  for (int64_t j = range.begin; j < range.end; j += L)
    for (int64_t i = 0; i < rows; ++i) {
      vec<T> sum[L];
      for (int64_t s = 0; s < L; ++s) {
        const T *x = q + i * q_row, *y = keys + smaller(j + s, range.end - 1) * stride;
        sum[s] = row_dot(x, y, depth);
      }
      store(scores + i * ld + j, combine_each<T>(sum, [](vec<T> a, vec<T> b) { return a + b; }));
    }
}

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
    ld = round_up(p.value_depth(), lanes<T>);
    panels = 0;
    strip = panels + kBlockKeys * depth;
    out = round_up(strip + kRows * kStripSize<T>, 64);
    most = out + kBlockQueries * ld;
    sum = most + kBlockQueries;
    queries = round_up(sum + kBlockQueries, 64);
    keys = queries + (kConverts<E> ? kBlockQueries * p.depth() : 0);
    values = round_up(keys + (kConverts<E> ? kBlockKeys * p.depth() : 0), 64);
    weights = values + (kConverts<E> ? kBlockKeys * ld : 0);
    size = round_up(weights + (kConverts<E> ? kRows * kStripSize<T> : 0), 64);
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
    with_count<kRows>(
        n, [&](auto count) { softmax_rows<count>(rows, r, key, range, buffer(at.strip)); });
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

}  // namespace

bool attention(In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, Out y, Out lse,
               double scale, double softcap, int64_t first, int64_t end, int64_t shift,
               double dropout, int64_t seed, int64_t offset) {
  auto run = [&](auto element) {
    using E = decltype(element);
    return forward(problem<E>(q, k, v, mask, lengths, slopes, scale, softcap, first, end, shift,
                              dropout, seed, offset),
                   y, data<sum_of<E>>(lse));
  };
  if (q.dtype == DType::kBFloat16) return run(bf16{});
  return q.dtype == DType::kFloat32 ? run(0.0f) : run(0.0);
}

}  // namespace grebe::GREBE_ISA
