// Loops along contiguous rows, for kernels that reduce each row: softmax.cpp and norm.cpp.
#pragma once
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kBlock = 512;   // elements of a row that are summed in T; blocks add in double
constexpr int64_t kWork = 16384;  // elements that make a chunk for a thread

inline int64_t at_least_one(int64_t n) { return n > 1 ? n : 1; }
inline int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }

// f(row) for all rows of a [rows, n] array.
template <class F>
void for_each_row(int64_t rows, int64_t n, const F& f) {
  parallel_for(rows, at_least_one(kWork / at_least_one(n)), [&](int64_t begin, int64_t end) {
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

template <class T, class F>
T row_sum(const T* x, int64_t n, const F& f) {
  if (n <= kBlock) return block_sum(x, 0, n, f);
  double sum = 0;
  for (int64_t i = 0; i < n; i += kBlock)
    sum += static_cast<double>(block_sum(x, i, at_most(i + kBlock, n), f));
  return static_cast<T>(sum);
}

// y[i] = f(vector of x, i, valid lanes) along a row.
template <class T, class F>
void row_map(const T* x, T* y, int64_t n, const F& f) {
  constexpr int64_t L = lanes<T>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(y + i, f(load(x + i), i, L));
  if (i < n) store_n(y + i, f(load_n(x + i, n - i), i, n - i), n - i);
}

// The next n elements, at most a vector of them.
template <class T>
inline vec<T> load_upto(const T* p, int64_t n) {
  return n >= lanes<T> ? load(p) : load_n(p, n);
}
template <class T>
inline void store_upto(T* p, vec<T> v, int64_t n) {
  n >= lanes<T> ? store(p, v) : store_n(p, v, n);
}

}  // namespace
}  // namespace grebe::GREBE_ISA
