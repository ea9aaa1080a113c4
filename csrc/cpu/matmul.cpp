// Matrix product: c = activation(a @ b + beta * c + bias).
//
// a [..., M, K], b [..., K, N], c [..., M, N]; a 1-d a is [1, K], a 1-d b is [K, 1], c lacks the
// dimensions that they lack. Leading dimensions broadcast. Any strides (a transpose is strides);
// c's rows are dense. Batch dimensions over which b does not move are folded into M where memory
// allows.
//
// Seven ways, chosen by shape and strides alone, so that a result never depends on threads:
//   direct      small or skinny, b's rows dense: a is broadcast from where it is, b loaded from
//               where it is, masked at the right edge; tiles of up to 12 x 1 ... 6 x 4 vectors,
//               1 x 24 for one row.
//   deep        few columns, or few rows and not many columns, k so long that b is larger than L2 (the
//               gradient of a weight): as direct, but in blocks of k, every thread its part of c.
//   transposed  b's columns dense: b is transposed once into scratch, then as above.
//   dots        few rows or columns, both operands dense along k: tiles of 6 x 4 dot products.
//   axpy        one row, b's rows dense and beyond 4 MB: c += 8 rows of b at a time.
//   panels      larger, a's rows dense: gemm.h, b packed.
//   copied      everything else: a is brought into dense rows, block by block, then as above.
// bfloat16 is brought into pairs along k (or floats) first and takes the same ways.
//
// Floor: 2 m n k flops at the peak of the multiply-add units; with one row or column, the bytes of
// b once. Measured on Zen 4, one thread (best of a run, share of 118 GFLOP/s, bfloat16 of 236):
// direct 89-97%, transposed 88-95%, dots 80-95%, panels 91-94%, bfloat16 89-93%; one row 92% of L2's
// bandwidth, 71% of L3's, 93% of memory's. docs/kernels/matmul.md has the ratios and what failed.
#include "bf16.h"
#include "gemm.h"

namespace grebe::GREBE_ISA {
namespace {

#if defined(__AVX2__)
constexpr bool kMaskedLoads = true;
#else
constexpr bool kMaskedLoads = false;  // load_n is a loop there: packing pads the edge instead
#endif

constexpr int64_t kActivationRelu = 1;

template <class T>
struct Bias {
  const T* bias;  // may be nullptr
  int64_t bias_row, bias_col;  // strides: one of them is 0, or both
  bool relu;
};

template <class T>
struct BiasActivation : Bias<T> {
  using Bias<T>::bias, Bias<T>::bias_row, Bias<T>::bias_col, Bias<T>::relu;
  bf16* narrow = nullptr;  // where finished tiles go instead of to c, if anywhere
  int64_t narrow_row = 0;

  // Row 0 becomes what was row n.
  void skip_rows(int64_t n) {
    if (bias) bias += n * bias_row;
    if (narrow) narrow += n * narrow_row;
  }

  template <int R, int V>
  [[gnu::always_inline]] void tile(vec<T> (&x)[R][V], int64_t row, int64_t col,
                                   int64_t tail) const {
    if (bias && bias_row) {
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) {
        const vec<T> add = splat(bias[(row + i) * bias_row]);
#pragma GCC unroll 24
        for (int v = 0; v < V; ++v) x[i][v] = x[i][v] + add;
      }
    } else if (bias) {
#pragma GCC unroll 24
      for (int v = 0; v < V; ++v) {
        const vec<T> add = vector_of_bias(col + v * lanes<T>, v == V - 1 ? tail : lanes<T>);
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) x[i][v] = x[i][v] + add;
      }
    }
    if (relu) {
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 24
        for (int v = 0; v < V; ++v)  // NaN is not below zero: it passes
          x[i][v] = select(x[i][v] < vec<T>{}, vec<T>{}, x[i][v]);
    }
  }

  template <int R, int V>
  [[gnu::always_inline]] bool store(const vec<T> (&x)[R][V], int64_t row, int64_t col,
                                    int64_t tail) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (!narrow) return false;
      vec<T> copy[R][V];  // x itself, its address taken, would not stay in registers
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 24
        for (int v = 0; v < V; ++v) copy[i][v] = x[i][v];
      store_narrow(copy, narrow + row * narrow_row + col, tail);
      return true;
    }
    return false;
  }

 private:
  [[gnu::always_inline]] vec<T> vector_of_bias(int64_t col, int64_t n) const {
    if (bias_col == 0) return splat(*bias);
    return load_upto(bias + col, n);
  }

  template <int R, int V>
  [[gnu::noinline]] void store_narrow(const f32v (&x)[R][V], bf16* to, int64_t tail) const {
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < V; ++v)
        store_narrowed(to + i * narrow_row + v * lanes<T>, x[i][v], v == V - 1 ? tail : lanes<T>);
  }
};

