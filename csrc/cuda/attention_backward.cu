// Attention backward.
//
//   dv_j = sum_i p_ij dy_i,  ds_ij = p_ij (dy_i . v_j - delta_i),  delta_i = dy_i . y_i,
//   dk_j = scale sum_i ds_ij q_i,  dq_i = scale sum_j ds_ij k_j
//
// The weights are made again from the saved log-sum-exps. One kernel owns keys and goes over the
// queries of all their heads for dk and dv, one owns queries and goes over keys for dq: seven products
// instead of the five that shared sums would take, but no atomics, and the same bits on every run. A
// mask's gradient is written on the way to dq where each score has a mask of its own; otherwise a
// kernel owns tiles of the mask and goes over all that share them, in parts that are added in order.
//
// Floor: 10 L S D operations (half of it if causal) at the peak of the units. Not measured on a
// device yet.
#include "attention_backward_sm90.cuh"
#include "attention_tiles.cuh"

namespace grebe::cuda {
namespace {

// delta: a warp per row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_products(Problem<Wide<T>> p, Heads<const T> y, Heads<const T> dy, Wide<T>* delta) {
  const int64_t row = thread_number() / 32;
  if (row >= p.rows()) return;
  const int query = static_cast<int>(row % p.queries), unit = static_cast<int>(row / p.queries);
  const T* const a = y.at(unit / p.heads, unit % p.heads, query);
  const T* const b = dy.at(unit / p.heads, unit % p.heads, query);
  Wide<T> sum = 0;
  for (int d = threadIdx.x % 32; d < p.value_depth; d += 32)
    sum = fma(widen(a[d]), widen(b[d]), sum);
  sum = warp_combine(sum, Plus{});
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// dk and dv, columns [column, column + kN) of a tile of keys. Thread: keys ty + 16 i, queries
// tx + 16 j.
template <class S, int kN>
__global__ void __launch_bounds__(kThreads)
    key_gradients(Problem<S> p, Heads<const S> q, Heads<const S> k, Heads<const S> v,
                  Gradients<S> g, Heads<S> dk, Heads<S> dv, int tiles, int column_parts,
                  bool resident) {
  constexpr int kLine = Tiling<S>::kWeightLine;
  const int number = blockIdx.x / column_parts, column = blockIdx.x % column_parts * kN;
  const int first_key = number % tiles * kTile, unit = number / tiles;
  const int kv_heads = p.heads / p.group, kv_head = unit % kv_heads, b = unit / kv_heads;
  const int length = p.length(b);

  Shared shared;
  Stages<S> stages(shared, resident);
  S* const weights = shared.take<S>(kTile * kLine);
  const Source<S> key_rows(k, b, kv_head, length, p.depth);
  const Source<S> value_rows(v, b, kv_head, length, p.value_depth);
  const Owned<S> keys(shared, key_rows, first_key, resident);
  const Owned<S> values(shared, value_rows, first_key, resident);
  const int chunks = chunks_of<S>(p.depth), value_chunks = chunks_of<S>(p.value_depth);
  const int stop = min(length, first_key + kTile);
  Range seeing = p.watching(first_key, stop);
  seeing.begin = seeing.begin / kTile * kTile;
  if (first_key >= stop) seeing.end = seeing.begin;

  S sum_k[kShare][kN / kSide] = {}, sum_v[kShare][kN / kSide] = {};
  for (int h = kv_head * p.group; h < (kv_head + 1) * p.group; ++h) {
    const Modifier<S> modify(p, b, h);
    const Source<S> queries(q, b, h, p.queries, p.depth);
    const Source<S> dy(g.dy, b, h, p.queries, p.value_depth);
    if (seeing.begin < seeing.end) stages.load_chunk(queries, seeing.begin, 0, keys);
    copy_async_commit();
    for (int query = seeing.begin; query < seeing.end; query += kTile) {
      S x[kShare][kShare] = {}, dx[kShare][kShare] = {};
      multiply_rows(x, stages, keys, chunks, [&](int chunk) {
        if (chunk < chunks)
          stages.load_chunk(queries, query, chunk, keys);
        else
          stages.load_chunk(dy, query, 0, values);
      });
      multiply_rows(dx, stages, values, value_chunks, [&](int chunk) {
        if (chunk < value_chunks)
          stages.load_chunk(dy, query, chunk, values);
        else
          stages.template load_part<kN>(dy, query, 0, column);
      });
      const bool all_seen = modify.sees_all(query, kTile, first_key, kTile);
#pragma unroll
      for (int j = 0; j < kShare; ++j) {
        const int i_query = query + thread_x() + kSide * j;
        const bool valid = i_query < p.queries;
        const S lse = valid ? g.lse[modify.row + i_query] : S(0);
        const S delta = valid ? g.delta[modify.row + i_query] : S(0);
        S factor[kShare] = {1, 1, 1, 1};
        if (p.drops) modify.kept_factors(i_query, first_key, thread_y(), factor);
#pragma unroll
        for (int i = 0; i < kShare; ++i) {
          S change;
          const S score =
              modify.score(x[i][j], i_query, first_key + thread_y() + kSide * i, all_seen, change);
          const S weight = weight_of(score, lse);
          dx[i][j] = gradient_of(weight, dx[i][j], factor[i], delta) * change * p.scale;
          weights[(thread_y() + kSide * i) * kLine + thread_x() + kSide * j] =
              weight == 0 ? S(0) : weight * factor[i];
        }
      }
      multiply_weights<kN>(sum_v, stages, weights, [&](int part) {
        if (part < kParts<S, kN>)
          stages.template load_part<kN>(dy, query, part, column);
        else
          stages.template load_part<kN>(queries, query, 0, column);
      });
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kShare; ++i)
#pragma unroll
        for (int j = 0; j < kShare; ++j)
          weights[(thread_y() + kSide * i) * kLine + thread_x() + kSide * j] = dx[i][j];
      multiply_weights<kN>(sum_k, stages, weights, [&](int part) {
        if (part < kParts<S, kN>)
          stages.template load_part<kN>(queries, query, part, column);
        else if (query + kTile < seeing.end)
          stages.load_chunk(queries, query + kTile, 0, keys);
      });
    }
  }
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int key = first_key + thread_y() + kSide * i;
    if (key >= p.keys) continue;
    store_row<kN>(sum_k[i], S(1), dk.at(b, kv_head, key), column, p.depth, dk.aligned);
    store_row<kN>(sum_v[i], S(1), dv.at(b, kv_head, key), column, p.value_depth, dv.aligned);
  }
}

