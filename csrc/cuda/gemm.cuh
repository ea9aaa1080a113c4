// Products of tiles: C tile += A slice times B slice, staged through shared memory.
//
// Three engines with the same shape: `loader` brings a slice of kDepth from global memory, `tile`
// multiplies it. FmaTile works for every type and stride. MmaTile is for 16-bit numbers and
// Tf32Tile for float32 on tensor cores; both need operands that are dense along one dimension and
// start on 16 bytes, and bring them by asynchronous copies, several slices ahead.
//
// float32 on tensor cores keeps float32's accuracy: every operand is the sum of two TF32 numbers, of
// whose four products three count (Ootomo and Yokota, "Recovering single precision accuracy from
// Tensor Cores", arXiv 2203.03341). Tensor cores cut off instead of rounding, so each slice is summed
// from zero and added to the total by ordinary additions.
#pragma once
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

// One matrix operand of a tile product: element (i, k), where i is the row of A or the column of B.
// FmaTile takes any type with the first three functions: it calls `settle` once, with the only i for
// which a thread will ask if along_i() is true. The tiles on tensor cores take any type with the
// others: chunk gives the 16 bytes from (i, k) on, nullptr for zeros, and what is costly to find of
// i is kept in a Place.
template <class T>
struct Operand {
  const T* data;
  int64_t i_stride, k_stride;

  DEVICE bool along_i() const { return i_stride == 1; }  // do neighbouring threads differ in i?
  DEVICE void settle(int64_t) {}
  DEVICE Wide<T> at(int64_t i, int64_t k) const { return widen(data[i * i_stride + k * k_stride]); }

  struct Place {};  // registers are scarce
  DEVICE Place place(int64_t) const { return {}; }
  DEVICE const T* chunk(Place, int64_t i, int64_t k) const {
    return data + i * i_stride + k * k_stride;
  }
};

// ---- FMA ----

// A tile of kM x kN by 256 threads, kM / 16 x kN / 16 results each, in groups of four.
template <class T, int kTileM, int kTileN>
struct FmaTile {
  using Wide = grebe::cuda::Wide<T>;
  static constexpr bool kSplits = false;
  static constexpr int kM = kTileM, kN = kTileN, kDepth = 16;
  static constexpr int kRows = kM / 16, kColumns = kN / 16;
  static constexpr int kPad = 4;
  static constexpr size_t kSharedBytes = sizeof(Wide) * kDepth * (kM + kN + 2 * kPad);

  // Chains of additions stay short: sums of kChain slices are added to the totals.
  static constexpr int kChain = 16;

  Wide sum[kRows][kColumns], total[kRows][kColumns];
  Wide next_a[kM * kDepth / kThreads], next_b[kN * kDepth / kThreads];
  Wide *a, *b;  // slices in shared memory, [kDepth][kM + kPad]