template <class T>
struct EpilogueOf {
  using type = BiasActivation<sum_of<T>>;
};
template <>
struct EpilogueOf<bf16> {
  using type = Bias<bf16>;
};
template <class T>
struct ResultOf {
  using type = sum_of<T>;
};
template <>
struct ResultOf<bf16> {
  using type = bf16;
};

template <class T>
struct Problem {
  int64_t m, n, k;
  const T* a;
  int64_t a_row, a_k;
  const T* b;
  int64_t b_k, b_col;
  typename ResultOf<T>::type* c;
  int64_t c_row;
  sum_of<T> beta;
  typename EpilogueOf<T>::type epilogue;
  bool last = true;  // of the blocks of k: the epilogue is due
};

// n items of `work` multiply-adds each, on as many threads as that is worth.
template <class F>
inline void parallel_tasks(int64_t n, int64_t work, const F& f) {
  if (n * work < kParallelWork) return f(0, n);
  parallel_for(n, divide_up(kParallelWork / 2, work + 1), f);
}

// Rows are cut for threads too, in pieces that hold whole tiles of any height.
constexpr int64_t kPieceRows = 48;

// Part `i` of `n` items cut into `parts` parts that differ by one at most.
struct Range {
  int64_t begin, size;
};
inline Range even_part(int64_t n, int64_t parts, int64_t i) {
  const int64_t size = n / parts, larger = n % parts;
  return {i * size + smaller(i, larger), size + (i < larger)};
}

// Block `i` of `blocks` of k: what it adds to c.
template <class T>
inline Problem<T> depth_block(const Problem<T>& p, int64_t blocks, int64_t i) {
  const Range k = even_part(p.k, blocks, i);
  Problem<T> q = p;
  q.k = k.size;
  q.a += k.begin * p.a_k;
  q.b += k.begin * p.b_k;
  if (i > 0) q.beta = sum_of<T>(1);
  q.last = p.last && i + 1 == blocks;
  return q;
}

// f for p, in blocks of k where a chain of so many additions would lose accuracy.
template <class T, class F>
inline void by_depth(const Problem<T>& p, const F& f) {
  const int64_t blocks = divide_up(p.k, kDepth);
  if (blocks <= 1) return f(p);
  for (int64_t i = 0; i < blocks; ++i) f(depth_block(p, blocks, i));
}

// ---- direct ----

template <int V>
constexpr int kDirectRows = kVectors == 4 ? (V <= 2   ? 12
                                             : V == 3 ? 8
                                                      : 6)
                                          : (V == 1 ? 12 : 6);

template <class T, int R, int V>
[[gnu::noinline]] void direct_tile(const Problem<T>& p, int64_t row, int64_t col, int64_t n) {
  prefetch_tile<R, V>(p.c + row * p.c_row + col, p.c_row);
  vec<sum_of<T>> acc[R][V] = {};
  const int64_t tail = n - (V - 1) * lanes<T>;
  const T *a = p.a + row * p.a_row, *b = p.b + col;
  if (kMaskedLoads || tail == lanes<T>)
    multiply_add<T, R, V, kMaskedLoads>(p.k, a, p.a_row, p.a_k, b, p.b_k, tail, acc);
  else
    multiply_add<T, R, V, true>(p.k, a, p.a_row, p.a_k, b, p.b_k, tail, acc);
  finish_tile(acc, p.c + row * p.c_row + col, p.c_row, n, Stage<sum_of<T>>{p.beta, p.last}, row,
              col, p.epilogue);
}

template <class T, int V, int R = kDirectRows<V>>
inline void direct_rows(const Problem<T>& p, const Range& rows, int64_t col, int64_t n) {
  if constexpr (R > 1)
    if (rows.size < R) return direct_rows<T, V, R - 1>(p, rows, col, n);
  direct_tile<T, R, V>(p, rows.begin, col, n);
}

template <class T, int V>
inline void direct_panel(const Problem<T>& p, int64_t col, int64_t n) {
  const int64_t groups = divide_up(p.m, kDirectRows<V>);
  for (int64_t g = 0; g < groups; ++g) direct_rows<T, V>(p, even_part(p.m, groups, g), col, n);
}

// One row: wide strips, so that b streams in long runs.
constexpr int kStripVectors = kVectors == 4 ? 24 : 12;

template <class T, int V = kStripVectors>
inline void direct_strip(const Problem<T>& p, int64_t vectors, int64_t col, int64_t n) {
  if constexpr (V > 1)
    if (vectors < V) return direct_strip<T, V - 1>(p, vectors, col, n);
  direct_tile<T, 1, V>(p, 0, col, n);
}

