// Products of attention's tiles by FMAs, for float32 and float64.
//
// A block of 16 x 16 threads owns a tile of kTile rows and goes over streamed rows, kTile at a time.
// Rows times rows: each thread has the 4 x 4 products of its rows ty + 16 i with the streamed rows
// tx + 16 j, read as 16-byte packs along the features. Weights times rows: the weights lie in shared
// memory, each thread has 4 rows and kN / 16 columns of the result. What is streamed comes in stages of
// 8 KB, one on its way while the one before is used, so every product needs one barrier per stage.
// The owned rows stay in shared memory if they fit; otherwise their stages come along.
#pragma once
#include "attention.cuh"

namespace grebe::cuda {
namespace {

constexpr int kSide = 16, kShare = kTile / kSide;  // of threads; rows of a thread

template <class S>
struct Tiling {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(S));
  static constexpr int kChunk = sizeof(S) == 4 ? 32 : 8;  // features of a stage of rows
  static constexpr int kLine = kChunk + kVector;  // an odd number of packs: no bank conflicts
  static constexpr int kStage = kTile * kLine;
  static constexpr int kWeightLine = kTile + kVector;
};

DEVICE int thread_x() { return threadIdx.x % kSide; }
DEVICE int thread_y() { return threadIdx.x / kSide; }

// Rows of one head.
template <class S>
struct Source {
  const Heads<const S>& all;
  const S* data;
  const int &rows, &columns;
  DEVICE Source(const Heads<const S>& x, int b, int h, const int& rows, const int& columns)
      : all(x), data(x.at(b, h)), rows(rows), columns(columns) {}
};

// kColumns columns of kRows rows, zeros where there are none.
template <int kRows, int kColumns, class S>
DEVICE void load_rows(const Source<S>& from, int row, int column, S* to, int line) {
  constexpr int kVector = Tiling<S>::kVector, kPacks = kColumns / kVector;
#pragma unroll
  for (int at = threadIdx.x; at < kRows * kPacks; at += kThreads) {
    const int r = at / kPacks, c = at % kPacks * kVector;
    const S* x = from.data + (row + r) * from.all.row + column + c;
    S* const y = to + r * line + c;
    const bool valid = row + r < from.rows && column + c < from.columns;
    if (from.all.aligned) {
      copy_async(y, valid ? x : from.data, valid);
      continue;
    }
#pragma unroll
    for (int u = 0; u < kVector; ++u) y[u] = valid && column + c + u < from.columns ? x[u] : S(0);
  }
}

// The rows of the block's tile. tile: null if they come in stages.
template <class S>
struct Owned {
  const Source<S>& from;
  int row;
  S* tile;
  int line;

