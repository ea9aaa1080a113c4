// Products of 16-bit matrices on sm_90a: c = a b + bias + beta c, with relu, for batches of them.
//
// Idea: a block takes tiles of c one after the other. One of its three warpgroups brings slices of a
// and b by bulk copies, several ahead, in a ring of stages; the other two multiply them, 64 rows of
// the tile each, from shared memory into registers. Two mbarriers per stage say that it is full or
// free again, so nobody waits for anybody else. Registers move from the copying warpgroup to the
// others, which hold 64 x kN results. Results leave by way of shared memory, to be written in rows of
// 128 bytes, while the copies for the next tile are already on their way. Two blocks may form a
// cluster: their tiles lie below each other, and each brings one half of b's slice for both, so that b
// is read from the second-level cache half as often. A stage is then free when it is so in both.
//
// What lies outside the matrices comes as zeros and is not written. Tiles go down groups of kGroup
// rows, so that blocks that run together share slices in the second-level cache.
//
// Floor: 2 m n k operations at the peak of the tensor cores. Not measured on a device yet.
#pragma once
#include "divider.cuh"
#include "tensor_map.cuh"

namespace grebe::cuda {
namespace {

template <class T>
struct WarpgroupProblem {
  int m, n, k;
  int tile_rows, tile_columns, items;
  int parts, part;  // k is cut into `parts` of `part` elements
  int a_step, b_step;  // of the item's number in the maps: 0 if all items share the matrix
  // Rows of c come in planes: row i lies at i / plane * c_plane + i % plane * c_row.
  T* c;
  Divider plane{INT64_MAX};
  int64_t c_plane, c_row, c_column, c_item;  // strides
  bool wide;  // 16 bytes of c may be written at once
  float beta;
  const T* bias;
  int64_t bias_row, bias_column;
  bool relu;
  float* partials;  // [items, parts, m, n] instead of c, or nullptr
};

// The stage of the ring that comes next, and the parity of its barriers' phase.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// kAAlongK: elements of a that are neighbours in memory are neighbours in k, else in m; so for b.
// kBlocks: of a cluster, 1 or 2; with 2 there is an even number of rows of tiles. kImages: c may come in
// planes, and its columns may be apart.
template <class Element, int kColumns, bool kAAlongK, bool kBAlongK, int kBlocks = 1,
          bool kImages = false>
struct WarpgroupTile {
  using T = Element;
  static constexpr int kM = 128, kN = kColumns, kDepth = 64, kGroup = 8;
  static constexpr int kCluster = kBlocks;
  static constexpr int kProducers = 128, kConsumers = 256, kBlock = kProducers + kConsumers;
  static constexpr int kStages = kN == 256 ? 4 : 6;
  static constexpr int kAElements = kM * kDepth, kBElements = kN * kDepth;
  static constexpr uint32_t kStageBytes = sizeof(T) * (kAElements + kBElements);
  // Results on their way out: of each warp 16 rows of 64 columns.
  static constexpr int kOutElements = 16 * 64;
  static constexpr size_t kSharedBytes =
      kStages * kStageBytes + sizeof(T) * kOutElements * kConsumers / 32 + 2 * 64;

  // Boxes are 64 elements wide, 128 bytes. Along k they hold all rows of the operand's slice, else 64
  // of them, and the next box holds the next 64.
  static constexpr int kBox = 64;
  static constexpr int kARows = kAAlongK ? kM : kDepth;
  static constexpr int kBRows = kBAlongK ? kN / kCluster : kDepth;

  const WarpgroupProblem<T>& p;
  T *a, *b, *out;
  uint64_t *full, *empty;

  DEVICE explicit WarpgroupTile(const WarpgroupProblem<T>& p) : p(p) {
    Shared shared;
    a = shared.take<T>(kStages * kAElements);
    b = shared.take<T>(kStages * kBElements);
    out = shared.take<T>(kOutElements * kConsumers / 32);
    full = shared.take<uint64_t>(kStages);
    empty = shared.take<uint64_t>(kStages);
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        mbarrier_init(full + s, 1);
        mbarrier_init(empty + s, kConsumers / 32 * kCluster);
      }
      mbarrier_init_fence();
    }
    if (kCluster > 1)
      cluster_barrier();
    else
      __syncthreads();
  }
  // Before a block ends the other may still write to its barriers.
  DEVICE void finish_cluster() const {
    if (kCluster == 1) return;
    __syncwarp();
    cluster_barrier();
  }

  // ---- what there is to do ----

