// Attention forward on sm_90a, for bfloat16 and float16 (Shah et al., "FlashAttention-3",
// arXiv 2407.08608): warpgroup products fed by bulk copies.
//
// A block has 128 queries of a head. One of its three warpgroups brings tiles of kKeys keys and of
// their values, a few ahead, each in a ring of stages with mbarriers; the other two have 64 queries
// each. A round starts the product of the queries with the next keys and that of the last weights
// with their values together; while the second runs, the first one's scores become weights. These
// stay in registers, as the left operand of the next product with values.
//
// What lies outside of the arrays comes as zeros. Lengths per row are left to attention_16.cuh: what
// lies behind them may be anything, and 0 NaN is NaN.
#pragma once
#include "attention_16.cuh"
#include "tensor_map.cuh"

namespace grebe::cuda {
namespace {

// kD: columns of queries, keys and values that fit. kPlain: scores are products times a factor, of which
// some are hidden, and nothing is dropped; what else scores can go through takes registers, so with
// wide heads the tiles have fewer keys then.
template <class Element, int kColumns, bool kPlainScores>
struct WarpgroupAttention {
  using T = Element;
  static constexpr bool kPlain = kPlainScores;
  static constexpr int kD = kColumns, kQueries = 128, kKeys = kD == 64 || kPlain ? 128 : 64;
  static constexpr int kStages = 2;
  static constexpr int kProducers = 128, kConsumers = 256, kBlock = kProducers + kConsumers;
  static constexpr int kBox = 64, kBoxes = kD / kBox;  // columns of a box: 128 bytes
  static constexpr int kTileElements = kKeys * kD, kQueryElements = kQueries * kD;
  static constexpr size_t kSharedBytes =
      (kQueryElements + 2 * kStages * kTileElements) * sizeof(T) + 128;
  static constexpr int kScores = kKeys / 8, kOut = kD / 8;  // tiles of 8 columns

  T *queries, *keys, *values;
  uint64_t *queries_full, *full, *empty;  // [2][kStages]: of keys, of values

  DEVICE WarpgroupAttention() {
    Shared shared;
    queries = shared.take<T>(kQueryElements);
    keys = shared.take<T>(kStages * kTileElements);
    values = shared.take<T>(kStages * kTileElements);
    queries_full = shared.take<uint64_t>(1);
    full = shared.take<uint64_t>(2 * kStages);
    empty = shared.take<uint64_t>(2 * kStages);
    if (threadIdx.x == 0) {
      mbarrier_init(queries_full, 1);
      for (int s = 0; s < 2 * kStages; ++s) {
        mbarrier_init(full + s, 1);
        mbarrier_init(empty + s, kConsumers / 32);
      }
      mbarrier_init_fence();
    }
    __syncthreads();
  }

  // ---- copies ----

  template <int kRows>
  static DEVICE void bring(T* to, const TensorMap& map, uint64_t* barrier, int row, int h, int b) {
    mbarrier_arrive_expect(barrier, kRows * kD * sizeof(T));
#pragma unroll
    for (int box = 0; box < kBoxes; ++box)
      tma_load(to + box * kBox * kRows, map, barrier, box * kBox, row, h, b);
  }
  // By a single thread.
  DEVICE void produce(const TensorMap& q, const TensorMap& k, const TensorMap& v, int first_query,
                      int begin, int end, int h, int kv_head, int b) {
    bring<kQueries>(queries, q, queries_full, first_query, h, b);
    for (int key = begin, n = 0; key < end; key += kKeys, ++n) {
      const int s = n % kStages;
      const uint32_t parity = (n / kStages & 1) ^ 1;
      mbarrier_wait(empty + s, parity);
      bring<kKeys>(keys + s * kTileElements, k, full + s, key, kv_head, b);
      mbarrier_wait(empty + kStages + s, parity);
      bring<kKeys>(values + s * kTileElements, v, full + kStages + s, key, kv_head, b);
    }
  }

  // ---- products ----

