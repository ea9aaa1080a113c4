// Attention backward on sm_90a, for bfloat16 and float16: warpgroup products fed by bulk copies. See
// attention_backward.cu for the formulas.
//
// A block owns 128 rows of two arrays: keys and values for dk and dv, queries and dy for dq. One of its
// three warpgroups brings tiles of 64 rows of the other two arrays, in a ring of stages with mbarriers,
// and for dk and dv the streamed queries' sums; the other two own 64 rows each. Both products of owned
// with streamed rows go into registers, where scores become weights and gradients of scores; these are
// the left operands of the products with streamed rows that add up. The sums of a tile run together
// with the next tile's products, and while one warpgroup is at its arithmetic the other one's products
// run.
//
// Lengths per row are left to attention_backward_16.cuh (see attention_sm90.cuh), and so are wide heads
// whose scores are not plain: they take too many registers.
#pragma once
#include "attention_backward_16.cuh"
#include "attention_sm90.cuh"

namespace grebe::cuda {
namespace {

// kStats: the streamed rows are queries, and their sums come along.
template <class Element, int kColumns, bool kPlainScores, bool kStreamsQueries>
struct WarpgroupBackward {
  using T = Element;
  static constexpr bool kPlain = kPlainScores, kStats = kStreamsQueries;
  static constexpr int kD = kColumns, kOwned = 128, kRows = 64, kStages = 3;
  static constexpr bool kOverlap = kD == 64 || !kStats;  // sums with the next products
  static constexpr int kProducers = 128, kConsumers = 256, kBlock = kProducers + kConsumers;
  static constexpr int kBox = 64, kBoxes = kD / kBox;  // columns of a box: 128 bytes
  static constexpr int kOwnedElements = kOwned * kD, kTileElements = kRows * kD;
  static constexpr int kOut = kD / 8;  // tiles of 8 columns
  static constexpr size_t kSharedBytes =
      2 * (kOwnedElements + kStages * kTileElements) * sizeof(T) +
      2 * kStages * kRows * sizeof(float) + 64;

  // Of keys and values, or of queries and dy; owned, then streamed, a stage after the other.
  T *owned_x, *owned_y, *tile_x, *tile_y;
  float* stats;  // [kStages][2][kRows]: log-sum-exp and delta of the streamed queries
  uint64_t *owned_full, *full, *empty;

  DEVICE WarpgroupBackward() {
    Shared shared;
    owned_x = shared.take<T>(kOwnedElements);
    owned_y = shared.take<T>(kOwnedElements);
    tile_x = shared.take<T>(kStages * kTileElements);
    tile_y = shared.take<T>(kStages * kTileElements);
    stats = shared.take<float>(2 * kStages * kRows);
    owned_full = shared.take<uint64_t>(1);
    full = shared.take<uint64_t>(kStages);
    empty = shared.take<uint64_t>(kStages);
    if (threadIdx.x == 0) {
      mbarrier_init(owned_full, 1);
      for (int s = 0; s < kStages; ++s) {
        mbarrier_init(full + s, kStats ? 33 : 1);
        mbarrier_init(empty + s, kConsumers / 32);
      }
      mbarrier_init_fence();
    }
    __syncthreads();
  }

  // ---- copies ----

  template <int kCount>
  static DEVICE void bring(T* to, const TensorMap& map, uint64_t* barrier, int row, int h, int b) {
#pragma unroll
    for (int box = 0; box < kBoxes; ++box)
      tma_load(to + box * kBox * kCount, map, barrier, box * kBox, row, h, b);
  }
  DEVICE void bring_owned(const TensorMap& x, const TensorMap& y, int row, int h, int b) const {
    mbarrier_arrive_expect(owned_full, 2 * kOwnedElements * sizeof(T));
    bring<kOwned>(owned_x, x, owned_full, row, h, b);
    bring<kOwned>(owned_y, y, owned_full, row, h, b);
  }
  // Step n of all.
  DEVICE void wait_for_room(int n) const {
    mbarrier_wait(empty + n % kStages, (n / kStages & 1) ^ 1);
  }
  DEVICE void bring_tiles(const TensorMap& x, const TensorMap& y, int n, int row, int h,
                          int b) const {
    const int s = n % kStages;
    wait_for_room(n);
    mbarrier_arrive_expect(full + s, 2 * kTileElements * sizeof(T));
    bring<kRows>(tile_x + s * kTileElements, x, full + s, row, h, b);
    bring<kRows>(tile_y + s * kTileElements, y, full + s, row, h, b);
  }
  // By a warp.
  DEVICE void bring_stats(const Problem<float>& p, const float* lse, const float* delta, int n,
                          int query, int h, int b) const {
    float* to = stats + n % kStages * 2 * kRows;
    wait_for_room(n);
#pragma unroll
    for (int r = lane_of(); r < kRows; r += 32) {
      const bool valid = query + r < p.queries;
      to[r] = valid ? lse[p.row(b, h, query + r)] : 0.0f;
      to[kRows + r] = valid ? delta[p.row(b, h, query + r)] : 0.0f;
    }
    mbarrier_arrive(full + n % kStages);
  }