// dq, columns [column, column + kN) of a tile of queries. Thread: queries ty + 16 i, keys tx + 16 j.
template <class S, int kN>
__global__ void __launch_bounds__(kThreads)
    query_gradients(Problem<S> p, Heads<const S> q, Heads<const S> k, Heads<const S> v,
                    Gradients<S> g, Heads<S> dq, MaskGradient<S> dmask, int tiles, int column_parts,
                    bool resident) {
  constexpr int kLine = Tiling<S>::kWeightLine;
  const int number = blockIdx.x / column_parts, column = blockIdx.x % column_parts * kN;
  const int first_query = (tiles - 1 - number % tiles) * kTile;
  const int h = number / tiles % p.heads, b = number / tiles / p.heads;

  const Modifier<S> modify(p, b, h);
  Shared shared;
  Stages<S> stages(shared, resident);
  S* const weights = shared.take<S>(kTile * kLine);
  const Source<S> query_rows(q, b, h, p.queries, p.depth);
  const Source<S> dy_rows(g.dy, b, h, p.queries, p.value_depth);
  const Owned<S> queries(shared, query_rows, first_query, resident);
  const Owned<S> dy(shared, dy_rows, first_query, resident);
  const Source<S> keys(k, b, h / p.group, modify.length, p.depth);
  const Source<S> values(v, b, h / p.group, modify.length, p.value_depth);
  const int chunks = chunks_of<S>(p.depth), value_chunks = chunks_of<S>(p.value_depth);
  Range seen = p.visible(b, first_query, min(p.queries, first_query + kTile));
  seen.begin = seen.begin / kTile * kTile;

  S sum[kShare][kN / kSide] = {}, lse[kShare], delta[kShare];
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int query = first_query + thread_y() + kSide * i;
    lse[i] = query < p.queries ? g.lse[modify.row + query] : S(0);
    delta[i] = query < p.queries ? g.delta[modify.row + query] : S(0);
  }
  if (seen.begin < seen.end) stages.load_chunk(keys, seen.begin, 0, queries);
  copy_async_commit();
  for (int key = seen.begin; key < seen.end; key += kTile) {
    S x[kShare][kShare] = {}, dx[kShare][kShare] = {};
    multiply_rows(x, stages, queries, chunks, [&](int chunk) {
      if (chunk < chunks)
        stages.load_chunk(keys, key, chunk, queries);
      else
        stages.load_chunk(values, key, 0, dy);
    });
    multiply_rows(dx, stages, dy, value_chunks, [&](int chunk) {
      if (chunk < value_chunks)
        stages.load_chunk(values, key, chunk, dy);
      else
        stages.template load_part<kN>(keys, key, 0, column);
    });
    const bool all_seen = modify.sees_all(first_query, kTile, key, kTile);
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int row = thread_y() + kSide * i, query = first_query + row;
      S factor[kShare] = {1, 1, 1, 1};
      if (p.drops) modify.kept_factors(query, key, thread_x(), factor);
#pragma unroll
      for (int j = 0; j < kShare; ++j) {
        const int i_key = key + thread_x() + kSide * j;
        S change;
        const S score = modify.score(x[i][j], query, i_key, all_seen, change);
        const S d = gradient_of(weight_of(score, lse[i]), dx[i][j], factor[j], delta[i]);
        weights[row * kLine + thread_x() + kSide * j] = d * change * p.scale;
        if (dmask.data && column == 0 && query < p.queries && i_key < p.keys)
          dmask.at(b, h, query)[i_key] = d;
      }
    }
    multiply_weights<kN>(sum, stages, weights, [&](int part) {
      if (part < kParts<S, kN>)
        stages.template load_part<kN>(keys, key, part, column);
      else if (key + kTile < seen.end)
        stages.load_chunk(keys, key + kTile, 0, queries);
    });
  }
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int query = first_query + thread_y() + kSide * i;
    if (query < p.queries)
      store_row<kN>(sum[i], S(1), dq.at(b, h, query), column, p.depth, dq.aligned);
  }
}