template <class T>
void direct_row(const Problem<T>& p) {
  const int64_t vectors = divide_up(p.n, lanes<T>);
  int64_t strips = divide_up(vectors, kStripVectors);
  if (p.n * p.k >= kParallelWork) {  // as many for each thread
    const int64_t threads = num_threads();
    strips = smaller(vectors, divide_up(strips, threads) * threads);
  }
  parallel_tasks(strips, p.k * divide_up(p.n, strips), [&](int64_t t, int64_t end) {
    for (; t < end; ++t) {
      const Range part = even_part(vectors, strips, t);
      const int64_t col = part.begin * lanes<T>;
      by_depth(p, [&](const Problem<T>& q) {
        direct_strip(q, part.size, col, smaller(part.size * lanes<T>, p.n - col));
      });
    }
  });
}

// Rows `rows` of c, columns `part` (in vectors).
template <class T>
inline void direct_block(const Problem<T>& p, const Range& rows, const Range& part) {
  const int64_t col = part.begin * lanes<T>, n = smaller(part.size * lanes<T>, p.n - col);
  Problem<T> q = p;
  q.m = rows.size;
  q.a += rows.begin * p.a_row;
  q.c += rows.begin * p.c_row;
  q.epilogue.skip_rows(rows.begin);
  by_depth(q, [&](const Problem<T>& block) {
    if (part.size == 1) direct_panel<T, 1>(block, col, n);
    if (part.size == 2) direct_panel<T, 2>(block, col, n);
    if constexpr (kVectors > 2) {
      if (part.size == 3) direct_panel<T, 3>(block, col, n);
      if (part.size == 4) direct_panel<T, 4>(block, col, n);
    }
  });
}

constexpr int64_t kStreamedBytes = 2 << 20;

template <class T>
void direct(const Problem<T>& p) {
  if (p.m == 1) return direct_row(p);
  const int64_t vectors = divide_up(p.n, lanes<T>), panels = divide_up(vectors, kVectors);
  const int64_t pieces = divide_up(p.m, kPieceRows);
  // An a beyond L2 is read once, while b comes from L2 again and again. Otherwise each thread has
  // columns of its own.
  const bool a_once = p.m * p.k * static_cast<int64_t>(sizeof(T)) > kStreamedBytes;
  parallel_tasks(
      panels * pieces, p.k * divide_up(p.m, pieces) * kCols<T>, [&](int64_t t, int64_t end) {
        for (; t < end; ++t) {
          const int64_t panel = a_once ? t % panels : t / pieces;
          const int64_t piece = a_once ? t / panels : t % pieces;
          direct_block(p, even_part(p.m, pieces, piece), even_part(vectors, panels, panel));
        }
      });
}

// ---- deep ----

constexpr int64_t kDeepBytes = 1536;  // of a along k in a block
constexpr int64_t kDeepRows = 64, kDeepCols = 512;

// c stays in L2, b passes by: few columns, or few rows whose b has short rows.
template <class T>
bool is_deep(const Problem<T>& p) {
  return p.n <= kCols<T> || (p.m <= kDeepRows && p.n <= kDeepCols && p.b_k <= kDeepCols);
}

template <class T>
void deep(const Problem<T>& p) {
  const int64_t vectors = divide_up(p.n, lanes<T>), panels = divide_up(vectors, kVectors);
  const int64_t pieces = divide_up(p.m, kDirectRows<1>);
  const int64_t blocks = divide_up(p.k, kDeepBytes / static_cast<int64_t>(sizeof(T)));
  parallel_tasks(panels * pieces, p.k * kDirectRows<1> * kCols<T>, [&](int64_t begin, int64_t end) {
    for (int64_t block = 0; block < blocks; ++block) {
      const Problem<T> q = depth_block(p, blocks, block);
      for (int64_t t = begin; t < end; ++t)
        direct_block(q, even_part(p.m, pieces, t % pieces), even_part(vectors, panels, t / pieces));
    }
  });
}

// ---- transposed ----

// Row length of a copy. Not a power of two: rows must not all fall on the same cache sets.
template <class T>
inline int64_t copied_row(int64_t n) {
  const int64_t row = divide_up(n, lanes<T>) * lanes<T>;
  return row % 128 == 0 ? row + lanes<T> : row;
}

template <class T>
void transposed(const Problem<T>& p, char* workspace) {
  constexpr int64_t kStep = 4 * lanes<T>;
  Problem<T> q = p;
  q.b_k = copied_row<T>(p.n);
  q.b_col = 1;
  T* const b = reinterpret_cast<T*>(workspace);
  q.b = b;
  parallel_tasks(divide_up(p.n, kStep), kStep * p.k, [&](int64_t t, int64_t end) {
    const int64_t col = t * kStep, stop = smaller(end * kStep, p.n);
    transpose_columns(b + col, q.b_k, p.b + col * p.b_col, p.b_col, stop - col, p.k);
  });
  direct(q);
}

