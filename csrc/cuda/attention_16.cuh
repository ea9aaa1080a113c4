// Attention forward by tensor cores, for bfloat16 and float16; what backward shares of it.
//
// A block of four warps owns kTile rows, 16 per warp, and goes over streamed rows, two tiles of them in
// shared memory: one in use, one on its way (cp.async). Rows of shared memory are an odd number of
// 16-byte units long, so that ldmatrix has no bank conflicts. Scores stay in the registers in which
// mma.sync leaves them, and go from there as the left operand of the product with the values.
#pragma once
#include "attention.cuh"

namespace grebe::cuda {
namespace {

constexpr int kWarps = kTile / 16, kThreads16 = 32 * kWarps;
constexpr int kWidest = 256;  // depth
// Streamed rows of a tile, where sums of kN columns are kept.
template <int kN>
constexpr int kStreamed = kN == 64 ? 64 : 32;

DEVICE int lane_of() { return threadIdx.x % 32; }
DEVICE int warp_of() { return threadIdx.x / 32; }

DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
  multiply_bf16(d, a, b0, b1);
}
DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, half) {
  multiply_half(d, a, b0, b1);
}
template <class T>
DEVICE uint32_t packed(float low, float high) {
  const Pack<T, 2> pair{{narrow<T>(low), narrow<T>(high)}};
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

inline __host__ __device__ int whole_16(int depth) { return (depth + 15) / 16 * 16; }
// Elements from one row in shared memory to the next.
inline __host__ __device__ int line_16(int depth) { return whole_16(depth) + 8; }

// kRows rows of a head from `row` on, zeros behind the last one and behind their end.
template <int kRows, int kN, class T>
DEVICE void load_tile(const Heads<const T>& from, const T* head, int row, int rows, int depth,
                      T* to) {
  constexpr int kLanes = kN / 8;
  const int line = line_16(depth);
#pragma unroll
  for (int r = threadIdx.x / kLanes; r < kRows; r += kThreads16 / kLanes)
    for (int c = threadIdx.x % kLanes * 8; c < line - 8; c += kLanes * 8) {
      const bool valid = row + r < rows && c < depth;
      copy_async(to + r * line + c, valid ? head + (row + r) * from.row + c : from.data, valid);
    }
}

// sum += 16 rows from `a` on times the rows from `b` on, 8 of them per tile of the sum.
template <class T, int kTiles>
DEVICE void multiply_rows_16(float (&sum)[kTiles][4], const T* a, const T* b, int depth) {
  const int lane = lane_of(), line = line_16(depth);
  a += lane % 16 * line + lane / 16 * 8;
  b += (lane / 16 * 8 + lane % 8) * line + lane / 8 % 2 * 8;
#pragma unroll 2
  for (int d = 0; d < depth; d += 16) {
    uint32_t left[4];
    load_matrices(left, a + d);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t right[4];
      load_matrices(right, b + n * 8 * line + d);
      multiply(sum[n], left, right[0], right[1], T{});
      multiply(sum[n + 1], left, right[2], right[3], T{});
    }
  }
}

// Weights in the places of a sum, as they come into the next product.
template <int kTiles>
struct Weights {
  uint32_t pairs[kTiles][2];
};
template <class T, int kTiles>
DEVICE Weights<kTiles> as_weights(const float (&x)[kTiles][4]) {
  Weights<kTiles> w;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    w.pairs[n][0] = packed<T>(x[n][0], x[n][1]);
    w.pairs[n][1] = packed<T>(x[n][2], x[n][3]);
  }
  return w;
}
// sum += weights times the rows from `b` on, of which the first `columns` columns count.
template <class T, int kTiles, int kColumnTiles>
DEVICE void multiply_weights_16(float (&sum)[kColumnTiles][4], const Weights<kTiles>& weights,
                                const T* b, int line, int columns) {
  const int lane = lane_of();
  b += lane % 16 * line + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kTiles; k += 2) {
    const uint32_t left[4] = {weights.pairs[k][0], weights.pairs[k][1], weights.pairs[k + 1][0],
                              weights.pairs[k + 1][1]};
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      if (n * 8 >= columns) continue;
      uint32_t right[4];
      load_matrices_transposed(right, b + k * 8 * line + n * 8);
      multiply(sum[n], left, right[0], right[1], T{});
      multiply(sum[n + 1], left, right[2], right[3], T{});
    }
  }
}

// The thread's part of row `half` of a sum, times `factor`; `to`: the row from the sum's first column
// on, of which `columns` exist, an even number.
template <class T, int kColumnTiles>
DEVICE void store_row_16(const float (&sum)[kColumnTiles][4], int half_row, float factor, T* to,
                         int columns) {
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    const int at = n * 8 + lane_of() % 4 * 2;
    if (at >= columns) continue;
    const Pack<T, 2> pair{{narrow<T>((half_row ? sum[n][2] : sum[n][0]) * factor),
                           narrow<T>((half_row ? sum[n][3] : sum[n][1]) * factor)}};
    *reinterpret_cast<Pack<T, 2>*>(to + at) = pair;
  }
}