// A tile of a mask that several scores share, and a part of what shares it: (b, h, tile of queries).
template <class S>
__global__ void __launch_bounds__(kThreads)
    mask_gradients(Problem<S> p, Heads<const S> q, Heads<const S> k, Heads<const S> v,
                   Gradients<S> g, MaskGradient<S> m, int tiles, int key_tiles) {
  const bool each_b = m.shape[0] > 1, each_h = m.shape[1] > 1, each_query = m.shape[2] > 1;
  const int mask_tiles = each_query ? tiles : 1;
  int number = blockIdx.x;
  const int part = number % m.parts;
  number /= m.parts;
  const int key = number % key_tiles * kTile;
  number /= key_tiles;
  const int mask_tile = number % mask_tiles;
  number /= mask_tiles;
  const int mask_h = number % m.shape[1], mask_b = number / m.shape[1];
  const int some_h = each_h ? 1 : p.heads, some_tiles = each_query ? 1 : tiles;
  const int64_t units = static_cast<int64_t>(each_b ? 1 : p.batch) * some_h * some_tiles;
  const int64_t begin = units * part / m.parts, end = units * (part + 1) / m.parts;

  Shared shared;
  Stages<S> stages(shared, false);
  S* const sums = shared.take<S>(kSide * kTile);
  const int chunks = chunks_of<S>(p.depth), value_chunks = chunks_of<S>(p.value_depth);
  S sum[kShare][kShare] = {};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int tile = each_query ? mask_tile : static_cast<int>(unit % tiles);
    const int h = each_h ? mask_h : static_cast<int>(unit / some_tiles % p.heads);
    const int b = each_b ? mask_b : static_cast<int>(unit / some_tiles / some_h);
    const int first_query = tile * kTile;
    const Range seen = p.visible(b, first_query, min(p.queries, first_query + kTile));
    if (key >= seen.end || key + kTile <= seen.begin) continue;
    const Modifier<S> modify(p, b, h);
    const Source<S> query_rows(q, b, h, p.queries, p.depth);
    const Source<S> dy_rows(g.dy, b, h, p.queries, p.value_depth);
    const Owned<S> queries(shared, query_rows, first_query, false);
    const Owned<S> dy(shared, dy_rows, first_query, false);
    const Source<S> keys(k, b, h / p.group, modify.length, p.depth);
    const Source<S> values(v, b, h / p.group, modify.length, p.value_depth);
    S x[kShare][kShare] = {}, dx[kShare][kShare] = {};
    stages.load_chunk(keys, key, 0, queries);
    copy_async_commit();
    multiply_rows(x, stages, queries, chunks, [&](int chunk) {
      if (chunk < chunks)
        stages.load_chunk(keys, key, chunk, queries);
      else
        stages.load_chunk(values, key, 0, dy);
    });
    multiply_rows(dx, stages, dy, value_chunks, [&](int chunk) {
      if (chunk < value_chunks) stages.load_chunk(values, key, chunk, dy);
    });
    const bool all_seen = modify.sees_all(first_query, kTile, key, kTile);
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int query = first_query + thread_y() + kSide * i;
      const bool valid = query < p.queries;
      const S lse = valid ? g.lse[modify.row + query] : S(0);
      const S delta = valid ? g.delta[modify.row + query] : S(0);
      S factor[kShare] = {1, 1, 1, 1};
      if (p.drops) modify.kept_factors(query, key, thread_x(), factor);
#pragma unroll
      for (int j = 0; j < kShare; ++j) {
        S change;
        const S score =
            modify.score(x[i][j], query, key + thread_x() + kSide * j, all_seen, change);
        sum[i][j] += gradient_of(weight_of(score, lse), dx[i][j], factor[j], delta);
      }
    }
  }
  // Rows [query] of the mask, of this part if there are several.
  auto store = [&](int query, int column, S x) {
    const int64_t row = (static_cast<int64_t>(mask_b) * m.shape[1] + mask_h) * m.shape[2] + query;
    const int64_t rows = static_cast<int64_t>(m.shape[0]) * m.shape[1] * m.shape[2];
    S* const to =
        m.parts > 1 ? m.partials + (part * rows + row) * p.keys : m.at(mask_b, mask_h, query);
    if (key + column < p.keys) to[key + column] = x;
  };
  if (each_query) {
#pragma unroll
    for (int i = 0; i < kShare; ++i)
#pragma unroll
      for (int j = 0; j < kShare; ++j) {
        const int query = mask_tile * kTile + thread_y() + kSide * i;
        if (query < p.queries) store(query, thread_x() + kSide * j, sum[i][j]);
      }
    return;
  }