// ---- dots ----

constexpr int kDotRows = 6;
template <class T>
constexpr int kDotCols = lanes<T> < 4 ? 2 : 4;

// Lane j of the result: the sum of all lanes of x[j].
template <class T, int C, int S = 1>
[[gnu::always_inline]] inline vec<T> sum_lanes(vec<T> (&x)[C]) {
#pragma GCC unroll 4
  for (int j = 0; j < C; j += 2 * S) {
    const int other = S < C ? j + S : j;
    vec<T> y = x[other];
    exchange<S>(x[j], y, std::make_integer_sequence<int, lanes<T>>{});
    x[j] = x[j] + y;
  }
  if constexpr (2 * S < lanes<T>) return sum_lanes<T, C, 2 * S>(x);
  return x[0];
}

// From memory, columns are short runs, and the processor's prefetching loses each at its ends: the
// same place of the next tile is asked for, within long columns 2 KiB ahead.
// Bytes of b beyond which that helps more than it costs, for very few rows and for up to kFetchRows.
constexpr int64_t kFetchBeyond = 4 << 20, kFetchBeyondForMore = 12 << 20;
constexpr int64_t kVeryFewRows = 4, kFetchRows = 16;

template <class T>
inline int64_t fetch_distance(const Problem<T>& p) {
  constexpr int64_t size = sizeof(T);
  return p.k * size <= 8192 ? kDotCols<T> * p.b_col : 2048 / size;
}

// R rows of a times C <= kDotCols columns of b.
template <class T, int R, int C, bool kFetch>
[[gnu::noinline]] void dot_tile(const Problem<T>& p, int64_t row, int64_t col) {
  constexpr int64_t L = lanes<T>;
  vec<sum_of<T>> acc[R][kDotCols<T>] = {};
  const int64_t ahead = fetch_distance(p);
  const T *a = p.a + row * p.a_row, *b = p.b + col * p.b_col;
  auto step = [&](int64_t q, auto load_k) {
    vec<T> y[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      const T* from = b + j * p.b_col + q;
      y[j] = load_k(from);
      if (kFetch) __builtin_prefetch(from + ahead, 0, 2);
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i) {
      vec<T> x = load_k(a + i * p.a_row + q);
      pin(x);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) acc[i][j] = fma(x, y[j], acc[i][j]);
    }
  };
  int64_t q = 0;
  for (; q + L <= p.k; q += L) step(q, [](const T* x) { return load(x); });
  if (q < p.k) step(q, [n = p.k - q](const T* x) { return load_n(x, n); });
#pragma GCC unroll 6
  for (int i = 0; i < R; ++i) {
    vec<sum_of<T>> sums[1][1] = {{sum_lanes<sum_of<T>, kDotCols<T>>(acc[i])}};
    finish_tile(sums, p.c + (row + i) * p.c_row + col, p.c_row, C, Stage<sum_of<T>>{p.beta, p.last},
                row + i, col, p.epilogue);
  }
}

template <class T, int C, bool kFetch, int R = kDotRows>
inline void dot_rows(const Problem<T>& p, const Range& rows, int64_t col) {
  if constexpr (R > 1)
    if (rows.size < R) return dot_rows<T, C, kFetch, R - 1>(p, rows, col);
  dot_tile<T, R, C, kFetch>(p, rows.begin, col);
}

template <class T, bool kFetch, int C = kDotCols<T>>
inline void dot_panel(const Problem<T>& p, const Range& rows, const Range& cols) {
  if constexpr (C > 1)
    if (cols.size < C) return dot_panel<T, false, C - 1>(p, rows, cols);
  const int64_t groups = divide_up(rows.size, kDotRows);
  for (int64_t g = 0; g < groups; ++g) {
    const Range part = even_part(rows.size, groups, g);
    dot_rows<T, C, kFetch>(p, Range{rows.begin + part.begin, part.size}, cols.begin);
  }
}

template <class T, bool kFetch>
void dot_panels(const Problem<T>& p) {
  const int64_t panels = divide_up(p.n, kDotCols<T>), pieces = divide_up(p.m, kPieceRows);
  parallel_tasks(panels * pieces, divide_up(p.m, pieces) * p.k * kDotCols<T>,
                 [&](int64_t t, int64_t end) {
                   for (; t < end; ++t)
                     dot_panel<T, kFetch>(p, even_part(p.m, pieces, t % pieces),
                                          even_part(p.n, panels, t / pieces));
                 });
}

template <class T>
void dots(const Problem<T>& p) {
  const int64_t bytes = p.n * p.k * static_cast<int64_t>(sizeof(T));
  const int64_t limit = p.m <= kVeryFewRows ? kFetchBeyond : kFetchBeyondForMore;
  const bool fetch = p.m <= kFetchRows && bytes > limit;
  fetch ? dot_panels<T, true>(p) : dot_panels<T, false>(p);
}