// Factors of the weights of a query with the streamed keys from `key` on that the thread has: of
// column 8 n + 2 t + u in factor[n][u].
template <int kTiles>
DEVICE void kept_factors_16(const Modifier<float>& modify, int query, int key,
                            float (&factor)[kTiles][2]) {
#pragma unroll
  for (int odd = 0; odd < 2; ++odd)
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float of_group[4];
      modify.kept_factors(query, key / kTile * kTile, odd * 8 + lane_of() % 4 * 2 + u, of_group);
#pragma unroll
      for (int n = odd; n < kTiles; n += 2)
        factor[n][u] = kTiles == 4 && key % kTile != 0 ? of_group[n / 2 + 2] : of_group[n / 2];
    }
}

// kN: columns of the output that fit. Thread: queries g and g + 8 of its warp's 16.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads16)
    attend_16(Problem<float> p, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> y,
              float* lse, Cut<float> cut, int tiles) {
  constexpr int kRows = kStreamed<kN>, kTiles = kRows / 8;
  int number = blockIdx.x;
  const int part = number % cut.count;
  number /= cut.count;
  const int first_query = (tiles - 1 - number % tiles) * kTile;
  const int h = number / tiles % p.heads, b = number / tiles / p.heads;
  const Modifier<float> modify(p, b, h);
  const Range seen = p.visible(b, first_query, min(p.queries, first_query + kTile));
  const int begin = max(seen.begin, part * cut.keys) / kTile * kTile;
  const int end = min(seen.end, (part + 1) * cut.keys);
  const int line = line_16(p.depth), value_line = line_16(p.value_depth);

  Shared shared;
  T* const queries = shared.take<T>(kTile * line);
  T* now = shared.take<T>(kRows * (line + value_line));
  T* next = shared.take<T>(kRows * (line + value_line));
  const T* const keys = k.at(b, h / p.group);
  const T* const values = v.at(b, h / p.group);
  auto load = [&](int key) {
    load_tile<kRows, kN>(k, keys, key, modify.length, p.depth, next);
    load_tile<kRows, kN>(v, values, key, modify.length, p.value_depth, next + kRows * line);
    copy_async_commit();
  };

  float out[kN / 8][4] = {}, most[2] = {-infinity<float>(), -infinity<float>()}, sum[2] = {};
  load_tile<kTile, kN>(q, q.at(b, h), first_query, p.queries, p.depth, queries);
  if (begin < end) load(begin);
  const int my_query = first_query + warp_of() * 16 + lane_of() / 4;
  for (int key = begin; key < end; key += kRows) {
    copy_async_wait<0>();
    __syncthreads();
    T* const rows = next;
    next = now;
    now = rows;
    if (key + kRows < end) load(key + kRows);
    float x[kTiles][4] = {};
    multiply_rows_16(x, queries + warp_of() * 16 * line, rows, p.depth);
    const bool all_seen = modify.sees_all(first_query, kTile, key, kRows);
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = my_query + 8 * i;
      float high = most[i], total = 0, unused;
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          float& score = x[n][2 * i + u];
          score = modify.score(score, query, key + n * 8 + lane_of() % 4 * 2 + u, all_seen, unused);
          high = HigherScore<float>()(high, score);
        }
      high = warp_combine<4>(high, HigherScore<float>());
      const float base = base_of(high);
      scale[i] = exp2_of(most[i] - base);
      most[i] = high;
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          float& weight = x[n][2 * i + u];
          weight = exp2_of(weight - base);
          total += weight;
        }
      sum[i] = fma(sum[i], scale[i], total);
      if (p.drops) {
        float factor[kTiles][2];
        kept_factors_16(modify, query, key, factor);
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
          for (int u = 0; u < 2; ++u) x[n][2 * i + u] *= factor[n][u];
      }
    }
    // The maxima seldom grow.
    if (__any_sync(~0u, scale[0] != 1 || scale[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[n][i] *= scale[i / 2];
    }
    multiply_weights_16(out, as_weights<T>(x), rows + kRows * line, value_line, p.value_depth);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = my_query + 8 * i;
    const float all = warp_combine<4>(sum[i], Plus{});
    if (query >= p.queries) continue;
    const int64_t row = modify.row + query, at = part * p.rows() + row;
    const bool first_lane = lane_of() % 4 == 0;
    if (cut.count > 1) {
      store_row_16(out, i, 1.0f, cut.out + at * p.value_depth, p.value_depth);
      if (first_lane) cut.state[2 * at] = most[i];
      if (first_lane) cut.state[2 * at + 1] = all;
    } else {
      store_row_16(out, i, all == 0 ? 0.0f : 1 / all, y.at(b, h, query), p.value_depth);
      if (first_lane) lse[row] = log2_of_sum(most[i], all);
    }
  }
}

// Do the tensor cores' kernels take 16-bit arrays of these dimensions?
inline bool takes_16(DType dtype, int depth, int value_depth, bool aligned) {
  return aligned && depth > 0 && value_depth > 0 && depth <= kWidest && value_depth <= kWidest &&
         compute_capability() >= (dtype == DType::kFloat16 ? 75 : 80);
}

}  // namespace
}  // namespace grebe::cuda
