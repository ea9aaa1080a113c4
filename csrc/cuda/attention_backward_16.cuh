// Attention backward by tensor cores, for bfloat16 and float16: see attention_backward.cu and
// attention_16.cuh. Products of the owned rows with the streamed ones lie in registers, as weights and
// gradients of the scores do, which are then the left operands of the products that add up.
#pragma once
#include "attention_16.cuh"

namespace grebe::cuda {
namespace {

template <class S>
DEVICE S weight_of(S score, S lse) {
  return exp2_of(score - (lse == -infinity<S>() ? S(0) : lse));
}
// Of the (natural) score; factor: 0 or 1 / (1 - dropout).
template <class S>
DEVICE S gradient_of(S weight, S product, S factor, S delta) {
  return weight == 0 ? S(0) : weight * fma(product, factor, -delta);
}

template <class T, class S = Wide<T>>
struct Gradients {
  Heads<const T> dy;
  const S *lse, *delta;  // of each row
};

// Where the mask's gradient goes. Dimensions that several scores share are 1 and stand still.
template <class S>
struct MaskGradient {
  S* data;
  int shape[3];
  int64_t strides[3];
  int parts;  // of the units that share a tile
  S* partials;  // [parts][shape][S]
  bool shared;  // does any score share its mask?

  DEVICE S* at(int b, int h, int query) const {
    return data + b * strides[0] + h * strides[1] + query * strides[2];
  }
};

// dk and dv, columns [column, column + kN) of a tile of keys. Thread: keys g and g + 8 of its warp's
// 16, queries 8 n + 2 t + u of the streamed ones.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads16)
    key_gradients_16(Problem<float> p, Heads<const T> q, Heads<const T> k, Heads<const T> v,
                     Gradients<T> g, Heads<T> dk, Heads<T> dv, int tiles, int column_parts) {
  constexpr int kRows = kStreamed<kN>, kTiles = kRows / 8;
  const int number = blockIdx.x / column_parts, column = blockIdx.x % column_parts * kN;
  const int first_key = number % tiles * kTile, unit = number / tiles;
  const int kv_heads = p.heads / p.group, kv_head = unit % kv_heads, b = unit / kv_heads;
  const int length = p.length(b), stop = min(length, first_key + kTile);
  const int line = line_16(p.depth), value_line = line_16(p.value_depth);
  Range seeing = p.watching(first_key, stop);
  const int begin = seeing.begin / kRows * kRows;
  const int steps =
      first_key < stop && begin < seeing.end ? (seeing.end - begin - 1) / kRows + 1 : 0;

  Shared shared;
  T* const keys = shared.take<T>(kTile * line);
  T* const values = shared.take<T>(kTile * value_line);
  T* now = shared.take<T>(kRows * (line + value_line));
  T* next = shared.take<T>(kRows * (line + value_line));
  float* stats = shared.take<float>(2 * kRows);  // lse and delta of the streamed rows
  float* next_stats = shared.take<float>(2 * kRows);
  // Step i: head i / steps of the group, streamed rows i % steps.
  auto load = [&](int i) {
    const int h = kv_head * p.group + i / steps, query = begin + i % steps * kRows;
    load_tile<kRows, kN>(q, q.at(b, h), query, p.queries, p.depth, next);
    load_tile<kRows, kN>(g.dy, g.dy.at(b, h), query, p.queries, p.value_depth, next + kRows * line);
    copy_async_commit();
    const int r = threadIdx.x;
    if (r >= kRows) return;
    const bool valid = query + r < p.queries;
    next_stats[r] = valid ? g.lse[p.row(b, h, query + r)] : 0.0f;
    next_stats[kRows + r] = valid ? g.delta[p.row(b, h, query + r)] : 0.0f;
  };

  float sum_k[kN / 8][4] = {}, sum_v[kN / 8][4] = {};
  load_tile<kTile, kN>(k, k.at(b, kv_head), first_key, length, p.depth, keys);
  load_tile<kTile, kN>(v, v.at(b, kv_head), first_key, length, p.value_depth, values);
  if (steps > 0) load(0);
  const int row = warp_of() * 16 + lane_of() / 4;
  for (int i = 0; i < steps * p.group; ++i) {
    copy_async_wait<0>();
    __syncthreads();
    T* const rows = next;
    float* const row_stats = next_stats;
    next = now;
    now = rows;
    next_stats = stats;
    stats = row_stats;
    if (i + 1 < steps * p.group) load(i + 1);
    const Modifier<float> modify(p, b, kv_head * p.group + i / steps);
    const int query = begin + i % steps * kRows;
    const bool all_seen = modify.sees_all(query, kRows, first_key, kTile);
    float x[kTiles][4] = {}, dx[kTiles][4] = {};
    multiply_rows_16(x, keys + warp_of() * 16 * line, rows, p.depth);
    multiply_rows_16(dx, values + warp_of() * 16 * value_line, rows + kRows * line, p.value_depth);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int r = n * 8 + lane_of() % 4 * 2 + u;
        const float lse = row_stats[r], delta = row_stats[kRows + r];
#pragma unroll
        for (int half_row = 0; half_row < 2; ++half_row) {
          float factor = 1, change;
          if (p.drops) {
            float of_group[4];
            modify.kept_factors(query + r, first_key, row % 8 + 8 * half_row, of_group);
            factor = warp_of() < 2 ? (warp_of() == 0 ? of_group[0] : of_group[1])
                                   : (warp_of() == 2 ? of_group[2] : of_group[3]);
          }
          float &product = x[n][2 * half_row + u], &gradient = dx[n][2 * half_row + u];
          const float weight = weight_of(
              modify.score(product, query + r, first_key + row + 8 * half_row, all_seen, change),
              lse);
          gradient = gradient_of(weight, gradient, factor, delta) * change;
          product = weight == 0 ? 0.0f : weight * factor;
        }
      }
    multiply_weights_16(sum_v, as_weights<T>(x), rows + kRows * line + column, value_line,
                        p.value_depth - column);
    multiply_weights_16(sum_k, as_weights<T>(dx), rows + column, line, p.depth - column);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int key = first_key + row + 8 * i;
    if (key >= p.keys) continue;
    store_row_16(sum_k, i, p.scale, dk.at(b, kv_head, key) + column, p.depth - column);
    store_row_16(sum_v, i, 1.0f, dv.at(b, kv_head, key) + column, p.value_depth - column);
  }
}

// dq, columns [column, column + kN) of a tile of queries. Thread: queries g and g + 8 of its warp's
// 16, keys 8 n + 2 t + u of the streamed ones.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads16)
    query_gradients_16(Problem<float> p, Heads<const T> q, Heads<const T> k, Heads<const T> v,
                       Gradients<T> g, Heads<T> dq, MaskGradient<float> dmask, int tiles,
                       int column_parts) {
  constexpr int kRows = kStreamed<kN>, kTiles = kRows / 8;
  const int number = blockIdx.x / column_parts, column = blockIdx.x % column_parts * kN;
  const int first_query = (tiles - 1 - number % tiles) * kTile;
  const int h = number / tiles % p.heads, b = number / tiles / p.heads;
  const Modifier<float> modify(p, b, h);
  const Range seen = p.visible(b, first_query, min(p.queries, first_query + kTile));
  const int begin = seen.begin / kTile * kTile;
  const int line = line_16(p.depth), value_line = line_16(p.value_depth);

  Shared shared;
  T* const queries = shared.take<T>(kTile * line);
  T* const dy = shared.take<T>(kTile * value_line);
  T* now = shared.take<T>(kRows * (line + value_line));
  T* next = shared.take<T>(kRows * (line + value_line));
  const T* const keys = k.at(b, h / p.group);
  const T* const values = v.at(b, h / p.group);
  auto load = [&](int key) {
    load_tile<kRows, kN>(k, keys, key, modify.length, p.depth, next);
    load_tile<kRows, kN>(v, values, key, modify.length, p.value_depth, next + kRows * line);
    copy_async_commit();
  };

  load_tile<kTile, kN>(q, q.at(b, h), first_query, p.queries, p.depth, queries);
  load_tile<kTile, kN>(g.dy, g.dy.at(b, h), first_query, p.queries, p.value_depth, dy);
  if (begin < seen.end) load(begin);
  const int row = warp_of() * 16 + lane_of() / 4;
  float sum[kN / 8][4] = {}, lse[2], delta[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = first_query + row + 8 * i;
    lse[i] = query < p.queries ? g.lse[modify.row + query] : 0.0f;
    delta[i] = query < p.queries ? g.delta[modify.row + query] : 0.0f;
  }
  for (int key = begin; key < seen.end; key += kRows) {
    copy_async_wait<0>();
    __syncthreads();
    T* const rows = next;
    next = now;
    now = rows;
    if (key + kRows < seen.end) load(key + kRows);
    float x[kTiles][4] = {}, dx[kTiles][4] = {};
    multiply_rows_16(x, queries + warp_of() * 16 * line, rows, p.depth);
    multiply_rows_16(dx, dy + warp_of() * 16 * value_line, rows + kRows * line, p.value_depth);
    const bool all_seen = modify.sees_all(first_query, kTile, key, kRows);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = first_query + row + 8 * i;
      float factor[kTiles][2];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) factor[n][0] = factor[n][1] = 1;
      if (p.drops) kept_factors_16(modify, query, key, factor);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int i_key = key + n * 8 + lane_of() % 4 * 2 + u;
          float change;
          const float score = modify.score(x[n][2 * i + u], query, i_key, all_seen, change);
          float& product = dx[n][2 * i + u];
          const float d = gradient_of(weight_of(score, lse[i]), product, factor[n][u], delta[i]);
          product = d * change;
          if (dmask.data && column == 0 && query < p.queries && i_key < p.keys)
            dmask.at(b, h, query)[i_key] = d;
        }
    }
    multiply_weights_16(sum, as_weights<T>(dx), rows + column, line, p.depth - column);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = first_query + row + 8 * i;
    if (query < p.queries)
      store_row_16(sum, i, p.scale, dq.at(b, h, query) + column, p.depth - column);
  }
}