// ---- axpy ----

constexpr int64_t kAxpyRows = 8;
constexpr int64_t kAxpyCols = 4096;

// R rows of b from k = q, n <= kAxpyCols columns.
template <class T, int R>
inline void axpy_rows(const Problem<T>& p, int64_t q, int64_t col, int64_t n) {
  constexpr int64_t L = lanes<T>;
  const Stage<sum_of<T>> stage{q == 0 ? p.beta : sum_of<T>(1), p.last && q + R == p.k};
  const T* b = p.b + q * p.b_k + col;
  vec<T> x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) x[r] = splat(p.a[(q + r) * p.a_k]);
  for (int64_t j = 0; j < n; j += L) {
    const int64_t valid = smaller(L, n - j);
    vec<sum_of<T>> acc[1][1] = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      acc[0][0] = fma(x[r], load_upto(b + r * p.b_k + j, valid), acc[0][0]);
    finish_tile(acc, p.c + col + j, p.c_row, valid, stage, 0, col + j, p.epilogue);
  }
}

template <class T>
void axpy(const Problem<T>& p) {
  const int64_t threads = num_threads(), panels = divide_up(p.n, threads * kAxpyCols) * threads;
  const int64_t width = divide_up(p.n, panels * 64) * 64;
  parallel_tasks(divide_up(p.n, width), p.k * width, [&](int64_t t, int64_t end) {
    for (; t < end; ++t) {
      const int64_t col = t * width, n = smaller(width, p.n - col);
      int64_t q = 0;
      for (; q + kAxpyRows <= p.k; q += kAxpyRows) axpy_rows<T, kAxpyRows>(p, q, col, n);
      for (; q < p.k; ++q) axpy_rows<T, 1>(p, q, col, n);
    }
  });
}

// ---- choice ----

constexpr int64_t kDirectBytes = 1280 << 10;

enum class Way { kDirect, kDeep, kDots, kAxpy, kPanels, kTransposed, kCopied };

// The limits are measured, see docs/kernels/matmul.md.
template <class T>
Way choose(const Problem<T>& p) {
  constexpr int64_t L = lanes<T>;
  const int64_t b_bytes = p.n * p.k * static_cast<int64_t>(sizeof(T));
  const bool dense_rows = p.b_col == 1, dense_columns = p.b_k == 1;
  if (p.k == 0 || (dense_rows && p.m * b_bytes <= (16 << 10))) return Way::kDirect;
  if (dense_rows && p.m == 1) return b_bytes <= (4 << 20) ? Way::kDirect : Way::kAxpy;
  const bool few_rows = p.m <= 8 ? p.k >= 2 * L : p.m <= 64 && p.k >= 8 * L;
  // Fewer columns than lanes: dots waste no lanes, but sum 16 of them for each element.
  const bool few_columns = p.n < L && p.n * (p.k + 4 * L) < p.k * L;
  if (dense_columns && p.a_k == 1 && (few_rows || few_columns)) return Way::kDots;
  // In place or after one transposition b must stay in L2; a dense along m costs a cache line per
  // step of k.
  const bool fits = b_bytes <= kDirectBytes && (p.a_k == 1 || p.m <= 128 || p.k <= 384);
  const bool whole = kMaskedLoads || p.n % L == 0;
  if (dense_rows && fits && whole) return Way::kDirect;
  if (dense_rows && is_deep(p) && whole) return Way::kDeep;
  if (dense_columns && fits && whole) return Way::kTransposed;
  return p.a_k == 1 ? Way::kPanels : Way::kCopied;
}

template <class T>
void panels(const Problem<T>& p, char* workspace) {
  gemm<T>(p.m, p.n, p.k, p.a, p.a_row, PackRight<T>{p.b, p.b_k, p.b_col}, p.c, p.c_row,
          {p.beta, p.last}, p.epilogue, workspace);
}

// ---- copied ----

template <class T>
void run_way(Way way, const Problem<T>& p, char* workspace);
template <class T>
int64_t workspace_bytes(Way way, const Problem<T>& p);

constexpr int64_t kCopiedRows = 4096;  // of a at a time, kDepth columns

template <class T>
struct CopyBlocks {
  int64_t row_blocks, k_blocks;
  explicit CopyBlocks(const Problem<T>& p)
      : row_blocks(divide_up(p.m, kCopiedRows)), k_blocks(divide_up(p.k, kDepth)) {}

