// The k largest or smallest elements of rows, in order.
//
// A row is scanned once against the last of the k best so far, a vector per comparison; an element
// that beats it is inserted into the sorted list. In random order that happens k * log(n / k) times,
// so the scan dominates: one comparison per vector. Meant for small k; the worst case, sorted rows,
// moves k elements each time. Floor: reading x once.
#include "rows.h"

namespace grebe::GREBE_ISA {
namespace {

// NaN counts as the largest.
template <bool kLargest, class T>
inline bool beats(T a, T b) {
  return kLargest ? a > b || (a != a && b == b) : a < b || (b != b && a == a);
}
template <bool kLargest, class T>
inline bool any_beats(vec<T> a, T b) {
  if (b != b) return !kLargest && any(a == a);
  return kLargest ? any((a > splat(b)) | (a != a)) : any(a < splat(b));
}

template <bool kLargest, class T>
inline void insert(T x, int64_t at, int64_t held, T* values, int64_t* index) {
  int64_t i = held;
  for (; i > 0 && beats<kLargest>(x, values[i - 1]); --i)
    values[i] = values[i - 1], index[i] = index[i - 1];
  values[i] = x;
  index[i] = at;
}

template <bool kLargest, class T>
void topk_row(const T* x, int64_t n, int64_t k, T* values, int64_t* index) {
  for (int64_t i = 0; i < k; ++i) insert<kLargest>(x[i], i, i, values, index);
  for (int64_t i = k; i < n;) {
    const int64_t end = smaller(i + lanes<T>, n);
    if (end - i < lanes<T> || any_beats<kLargest>(load(x + i), values[k - 1]))
      for (int64_t j = i; j < end; ++j)
        if (beats<kLargest>(x[j], values[k - 1])) insert<kLargest>(x[j], j, k - 1, values, index);
    i = end;
  }
}

template <class T>
void topk_any(In x, Out values, Out index, int64_t rows, int64_t n, int64_t k, bool largest) {
  for_each_row(rows, n, [&](int64_t i) {
    (largest ? topk_row<true, T> : topk_row<false, T>)(data<T>(x) + i * n, n, k,
                                                       data<T>(values) + i * k,
                                                       data<int64_t>(index) + i * k);
  });
}

}  // namespace

void topk(In x, Out values, Out index, int64_t rows, int64_t n, int64_t k, bool largest) {
  if (x.dtype == DType::kFloat32)
    topk_any<float>(x, values, index, rows, n, k, largest);
  else
    topk_any<double>(x, values, index, rows, n, k, largest);
}

}  // namespace grebe::GREBE_ISA
