// Rotary positions (Su et al. 2021): pairs of features turned by an angle that grows with the position.
//
//   y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin
//
// A pair is (x[i], x[i + R / 2]), or (x[2 i], x[2 i + 1]); features from R on are copied. The gradient
// is the turn back. A thread per pair or copied feature; neighbouring threads along the features.
//
// Floor: memory, one read and one write per element. Not measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

// Arrays [batch, heads, rows, features] and tables [batch, rows, pairs].
template <class T>
struct Problem {
  int64_t heads, rows, features, pairs;
  const T *x, *cosine, *sine;
  T* y;
  int64_t x_strides[3], y_strides[3], cosine_strides[2], sine_strides[2];
  bool neighbours;
  T sign;
};

template <class T>
__global__ void __launch_bounds__(kThreads) turn(int64_t n, Problem<T> p) {
  const int64_t width = p.features - p.pairs;  // threads of a row: its pairs, then the copied ones
  for (int64_t at = thread_number(); at < n; at += thread_count()) {
    const int64_t i = at % width, row = at / width % p.rows;
    const int64_t head = at / width / p.rows % p.heads, b = at / width / p.rows / p.heads;
    const T* x = p.x + b * p.x_strides[0] + head * p.x_strides[1] + row * p.x_strides[2];
    T* y = p.y + b * p.y_strides[0] + head * p.y_strides[1] + row * p.y_strides[2];
    if (i >= p.pairs) {
      y[i + p.pairs] = x[i + p.pairs];
      continue;
    }
    const T c = p.cosine[b * p.cosine_strides[0] + row * p.cosine_strides[1] + i];
    const T s = p.sign * p.sine[b * p.sine_strides[0] + row * p.sine_strides[1] + i];
    const int64_t first = p.neighbours ? 2 * i : i, second = p.neighbours ? 2 * i + 1 : i + p.pairs;
    const T x1 = x[first], x2 = x[second];
    y[first] = x1 * c - x2 * s;
    y[second] = x2 * c + x1 * s;
  }
}

template <class T>
void rotary_of(const View& x, const View& cosine, const View& sine, const View& y, bool neighbours,
               bool back) {
  Problem<T> p{};
  p.heads = x.shape[1];
  p.rows = x.shape[2];
  p.features = x.shape[3];
  p.pairs = cosine.shape[2];
  p.x = data<T>(x);
  p.y = data<T>(y);
  p.cosine = data<T>(cosine);
  p.sine = data<T>(sine);
  for (int d = 0; d < 3; ++d) {
    p.x_strides[d] = x.strides[d];
    p.y_strides[d] = y.strides[d];
  }
  for (int d = 0; d < 2; ++d) {
    p.cosine_strides[d] = cosine.strides[d];
    p.sine_strides[d] = sine.strides[d];
  }
  p.neighbours = neighbours;
  p.sign = back ? T(-1) : T(1);
  const int64_t n = x.shape[0] * p.heads * p.rows * (p.features - p.pairs);
  launch("rotary", turn<T>, blocks_for(n, kThreads), kThreads, 0, n, p);
}

}  // namespace

void rotary(In x, In cosine, In sine, Out y, bool neighbours, bool back) {
  if (x.dtype == DType::kFloat32)
    rotary_of<float>(x, cosine, sine, y, neighbours, back);
  else
    rotary_of<double>(x, cosine, sine, y, neighbours, back);
}

}  // namespace grebe::cuda