  struct Work {
    int i, j, item, part, begin, end;
    DEVICE int slices() const { return (end - begin + kDepth - 1) / kDepth; }
  };
  DEVICE int64_t work_count() const {
    return static_cast<int64_t>(p.tile_rows) * p.tile_columns * p.parts * p.items;
  }
  DEVICE Work work_of(int64_t number) const {
    const int tiles = p.tile_rows * p.tile_columns, tile = static_cast<int>(number % tiles);
    const int rest = static_cast<int>(number / tiles);
    const int first = tile / (kGroup * p.tile_columns) * kGroup,
              within = tile - first * p.tile_columns;
    const int rows = p.tile_rows - first < kGroup ? p.tile_rows - first : kGroup;
    Work w;
    w.i = (first + within % rows) * kM;
    w.j = within / rows * kN;
    w.part = rest % p.parts;
    w.item = rest / p.parts;
    w.begin = w.part * p.part;
    w.end = p.k - w.begin < p.part ? p.k : w.begin + p.part;
    return w;
  }

  // ---- copies ----

  template <bool kAlongK, int kSize>
  static DEVICE void bring(T* to, const TensorMap& map, uint64_t* barrier, int i, int k, int item) {
    if constexpr (kAlongK) {
      tma_load(to, map, barrier, k, i, item);
    } else {
#pragma unroll
      for (int box = 0; box < kSize / kBox; ++box)
        tma_load(to + box * kBox * kDepth, map, barrier, i + box * kBox, k, item);
    }
  }
  // The slices of a and b of some work from `k` on, of matrices in maps.
  DEVICE void bring_a(T* to, const TensorMap& map, uint64_t* barrier, const Work& w, int k) const {
    bring<kAAlongK, kM>(to, map, barrier, w.i, k, w.item * p.a_step);
  }
  DEVICE void bring_b(T* to, const TensorMap& map, uint64_t* barrier, const Work& w, int k) const {
    const int item = w.item * p.b_step;
    if constexpr (kCluster == 1) {
      bring<kBAlongK, kN>(to, map, barrier, w.j, k, item);
    } else {
      constexpr uint16_t kBoth = 3;
      constexpr int kHalf = kN / 2, kStep = kBAlongK ? kHalf : kBox;
      const int first = cluster_rank() * kHalf;
#pragma unroll
      for (int j = first; j < first + kHalf; j += kStep)
        tma_load_multicast(to + j * kDepth, map, barrier, kBoth, kBAlongK ? k : w.j + j,
                           kBAlongK ? w.j + j : k, item);
    }
  }
  // By a single thread. bring_slices(where to for a, for b, barrier, work, k) starts the copies.
  template <class Bring>
  DEVICE void produce(Bring bring_slices) {
    Ring<kStages> ring;
    for (int64_t number = blockIdx.x; number < work_count(); number += gridDim.x) {
      const Work w = work_of(number);
      for (int k = w.begin; k < w.end; k += kDepth, ring.advance()) {
        const int s = ring.stage;
        mbarrier_wait(empty + s, ring.parity ^ 1);
        mbarrier_arrive_expect(full + s, kStageBytes);
        bring_slices(a + s * kAElements, b + s * kBElements, full + s, w, k);
      }
    }
  }

  // ---- products ----

  static constexpr uint32_t kEightRows = 8 * 128;  // bytes
  static constexpr uint32_t kNextBox = kBox * kDepth * sizeof(T);
  // Rows from `row`, a multiple of 64, and 16 of k from `k` of a slice.
  template <bool kAlongK>
  static DEVICE uint64_t operand(const T* slice, int row, int k) {
    return matrix_descriptor(slice + row * kDepth + (kAlongK ? k : k * kBox), kNextBox, kEightRows);
  }
  // The calling warp has read a stage.
  static DEVICE void release(uint64_t* stage) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (lane >= kCluster) return;
    if constexpr (kCluster == 1)
      mbarrier_arrive(stage);
    else
      mbarrier_arrive_in(stage, lane);
  }
  DEVICE void multiply(float (&sum)[kN / 2], Ring<kStages>& ring, int slices) {
    const int row = consumer() * 64;
    uint64_t* previous = nullptr;
    for (int slice = 0; slice < slices; ++slice, ring.advance()) {
      const int s = ring.stage;
      mbarrier_wait(full + s, ring.parity);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDepth; k += 16)
        wgmma<T, kN, kAAlongK, kBAlongK>(sum, operand<kAAlongK>(a + s * kAElements, row, k),
                                         operand<kBAlongK>(b + s * kBElements, 0, k),
                                         slice > 0 || k > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the slice before is read
      if (previous) release(previous);
      previous = empty + s;
    }
    wgmma_wait<0>();
    pin(sum);
    release(previous);
  }
  DEVICE void consume() {
    Ring<kStages> ring;
    float sum[kN / 2];
    for (int64_t number = blockIdx.x; number < work_count(); number += gridDim.x) {
      const Work w = work_of(number);
      multiply(sum, ring, w.slices());
      if (p.partials)
        write_partial(sum, w);
      else if (kImages && p.c_column != 1)
        write_apart(sum, w);
      else
        write(sum, w);
    }
  }

  // ---- results ----

  static DEVICE int consumer() { return (static_cast<int>(threadIdx.x) - kProducers) / 128; }
  // The first row of c of this warp's results.
  static DEVICE int first_row(const Work& w) {
    return w.i + (static_cast<int>(threadIdx.x) - kProducers) / 32 * 16;
  }

  DEVICE void write_partial(const float (&sum)[kN / 2], const Work& w) const {
    const int lane = threadIdx.x % 32;
    float* partial = p.partials + (static_cast<int64_t>(w.item) * p.parts + w.part) * p.m * p.n;
#pragma unroll
    for (int e = 0; e < kN / 2; ++e) {
      const int i = first_row(w) + lane / 4 + e / 2 % 2 * 8,
                j = w.j + e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (i < p.m && j < p.n) partial[static_cast<int64_t>(i) * p.n + j] = sum[e];
    }
  }

  DEVICE T* row_of(T* c, int i) const {
    if constexpr (!kImages) return c + i * p.c_row;
    const int64_t plane = p.plane(i);
    return c + plane * p.c_plane + (i - plane * p.plane.divisor) * p.c_row;
  }
  DEVICE float finish(T* c, int i, int j, float sum) const {
    if (i >= p.m || j >= p.n) return 0;
    if (p.beta != 0) sum += p.beta * widen(row_of(c, i)[kImages ? j * p.c_column : j]);
    if (p.bias) sum += widen(p.bias[i * p.bias_row + j * p.bias_column]);
    return p.relu ? select(sum <= 0, 0.0f, sum) : sum;
  }
  // Where columns are not neighbours in memory.
  DEVICE void write_apart(const float (&sum)[kN / 2], const Work& w) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first_row(w) + lane / 4 + half * 8;
      if (i >= p.m) continue;
      T* row = row_of(p.c, i);
