// The packed matrix product, for every kernel that is one (matmul, convolution).
//
//   c[i, j] = epilogue(sum_k A[i, k] * B[k, j] + beta * c[i, j])
//
// A has dense rows and is read where it is. The caller says how a panel of B is packed, so B does not
// have to exist as a matrix, and what happens to a finished vector of c.
//
// Layout. The tile that stays in registers is kRows x kCols<T> (6 x 64 float32 with AVX-512, 6 x 16
// with AVX2). A panel of B holds kCols columns, k-major: b[p * kCols + j]. k is cut in equal blocks
// of at most kDepth (a panel of B stays in L2), B further in equal blocks of at most kBlockCols
// columns (L3).
//
// Threads pack a block of B together, wait, then take tasks (some row panels x some column panels)
// from a counter. Every element of c is one chain of fused multiply-adds per k block, in order of
// k, whoever computes it: the result does not depend on the number of threads.
//
// Floor: 2 m n k flops. Measured on Zen 4, one thread: 91-94% of the peak (docs/kernels/matmul.md).
#pragma once
#include <utility>

#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int kRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectors = 4;  // 24 accumulators of 32 registers
#else
constexpr int kVectors = 2;  // 12 of 16
#endif
template <class T>
constexpr int kCols = kVectors * static_cast<int>(lanes<T>);
constexpr int64_t kDepth = 1024;  // 256 KiB of B
constexpr int64_t kBlockCols = 2048;

constexpr int64_t kParallelWork = 128 * 1024;  // multiply-adds: below, waking threads costs more

// n cut in as few equal blocks of at most `most` as possible, each but the last whole units; `most`
// is a multiple of `unit`.
inline int64_t block_size(int64_t n, int64_t most, int64_t unit) {
  return divide_up(divide_up(n, divide_up(n, most)), unit) * unit;
}

// Where a tile stands: how it starts (scale: factor of what c holds) and whether it is finished.
template <class T>
struct Stage {
  T scale;
  bool last;
};

struct NoEpilogue {
  template <class V>
  [[gnu::always_inline]] V operator()(V x, int64_t, int64_t, int64_t) const {
    return x;
  }
};

// acc[i][v] += sum over p < k of a[i * a_row + p * a_k] * b[p * b_k + v * lanes ...]. `tail`, where
// kMasked: valid lanes of the last vector, the others are not read.
template <class T, int R, int V, bool kMasked>
[[gnu::always_inline]] inline void multiply_add(int64_t k, const T* a, int64_t a_row, int64_t a_k,
                                                const T* b, int64_t b_k, int64_t tail,
                                                vec<sum_of<T>> (&acc)[R][V]) {
#pragma GCC unroll 2
  for (int64_t p = 0; p < k; ++p) {
    vec<T> x[V];
#pragma GCC unroll 24
    for (int v = 0; v < V; ++v)
      x[v] = kMasked && v == V - 1 ? load_n(b + v * lanes<T>, tail) : load(b + v * lanes<T>);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const vec<T> y = splat(a[i * a_row]);
#pragma GCC unroll 24
      for (int v = 0; v < V; ++v) acc[i][v] = fma(y, x[v], acc[i][v]);
    }
    a += a_k;
    b += b_k;
  }
}

// An epilogue may treat the whole tile at once (decisions once per tile, not once per vector):
//   epilogue.tile(acc, row, col, tail), tail = valid lanes of the last vector.
// With epilogue.store(acc, row, col, tail) it may write the finished tile elsewhere: true instead
// of into c.
template <class T, int R, int V, class Epilogue>
[[gnu::always_inline]] inline void apply_epilogue(vec<T> (&acc)[R][V], int64_t row, int64_t col,
                                                  int64_t tail, const Epilogue& epilogue) {
  if constexpr (requires { epilogue.tile(acc, row, col, tail); }) {
    epilogue.tile(acc, row, col, tail);
  } else {
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 24
      for (int v = 0; v < V; ++v)
        acc[i][v] = epilogue(acc[i][v], row + i, col + v * lanes<T>, v == V - 1 ? tail : lanes<T>);
  }
}

