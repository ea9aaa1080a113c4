// Loops along contiguous rows, for kernels that reduce each row: softmax.cpp and norm.cpp.
#pragma once
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kBlock = 512;   // elements of a row that are summed in T; blocks add in double
constexpr int64_t kWork = 16384;  // elements that make a chunk for a thread

// f(row) for all rows of a [rows, n] array.
template <class F>
void for_each_row(int64_t rows, int64_t n, const F& f) {
  parallel_for(rows, larger(1, kWork / larger(1, n)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Sum over [begin, end) of f(vector of x, index, valid lanes); invalid lanes do not count.
template <class T, class F>
T block_sum(const T* x, int64_t begin, int64_t end, const F& f) {
  constexpr int64_t L = lanes<T>;
  vec<T> sum{};
  int64_t i = begin;
  for (; i + L <= end; i += L) sum = sum + f(load(x + i), i, L);
  if (i < end)
    sum = sum + select(lane_mask<T>(end - i), f(load_n(x + i, end - i), i, end - i), vec<T>{});
  return hsum(sum);
}

// Lanes of the sum of x[i] y[i].
template <class T>
inline vec<T> row_dot(const T* x, const T* y, int64_t n) {
  vec<T> sum{};
  for (; n >= lanes<T>; x += lanes<T>, y += lanes<T>, n -= lanes<T>)
    sum = fma(load(x), load(y), sum);
  return n > 0 ? fma(load_n(x, n), load_n(y, n), sum) : sum;
}

// block_sum over any length, by blocks.
template <class T, class F>
double range_sum(const T* x, int64_t begin, int64_t end, const F& f) {
  double sum = 0;
  for (int64_t i = begin; i < end; i += kBlock)
    sum += static_cast<double>(block_sum(x, i, smaller(i + kBlock, end), f));
  return sum;
}

// Rows from kSplitFrom elements on are cut into at most kParts pieces, by their length alone, which
// threads share where the rows themselves do not occupy them.
constexpr int64_t kSplitFrom = 65536, kParts = 64;

inline int64_t piece(int64_t n) {
  const int64_t least = (n + kParts - 1) / kParts;
  return least > kSplitFrom / 2 ? (least + kBlock - 1) / kBlock * kBlock : kSplitFrom / 2;
}
// f(number of the piece, begin, end)
template <class F>
void for_each_piece(int64_t n, const F& f) {
  const int64_t size = piece(n);
  parallel_for(n, size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += size) f(i / size, i, smaller(i + size, end));
  });
}

template <class T, class F>
T row_sum(const T* x, int64_t n, const F& f) {
  if (n <= kBlock) return block_sum(x, 0, n, f);
  if (n < kSplitFrom) return static_cast<T>(range_sum(x, 0, n, f));
  double parts[kParts] = {}, sum = 0;
  for_each_piece(
      n, [&](int64_t i, int64_t begin, int64_t end) { parts[i] = range_sum(x, begin, end, f); });
  for (double part : parts) sum += part;
  return static_cast<T>(sum);
}

// y[i] = f(vector of x, i, valid lanes) along a row.
template <class T, class F>
void range_map(const T* x, T* y, int64_t begin, int64_t end, const F& f) {
  constexpr int64_t L = lanes<T>;
  int64_t i = begin;
  for (; i + L <= end; i += L) store(y + i, f(load(x + i), i, L));
  if (i < end) store_n(y + i, f(load_n(x + i, end - i), i, end - i), end - i);
}
template <class T, class F>
void row_map(const T* x, T* y, int64_t n, const F& f) {
  if (n < kSplitFrom) return range_map(x, y, 0, n, f);
  for_each_piece(n, [&](int64_t, int64_t begin, int64_t end) { range_map(x, y, begin, end, f); });
}

// ---- groups of short rows ----

// Up to here the lanes of a row's sum cost as much to combine as the elements to add up, and the
// chain of maximum, sum and result leaves the processor waiting: lanes<T> rows go together, one
// result per lane, in the same order of operations as a row alone.
constexpr int64_t kGroupUpTo = 256;

// f(first row, rows) for groups of at most lanes<T> rows.
template <class T, class F>
void for_each_group(int64_t rows, int64_t n, const F& f) {
  constexpr int64_t L = lanes<T>;
  const int64_t grain = (larger(1, kWork / larger(1, n)) + L - 1) / L * L;
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += L) f(i, smaller(end - i, L));
  });
}

// Lane i: row i's vectors f(row, offset from the first row, valid lanes) combined by `add`, from
// `start`.
template <class T, class F, class Add>
inline vec<T> group_combine(int64_t n, int64_t rows, T start, const F& f, const Add& add) {
  constexpr int64_t L = lanes<T>;
  vec<T> r[L];
  for (int64_t i = 0; i < L; ++i) {
    vec<T> all = splat(start);
    for (int64_t j = 0; i < rows && j < n; j += L) {
      if (n - j >= L)
        all = add(f(i, i * n + j, L), all);
      else
        all = select(lane_mask<T>(n - j), add(f(i, i * n + j, n - j), all), all);
    }
    r[i] = all;
  }
  return combine_each<T>(r, add);
}
template <class T, class F>
inline vec<T> group_sum(int64_t n, int64_t rows, const F& f) {
  return group_combine(n, rows, T{0}, f, [](vec<T> a, vec<T> b) { return a + b; });
}

}  // namespace
}  // namespace grebe::GREBE_ISA