#pragma unroll
  for (int j = 0; j < kShare; ++j)
    sums[thread_y() * kTile + thread_x() + kSide * j] =
        (sum[0][j] + sum[1][j]) + (sum[2][j] + sum[3][j]);
  __syncthreads();
  if (threadIdx.x >= kTile) return;
  S all = 0;
  for (int y = 0; y < kSide; ++y) all += sums[y * kTile + threadIdx.x];
  store(0, threadIdx.x, all);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    add_mask_parts(MaskGradient<S> m, int64_t keys, int64_t size) {
  const int64_t at = thread_number();
  if (at >= size) return;
  const int64_t row = at / keys;
  S all = 0;
  for (int part = 0; part < m.parts; ++part) all += m.partials[part * size + at];
  m.at(static_cast<int>(row / m.shape[2] / m.shape[1]),
       static_cast<int>(row / m.shape[2] % m.shape[1]),
       static_cast<int>(row % m.shape[2]))[at % keys] = all;
}

// ---- launches ----

template <class S>
MaskGradient<S> mask_gradient(const Problem<S>& p, const View& dmask) {
  MaskGradient<S> m{};
  if (!dmask.data) return m;
  const int full[3] = {p.batch, p.heads, p.queries};
  m.data = data<S>(dmask);
  for (int d = 0; d < 3; ++d) {
    m.shape[d] = static_cast<int>(dmask.shape[d]);
    m.strides[d] = m.shape[d] == 1 ? 0 : dmask.strides[d];
    m.shared = m.shared || m.shape[d] != full[d];
  }
  return m;
}