  DEVICE explicit FmaTile(Shared& shared)
      : a(shared.take<Wide>(kDepth * (kM + kPad))), b(shared.take<Wide>(kDepth * (kN + kPad))) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sum[i][j] = total[i][j] = 0;
  }

  // Where this thread's n-th element of a slice of kSize x kDepth lies: neighbouring threads along
  // the dimension that is dense.
  template <int kSize, class X>
  static DEVICE void position(const X& x, int n, int* i, int* k) {
    const int t = threadIdx.x + n * kThreads;
    if (x.along_i()) {
      *i = t % kSize;
      *k = t / kSize;
    } else {
      *i = t / kDepth;
      *k = t % kDepth;
    }
  }
  template <int kSize, class X>
  static DEVICE void fetch(Wide* next, const X& x, int64_t i0, int64_t size, int64_t k0,
                           int64_t k_end) {
#pragma unroll
    for (int n = 0; n < kSize * kDepth / kThreads; ++n) {
      int i, k;
      position<kSize>(x, n, &i, &k);
      const bool valid = i0 + i < size && k0 + k < k_end;
      next[n] = valid ? x.at(i0 + i, k0 + k) : Wide(0);
    }
  }
  template <int kSize, class X>
  static DEVICE void put(Wide* slice, const Wide* next, const X& x) {
#pragma unroll
    for (int n = 0; n < kSize * kDepth / kThreads; ++n) {
      int i, k;
      position<kSize>(x, n, &i, &k);
      slice[k * (kSize + kPad) + i] = next[n];
    }
  }

  // Rows and columns of this thread: four neighbours, then four that lie 64 further.
  static DEVICE int row(int i) { return i / 4 * 64 + threadIdx.x / 16 * 4 + i % 4; }
  static DEVICE int column(int j) { return j / 4 * 64 + threadIdx.x % 16 * 4 + j % 4; }

  DEVICE void multiply_slice() {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Wide left[kRows], right[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) left[i] = a[k * (kM + kPad) + row(i)];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) right[j] = b[k * (kN + kPad) + column(j)];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sum[i][j] = fma(left[i], right[j], sum[i][j]);
    }
  }

  // Adds A[i0.., k_begin..k_end) times B[.., j0..).
  template <class X, class Y>
  DEVICE void multiply(X x, int64_t i0, int64_t m, Y y, int64_t j0, int64_t n, int64_t k_begin,
                       int64_t k_end) {
    x.settle(i0 + threadIdx.x % kM);
    y.settle(j0 + threadIdx.x % kN);
    fetch<kM>(next_a, x, i0, m, k_begin, k_end);
    fetch<kN>(next_b, y, j0, n, k_begin, k_end);
    int chain = 0;
    for (int64_t k = k_begin; k < k_end; k += kDepth) {
      put<kM>(a, next_a, x);
      put<kN>(b, next_b, y);
      __syncthreads();
      if (k + kDepth < k_end) {
        fetch<kM>(next_a, x, i0, m, k + kDepth, k_end);
        fetch<kN>(next_b, y, j0, n, k + kDepth, k_end);
      }
      multiply_slice();
      if (++chain == kChain) {
        close_chain();
        chain = 0;
      }
      __syncthreads();
    }
    close_chain();
  }
  DEVICE void close_chain() {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        total[i][j] += sum[i][j];
        sum[i][j] = 0;
      }
  }

  // f(row, column, result) for all of this thread's results.
  template <class F>
  DEVICE void for_each(F f) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) f(row(i), column(j), total[i][j]);
  }
};

// ---- tensor cores ----

// Where slices lie in shared memory and how 16-byte chunks of them get there. kAlongK: element
// (i, k) at [i][k], else at [k][i]. Chunks are permuted within their row so that the reads of a warp
// spread over the banks.
template <class T, int kSize, int kDepth, bool kAlongK>
struct Slice {
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
  static constexpr int kRow = kAlongK ? kDepth : kSize, kRowCount = kAlongK ? kSize : kDepth;
  static constexpr int kChunks = kRow / kChunk;
  // A row of 64 bytes: two rows fill the banks, so pairs of rows share a permutation. Longer rows of
  // floats are padded instead, because single elements of several rows are read at once.
  static constexpr bool kPadded = !kAlongK && sizeof(T) == 4;
  static constexpr int kStride = kRow + (kPadded ? 8 : 0);
  static constexpr int kElements = kRowCount * kStride;

  static DEVICE int offset(int row, int chunk) {
    if (kPadded) return row * kStride + chunk * kChunk;
    const int shuffled = kAlongK ? chunk ^ (row / 2 % 4) : chunk ^ (row % 8);
    return row * kStride + shuffled * kChunk;
  }
  static DEVICE int element(int i, int k) {
    const int row = kAlongK ? i : k, at = kAlongK ? k : i;
    return offset(row, at / kChunk) + at % kChunk;
  }

  // The chunks of the slices of X that one thread brings: always the same rows of A (columns of B).
  template <class X>
  struct Fetcher {
    static constexpr int kCount = kRowCount * kChunks / kThreads;
    const X x;
    typename X::Place places[kCount];
    int64_t i0, size;

    static DEVICE int row(int n) {
      return (static_cast<int>(threadIdx.x) + n * kThreads) / kChunks;
    }
    static DEVICE int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
    DEVICE int64_t i(int n) const { return i0 + (kAlongK ? row(n) : chunk() * kChunk); }
    DEVICE Fetcher(const X& x, int64_t i0, int64_t size) : x(x), i0(i0), size(size) {
#pragma unroll
      for (int n = 0; n < kCount; ++n) places[n] = x.place(i(n) < size ? i(n) : 0);
    }
    // Starts the copies of the slice that begins at k0; what lies outside becomes zero.
    DEVICE void fetch(T* slice, int64_t k0, int64_t k_end) const {
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        const int64_t k = k0 + (kAlongK ? chunk() * kChunk : row(n));
        const T* from = i(n) < size && k < k_end ? x.chunk(places[n], i(n), k) : nullptr;
        copy_async(slice + offset(row(n), chunk()), from ? from : x.data, from != nullptr);
      }
    }
  };
};