  // The largest of them is block (0, 0).
  Problem<T> block(const Problem<T>& p, int64_t i, int64_t j) const {
    const Range rows = even_part(p.m, row_blocks, i);
    Problem<T> q = depth_block(p, k_blocks, j);
    q.m = rows.size;
    q.a += rows.begin * p.a_row;
    q.c += rows.begin * p.c_row;
    q.epilogue.skip_rows(rows.begin);
    return q;
  }
  static int64_t copy_bytes(const Problem<T>& block) {
    return round_up(block.m * copied_row<T>(block.k) * static_cast<int64_t>(sizeof(T)), 64);
  }
};

// The same product with a in dense rows at `to`.
template <class T>
Problem<T> with_copied_rows(const Problem<T>& p, T* to) {
  constexpr int64_t kStep = 4 * lanes<T>;
  const int64_t row = copied_row<T>(p.k);
  parallel_tasks(divide_up(p.m, kStep), kStep * p.k, [&](int64_t t, int64_t end) {
    const int64_t begin = t * kStep, stop = smaller(end * kStep, p.m);
    if (p.a_row == 1)
      return transpose_columns(to + begin * row, row, p.a + begin, p.a_k, p.k, stop - begin);
    for (int64_t i = begin; i < stop; ++i)
      for (int64_t q = 0; q < p.k; ++q) to[i * row + q] = p.a[i * p.a_row + q * p.a_k];
  });
  Problem<T> q = p;
  q.a = to;
  q.a_row = row;
  q.a_k = 1;
  return q;
}

template <class T>
void copied(const Problem<T>& p, char* workspace) {
  const CopyBlocks<T> blocks(p);
  for (int64_t j = 0; j < blocks.k_blocks; ++j) {
    for (int64_t i = 0; i < blocks.row_blocks; ++i) {
      const Problem<T> block = blocks.block(p, i, j);
      const Problem<T> q = with_copied_rows(block, reinterpret_cast<T*>(workspace));
      run_way(choose(q), q, workspace + blocks.copy_bytes(block));
    }
  }
}

template <class T>
int64_t copied_workspace(const Problem<T>& p) {
  const CopyBlocks<T> blocks(p);
  int64_t bytes = 0;
  for (int64_t j = 0; j < blocks.k_blocks; ++j)
    for (int64_t i = 0; i < blocks.row_blocks; ++i) {
      Problem<T> q = blocks.block(p, i, j);
      q.a_k = 1;
      bytes = larger(bytes, blocks.copy_bytes(q) + workspace_bytes(choose(q), q));
    }
  return bytes;
}

template <class T>
void run_way(Way way, const Problem<T>& p, char* workspace) {
  switch (way) {
    case Way::kDirect: return direct(p);
    case Way::kDeep: return deep(p);
    case Way::kDots: return dots(p);
    case Way::kAxpy: return axpy(p);
    case Way::kTransposed: return transposed(p, workspace);
    case Way::kPanels: return panels(p, workspace);
    case Way::kCopied: return copied(p, workspace);
  }
}

template <class T>
int64_t workspace_bytes(Way way, const Problem<T>& p) {
  int64_t bytes = 0;
  if (way == Way::kPanels) bytes = gemm_workspace<T>(p.n, p.k);
  if (way == Way::kCopied) bytes = copied_workspace(p);
  if (way == Way::kTransposed) bytes = p.k * copied_row<T>(p.n) * sizeof(T);
  return round_up(bytes, 64);
}

// ---- bfloat16 ----
//
// The operands are brought into a form that one of the ways above takes: pairs along k where the
// machine multiplies those (one instruction per 32 products), floats elsewhere. Sums are float32,
// rounded once, when a tile is finished.

struct Operand {
  const Bf16Operand* data;
  int64_t stride, k_stride;
};

inline bool keeps_rows(int64_t stride, int64_t k_stride) { return stride == 1 && k_stride != 1; }

// n rows (or columns) along k, the dense direction kept.
inline Operand convert_operand(const bf16* src, int64_t n, int64_t k, int64_t stride,
                               int64_t k_stride, Bf16Operand* dst) {
  const int64_t depth = operand_depth(k);
  if (is_operand(src, n, k, stride, k_stride))
    return {reinterpret_cast<const Bf16Operand*>(src), n == 1 ? 1 : stride / 2, 1};
  if (keeps_rows(stride, k_stride)) {
    const int64_t step = depth == k ? 1 : 2;
    parallel_tasks(depth, n, [&](int64_t p, int64_t end) {
      for (; p < end; ++p) {
        const bf16* low = src + p * step * k_stride;
        convert_across(dst + p * n, low, p * step + 1 < k ? low + k_stride : nullptr, n);
      }
    });
    return {dst, 1, n};
  }
  parallel_tasks(n, k, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      if (k_stride == 1)
        convert_along(dst + i * depth, src + i * stride, 1, k);
      else
        convert_along(dst + i * depth, src + i * stride, k_stride, k);
    }
  });
  return {dst, n == 1 ? 1 : depth, 1};
}