// Asks for the lines of c that a tile is going to be written to.
template <int R, int V, class T>
[[gnu::always_inline]] inline void prefetch_tile(const T* c, int64_t ldc) {
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 24
    for (int v = 0; v < V; ++v) __builtin_prefetch(c + i * ldc + v * lanes<T>, 1);
}

// Tile of R rows and n columns, (V - 1) * lanes < n <= V * lanes, at (row, col) of c.
template <class T, int R, int V, class Epilogue>
[[gnu::always_inline]] inline void finish_tile(vec<T> (&acc)[R][V], T* c, int64_t ldc, int64_t n,
                                               const Stage<T>& stage, int64_t row, int64_t col,
                                               const Epilogue& epilogue) {
  constexpr int64_t L = lanes<T>;
  const int64_t tail = n - (V - 1) * L;
  if (stage.scale != 0) {
    const vec<T> scale = splat(stage.scale);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 24
      for (int v = 0; v < V; ++v) {
        const T* from = c + i * ldc + v * L;
        acc[i][v] = fma(scale, v == V - 1 && tail < L ? load_n(from, tail) : load(from), acc[i][v]);
      }
  }
  if (stage.last) {
    apply_epilogue<T>(acc, row, col, tail, epilogue);
    if constexpr (requires { epilogue.store(acc, row, col, tail); })
      if (epilogue.store(acc, row, col, tail)) return;
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 24
    for (int v = 0; v < V - 1; ++v) store(c + i * ldc + v * L, acc[i][v]);
    if (tail == L)
      store(c + i * ldc + (V - 1) * L, acc[i][V - 1]);
    else
      store_n(c + i * ldc + (V - 1) * L, acc[i][V - 1], tail);
  }
}

template <class T, int R, int V, class Epilogue>
[[gnu::noinline]] void packed_tile(int64_t k, const T* a, int64_t lda, const T* b, sum_of<T>* c,
                                   int64_t ldc, int64_t n, const Stage<sum_of<T>>& stage,
                                   int64_t row, int64_t col, const Epilogue& epilogue) {
  prefetch_tile<R, V>(c, ldc);
  vec<sum_of<T>> acc[R][V] = {};
  multiply_add<T, R, V, false>(k, a, lda, 1, b, kCols<T>, 0, acc);
  finish_tile(acc, c, ldc, n, stage, row, col, epilogue);
}

template <class T, int V, class... Args>
[[gnu::always_inline]] inline void packed_tile_rows(int64_t rows, const Args&... args) {
  static_assert(kRows == 6);
  switch (rows) {
    case 1: return packed_tile<T, 1, V>(args...);
    case 2: return packed_tile<T, 2, V>(args...);
    case 3: return packed_tile<T, 3, V>(args...);
    case 4: return packed_tile<T, 4, V>(args...);
    case 5: return packed_tile<T, 5, V>(args...);
    default: return packed_tile<T, 6, V>(args...);
  }
}

// rows x n of c, rows <= kRows, n <= kCols.
template <class T, class Epilogue>
inline void packed_tile_any(int64_t rows, int64_t k, const T* a, int64_t lda, const T* b,
                            sum_of<T>* c, int64_t ldc, int64_t n, const Stage<sum_of<T>>& stage,
                            int64_t row, int64_t col, const Epilogue& epilogue) {
  const int64_t vectors = (n + lanes<T> - 1) / lanes<T>;
  auto with = [&](auto v) {
    packed_tile_rows<T, v>(rows, k, a, lda, b, c, ldc, n, stage, row, col, epilogue);
  };
  if (vectors == kVectors) return with(std::integral_constant<int, kVectors>{});
  if constexpr (kVectors > 2) {
    if (vectors == 3) return with(std::integral_constant<int, 3>{});
    if (vectors == 2) return with(std::integral_constant<int, 2>{});
  }
  return with(std::integral_constant<int, 1>{});
}

// ---- packers for matrices ----

// Lanes with bit S set and lanes without change places between a and b.
template <int S, class V, int... I>
[[gnu::always_inline]] inline void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, (I & S ? I - S + L : I)...);
  b = __builtin_shufflevector(a, b, (I & S ? I + L : I + S)...);
  a = low;
}