// What the two engines on tensor cores share: 128x128 results by 8 warps of 64x32, slices brought
// kStages - 1 ahead. `Derived` multiplies a slice.
template <class Derived, class T, int kDepth, bool kAAlongK, bool kBAlongK, int kStages>
struct WarpTiles {
  static constexpr bool kSplits = sizeof(T) == 4;  // operands into sums: infinities become NaN
  static constexpr int kM = 128, kN = 128, kWarpM = 64, kWarpN = 32;
  static constexpr int kTilesM = kWarpM / 16, kTilesN = kWarpN / 8;
  using A = Slice<T, kM, kDepth, kAAlongK>;
  using B = Slice<T, kN, kDepth, kBAlongK>;
  static constexpr size_t kSharedBytes = kStages * (A::kElements + B::kElements) * sizeof(T);

  float sum[kTilesM][kTilesN][4];
  T *a, *b;

  DEVICE explicit WarpTiles(Shared& shared)
      : a(shared.take<T>(kStages * A::kElements)), b(shared.take<T>(kStages * B::kElements)) {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
#pragma unroll
      for (int j = 0; j < kTilesN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  }

  static DEVICE int warp_row() { return static_cast<int>(threadIdx.x) / 32 / 4 * kWarpM; }
  static DEVICE int warp_column() { return static_cast<int>(threadIdx.x) / 32 % 4 * kWarpN; }

  template <class X, class Y>
  DEVICE void multiply(const X& x, int64_t i0, int64_t m, const Y& y, int64_t j0, int64_t n,
                       int64_t k_begin, int64_t k_end) {
    const typename A::template Fetcher<X> left(x, i0, m);
    const typename B::template Fetcher<Y> right(y, j0, n);
    const int64_t slices = (k_end - k_begin + kDepth - 1) / kDepth;
    auto bring = [&](int64_t s) {
      if (s < slices) {
        const int64_t stage = s % kStages, k = k_begin + s * kDepth;
        left.fetch(a + stage * A::kElements, k, k_end);
        right.fetch(b + stage * B::kElements, k, k_end);
      }
      copy_async_commit();
    };
    for (int s = 0; s < kStages - 1; ++s) bring(s);
    for (int64_t s = 0; s < slices; ++s) {
      copy_async_wait<kStages - 2>();
      __syncthreads();
      bring(s + kStages - 1);  // into the stage that all threads have left behind
      const int64_t stage = s % kStages;
      static_cast<Derived*>(this)->multiply_slice(a + stage * A::kElements,
                                                  b + stage * B::kElements);
    }
    copy_async_wait<0>();
  }

  // row(i) gives f(column, result) for this thread's results of a row.
  template <class Row>
  DEVICE void for_each_row(Row row) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2 * kTilesM; ++i) {
      auto f = row(warp_row() + i * 8 + lane / 4);
#pragma unroll
      for (int j = 0; j < 2 * kTilesN; ++j)
        f(warp_column() + j / 2 * 8 + lane % 4 * 2 + j % 2, sum[i / 2][j / 2][i % 2 * 2 + j % 2]);
    }
  }
  // f(row, column, result) for all of this thread's results.
  template <class F>
  DEVICE void for_each(F f) const {
    for_each_row([&](int i) { return [&, i](int j, float result) { f(i, j, result); }; });
  }
};

DEVICE void multiply_add(bf16*, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_bf16(d, a, b0, b1);
}
DEVICE void multiply_add(half*, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_half(d, a, b0, b1);
}

template <class T, bool kAAlongK, bool kBAlongK>
struct MmaTile : WarpTiles<MmaTile<T, kAAlongK, kBAlongK>, T, 32, kAAlongK, kBAlongK, 4> {
  using Base = WarpTiles<MmaTile, T, 32, kAAlongK, kBAlongK, 4>;
  using Base::Base;
  using A = typename Base::A;
  using B = typename Base::B;

