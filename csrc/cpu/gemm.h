// The packed matrix product, for every kernel that is one (matmul, convolution).
//
//   c[i, j] = epilogue(sum_k A[i, k] * B[k, j] + beta * c[i, j])
//
// The caller says how a panel of A and of B is packed, so neither has to exist as a matrix, and
// what happens to a finished vector of c. A whose rows are dense is read in place (LeftInPlace).
//
// Layout. The tile that stays in registers is kRows x kCols<T> (6 x 64 float32 with AVX-512, 6 x 16
// with AVX2). A panel of A holds kRows rows, k-major: a[p * kRows + i]. A panel of B holds kCols
// columns: b[p * kCols + j]. k is cut in equal blocks of at most kDepth, or kDepthInPlace where A
// is not packed (a panel of B stays in L2), B further in equal blocks of at most kBlockCols columns
// (L3), a packed A in equal blocks of at most kBlockRows rows.
//
// Threads pack both blocks together, wait, then take tasks (some row panels x some column panels)
// from a counter. Every element of c is one chain of fused multiply-adds per k block, in order of
// k, whoever computes it: the result does not depend on the number of threads.
//
// Floor: 2 m n k flops. Measured on Zen 4, one thread: 91-94% of the peak with A in place, 87-89%
// with A packed (docs/kernels/matmul.md).
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
template <class T>
constexpr int64_t kDepth = sizeof(T) == 4 ? 384 : 256;
#if defined(__AVX512BF16__)
template <>
constexpr int64_t kDepth<bf16pair> = 512;
#endif
constexpr int64_t kDepthInPlace = 1024;  // 256 KiB of B
constexpr int64_t kBlockRows = 680 * kRows;
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

// kRows rows of the left operand: packed, or `row_stride` elements apart and dense.
template <class T, bool kInPlace>
struct RowPanel {
  const T* data;
  int64_t row_stride;
};