  static constexpr uint32_t kEightRows = 8 * 128, kNextBox = kBox * kKeys * sizeof(T);  // bytes
  static DEVICE int consumer() { return (static_cast<int>(threadIdx.x) - kProducers) / 128; }
  DEVICE void start_scores(float (&x)[kKeys / 2], int stage) const {
    const T* tile = keys + stage * kTileElements;
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < kD; d += 16) {
      const int box = d / kBox * kBox;
      const T* left = queries + box * kQueries + d % kBox + consumer() * 64 * kBox;
      wgmma<T, kKeys, true, true>(x, matrix_descriptor(left, 0, kEightRows),
                                  matrix_descriptor(tile + box * kKeys + d % kBox, 0, kEightRows),
                                  d > 0);
    }
    wgmma_commit();
  }
  DEVICE void start_values(float (&out)[kD / 2], const uint32_t (&weights)[kKeys / 16][4],
                           int stage, bool add) const {
    const T* tile = values + stage * kTileElements;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeys; k += 16)
      wgmma<T, kD, false>(out, weights[k / 16],
                          matrix_descriptor(tile + k * kBox, kNextBox, kEightRows), add || k > 0);
    wgmma_commit();
  }
  DEVICE void release(int barrier) const {
    if (lane_of() == 0) mbarrier_arrive(empty + barrier);
  }
};

// Scores of rows g and g + 8 of a warp's 16, and what is known of them.
struct OnlineRows {
  float most[2], sum[2];
};

// From scores to weights, with the factors by which earlier results shrink.
template <bool kPlain, int kTiles>
DEVICE void weigh(float (&x)[kTiles * 4], OnlineRows& rows, float (&scale)[2],
                  const Modifier<float>& modify, int first_query, int my_query, int key) {
  const bool all_seen = modify.sees_all(first_query, 128, key, kTiles * 8);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = my_query + 8 * i;
    float high = rows.most[i], total = 0;
    [[maybe_unused]] float unused;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        float& score = x[4 * n + 2 * i + u];
        const int column = key + n * 8 + lane_of() % 4 * 2 + u;
        if constexpr (kPlain)
          score = all_seen || modify.sees(query, column) ? rounded_product(score, modify.p.factor)
                                                         : -infinity<float>();
        else
          score = modify.score(score, query, column, all_seen, unused);
        high = HigherScore<float>()(high, score);
      }
    high = warp_combine<4>(high, HigherScore<float>());
    const float base = base_of(high);
    scale[i] = exp2_of(rows.most[i] - base);
    rows.most[i] = high;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        float& weight = x[4 * n + 2 * i + u];
        weight = exp2_of(weight - base);
        total += weight;
      }
    rows.sum[i] = fma(rows.sum[i], scale[i], total);
    if constexpr (!kPlain) {
      if (!modify.p.drops) continue;
#pragma unroll
      for (int part = 0; part < kTiles / 8; ++part) {
        float factor[8][2];
        kept_factors_16(modify, query, key + part * kTile, factor);
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int u = 0; u < 2; ++u) x[4 * (8 * part + n) + 2 * i + u] *= factor[n][u];
      }
    }
  }
}