#pragma unroll
      for (int e = 0; e < kN / 4; ++e) {
        const int j = w.j + e / 2 * 8 + lane % 4 * 2 + e % 2;
        const float result = sum[e / 2 * 4 + half * 2 + e % 2];
        if (j < p.n) row[j * p.c_column] = narrow<T>(finish(p.c, i, j, result));
      }
    }
  }
  // Where element (row, 8 chunk) of the 16x64 results in `out` lies.
  static DEVICE int place(int row, int chunk) { return row * 64 + (chunk ^ row % 8) * 8; }

  DEVICE void write(const float (&sum)[kN / 2], const Work& w) const {
    const int lane = threadIdx.x % 32, i = first_row(w);
    T* c = p.c + w.item * p.c_item;
    T* mine = out + (static_cast<int>(threadIdx.x) - kProducers) / 32 * kOutElements;
#pragma unroll
    for (int first = 0; first < kN; first += 64) {
#pragma unroll
      for (int j = 0; j < 64; j += 16) {
        uint32_t r[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {  // rows 0.. and 8.. of the first, then of the next 8 columns
          const int row = i + lane / 4 + e % 2 * 8;
          const int column = w.j + first + j + e / 2 * 8 + lane % 4 * 2;
          const float* pair = sum + (first + j + e / 2 * 8) / 2 + e % 2 * 2;
          const T narrowed[2] = {narrow<T>(finish(c, row, column, pair[0])),
                                 narrow<T>(finish(c, row, column + 1, pair[1]))};
          memcpy(r + e, narrowed, 4);
        }
        store_matrices(mine + place(lane % 16, j / 8 + lane / 16), r);
      }
      __syncwarp();
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int row = n * 4 + lane / 8, chunk = lane % 8;
        write_chunk(c, i + row, w.j + first + chunk * 8, mine + place(row, chunk));
      }
      __syncwarp();
    }
  }
  DEVICE void write_chunk(T* c, int i, int j, const T* chunk) const {
    if (i >= p.m) return;
    T* to = row_of(c, i) + j;
    if (p.wide && j + 8 <= p.n) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(chunk);
    } else {
      for (int e = 0; e < 8; ++e)
        if (j + e < p.n) to[e] = chunk[e];
    }
  }
};

// What all kernels of such tiles do.
template <class Tile, class Bring>
DEVICE void run_warpgroups(Tile& tile, Bring bring_slices) {
  if (threadIdx.x < Tile::kProducers) {
    shrink_registers<40>();
    if (threadIdx.x == 0) tile.produce(bring_slices);
  } else {
    grow_registers<232>();
    tile.consume();
  }
  tile.finish_cluster();
}
template <class Tile>
__global__ void __launch_bounds__(Tile::kBlock, 1)
    matmul_warpgroups(const __grid_constant__ TensorMap a_map,
                      const __grid_constant__ TensorMap b_map,
                      const __grid_constant__ WarpgroupProblem<typename Tile::T> p) {
  if constexpr (kWarpgroups<Tile>) {
    using T = typename Tile::T;
    Tile tile(p);
    run_warpgroups(tile, [&](T* a, T* b, uint64_t* full, const typename Tile::Work& w, int k) {
      tile.bring_a(a, a_map, full, w, k);
      tile.bring_b(b, b_map, full, w, k);
    });
  }
}

}  // namespace
}  // namespace grebe::cuda