template <class T, int R, int V, bool kInPlace, class Epilogue>
[[gnu::noinline]] void packed_tile(int64_t k, const RowPanel<T, kInPlace>& a, const T* b,
                                   sum_of<T>* c, int64_t ldc, int64_t n,
                                   const Stage<sum_of<T>>& stage, int64_t row, int64_t col,
                                   const Epilogue& epilogue) {
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 24
    for (int v = 0; v < V; ++v) __builtin_prefetch(c + i * ldc + v * lanes<T>, 1);
  vec<sum_of<T>> acc[R][V] = {};
  if constexpr (kInPlace)
    multiply_add<T, R, V, false>(k, a.data, a.row_stride, 1, b, kCols<T>, 0, acc);
  else
    multiply_add<T, R, V, false>(k, a.data, 1, kRows, b, kCols<T>, 0, acc);
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
template <class T, bool kInPlace, class Epilogue>
inline void packed_tile_any(int64_t rows, int64_t k, const RowPanel<T, kInPlace>& a, const T* b,
                            sum_of<T>* c, int64_t ldc, int64_t n, const Stage<sum_of<T>>& stage,
                            int64_t row, int64_t col, const Epilogue& epilogue) {
  const int64_t vectors = (n + lanes<T> - 1) / lanes<T>;
  auto with = [&](auto v) {
    packed_tile_rows<T, v>(rows, k, a, b, c, ldc, n, stage, row, col, epilogue);
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

// A matrix in memory as the left operand, any strides; fast where it is dense along m. (What is
// dense along k is read in place, see below.)
template <class T>
struct PackLeft {
  static constexpr bool kInPlace = false;
  const T* data;
  int64_t row_stride, k_stride;

  void operator()(T* dst, int64_t row, int64_t rows, int64_t p, int64_t k) const {
    const T* src = data + row * row_stride + p * k_stride;
    int64_t q = 0;
    if (row_stride == 1 && rows == kRows)
      for (; q < k; ++q) __builtin_memcpy(dst + q * kRows, src + q * k_stride, kRows * sizeof(T));
    for (; q < k; ++q)
      for (int64_t i = 0; i < rows; ++i) dst[q * kRows + i] = src[i * row_stride + q * k_stride];
  }
};

// A matrix with dense rows as the left operand, read where it is.
template <class T>
struct LeftInPlace {
  static constexpr bool kInPlace = true;
  const T* data;
  int64_t row_stride;

  RowPanel<T, true> panel(int64_t row, int64_t p) const {
    return {data + row * row_stride + p, row_stride};
  }
};

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

// How m, n and k are cut.
template <class T, class Left>
struct Blocking {
  int64_t rows, cols, depth;
  Blocking(int64_t m, int64_t n, int64_t k)
      : rows(Left::kInPlace ? m : block_size(m, kBlockRows, kRows)),
        cols(block_size(n, kBlockCols, kCols<T>)),
        depth(block_size(k, Left::kInPlace ? kDepthInPlace : kDepth<T>, 1)) {}
  int64_t left_bytes() const {
    return Left::kInPlace ? 0 : divide_up(rows * depth * sizeof(T), 64) * 64;
  }
  int64_t right_bytes() const { return cols * depth * sizeof(T); }
};

constexpr int64_t kCounterBytes = 256;

// Bytes that gemm needs; 64-byte aligned, its own for the time of the call.
template <class T, class Left>
inline int64_t gemm_workspace(int64_t m, int64_t n, int64_t k) {
  const Blocking<T, Left> blocking(m, n, k);
  return kCounterBytes + blocking.left_bytes() + blocking.right_bytes();
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

// The part of the product in work between two barriers: rows x cols of c from (row, col), k columns
// of A from p, and where the operands are packed.
template <class T>
struct Block {
  int64_t row, rows, col, cols, p, k;
  T *a, *b;
  int64_t row_panels() const { return divide_up(rows, kRows); }
  int64_t col_panels() const { return divide_up(cols, kCols<T>); }
};

// This thread's share of the packing. A stays packed while col moves on.
template <class T, class Left, class PackB>
inline void pack_block(const Block<T>& x, int thread, int threads, const Left& left,
                       const PackB& pack_b) {
  const int64_t row_panels = x.col == 0 ? x.row_panels() : 0, col_panels = x.col_panels();
  if constexpr (!Left::kInPlace)
    for (int64_t i = row_panels * thread / threads; i < row_panels * (thread + 1) / threads; ++i)
      left(x.a + i * kRows * x.k, x.row + i * kRows, smaller(kRows, x.rows - i * kRows), x.p, x.k);
  for (int64_t j = col_panels * thread / threads; j < col_panels * (thread + 1) / threads; ++j)
    pack_b(x.b + j * kCols<T> * x.k, x.col + j * kCols<T>, smaller(kCols<T>, x.cols - j * kCols<T>),
           x.p, x.k);
}

template <class T, class Left>
inline RowPanel<T, Left::kInPlace> row_panel(const Block<T>& x, const Left& left, int64_t i) {
  if constexpr (Left::kInPlace)
    return left.panel(x.row + i * kRows, x.p);
  else
    return {x.a + i * kRows * x.k, 1};
}

// Takes tasks until none is left.
template <class T, class Left, class Epilogue>
inline void multiply_block(const Block<T>& x, const Left& left, const TaskGrid& grid,
                           int64_t* next_task, sum_of<T>* c, int64_t ldc,
                           const Stage<sum_of<T>>& stage, const Epilogue& epilogue) {
  for (;;) {
    const int64_t task = __atomic_fetch_add(next_task, 1, __ATOMIC_RELAXED);
    if (task >= grid.count_rows * grid.count_cols) return;
    const int64_t i0 = task / grid.count_cols * grid.rows;
    const int64_t j0 = task % grid.count_cols * grid.cols;
    for (int64_t j = j0; j < smaller(j0 + grid.cols, x.col_panels()); ++j) {
      for (int64_t i = i0; i < smaller(i0 + grid.rows, x.row_panels()); ++i) {
        const int64_t row = x.row + i * kRows, col = x.col + j * kCols<T>;
        packed_tile_any<T>(smaller(kRows, x.rows - i * kRows), x.k, row_panel(x, left, i),
                           x.b + j * kCols<T> * x.k, c + row * ldc + col, ldc,
                           smaller(kCols<T>, x.cols - j * kCols<T>), stage, row, col, epilogue);
      }
    }
  }
}

// c is m x n, row-major with row stride ldc; m, n, k >= 1. beta == 0: c is not read.
//
// left: LeftInPlace, or one that packs, kInPlace = false and left(dst, row, rows, p, k): rows <=
//   kRows rows from `row`, k columns from p: dst[q * kRows + i] = A[row + i, p + q]. Rows beyond
//   `rows` are never used.
// pack_b(dst, col, cols, p, k): cols <= kCols columns from `col`:
//   dst[q * kCols + j] = B[p + q, col + j]. Lanes beyond `cols` are read up to a whole vector and
//   thrown away: fill them with zeros.
// epilogue(x, row, col, n) -> vec<T>: called once for every finished vector of c, c[row, col...],
//   n <= lanes of it valid; or epilogue.tile, see apply_epilogue. The packers and the epilogue are
//   called from several threads.
//
// `workspace`: gemm_workspace<T, Left>(m, n, k) bytes. Runs serially inside a parallel section.
template <class T, class Left, class PackB, class Epilogue>
void gemm(int64_t m, int64_t n, int64_t k, const Left& left, const PackB& pack_b, sum_of<T>* c,
          int64_t ldc, sum_of<T> beta, const Epilogue& epilogue, void* workspace) {
  const Blocking<T, Left> size(m, n, k);
  // Two task counters, a cache line apart: one in use, the other made ready for the next block.
  int64_t* const next_task = static_cast<int64_t*>(workspace);
  next_task[0] = next_task[16] = 0;
  char* const panels = static_cast<char*>(workspace) + kCounterBytes;
  T* const a = reinterpret_cast<T*>(panels);
  T* const b = reinterpret_cast<T*>(panels + size.left_bytes());

  const bool large = m * n >= kParallelWork / smaller(k, kParallelWork);
  Barrier barrier;
  parallel_region(large ? num_threads() : 1, [&](int thread, int threads) {
    int use = 0;
    for (int64_t p = 0; p < k; p += size.depth) {
      const Stage<sum_of<T>> stage{p == 0 ? beta : sum_of<T>(1), p + size.depth >= k};
      for (int64_t row = 0; row < m; row += size.rows) {
        for (int64_t col = 0; col < n; col += size.cols, use ^= 16) {
          const Block<T> x{row, smaller(size.rows, m - row), col, smaller(size.cols, n - col),
                           p,   smaller(size.depth, k - p),  a,   b};
          pack_block(x, thread, threads, left, pack_b);
          if (thread == 0) next_task[use ^ 16] = 0;
          if (threads > 1) barrier.wait(threads);
          const TaskGrid grid(x.row_panels(), x.col_panels(), threads);
          multiply_block(x, left, grid, next_task + use, c, ldc, stage, epilogue);
          const bool done = stage.last && row + size.rows >= m && col + size.cols >= n;
          if (threads > 1 && !done) barrier.wait(threads);
        }
      }
    }
  });
}

}  // namespace
}  // namespace grebe::GREBE_ISA