  // ---- products ----

  static constexpr uint32_t kEightRows = 8 * 128, kNextBox = kBox * kRows * sizeof(T);  // bytes
  static DEVICE int consumer() { return (static_cast<int>(threadIdx.x) - kProducers) / 128; }
  static DEVICE void multiply_owned(float (&x)[kRows / 2], const T* owned, const T* tile) {
#pragma unroll
    for (int d = 0; d < kD; d += 16) {
      const int box = d / kBox * kBox;
      const T* left = owned + box * kOwned + d % kBox + consumer() * 64 * kBox;
      wgmma<T, kRows, true, true>(x, matrix_descriptor(left, 0, kEightRows),
                                  matrix_descriptor(tile + box * kRows + d % kBox, 0, kEightRows),
                                  d > 0);
    }
  }
  DEVICE void start_products(float (&x)[kRows / 2], float (&dx)[kRows / 2], int n) const {
    const int s = n % kStages;
    mbarrier_wait(full + s, n / kStages & 1);
    wgmma_fence();
    multiply_owned(x, owned_x, tile_x + s * kTileElements);
    multiply_owned(dx, owned_y, tile_y + s * kTileElements);
    wgmma_commit();
  }
  DEVICE void release(int n) const {
    if (lane_of() == 0) mbarrier_arrive(empty + n % kStages);
  }
  // All steps of a consumer. arithmetic(n) makes weights of the products, pack() left operands of
  // them, start_sums(n) starts the products with tile n, pin_sums() pins what they add to.
  template <class Arithmetic, class PackThem, class StartSums, class PinSums>
  DEVICE void run_steps(float (&x)[kRows / 2], float (&dx)[kRows / 2], int count,
                        Arithmetic arithmetic, PackThem pack, StartSums start_sums,
                        PinSums pin_sums) const {
    auto finish_products = [&](auto pending) {
      wgmma_wait<decltype(pending)::value>();
      pin(x);
      pin(dx);
    };
    auto finish_sums = [&](int n) {
      wgmma_wait<0>();
      pin_sums();
      release(n);
    };
    constexpr std::integral_constant<int, 0> kAll;
    constexpr std::integral_constant<int, 1> kFirst;
    mbarrier_wait(owned_full, 0);
    if (count == 0) return;
    start_products(x, dx, 0);
    finish_products(kAll);
    arithmetic(0);
    pack();
    for (int n = 1; n < count; ++n) {
      if constexpr (kOverlap) {
        start_products(x, dx, n);
        start_sums(n - 1);
        finish_products(kFirst);
        arithmetic(n);
        finish_sums(n - 1);
      } else {
        start_sums(n - 1);
        finish_sums(n - 1);
        start_products(x, dx, n);
        finish_products(kAll);
        arithmetic(n);
      }
      pack();
    }
    start_sums(count - 1);
    finish_sums(count - 1);
  }
  // sum += weights times a streamed tile.
  static DEVICE void add_product(float (&sum)[kD / 2], const uint32_t (&weights)[kRows / 16][4],
                                 const T* tile) {
#pragma unroll
    for (int k = 0; k < kRows; k += 16)
      wgmma<T, kD, false>(sum, weights[k / 16],
                          matrix_descriptor(tile + k * kBox, kNextBox, kEightRows), true);
  }
  static DEVICE void store(const float (&sum)[kD / 2], int half_row, float factor, T* to,
                           int columns) {
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      const int at = n * 8 + lane_of() % 4 * 2;
      if (at >= columns) continue;
      const Pack<T, 2> pair{{narrow<T>(sum[4 * n + 2 * half_row] * factor),
                             narrow<T>(sum[4 * n + 2 * half_row + 1] * factor)}};
      *reinterpret_cast<Pack<T, 2>*>(to + at) = pair;
    }
  }
};

// From the products of a query with a key and of dy with its value to the weight and the gradient of
// the natural score per `scale` times the product.
template <bool kPlain>
DEVICE float differentiate_score(float& product, float& gradient, const Modifier<float>& modify,
                                 int query, int key, bool all_seen, float lse, float delta,
                                 float factor) {
  float score, change = 1;
  if constexpr (kPlain)
    score = all_seen || modify.sees(query, key) ? rounded_product(product, modify.p.factor)
                                                : -infinity<float>();
  else
    score = modify.score(product, query, key, all_seen, change);
  const float weight = weight_of(score, lse);
  const float of_score = gradient_of(weight, gradient, factor, delta);
  gradient = of_score * change;
  product = weight == 0 ? 0.0f : weight * factor;
  return of_score;
}

// ---- dk and dv: keys g and g + 8 of a warp's 16, queries 8 n + 2 t + u of the streamed ones ----

template <class Work>
DEVICE void add_key_gradients(const Work& work, const Problem<float>& p, int first_key, int begin,
                              int steps, int kv_head, int b, Heads<typename Work::T> dk,
                              Heads<typename Work::T> dv) {
  using T = typename Work::T;
  constexpr int kTiles = Work::kRows / 8;
  const int mine = first_key + Work::consumer() * 64, row = warp_of() % 4 * 16 + lane_of() / 4;
  float sum_k[Work::kD / 2], sum_v[Work::kD / 2], x[Work::kRows / 2], dx[Work::kRows / 2];
  uint32_t weights[kTiles / 2][4], gradients[kTiles / 2][4];
#pragma unroll
  for (int i = 0; i < Work::kD / 2; ++i) sum_k[i] = sum_v[i] = 0;
  auto arithmetic = [&](int n) {
    const Modifier<float> modify(p, b, kv_head * p.group + n / steps);
    const int query = begin + n % steps * Work::kRows;
    const bool all_seen = modify.sees_all(query, Work::kRows, mine, 64);
    const float* stats = work.stats + n % Work::kStages * 2 * Work::kRows;
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int r = i * 8 + lane_of() % 4 * 2 + u;
#pragma unroll
        for (int half_row = 0; half_row < 2; ++half_row) {
          float factor = 1;
          if constexpr (!Work::kPlain) {
            if (p.drops) {
              float of_group[4];
              modify.kept_factors(query + r, mine, row % 8 + 8 * half_row, of_group);
              const int group = warp_of() % 4;
              factor = group < 2 ? (group == 0 ? of_group[0] : of_group[1])
                                 : (group == 2 ? of_group[2] : of_group[3]);
            }
          }
          const int at = 4 * i + 2 * half_row + u;
          differentiate_score<Work::kPlain>(x[at], dx[at], modify, query + r,
                                            mine + row + 8 * half_row, all_seen, stats[r],
                                            stats[Work::kRows + r], factor);
        }
      }
  };
  auto pack = [&] {
    pack_weights<T, kTiles>(x, weights);
    pack_weights<T, kTiles>(dx, gradients);
  };
  auto start_sums = [&](int n) {
    const int at = n % Work::kStages * Work::kTileElements;
    wgmma_fence();
    Work::add_product(sum_v, weights, work.tile_y + at);
    Work::add_product(sum_k, gradients, work.tile_x + at);
    wgmma_commit();
  };
  auto pin_sums = [&] {
    pin(sum_k);
    pin(sum_v);
  };
  work.run_steps(x, dx, steps * p.group, arithmetic, pack, start_sums, pin_sums);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int key = mine + row + 8 * i;
    if (key >= p.keys) continue;
    Work::store(sum_k, i, p.scale, dk.at(b, kv_head, key), p.depth);
    Work::store(sum_v, i, 1.0f, dv.at(b, kv_head, key), p.value_depth);
  }
}

