// Lookup of rows and sums of rows: embedding, its gradient, and bags of embeddings.
//
// gather_rows copies row index[k] of a table to row k of the output. sum_rows is its transpose and
// more: y[target[k]] += factor[k] x[source[k]] over all k. One kernel, three uses:
//
//                          x        source          target
//   gradient of embedding  grad     k               row of the table
//   bags (sum, mean)       table    row of table    bag
//   gradient of bags       grad     bag             row of the table
//
// Layout of sum_rows: a counting sort by target gives each output row the list of its terms, in the
// order in which they came. A thread owns a run of output rows and writes each once: zeros where the
// list is empty, else a sum that stays in registers, column block by column block. No atomics, and
// who owns a row does not change its bits; so the runs are cut by work (rows plus terms), and a few
// frequent rows do not keep one thread busy while others wait. Outputs too large for the caches are
// written past them.
//
// Floor: memory. gather reads and writes D elements per index; the dense gradient of a table writes
// all its V x D elements, and reads D per index. Measured shares: docs/kernels/embedding.md.
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kWork = 16384;  // elements that make a chunk for a thread
constexpr int64_t kStreamBytes = int64_t{12} << 20;  // outputs from here on bypass the caches

int64_t item_bytes(DType t) {
  constexpr int8_t kBytes[] = {4, 8, 2, 2, 8, 4, 1, 1};  // in the order of DType
  return kBytes[static_cast<int>(t)];
}

// The terms of output row r are order[start[r]] ... order[start[r + 1] - 1].
struct Lists {
  int64_t* start;
  int64_t* order;
};

// Stable counting sort of 0 ... n - 1 by target; negative targets are left out.
Lists sort_by_target(const int64_t* target, int64_t n, int64_t rows, int64_t* memory) {
  int64_t* next = memory;  // next[r + 1]: count, then where the next term of row r goes
  int64_t* order = memory + rows + 2;
  __builtin_memset(next, 0, sizeof(int64_t) * (rows + 2));
  for (int64_t k = 0; k < n; ++k)
    if (target[k] >= 0) ++next[target[k] + 2];
  for (int64_t r = 1; r < rows + 2; ++r) next[r] += next[r - 1];
  for (int64_t k = 0; k < n; ++k)
    if (target[k] >= 0) order[next[target[k] + 1]++] = k;
  return {next, order};
}

// First row at which rows and terms before it make up the share `part` of all `parts`.
int64_t boundary(const Lists& lists, int64_t rows, int64_t part, int64_t parts) {
  const int64_t work = (rows + lists.start[rows]) * part / parts;
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (middle + lists.start[middle] < work)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <class T>
struct Terms {
  const T* x;
  const int64_t* source;  // nullptr: the term's own number
  const T* factor;  // nullptr: 1
  const int64_t* order;
  int64_t count, d;

  const T* row(int64_t i) const { return x + (source ? source[order[i]] : order[i]) * d; }
  vec<T> scale(int64_t i) const { return splat(factor[order[i]]); }
};

template <bool Streaming, class T>
inline void put(T* y, vec<T> v) {
  if constexpr (Streaming)
    store_streaming(y, v);
  else
    store(y, v);
}

// W vectors of columns from `at` on, summed over all terms.
template <int W, bool Streaming, class T>
inline void sum_columns(const Terms<T>& terms, int64_t at, T* y) {
  vec<T> sum[W] = {};
  for (int64_t i = 0; i < terms.count; ++i) {
    const T* row = terms.row(i) + at;
    if (terms.factor) {
      const vec<T> scale = terms.scale(i);
      for (int w = 0; w < W; ++w) sum[w] = fma(load(row + w * lanes<T>), scale, sum[w]);
    } else {
      for (int w = 0; w < W; ++w) sum[w] = sum[w] + load(row + w * lanes<T>);
    }
  }
  for (int w = 0; w < W; ++w) put<Streaming>(y + at + w * lanes<T>, sum[w]);
}

template <bool Streaming, class T>
void sum_row(const Terms<T>& terms, T* y) {
  constexpr int64_t L = lanes<T>;
  int64_t at = 0;
  for (; at + 8 * L <= terms.d; at += 8 * L) sum_columns<8, Streaming>(terms, at, y);
  for (; at + L <= terms.d; at += L) sum_columns<1, Streaming>(terms, at, y);
  if (at == terms.d) return;
  const int64_t rest = terms.d - at;
  vec<T> sum{};
  for (int64_t i = 0; i < terms.count; ++i) {
    const vec<T> v = load_n(terms.row(i) + at, rest);
    sum = terms.factor ? fma(v, terms.scale(i), sum) : sum + v;
  }
  store_n(y + at, sum, rest);
}

template <bool Streaming, class T>
void sum_range(Terms<T> terms, const int64_t* order, const int64_t* start, int64_t begin,
               int64_t end, T* y) {
  for (int64_t r = begin; r < end; ++r) {
    terms.order = order + start[r];
    terms.count = start[r + 1] - start[r];
    sum_row<Streaming>(terms, y + r * terms.d);
  }
  if (Streaming) streaming_fence();
}

template <class T>
void sum_all(const Terms<T>& terms, const Lists& lists, int64_t rows, T* y) {
  const bool aligned =
      reinterpret_cast<uintptr_t>(y) % kVectorBytes == 0 && terms.d % lanes<T> == 0;
  const bool streaming = aligned && rows * terms.d * sizeof(T) >= kStreamBytes;
  const int64_t work = (rows + lists.start[rows]) * terms.d / kWork;
  const int64_t threads = work < num_threads() ? (work > 1 ? work : 1) : num_threads();
  parallel_region(static_cast<int>(threads), [&](int64_t t, int64_t team) {
    const int64_t begin = boundary(lists, rows, t, team), end = boundary(lists, rows, t + 1, team);
    if (streaming)
      sum_range<true>(terms, lists.order, lists.start, begin, end, y);
    else
      sum_range<false>(terms, lists.order, lists.start, begin, end, y);
  });
}

// Rows are read in no order that the hardware foresees: the one kAhead further on is fetched early.
constexpr int64_t kAhead = 8;

void copy_row(const char* from, const char* ahead, char* to, int64_t bytes) {
  int64_t i = 0;
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) {
    __builtin_prefetch(ahead + i);
    store(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  }
  if (i < bytes) __builtin_memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
}

template <class T>
void bag_argmax_of(const T* x, const int64_t* index, const int64_t* offsets, int64_t bags,
                   int64_t d, int64_t padding, int64_t* arg) {
  const int64_t grain = d < kWork ? kWork / (d > 0 ? d : 1) : 1;
  parallel_for(bags, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t* best = arg + b * d;
      for (int64_t c = 0; c < d; ++c) best[c] = -1;
      for (int64_t k = offsets[b]; k < offsets[b + 1]; ++k) {
        if (index[k] == padding) continue;
        for (int64_t c = 0; c < d; ++c) {
          const T v = x[index[k] * d + c];
          if (best[c] < 0 || v > x[best[c] * d + c] || v != v) best[c] = index[k];
        }
      }
    }
  });
}

}  // namespace