  static __host__ __device__ int line_of(int depth) {
    constexpr int kChunk = Tiling<S>::kChunk;
    return (depth + kChunk - 1) / kChunk * kChunk + Tiling<S>::kVector;
  }
  DEVICE Owned(Shared& shared, const Source<S>& from, int row, bool resident)
      : from(from), row(row), tile(nullptr), line(Tiling<S>::kLine) {
    if (!resident) return;
    line = line_of(from.columns);
    tile = shared.take<S>(kTile * line);
    for (int c = 0; c < from.columns; c += Tiling<S>::kChunk)
      load_rows<kTile, Tiling<S>::kChunk>(from, row, c, tile + c, line);
  }
};

// Two buffers: the stage in use, and the next one.
template <class S>
struct Stages {
  S *now, *next;
  DEVICE Stages(Shared& shared, bool resident)
      : now(shared.take<S>(size(resident))), next(shared.take<S>(size(resident))) {}
  static __host__ __device__ int size(bool resident) {
    return Tiling<S>::kStage * (resident ? 1 : 2);
  }
  // What has been loaded last; everybody is done with the stage before.
  DEVICE const S* take() {
    copy_async_wait<0>();
    __syncthreads();
    S* const taken = next;
    next = now;
    now = taken;
    return taken;
  }
  // Stage `chunk` of streamed rows for their products with owned ones.
  DEVICE void load_chunk(const Source<S>& from, int row, int chunk, const Owned<S>& owned) {
    constexpr int kChunk = Tiling<S>::kChunk, kLine = Tiling<S>::kLine;
    load_rows<kTile, kChunk>(from, row, chunk * kChunk, next, kLine);
    if (!owned.tile)
      load_rows<kTile, kChunk>(owned.from, owned.row, chunk * kChunk, next + Tiling<S>::kStage,
                               kLine);
  }
  // Stage `part` of streamed rows for their products with weights.
  template <int kN>
  DEVICE void load_part(const Source<S>& from, int row, int part, int column) {
    constexpr int kRows = kTile * Tiling<S>::kChunk / kN;
    load_rows<kRows, kN>(from, row + part * kRows, column, next, kN);
  }
};
template <class S>
__host__ __device__ int chunks_of(int depth) {
  return depth > 0 ? (depth + Tiling<S>::kChunk - 1) / Tiling<S>::kChunk : 1;
}
template <class S, int kN>
constexpr int kParts = kN / Tiling<S>::kChunk;

// sum[i][j] += owned row ty + 16 i times streamed row tx + 16 j. load_next(chunk): starts loading the
// stage with this number, or what comes after the last one.
template <class S, class Load>
DEVICE void multiply_rows(S (&sum)[kShare][kShare], Stages<S>& stages, const Owned<S>& owned,
                          int chunks, Load load_next) {
  constexpr int kVector = Tiling<S>::kVector, kChunk = Tiling<S>::kChunk;
  constexpr int kLine = Tiling<S>::kLine;
  using Vector = Pack<S, kVector>;
  for (int c = 0; c < chunks; ++c) {
    const S* const streamed = stages.take();
    load_next(c + 1);
    copy_async_commit();
    const S* const left = (owned.tile ? owned.tile + c * kChunk : streamed + Tiling<S>::kStage) +
                          thread_y() * owned.line;
    const S* const right = streamed + thread_x() * kLine;
#pragma unroll 2
    for (int d = 0; d < kChunk; d += kVector) {
      Vector a[kShare], b[kShare];
#pragma unroll
      for (int i = 0; i < kShare; ++i) {
        a[i] = *reinterpret_cast<const Vector*>(left + kSide * i * owned.line + d);
        b[i] = *reinterpret_cast<const Vector*>(right + kSide * i * kLine + d);
      }
#pragma unroll
      for (int u = 0; u < kVector; ++u)
#pragma unroll
        for (int i = 0; i < kShare; ++i)
#pragma unroll
          for (int j = 0; j < kShare; ++j) sum[i][j] = fma(a[i].v[u], b[j].v[u], sum[i][j]);
    }
  }
}

// Column c of a thread's part of a result of kN columns.
template <class S>
DEVICE int column_of(int c) {
  constexpr int kVector = Tiling<S>::kVector;
  return c / kVector * kSide * kVector + thread_x() * kVector + c % kVector;
}

// sum[i][c] += row ty + 16 i of the weights times column column_of(c) of the streamed rows.
template <int kN, class S, class Load>
DEVICE void multiply_weights(S (&sum)[kShare][kN / kSide], Stages<S>& stages, const S* weights,
                             Load load_next) {
  constexpr int kVector = Tiling<S>::kVector, kRows = kTile / kParts<S, kN>;
  using Vector = Pack<S, kVector>;
#pragma unroll 1
  for (int part = 0; part < kParts<S, kN>; ++part) {
    const S* const streamed = stages.take() + thread_x() * kVector;
    load_next(part + 1);
    copy_async_commit();
    const S* const left = weights + thread_y() * Tiling<S>::kWeightLine + part * kRows;
#pragma unroll 2
    for (int k = 0; k < kRows; k += kVector) {
      Vector a[kShare];
#pragma unroll
      for (int i = 0; i < kShare; ++i)
        a[i] = *reinterpret_cast<const Vector*>(left + kSide * i * Tiling<S>::kWeightLine + k);
#pragma unroll
      for (int u = 0; u < kVector; ++u)
#pragma unroll
        for (int c = 0; c < kN / kSide; c += kVector) {
          const Vector b = *reinterpret_cast<const Vector*>(streamed + (k + u) * kN + c * kSide);
#pragma unroll
          for (int i = 0; i < kShare; ++i)
#pragma unroll
            for (int w = 0; w < kVector; ++w) sum[i][c + w] = fma(a[i].v[u], b.v[w], sum[i][c + w]);
        }
    }
  }
}

// The thread's part of a row of a result, times `factor`, from `column` on.
template <int kN, class S>
DEVICE void store_row(const S (&sum)[kN / kSide], S factor, S* to, int column, int columns,
                      bool aligned) {
  constexpr int kVector = Tiling<S>::kVector;
#pragma unroll
  for (int c = 0; c < kN / kSide; c += kVector) {
    const int at = column + column_of<S>(c);
    Pack<S, kVector> pack;
#pragma unroll
    for (int u = 0; u < kVector; ++u) pack.v[u] = sum[c + u] * factor;
    if (aligned && at < columns) {
      *reinterpret_cast<Pack<S, kVector>*>(to + at) = pack;
      continue;
    }
#pragma unroll
    for (int u = 0; u < kVector; ++u)
      if (at + u < columns) to[at + u] = pack.v[u];
  }
}

// Bytes of shared memory: stages, weights, and owned tiles of these depths where they are resident.
template <class S>
int64_t tile_bytes(bool resident, bool weights, int depth, int other_depth = -1) {
  int64_t n = 2 * Stages<S>::size(resident) + (weights ? kTile * Tiling<S>::kWeightLine : 0);
  if (resident) n += kTile * Owned<S>::line_of(depth);
  if (resident && other_depth >= 0) n += kTile * Owned<S>::line_of(other_depth);
  return n * static_cast<int64_t>(sizeof(S));
}
// Do owned rows stay in shared memory? At most half of it, for two blocks at a time.
inline bool is_resident(int64_t bytes) {
  return bytes <=
         (compute_capability() >= 80 && compute_capability() != 86 && compute_capability() != 89
              ? 80 << 10
              : 48 << 10);
}

}  // namespace
}  // namespace grebe::cuda