template <class Work>
__global__ void __launch_bounds__(Work::kBlock, 1)
    key_gradients_warpgroups(const __grid_constant__ TensorMap q,
                             const __grid_constant__ TensorMap dy,
                             const __grid_constant__ TensorMap k,
                             const __grid_constant__ TensorMap v,
                             const __grid_constant__ Problem<float> p, const float* lse,
                             const float* delta, Heads<typename Work::T> dk,
                             Heads<typename Work::T> dv, int tiles) {
  if constexpr (kWarpgroups<Work>) {
    const int first_key = blockIdx.x % tiles * Work::kOwned, unit = blockIdx.x / tiles;
    const int kv_heads = p.heads / p.group, kv_head = unit % kv_heads, b = unit / kv_heads;
    const Range seeing = p.watching(first_key, min(p.keys, first_key + Work::kOwned));
    const int begin = seeing.begin / Work::kRows * Work::kRows;
    const int steps = begin < seeing.end ? (seeing.end - begin - 1) / Work::kRows + 1 : 0;
    Work work;
    if (threadIdx.x < Work::kProducers) {
      shrink_registers<24>();
      if (threadIdx.x == 0) work.bring_owned(k, v, first_key, kv_head, b);
      for (int n = 0; warp_of() < 2 && n < steps * p.group; ++n) {
        const int h = kv_head * p.group + n / steps, query = begin + n % steps * Work::kRows;
        if (threadIdx.x == 0) work.bring_tiles(q, dy, n, query, h, b);
        if (warp_of() == 1) work.bring_stats(p, lse, delta, n, query, h, b);
      }
    } else {
      grow_registers<240>();
      add_key_gradients(work, p, first_key, begin, steps, kv_head, b, dk, dv);
    }
  }
}