template <int kN, class T>
void run_gradients_16(const Problem<float>& p, const Heads<const T>& q, const Heads<const T>& k,
                      const Heads<const T>& v, const Gradients<T>& g, const Heads<T>& dq,
                      const Heads<T>& dk, const Heads<T>& dv, const MaskGradient<float>& dmask) {
  const int64_t line = line_16(p.depth), value_line = line_16(p.value_depth);
  const int64_t elements = (kTile + 2 * kStreamed<kN>)*(line + value_line);
  const size_t bytes =
      static_cast<size_t>(elements) * sizeof(T) + 4 * kStreamed<kN> * sizeof(float);
  const int key_tiles = static_cast<int>(divide_up(p.keys, kTile));
  const int tiles = static_cast<int>(divide_up(p.queries, kTile));
  const int widest = p.depth > p.value_depth ? p.depth : p.value_depth;
  const int column_parts = (widest + kN - 1) / kN, query_column_parts = (p.depth + kN - 1) / kN;
  launch("attention_backward", key_gradients_16<T, kN>,
         grid_of(p.units() / p.group * key_tiles * column_parts), kThreads16, bytes, p, q, k, v, g,
         dk, dv, key_tiles, column_parts);
  launch("attention_backward", query_gradients_16<T, kN>,
         grid_of(p.units() * tiles * query_column_parts), kThreads16, bytes, p, q, k, v, g, dq,
         dmask, tiles, query_column_parts);
}

}  // namespace
}  // namespace grebe::cuda