template <class S>
void run_mask_gradients(const Problem<S>& p, const Heads<const S>& q, const Heads<const S>& k,
                        const Heads<const S>& v, const Gradients<S>& g, MaskGradient<S> m) {
  const int tiles = static_cast<int>(divide_up(p.queries, kTile));
  const int key_tiles = static_cast<int>(divide_up(p.keys, kTile));
  const bool each_query = m.shape[2] > 1;
  const int64_t rows = static_cast<int64_t>(m.shape[0]) * m.shape[1] * m.shape[2];
  const int64_t mask_rows =
      static_cast<int64_t>(m.shape[0]) * m.shape[1] * (each_query ? tiles : 1);
  const int64_t blocks = mask_rows * key_tiles;
  if (blocks == 0) return;
  const int64_t units = p.units() * tiles / mask_rows, wanted = divide_up(kBusyBlocks, blocks);
  m.parts = static_cast<int>(units < 1 ? 1 : units < wanted ? units : wanted);
  const int64_t size = rows * p.keys;
  if (m.parts > 1)
    m.partials = static_cast<S*>(workspace(size * m.parts * static_cast<int64_t>(sizeof(S))));
  const int64_t bytes =
      tile_bytes<S>(false, false, 0) + kSide * kTile * static_cast<int64_t>(sizeof(S));
  launch("attention_backward", mask_gradients<S>, grid_of(blocks * m.parts), kThreads,
         static_cast<size_t>(bytes), p, q, k, v, g, m, tiles, key_tiles);
  if (m.parts > 1)
    launch("attention_backward", add_mask_parts<S>, blocks_for(size, kThreads), kThreads, 0, m,
           static_cast<int64_t>(p.keys), size);
}

template <int kN, class S>
void run_gradients(const Problem<S>& p, const Heads<const S>& q, const Heads<const S>& k,
                   const Heads<const S>& v, const Gradients<S>& g, const Heads<S>& dq,
                   const Heads<S>& dk, const Heads<S>& dv, const MaskGradient<S>& m) {
  const int64_t all_bytes = tile_bytes<S>(true, true, p.depth, p.value_depth);
  const bool resident = is_resident(all_bytes);
  const size_t bytes = static_cast<size_t>(
      resident ? all_bytes : tile_bytes<S>(false, true, p.depth, p.value_depth));
  const int key_tiles = static_cast<int>(divide_up(p.keys, kTile));
  const int tiles = static_cast<int>(divide_up(p.queries, kTile));
  const int widest = p.depth > p.value_depth ? p.depth : p.value_depth;
  const int column_parts = (widest + kN - 1) / kN, query_column_parts = (p.depth + kN - 1) / kN;
  launch("attention_backward", key_gradients<S, kN>,
         grid_of(p.units() / p.group * key_tiles * column_parts), kThreads, bytes, p, q, k, v, g,
         dk, dv, key_tiles, column_parts, resident);
  MaskGradient<S> direct = m;
  if (m.shared) direct.data = nullptr;
  launch("attention_backward", query_gradients<S, kN>,
         grid_of(p.units() * tiles * query_column_parts), kThreads, bytes, p, q, k, v, g, dq,
         direct, tiles, query_column_parts, resident);
}