// ---- dq: queries g and g + 8 of a warp's 16, keys 8 n + 2 t + u of the streamed ones ----

template <class Work>
DEVICE void add_query_gradients(const Work& work, const Problem<float>& p, const float* lse,
                                const float* delta, int first_query, int begin, int end, int h,
                                int b, Heads<typename Work::T> dq, MaskGradient<float> dmask) {
  using T = typename Work::T;
  constexpr int kTiles = Work::kRows / 8;
  const Modifier<float> modify(p, b, h);
  const int mine = first_query + Work::consumer() * 64;
  const int row = mine + warp_of() % 4 * 16 + lane_of() / 4;
  float sum[Work::kD / 2], x[Work::kRows / 2], dx[Work::kRows / 2], row_lse[2], row_delta[2];
  uint32_t gradients[kTiles / 2][4];
#pragma unroll
  for (int i = 0; i < Work::kD / 2; ++i) sum[i] = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool valid = row + 8 * i < p.queries;
    row_lse[i] = valid ? lse[modify.row + row + 8 * i] : 0.0f;
    row_delta[i] = valid ? delta[modify.row + row + 8 * i] : 0.0f;
  }
  auto arithmetic = [&](int n) {
    const int key = begin + n * Work::kRows;
    const bool all_seen = modify.sees_all(mine, 64, key, Work::kRows);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = row + 8 * i;
      float factor[kTiles][2];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) factor[j][0] = factor[j][1] = 1;
      if constexpr (!Work::kPlain)
        if (p.drops) kept_factors_16(modify, query, key, factor);
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int at = 4 * j + 2 * i + u, i_key = key + j * 8 + lane_of() % 4 * 2 + u;
          const float d =
              differentiate_score<Work::kPlain>(x[at], dx[at], modify, query, i_key, all_seen,
                                                row_lse[i], row_delta[i], factor[j][u]);
          if constexpr (!Work::kPlain)
            if (dmask.data && query < p.queries && i_key < p.keys) dmask.at(b, h, query)[i_key] = d;
        }
    }
  };
  auto pack = [&] { pack_weights<T, kTiles>(dx, gradients); };
  auto start_sums = [&](int n) {
    wgmma_fence();
    Work::add_product(sum, gradients, work.tile_x + n % Work::kStages * Work::kTileElements);
    wgmma_commit();
  };
  const int steps = begin < end ? (end - begin - 1) / Work::kRows + 1 : 0;
  work.run_steps(x, dx, steps, arithmetic, pack, start_sums, [&] { pin(sum); });
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (row + 8 * i < p.queries) Work::store(sum, i, p.scale, dq.at(b, h, row + 8 * i), p.depth);
}