  // The 16x16 tile of A at (i, k), the pair of 16x8 tiles of B at (k, j).
  static DEVICE void load_a(uint32_t (&r)[4], const T* slice, int i, int k) {
    const int lane = threadIdx.x % 32;
    if (kAAlongK)
      load_matrices(r, slice + A::element(i + lane % 16, k + lane / 16 * 8));
    else
      load_matrices_transposed(
          r, slice + A::element(i + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8));
  }
  static DEVICE void load_b(uint32_t (&r)[4], const T* slice, int j, int k) {
    const int lane = threadIdx.x % 32;
    if (kBAlongK)
      load_matrices(r, slice + B::element(j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
    else
      load_matrices_transposed(
          r, slice + B::element(j + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8));
  }

  DEVICE void multiply_slice(const T* a, const T* b) {
#pragma unroll
    for (int k = 0; k < 32; k += 16) {
      uint32_t left[Base::kTilesM][4], right[Base::kTilesN / 2][4];
#pragma unroll
      for (int i = 0; i < Base::kTilesM; ++i) load_a(left[i], a, Base::warp_row() + i * 16, k);
#pragma unroll
      for (int j = 0; j < Base::kTilesN / 2; ++j)
        load_b(right[j], b, Base::warp_column() + j * 16, k);
#pragma unroll
      for (int i = 0; i < Base::kTilesM; ++i)
#pragma unroll
        for (int j = 0; j < Base::kTilesN; ++j)
          multiply_add(static_cast<T*>(nullptr), this->sum[i][j], left[i], right[j / 2][j % 2 * 2],
                       right[j / 2][j % 2 * 2 + 1]);
    }
  }
};

// A float as a TF32 number and what that leaves out.
struct SplitFloat {
  uint32_t high, low;
};
DEVICE SplitFloat split(float x) {
  SplitFloat s;
  s.high = round_tf32(x);
  float high;
  memcpy(&high, &s.high, 4);
  // Infinities and NaN stand in `high`; their difference would be NaN.
  s.low = x - x == 0 ? round_tf32(x - high) : 0;
  return s;
}

template <bool kAAlongK, bool kBAlongK>
struct Tf32Tile : WarpTiles<Tf32Tile<kAAlongK, kBAlongK>, float, 16, kAAlongK, kBAlongK, 3> {
  using Base = WarpTiles<Tf32Tile, float, 16, kAAlongK, kBAlongK, 3>;
  using Base::Base;
  using A = typename Base::A;
  using B = typename Base::B;

  bool exact = true;  // else only what TF32 holds of the operands

  DEVICE void multiply_slice(const float* a, const float* b) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float part[Base::kTilesM][Base::kTilesN][4] = {};
#pragma unroll
    for (int k = 0; k < 16; k += 8) {
      uint32_t b_high[Base::kTilesN][2], b_low[Base::kTilesN][2];
#pragma unroll
      for (int j = 0; j < Base::kTilesN; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const SplitFloat s = split(b[B::element(Base::warp_column() + j * 8 + g, k + t + e * 4)]);
          b_high[j][e] = s.high;
          b_low[j][e] = s.low;
        }
#pragma unroll
      for (int i = 0; i < Base::kTilesM; ++i) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const SplitFloat s =
              split(a[A::element(Base::warp_row() + i * 16 + g + e % 2 * 8, k + t + e / 2 * 4)]);
          high[e] = s.high;
          low[e] = s.low;
        }
        if (exact) {
#pragma unroll
          for (int j = 0; j < Base::kTilesN; ++j) {
            multiply_tf32(part[i][j], low, b_high[j][0], b_high[j][1]);
            multiply_tf32(part[i][j], high, b_low[j][0], b_low[j][1]);
          }
        }
#pragma unroll
        for (int j = 0; j < Base::kTilesN; ++j)
          multiply_tf32(part[i][j], high, b_high[j][0], b_high[j][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < Base::kTilesM; ++i)
#pragma unroll
      for (int j = 0; j < Base::kTilesN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) this->sum[i][j][e] += part[i][j][e];
  }
};

}  // namespace
}  // namespace grebe::cuda