// Transposes every N x N block of N vectors: lane h * N + j of x[i] <-> lane h * N + i of x[j].
template <class T, int N, int S = N / 2>
[[gnu::always_inline]] inline void transpose(vec<T> (&x)[N]) {
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
    if (!(i & S)) exchange<S>(x[i], x[i + S], std::make_integer_sequence<int, lanes<T>>{});
  if constexpr (S > 1) transpose<T, N, S / 2>(x);
}

// dst[q * ld + j] = src[j * stride + q] for j < cols, q < k. Writes whole vectors: up to
// lanes<T> - 1 elements beyond `cols` of every row, so ld and the memory must allow that.
template <class T>
inline void transpose_columns(T* dst, int64_t ld, const T* src, int64_t stride, int64_t cols,
                              int64_t k) {
  constexpr int L = lanes<T>;
  for (int64_t j = 0; j < cols; j += L) {
    for (int64_t q = 0; q < k; q += L) {
      const int64_t n = smaller(L, k - q);
      vec<T> x[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        const T* from = src + (j + i < cols ? j + i : j) * stride + q;
        x[i] = load_upto(from, n);
      }
      transpose<T, L>(x);
      if (n == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(dst + (q + i) * ld + j, x[i]);
      } else {
        for (int i = 0; i < n; ++i) store(dst + (q + i) * ld + j, x[i]);
      }
    }
  }
}

// A matrix as the right operand.
template <class T>
struct PackRight {
  const T* data;
  int64_t k_stride, col_stride;

  void operator()(T* dst, int64_t col, int64_t cols, int64_t p, int64_t k) const {
    const T* src = data + p * k_stride + col * col_stride;
    if (col_stride == 1) return copy_rows(dst, src, cols, k);
    if (k_stride == 1) return transpose_columns(dst, kCols<T>, src, col_stride, cols, k);
    for (int64_t q = 0; q < k; ++q)
      for (int64_t j = 0; j < kCols<T>; ++j)
        dst[q * kCols<T> + j] = j < cols ? src[q * k_stride + j * col_stride] : T{};
  }

 private:
  void copy_rows(T* dst, const T* src, int64_t cols, int64_t k) const {
    constexpr int64_t L = lanes<T>;
    for (int64_t q = 0; q < k; ++q, src += k_stride, dst += kCols<T>) {
      if (cols == kCols<T>) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) store(dst + v * L, load(src + v * L));
      } else {
        int64_t j = 0;
        for (; j + L <= cols; j += L) store(dst + j, load(src + j));
        if (j < cols) store(dst + j, load_n(src + j, cols - j));
      }
    }
  }
};

// How n and k are cut.
template <class T>
struct Blocking {
  int64_t cols, depth;
  Blocking(int64_t n, int64_t k)
      : cols(block_size(n, kBlockCols, kCols<T>)), depth(block_size(k, kDepth, 1)) {}
};

constexpr int64_t kCounterBytes = 256;

// Bytes that gemm needs; 64-byte aligned, its own for the time of the call.
template <class T>
inline int64_t gemm_workspace(int64_t n, int64_t k) {
  const Blocking<T> size(n, k);
  return kCounterBytes + size.cols * size.depth * static_cast<int64_t>(sizeof(T));
}

// Row panels x column panels per task: at most 32 x 4 (A's part stays in L2), fewer where that
// leaves too few tasks to keep all threads busy to the end.
struct TaskGrid {
  int64_t rows, cols, count_rows, count_cols;
  TaskGrid(int64_t row_panels, int64_t col_panels, int threads)
      : rows(smaller(row_panels, 32)), cols(smaller(col_panels, 4)) {
    while (threads > 1 && (rows > 1 || cols > 1) &&
           divide_up(row_panels, rows) * divide_up(col_panels, cols) < 3 * threads) {
      if (cols > 1)
        cols = (cols + 1) / 2;
      else
        rows = (rows + 1) / 2;
    }
    count_rows = divide_up(row_panels, rows);
    rows = divide_up(row_panels, count_rows);
    count_cols = divide_up(col_panels, cols);
  }
};

// The part of the product in work between two barriers: columns `cols` from `col`, k columns of A
// from p; b: where its part of B is packed.
template <class T>
struct Block {
  int64_t rows, col, cols, p, k;
  T* b;
  int64_t row_panels() const { return divide_up(rows, kRows); }
  int64_t col_panels() const { return divide_up(cols, kCols<T>); }
};