// The way of the converted product, and where the parts of the workspace begin.
struct Bf16Plan {
  Way way;
  int64_t b, c, bias, rest, bytes;

  explicit Bf16Plan(const Problem<bf16>& p) {
    const int64_t depth = operand_depth(p.k), word = sizeof(float);
    Problem<Bf16Operand> q = {};
    q.m = p.m, q.n = p.n, q.k = depth;
    const bool rows_of_a = keeps_rows(p.a_row, p.a_k), rows_of_b = keeps_rows(p.b_col, p.b_k);
    q.a_row = rows_of_a || p.m == 1 ? 1 : depth, q.a_k = rows_of_a ? p.m : 1;
    q.b_col = rows_of_b || p.n == 1 ? 1 : depth, q.b_k = rows_of_b ? p.n : 1;
    way = choose(q);
    b = round_up(p.m * depth * word, 64);
    c = b + round_up(p.n * depth * word, 64);
    bias = c + round_up(p.m * p.n * word, 64);
    rest = bias + round_up(larger(p.m, p.n) * word, 64);
    bytes = rest + (depth ? workspace_bytes(way, q) : 0);
  }
};

inline void widen_row(float* dst, const bf16* src, int64_t n) {
  for (int64_t j = 0; j < n; j += lanes<float>) {
    const int64_t valid = smaller(lanes<float>, n - j);
    store_n(dst + j, load_widened(src + j, valid), valid);
  }
}

inline void run_bf16(const Problem<bf16>& p, const Bf16Plan& plan, char* workspace) {
  auto part = [&](int64_t offset) { return reinterpret_cast<Bf16Operand*>(workspace + offset); };
  const Operand a = convert_operand(p.a, p.m, p.k, p.a_row, p.a_k, part(0));
  const Operand b = convert_operand(p.b, p.n, p.k, p.b_col, p.b_k, part(plan.b));
  float* const c = reinterpret_cast<float*>(workspace + plan.c);
  float* const bias = reinterpret_cast<float*>(workspace + plan.bias);
  if (p.beta != 0)
    for (int64_t i = 0; i < p.m; ++i) widen_row(c + i * p.n, p.c + i * p.c_row, p.n);
  const Bias<bf16>& given = p.epilogue;
  if (given.bias) widen_row(bias, given.bias, given.bias_row ? p.m : given.bias_col ? p.n : 1);
  BiasActivation<float> epilogue;
  epilogue.bias = given.bias ? bias : nullptr;
  epilogue.bias_row = given.bias_row;
  epilogue.bias_col = given.bias_col;
  epilogue.relu = given.relu;
  epilogue.narrow = p.c;
  epilogue.narrow_row = p.c_row;
  const Problem<Bf16Operand> q{
      p.m,     p.n,        operand_depth(p.k), a.data, a.stride, a.k_stride,
      b.data,  b.k_stride, b.stride,           c,      p.n,      p.beta,
      epilogue};
  run_way(plan.way, q, workspace + plan.rest);
}

// One column: the same product with its operands exchanged is one row, dense if c's column is.
template <class T>
Problem<T> as_row(const Problem<T>& p) {
  if (p.n != 1 || p.m == 1 || p.c_row != 1) return p;
  Problem<T> q = p;
  q.m = 1;
  q.n = p.m;
  q.a = p.b;
  q.a_row = p.b_col;
  q.a_k = p.b_k;
  q.b = p.a;
  q.b_k = p.a_k;
  q.b_col = p.a_row;
  q.c_row = p.m;
  q.epilogue.bias_row = 0;
  q.epilogue.bias_col = p.epilogue.bias_row;
  return q;
}

// ---- batches ----

// The leading dimensions of c with the strides of all three; a and b stand still (stride 0) in
// dimensions that they lack or have with size 1.
struct Batch {
  int ndim;
  int64_t count;
  int64_t shape[kMaxDims], a[kMaxDims], b[kMaxDims], c[kMaxDims];
};

inline int64_t batch_stride(const View& v, int core, int dim, int ndim) {
  const int d = v.ndim - core - (ndim - dim);
  return d < 0 || v.shape[d] == 1 ? 0 : v.strides[d];
}

inline Batch batch_of(const View& a, int a_core, const View& b, int b_core, const View& c) {
  Batch t;
  t.ndim = c.ndim - (a_core - 1) - (b_core - 1);
  t.count = 1;
  for (int d = 0; d < t.ndim; ++d) {
    t.shape[d] = c.shape[d];
    t.a[d] = batch_stride(a, a_core, d, t.ndim);
    t.b[d] = batch_stride(b, b_core, d, t.ndim);
    t.c[d] = c.strides[d];
    t.count *= c.shape[d];
  }
  return t;
}

