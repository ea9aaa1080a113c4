// Rotary positions (Su et al. 2021): pairs of features turned by an angle that grows with the position.
//
//   y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin
//
// A pair is (x[i], x[i + R / 2]), or (x[2 i], x[2 i + 1]); features from R on are copied. The gradient
// is the turn back. One pass over x [B, H, L, D] where it is, position by position: the R numbers of
// the tables serve all heads.
//
// Floor: memory, one read and one write per element. Measured: 0.74 of a copy.
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kWork = 16384;  // elements that make a chunk for a thread

template <class T>
void turn_halves(const T* x, const T* cosine, const T* sine, T sign, T* __restrict y,
                 int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const T s = sign * sine[i];
    y[i] = x[i] * cosine[i] - x[i + half] * s;
    y[i + half] = x[i + half] * cosine[i] + x[i] * s;
  }
}

template <class T>
void turn_neighbours(const T* x, const T* cosine, const T* sine, T sign, T* __restrict y,
                     int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const T s = sign * sine[i];
    y[2 * i] = x[2 * i] * cosine[i] - x[2 * i + 1] * s;
    y[2 * i + 1] = x[2 * i + 1] * cosine[i] + x[2 * i] * s;
  }
}

template <class T>
void rotary_of(const View& x, const View& cosine, const View& sine, const View& y, bool neighbours,
               bool back) {
  const int64_t heads = x.shape[1], rows = x.shape[2], d = x.shape[3], half = cosine.shape[2];
  const T sign = back ? T(-1) : T(1);
  const int64_t work = heads * d > 0 ? heads * d : 1, grain = work < kWork ? kWork / work : 1;
  parallel_for(x.shape[0] * rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t b = k / rows, i = k % rows;
      const T* from = data<T>(x) + b * x.strides[0] + i * x.strides[2];
      T* to = data<T>(y) + b * y.strides[0] + i * y.strides[2];
      const T* c = data<T>(cosine) + b * cosine.strides[0] + i * cosine.strides[1];
      const T* s = data<T>(sine) + b * sine.strides[0] + i * sine.strides[1];
      for (int64_t h = 0; h < heads; ++h, from += x.strides[1], to += y.strides[1]) {
        if (neighbours)
          turn_neighbours(from, c, s, sign, to, half);
        else
          turn_halves(from, c, s, sign, to, half);
        for (int64_t j = 2 * half; j < d; ++j) to[j] = from[j];
      }
    }
  });
}

}  // namespace

// x and y [B, H, L, D]; cosine and sine [B, L, R / 2], R <= D; the last dimensions dense, all float32
// or all float64.
void rotary(In x, In cosine, In sine, Out y, bool neighbours, bool back) {
  if (x.dtype == DType::kFloat32)
    rotary_of<float>(x, cosine, sine, y, neighbours, back);
  else
    rotary_of<double>(x, cosine, sine, y, neighbours, back);
}

}  // namespace grebe::GREBE_ISA