template <class T, int kTiles>
DEVICE void pack_weights(const float (&x)[kTiles * 4], uint32_t (&weights)[kTiles / 2][4]) {
#pragma unroll
  for (int k = 0; k < kTiles / 2; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[k][i] = packed<T>(x[8 * k + 2 * i], x[8 * k + 2 * i + 1]);
}

template <class Work>
DEVICE void attend_consumer(const Work& work, const Problem<float>& p,
                            const Modifier<float>& modify, Heads<typename Work::T> y, float* lse,
                            const Cut<float>& cut, int part, int first_query, int begin, int end,
                            int h, int b) {
  using T = typename Work::T;
  constexpr int kStages = Work::kStages;
  const int my_query = first_query + Work::consumer() * 64 + warp_of() % 4 * 16 + lane_of() / 4;
  float x[Work::kKeys / 2], out[Work::kD / 2], scale[2];
  uint32_t weights[Work::kKeys / 16][4];
  OnlineRows rows{{-infinity<float>(), -infinity<float>()}, {0, 0}};
#pragma unroll
  for (int i = 0; i < Work::kD / 2; ++i) out[i] = 0;
  mbarrier_wait(work.queries_full, 0);
  const int count = (end - begin + Work::kKeys - 1) / Work::kKeys;
  auto wait_for = [&](int n, int ring) {
    mbarrier_wait(work.full + ring * kStages + n % kStages, n / kStages & 1);
  };
  if (count > 0) {
    wait_for(0, 0);
    work.start_scores(x, 0);
    wgmma_wait<0>();
    pin(x);
    work.release(0);
    weigh<Work::kPlain, Work::kScores>(x, rows, scale, modify, first_query, my_query, begin);
    pack_weights<T, Work::kScores>(x, weights);
  }
  for (int n = 1; n < count; ++n) {
    const int s = n % kStages, last = (n - 1) % kStages;
    wait_for(n, 0);
    wait_for(n - 1, 1);
    work.start_scores(x, s);
    work.start_values(out, weights, last, true);
    wgmma_wait<1>();
    pin(x);
    work.release(s);
    weigh<Work::kPlain, Work::kScores>(x, rows, scale, modify, first_query, my_query,
                                       begin + n * Work::kKeys);
    wgmma_wait<0>();
    pin(out);
    work.release(kStages + last);
    // The maxima seldom grow.
    if (__any_sync(~0u, scale[0] != 1 || scale[1] != 1)) {
#pragma unroll
      for (int i = 0; i < Work::kD / 2; ++i) out[i] *= scale[i / 2 % 2];
    }
    pack_weights<T, Work::kScores>(x, weights);
  }
  if (count > 0) {
    wait_for(count - 1, 1);
    work.start_values(out, weights, (count - 1) % kStages, true);
    wgmma_wait<0>();
    pin(out);
  }
  float results[Work::kOut][4];
#pragma unroll
  for (int i = 0; i < Work::kD / 2; ++i) results[i / 4][i % 4] = out[i];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = my_query + 8 * i;
    const float all = warp_combine<4>(rows.sum[i], Plus{});
    if (query >= p.queries) continue;
    const int64_t row = modify.row + query, at = part * p.rows() + row;
    const bool first_lane = lane_of() % 4 == 0;
    if (cut.count > 1) {
      store_row_16(results, i, 1.0f, cut.out + at * p.value_depth, p.value_depth);
      if (first_lane) cut.state[2 * at] = rows.most[i];
      if (first_lane) cut.state[2 * at + 1] = all;
    } else {
      store_row_16(results, i, all == 0 ? 0.0f : 1 / all, y.at(b, h, query), p.value_depth);
      if (first_lane) lse[row] = log2_of_sum(rows.most[i], all);
    }
  }
}

template <class Work>
__global__ void __launch_bounds__(Work::kBlock, 1)
    attend_warpgroups(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                      const __grid_constant__ TensorMap v, const __grid_constant__ Problem<float> p,
                      Heads<typename Work::T> y, float* lse, Cut<float> cut, int tiles) {
  if constexpr (kWarpgroups<Work>) {
    // Late tiles first: causal ones have most work.
    int number = blockIdx.x;
    const int part = number % cut.count;
    number /= cut.count;
    const int first_query = (tiles - 1 - number % tiles) * Work::kQueries;
    const int h = number / tiles % p.heads, b = number / tiles / p.heads;
    const Range seen = p.visible(b, first_query, min(p.queries, first_query + Work::kQueries));
    const int begin = max(seen.begin, part * cut.keys) / kTile * kTile;
    const int end = max(begin, min(seen.end, (part + 1) * cut.keys));
    Work work;
    if (threadIdx.x < Work::kProducers) {
      shrink_registers<24>();
      if (threadIdx.x == 0) work.produce(q, k, v, first_query, begin, end, h, h / p.group, b);
    } else {
      grow_registers<240>();
      const Modifier<float> modify(p, b, h);
      attend_consumer(work, p, modify, y, lse, cut, part, first_query, begin, end, h, b);
    }
  }
}

// The map of an array [B, H, L, D] in boxes of `rows` positions.
template <class T>
TensorMap map_of_heads(const View& x, int rows) {
  const int64_t unit = kPack<T>;  // strides of dimensions of size 1 may be anything
  int64_t shape[4], strides[4];
  for (int d = 0; d < 4; ++d) {
    shape[d] = x.shape[3 - d];
    strides[d] = d == 0 ? 1 : x.shape[3 - d] == 1 ? unit : x.strides[3 - d];
  }
  const int box[4] = {64, rows, 1, 1};
  return make_tensor_map(data<const T>(x), 4, shape, strides, box);
}

// Is the array's memory in an order that bulk copies take?
inline bool is_mappable(const View& x) {
  for (int d = 0; d < 3; ++d)
    if (x.shape[d] > 1 && x.strides[d] <= 0) return false;
  return numel(x) > 0;
}

}  // namespace
}  // namespace grebe::cuda