template <class T>
Wide<T>* make_delta(const Problem<Wide<T>>& p, const Heads<const T>& y, const Heads<const T>& dy) {
  using S = Wide<T>;
  S* const delta = static_cast<S*>(workspace((p.rows() + 1) * static_cast<int64_t>(sizeof(S))));
  launch("attention_backward", row_products<T>, blocks_for(p.rows(), kThreads / 32), kThreads, 0, p,
         y, dy, delta);
  return delta;
}

template <class S>
void differentiate(const Problem<S>& p, const Heads<const S>& q, const Heads<const S>& k,
                   const Heads<const S>& v, const Gradients<S>& g, const Heads<S>& dq,
                   const Heads<S>& dk, const Heads<S>& dv, const MaskGradient<S>& m) {
  if constexpr (sizeof(S) == 4) {
    if (p.depth > 64 || p.value_depth > 64)
      run_gradients<128>(p, q, k, v, g, dq, dk, dv, m);
    else
      run_gradients<64>(p, q, k, v, g, dq, dk, dv, m);
  } else {
    run_gradients<64>(p, q, k, v, g, dq, dk, dv, m);
  }
  if (m.shared) run_mask_gradients(p, q, k, v, g, m);
}

}  // namespace

bool attention_backward(In grad, In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, In y,
                        In lse, Out dq, Out dk, Out dv, OptOut dmask, double scale, double softcap,
                        int64_t first, int64_t end, int64_t shift, double dropout, int64_t seed,
                        int64_t offset) {
  with_float("attention_backward", q.dtype, [&](auto zero) {
    using T = decltype(zero);
    using S = Wide<T>;
    const Problem<S> p = problem<S>(q, k, v, mask, lengths, slopes, scale, softcap, first, end,
                                    shift, dropout, seed, offset);
    const S* const sums = data<S>(lse);
    const MaskGradient<S> m = mask_gradient(p, dmask);
    const Heads<const T> rows = heads_of<const T>(q), keys = heads_of<const T>(k);
    const Heads<const T> values = heads_of<const T>(v), dy = heads_of<const T>(grad);
    const Heads<T> to_q = heads_of<T>(dq), to_k = heads_of<T>(dk), to_v = heads_of<T>(dv);
    const Gradients<T> g{dy, sums, make_delta(p, heads_of<const T>(y), dy)};
    if constexpr (std::is_same_v<T, S>) {
      differentiate(p, rows, keys, values, g, to_q, to_k, to_v, m);
    } else {
      const bool aligned = rows.aligned && keys.aligned && values.aligned && dy.aligned &&
                           to_q.aligned && to_k.aligned && to_v.aligned;
      const bool direct = takes_16(q.dtype, p.depth, p.value_depth, aligned);
      if (direct) {
        const MaskGradient<S> own = m.shared ? MaskGradient<S>{} : m;
        const auto run =
            p.depth > 64 || p.value_depth > 64 ? run_gradients_16<128, T> : run_gradients_16<64, T>;
        if (!try_backward_warpgroups(p, q, k, v, grad, g, to_q, to_k, to_v, own))
          run(p, rows, keys, values, g, to_q, to_k, to_v, own);
        if (!m.shared) return;
      }
      const Heads<const float> wide_q = widened<T>(q), wide_k = widened<T>(k);
      const Heads<const float> wide_v = widened<T>(v);
      const Gradients<float> wide_g{widened<T>(grad), g.lse, g.delta};
      if (direct) return run_mask_gradients(p, wide_q, wide_k, wide_v, wide_g, m);
      const Heads<float> wide_dq = heads_in_workspace<float>(dq);
      const Heads<float> wide_dk = heads_in_workspace<float>(dk);
      const Heads<float> wide_dv = heads_in_workspace<float>(dv);
      differentiate(p, wide_q, wide_k, wide_v, wide_g, wide_dq, wide_dk, wide_dv, m);
      convert<float, T>(dq, constant(wide_dq), to_q);
      convert<float, T>(dk, constant(wide_dk), to_k);
      convert<float, T>(dv, constant(wide_dv), to_v);
    }
  });
  return true;
}

}  // namespace grebe::cuda
