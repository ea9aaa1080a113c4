// Attention backward.
//
// A task is a chunk of the keys of one head (of a group: dk and dv add up over it). For each block
// of keys, blocks of queries: p = exp(score - lse) and dp = dy V^T in two buffers, then ds = p (dp
// - sum_j p dp), and three products: dv += p^T dy, dk += ds^T q, dq += ds k. Heads that are too few
// for the threads are cut in chunks of keys, each with a dq of its own, added in order.
//
// Floor: 10 L S D flops (half of it if causal) at the peak of the multiply-add units. Reached, one
// thread: 84% at 1024 keys, 70% at 128.
#include "attention.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kQueries = 96, kKeys = 192;  // of a block: multiples of kRows and kCols
constexpr int64_t kTasks = 8;  // heads are cut in chunks of keys to have at least so many

template <class T>
struct BackwardWorkspace {
  int64_t ld_key, ld_value, value_panels, weights, scores, dk, dv, factors, size;
  static constexpr int64_t ld = kKeys + lanes<T>;  // of weights and scores
  explicit BackwardWorkspace(const Problem<T>& p) {
    ld_key = round_up(p.depth(), lanes<T>);
    ld_value = round_up(p.value_depth(), lanes<T>);
    value_panels = kKeys * p.depth();
    weights = round_up(value_panels + kKeys * p.value_depth(), 64);
    scores = weights + kQueries * ld;
    dk = scores + kQueries * ld;
    dv = dk + kKeys * ld_key;
    factors = dv + kKeys * ld_value;
    size = round_up(factors + ld, 64);
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
    for (int64_t r = i; r < i + n; ++r) {
      clear(weights(r), round_up(t.keys, lanes<T>));
      clear(scores(r), round_up(t.keys, lanes<T>));
    }
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
              k + first * p.k.strides[2], p.k.strides[2], dq_row(t.b, t.h, t.query + i),
              dq.strides[2], T(1));
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

  // Of all heads of the group.
  void clear_dq(int64_t b, int64_t kv_head) const {
    for (int64_t h = kv_head * p.group(); h < (kv_head + 1) * p.group(); ++h)
      for (int64_t i = 0; i < p.queries(); ++i) clear(dq_row(b, h, i), p.depth());
  }
  T* dq_row(int64_t b, int64_t h, int64_t i) const {
    return const_cast<T*>(element<T>(dq, b, h, i));
  }
  static void clear(T* x, int64_t n) { __builtin_memset(x, 0, static_cast<size_t>(n) * sizeof(T)); }

  // All queries that see the keys [key, key + keys) of one key head.
  void block(int64_t b, int64_t kv_head, int64_t key, int64_t keys, const View& dk,
             const View& dv) const {
    clear(memory + at.dk, keys * at.ld_key);
    clear(memory + at.dv, keys * at.ld_value);
    if (key < p.length(b)) {
      pack_keys(element<T>(p.k, b, kv_head, key), p.k.strides[2], keys, p.depth(), memory);
      pack_keys(element<T>(p.v, b, kv_head, key), p.v.strides[2], keys, p.value_depth(),
                memory + at.value_panels);
      const int64_t from = larger(key - p.end + 1, 0);
      const int64_t stop = smaller(key + keys - p.first, p.queries());
      const int64_t tiles = divide_up(larger(stop - from, 0), kQueries);
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
    blocks = divide_up(p.keys(), kKeys);
    const int64_t wanted = divide_up(kTasks, larger(1, batch_parts * head_parts));
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
    delta[number] = hsum(row_dot(u, w, n));
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
  const int64_t total = at.size * threads + round_up(rows, 64) + (plan.chunks - 1) * part;
  T* const memory = static_cast<T*>(scratch(static_cast<size_t>(total) * sizeof(T)));
  if (!memory) return false;
  T *const delta = memory + at.size * threads, *const parts = delta + round_up(rows, 64);
  row_products<T>(y, grad, delta);
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
             h < p.kv_heads() * (hp + 1) / plan.head_parts; ++h) {
          f.clear_dq(b, h);
          for (int64_t i = plan.blocks * chunk / plan.chunks;
               i < plan.blocks * (chunk + 1) / plan.chunks; ++i)
            f.block(b, h, i * kKeys, smaller(kKeys, p.keys() - i * kKeys), dk, dv);
        }
    }
  });
  if (plan.chunks > 1) add_chunks(dq, parts, plan.chunks - 1, part);
  return true;
}

}  // namespace

bool attention_backward(In grad, In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, In y,
                        In lse, Out dq, Out dk, Out dv, OptOut dmask, double scale, double softcap,
                        int64_t first, int64_t end, int64_t shift, double dropout, int64_t seed,
                        int64_t offset) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    return backward(problem<T>(q, k, v, mask, lengths, slopes, scale, softcap, first, end, shift,
                               dropout, seed, offset),
                    grad, y, data<T>(lse), dq, dk, dv, broadcast(dmask));
  };
  return q.dtype == DType::kFloat32 ? run(0.0f) : run(0.0);
}

}  // namespace grebe::GREBE_ISA