template <class Work>
__global__ void __launch_bounds__(Work::kBlock, 1)
    query_gradients_warpgroups(const __grid_constant__ TensorMap q,
                               const __grid_constant__ TensorMap dy,
                               const __grid_constant__ TensorMap k,
                               const __grid_constant__ TensorMap v,
                               const __grid_constant__ Problem<float> p, const float* lse,
                               const float* delta, Heads<typename Work::T> dq,
                               MaskGradient<float> dmask, int tiles) {
  if constexpr (kWarpgroups<Work>) {
    // Late tiles first: causal ones have most work.
    const int first_query = (tiles - 1 - static_cast<int>(blockIdx.x) % tiles) * Work::kOwned;
    const int h = blockIdx.x / tiles % p.heads, b = blockIdx.x / tiles / p.heads;
    const Range seen = p.visible(b, first_query, min(p.queries, first_query + Work::kOwned));
    const int begin = seen.begin / kTile * kTile;
    Work work;
    if (threadIdx.x < Work::kProducers) {
      shrink_registers<24>();
      if (threadIdx.x == 0) {
        work.bring_owned(q, dy, first_query, h, b);
        for (int key = begin, n = 0; key < seen.end; key += Work::kRows, ++n)
          work.bring_tiles(k, v, n, key, h / p.group, b);
      }
    } else {
      grow_registers<240>();
      add_query_gradients(work, p, lse, delta, first_query, begin, seen.end, h, b, dq, dmask);
    }
  }
}

// ---- launches ----

template <class T, int kD, bool kPlain>
void run_backward_warpgroups(const Problem<float>& p, const View& q, const View& k, const View& v,
                             const View& dy, const Gradients<T>& g, const Heads<T>& dq,
                             const Heads<T>& dk, const Heads<T>& dv,
                             const MaskGradient<float>& dmask) {
  using ByKeys = WarpgroupBackward<T, kD, kPlain, true>;
  using ByQueries = WarpgroupBackward<T, kD, kPlain, false>;
  constexpr int kOwned = ByKeys::kOwned, kRows = ByKeys::kRows;
  const int key_tiles = static_cast<int>(divide_up(p.keys, kOwned));
  const int tiles = static_cast<int>(divide_up(p.queries, kOwned));
  launch("attention_backward", key_gradients_warpgroups<ByKeys>,
         grid_of(p.units() / p.group * key_tiles), ByKeys::kBlock, ByKeys::kSharedBytes,
         map_of_heads<T>(q, kRows), map_of_heads<T>(dy, kRows), map_of_heads<T>(k, kOwned),
         map_of_heads<T>(v, kOwned), p, g.lse, g.delta, dk, dv, key_tiles);
  launch("attention_backward", query_gradients_warpgroups<ByQueries>, grid_of(p.units() * tiles),
         ByQueries::kBlock, ByQueries::kSharedBytes, map_of_heads<T>(q, kOwned),
         map_of_heads<T>(dy, kOwned), map_of_heads<T>(k, kRows), map_of_heads<T>(v, kRows), p,
         g.lse, g.delta, dq, dmask, tiles);
}
template <class T>
bool try_backward_warpgroups(const Problem<float>& p, const View& q, const View& k, const View& v,
                             const View& dy, const Gradients<T>& g, const Heads<T>& dq,
                             const Heads<T>& dk, const Heads<T>& dv,
                             const MaskGradient<float>& dmask) {
  const int widest = p.depth > p.value_depth ? p.depth : p.value_depth;
  const bool plain = p.linear && !p.drops;
  if (compute_capability() != 90 || widest > 128 || p.lengths) return false;
  if (p.queries < 64 || p.keys < 64 || (widest > 64 && !plain)) return false;
  for (const View* x : {&q, &k, &v, &dy})
    if (!is_mappable(*x)) return false;
  const auto run = widest > 64 ? run_backward_warpgroups<T, 128, true>
                   : plain     ? run_backward_warpgroups<T, 64, true>
                               : run_backward_warpgroups<T, 64, false>;
  run(p, q, k, v, dy, g, dq, dk, dv, dmask);
  return true;
}

}  // namespace
}  // namespace grebe::cuda