// Inner batch dimensions that only continue the rows of a and c become rows.
template <class T>
void fold_batch_into_rows(Batch* t, Problem<T>* p) {
  while (t->ndim > 0) {
    const int d = t->ndim - 1;
    if (t->shape[d] != 1 && p->m == 1) {
      p->a_row = t->a[d];
      p->c_row = t->c[d];
    }
    const bool continues = t->a[d] == p->m * p->a_row && t->c[d] == p->m * p->c_row;
    if (t->shape[d] != 1 && (t->b[d] != 0 || !continues || p->epilogue.bias_row != 0)) return;
    p->m *= t->shape[d];
    t->count /= t->shape[d];
    --t->ndim;
  }
}

template <class T>
Problem<T> batch_item(const Batch& t, const Problem<T>& p, int64_t index) {
  Problem<T> q = p;
  for (int d = t.ndim - 1; d >= 0; --d) {
    const int64_t i = index % t.shape[d];
    index /= t.shape[d];
    q.a += i * t.a[d];
    q.b += i * t.b[d];
    q.c += i * t.c[d];
  }
  return q;
}

// What all items of a batch have in common.
template <class T>
struct Plan {
  Way way;
  int64_t bytes;  // of workspace
  explicit Plan(const Problem<T>& p) : way(choose(p)), bytes(workspace_bytes(way, p)) {}
  void run(const Problem<T>& p, char* workspace) const { run_way(way, p, workspace); }
};
template <>
struct Plan<bf16> : Bf16Plan {
  using Bf16Plan::Bf16Plan;
  void run(const Problem<bf16>& p, char* workspace) const { run_bf16(p, *this, workspace); }
};

constexpr int64_t kSplitMatrixFrom = int64_t{1} << 24;  // multiply-adds: threads inside the product

template <class T>
bool run_batch(const Batch& t, const Problem<T>& p) {
  const int64_t work = p.m * p.n * (p.k + 1);
  const bool across = t.count > 1 && work < kSplitMatrixFrom && work * t.count >= kParallelWork;
  const int threads = across ? num_threads() : 1;
  const Problem<T> first = as_row(p);
  const Plan<T> plan(first);
  char* workspace = nullptr;
  const int64_t bytes = plan.bytes;
  if (bytes) {
    workspace = static_cast<char*>(scratch(static_cast<size_t>(bytes * threads)));
    if (!workspace) return false;
  }
  if (t.count == 1) return plan.run(first, workspace), true;
  auto items = [&](int thread, int count) {
    for (int64_t i = t.count * thread / count; i < t.count * (thread + 1) / count; ++i)
      plan.run(as_row(batch_item(t, p, i)), workspace + bytes * thread);
  };
  if (across)
    parallel_region(threads, items);
  else
    items(0, 1);
  return true;
}

template <class T>
bool multiply(const View& a, const View& b, const View& bias, const View& c, int64_t activation,
              double beta) {
  const int a_core = a.ndim == 1 ? 1 : 2, b_core = b.ndim == 1 ? 1 : 2;
  Problem<T> p;
  p.m = a_core == 2 ? a.shape[a.ndim - 2] : 1;
  p.k = a.shape[a.ndim - 1];
  p.n = b_core == 2 ? b.shape[b.ndim - 1] : 1;
  p.a = data<T>(a);
  p.a_row = p.m == 1 ? 1 : a.strides[a.ndim - 2];
  p.a_k = p.k == 1 ? 1 : a.strides[a.ndim - 1];
  p.b = data<T>(b);
  p.b_col = p.n == 1 ? 1 : b.strides[b.ndim - 1];
  p.b_k = p.k == 1 ? (p.b_col == 1 ? p.n : 1) : b.strides[b.ndim - b_core];
  p.c = data<T>(c);
  p.c_row = a_core == 2 && p.m > 1 ? c.strides[c.ndim - b_core] : p.n;
  p.beta = static_cast<sum_of<T>>(beta);
  p.epilogue.bias = data<T>(bias);
  p.epilogue.bias_row = bias.ndim == 2;  // a column
  p.epilogue.bias_col = bias.ndim == 1;
  p.epilogue.relu = activation == kActivationRelu;
  Batch t = batch_of(a, a_core, b, b_core, c);
  if (p.m == 0 || p.n == 0 || t.count == 0) return true;
  if (t.ndim > 0) fold_batch_into_rows(&t, &p);
  return run_batch(t, p);
}

}  // namespace

bool matmul(In a, In b, OptIn bias, Out c, int64_t activation, double beta) {
  if (a.dtype == DType::kFloat32) return multiply<float>(a, b, bias, c, activation, beta);
  if (a.dtype == DType::kFloat64) return multiply<double>(a, b, bias, c, activation, beta);
  return multiply<bf16>(a, b, bias, c, activation, beta);
}

}  // namespace grebe::GREBE_ISA