// y[k] = x[index[k]]. x: rows of any dtype; index: int64, in range; all contiguous.
void gather_rows(In x, In index, Out y) {
  const int64_t n = numel(index), rows = x.shape[0];
  if (n == 0 || rows == 0) return;
  const int64_t bytes = numel(x) / rows * item_bytes(x.dtype);
  const int64_t* from = data<int64_t>(index);
  const char* table = data<char>(x);
  char* to = data<char>(y);
  const int64_t grain = bytes < 4 * kWork ? 4 * kWork / (bytes > 0 ? bytes : 1) : 1;
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t ahead = k + kAhead < end ? k + kAhead : k;
      copy_row(table + from[k] * bytes, table + from[ahead] * bytes, to + k * bytes, bytes);
    }
  });
}

// y[r] = sum of factor[k] x[source[k]] over all k with target[k] = r, in order of k. Negative targets
// are left out. x [M, D] and y [R, D]: float32 or float64; source and target: int64; all contiguous.
bool sum_rows(In x, OptIn source, In target, OptIn factor, Out y) {
  const int64_t n = numel(target), rows = y.shape[0], d = y.shape[1];
  int64_t* memory = static_cast<int64_t*>(scratch(sizeof(int64_t) * (rows + 2 + n)));
  if (!memory) return false;
  const Lists lists = sort_by_target(data<int64_t>(target), n, rows, memory);
  const int64_t* from = data<int64_t>(source);
  if (x.dtype == DType::kFloat32)
    sum_all(Terms<float>{data<float>(x), from, data<float>(factor), nullptr, 0, d}, lists, rows,
            data<float>(y));
  else
    sum_all(Terms<double>{data<double>(x), from, data<double>(factor), nullptr, 0, d}, lists, rows,
            data<double>(y));
  return true;
}

// arg[b, c] = the index[k] in bag b (offsets[b] <= k < offsets[b + 1]) whose row of x has the largest
// element in column c: the first of equal ones, the last NaN; -1 for an empty bag. Indices equal to
// padding do not count.
void bag_argmax(In x, In index, In offsets, Out arg, int64_t padding) {
  const int64_t bags = arg.shape[0], d = x.shape[1];
  const int64_t *from = data<int64_t>(index), *start = data<int64_t>(offsets);
  if (x.dtype == DType::kFloat32)
    bag_argmax_of(data<float>(x), from, start, bags, d, padding, data<int64_t>(arg));
  else
    bag_argmax_of(data<double>(x), from, start, bags, d, padding, data<int64_t>(arg));
}

}  // namespace grebe::GREBE_ISA
