// Broadcasting, memory format and threads for the elementwise loops: they see one dimension.
//
// The dimensions are ordered by the output's strides and merged where every operand allows it, so
// that any dense permutation (channels-last among them) runs as one flat loop.
#pragma once
#include <cstdint>

#include "../iteration.h"
#include "../parallel.h"

namespace grebe {

constexpr int64_t kParallelGrain = 16384;  // elements: below this a second thread costs more

// Rows [begin, end) of the dimensions before the last: their position and the operands' pointers.
struct RowCursor {
  const Iteration& it;
  int64_t index[kMaxDims];
  char* p[kMaxOperands];

  RowCursor(const Iteration& iteration, int64_t row) : it(iteration) {
    for (int k = 0; k < it.operands; ++k) p[k] = it.data[k];
    for (int d = it.ndim - 2; d >= 0; --d) {
      index[d] = row % it.shape[d];
      row /= it.shape[d];
      for (int k = 0; k < it.operands; ++k) p[k] += index[d] * it.strides[k][d];
    }
  }
  void next() {
    for (int d = it.ndim - 2; d >= 0; --d) {
      const bool carry = ++index[d] == it.shape[d];
      if (carry) index[d] = 0;
      for (int k = 0; k < it.operands; ++k)
        p[k] += it.strides[k][d] * (carry ? 1 - it.shape[d] : 1);
      if (!carry) return;
    }
  }
};

// inner(n, data[], strides[]) over the whole iteration space, by several threads if it is large.
template <class Inner>
static inline void iterate(Iteration& it, const Inner& inner) {
  for (int d = 0; d < it.ndim; ++d)
    if (it.shape[d] == 0) return;
  coalesce(it);
  int64_t strides[kMaxOperands] = {};
  if (it.ndim == 0) return inner(static_cast<int64_t>(1), it.data, strides);
  const int last = it.ndim - 1;
  const int64_t size = it.shape[last];
  for (int k = 0; k < it.operands; ++k) strides[k] = it.strides[k][last];
  int64_t total = 1;
  for (int d = 0; d < it.ndim; ++d) total *= it.shape[d];

  // A flat range [begin, end) of elements: partial first row, whole rows, partial last row.
  parallel_for(total, kParallelGrain, [&](int64_t begin, int64_t end) {
    RowCursor row(it, begin / size);
    int64_t column = begin % size;
    for (int64_t at = begin; at < end; row.next(), column = 0) {
      const int64_t n = size - column < end - at ? size - column : end - at;
      char* p[kMaxOperands];
      for (int k = 0; k < it.operands; ++k) p[k] = row.p[k] + column * strides[k];
      inner(n, p, strides);
      at += n;
    }
  });
}

}  // namespace grebe