// This thread's share of the packing.
template <class T, class PackB>
inline void pack_block(const Block<T>& x, int thread, int threads, const PackB& pack_b) {
  const int64_t panels = x.col_panels();
  for (int64_t j = panels * thread / threads; j < panels * (thread + 1) / threads; ++j)
    pack_b(x.b + j * kCols<T> * x.k, x.col + j * kCols<T>, smaller(kCols<T>, x.cols - j * kCols<T>),
           x.p, x.k);
}

// Takes tasks until none is left.
template <class T, class Epilogue>
inline void multiply_block(const Block<T>& x, const T* a, int64_t lda, const TaskGrid& grid,
                           int64_t* next_task, sum_of<T>* c, int64_t ldc,
                           const Stage<sum_of<T>>& stage, const Epilogue& epilogue) {
  for (;;) {
    const int64_t task = __atomic_fetch_add(next_task, 1, __ATOMIC_RELAXED);
    if (task >= grid.count_rows * grid.count_cols) return;
    const int64_t i0 = task / grid.count_cols * grid.rows;
    const int64_t j0 = task % grid.count_cols * grid.cols;
    for (int64_t j = j0; j < smaller(j0 + grid.cols, x.col_panels()); ++j) {
      for (int64_t i = i0; i < smaller(i0 + grid.rows, x.row_panels()); ++i) {
        const int64_t row = i * kRows, col = x.col + j * kCols<T>;
        packed_tile_any<T>(smaller(kRows, x.rows - row), x.k, a + row * lda + x.p, lda,
                           x.b + j * kCols<T> * x.k, c + row * ldc + col, ldc,
                           smaller(kCols<T>, x.cols - j * kCols<T>), stage, row, col, epilogue);
      }
    }
  }
}

// c is m x n, row-major with row stride ldc, a m x k with row stride lda; m, n, k >= 1. The call's
// own stage: the factor of what c holds (0: c is not read), and whether the epilogue is due.
//
// pack_b(dst, col, cols, p, k): cols <= kCols columns from `col`:
//   dst[q * kCols + j] = B[p + q, col + j]. Lanes beyond `cols` are read up to a whole vector and
//   thrown away: fill them with zeros.
// epilogue(x, row, col, n) -> vec<T>: called once for every finished vector of c, c[row, col...],
//   n <= lanes of it valid; or epilogue.tile, see apply_epilogue. The packer and the epilogue are
//   called from several threads.
//
// `workspace`: gemm_workspace<T>(n, k) bytes. Runs serially inside a parallel section.
template <class T, class PackB, class Epilogue>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const PackB& pack_b,
          sum_of<T>* c, int64_t ldc, const Stage<sum_of<T>>& whole, const Epilogue& epilogue,
          void* workspace) {
  const Blocking<T> size(n, k);
  // Two task counters, a cache line apart: one in use, the other made ready for the next block.
  int64_t* const next_task = static_cast<int64_t*>(workspace);
  next_task[0] = next_task[16] = 0;
  T* const b = reinterpret_cast<T*>(static_cast<char*>(workspace) + kCounterBytes);

  const bool large = m * n >= kParallelWork / smaller(k, kParallelWork);
  Barrier barrier;
  parallel_region(large ? num_threads() : 1, [&](int thread, int threads) {
    int use = 0;
    for (int64_t p = 0; p < k; p += size.depth) {
      const bool last = p + size.depth >= k;
      const Stage<sum_of<T>> stage{p == 0 ? whole.scale : sum_of<T>(1), last && whole.last};
      for (int64_t col = 0; col < n; col += size.cols, use ^= 16) {
        const Block<T> x{m, col, smaller(size.cols, n - col), p, smaller(size.depth, k - p), b};
        pack_block(x, thread, threads, pack_b);
        if (thread == 0) next_task[use ^ 16] = 0;
        if (threads > 1) barrier.wait(threads);
        const TaskGrid grid(x.row_panels(), x.col_panels(), threads);
        multiply_block(x, a, lda, grid, next_task + use, c, ldc, stage, epilogue);
        const bool done = last && col + size.cols >= n;
        if (threads > 1 && !done) barrier.wait(threads);
      }
    }
  });
}

}  // namespace
}  // namespace grebe::GREBE_ISA
