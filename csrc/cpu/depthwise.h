// Convolution with one input channel per group, plane by plane: a padded, phase-split copy of the
// input plane (window.h), then per tap one load and one multiply-add for each vector of a row. With
// stride 1 the input gradient is the same, of the gradient with the taps in reverse.
//
// Floor: bytes, input and output once (there are only as many multiply-adds per output as taps); in
// the caches one load per multiply-add. Measured: docs/kernels/conv.md.
#pragma once
#include "window.h"

namespace grebe::GREBE_ISA {
namespace {

template <class T>
struct Depthwise {
  Window window;
  int64_t batch, channels, multiplier;  // input channels; output channels for each of them
  bool reversed;
  const T *x, *w, *bias;
  Strides xs, ys;
  T* y;
  int64_t* taps;

  // Vectors [first, first + V) of the rows, `per_row` of them in each.
  template <int V>
  void block(const T* plane, const T* scales, T start, T* to, int64_t per_row,
             int64_t first) const {
    const Window& g = window;
    const T* from[V];
    T* out[V];
    int64_t size[V];
    int64_t row = first / per_row, column = first % per_row * lanes<T>;
    for (int v = 0; v < V; ++v) {
      from[v] = plane + row * g.stride_h * g.row() + column;
      out[v] = to + row * ys.h + column * ys.w;
      size[v] = g.out_w - column;
      column += lanes<T>;
      if (column >= g.out_w) column = 0, ++row;
    }
    vec<T> acc[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[v] = splat(start);
    for (int64_t k = 0; k < g.taps(); ++k) {
      const vec<T> scale = splat(scales[reversed ? g.taps() - 1 - k : k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[v] = fma(scale, load(from[v] + taps[k]), acc[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t n = size[v] < lanes<T> ? size[v] : lanes<T>;
      if (ys.w != 1)
        store_strided_n(out[v], ys.w, acc[v], n);
      else if (n == lanes<T>)
        store(out[v], acc[v]);
      else
        store_n(out[v], acc[v], n);
    }
  }

  void item(int64_t index, T* plane) const {
    const int64_t n = index / channels, c = index % channels;
    split_planes(plane, x + n * xs.n + c * xs.c, xs, int64_t{1}, window);
    const int64_t per_row = (window.out_w + lanes<T> - 1) / lanes<T>;
    const Tiling blocks(window.out_h * per_row, 4);
    for (int64_t o = c * multiplier; o < (c + 1) * multiplier; ++o)
      for (int64_t b = 0; b < blocks.count; ++b)
        with_count<4>(blocks.size(b), [&](auto v) {
          block<decltype(v)::value>(plane, w + o * window.taps(), bias ? bias[o] : T(0),
                                    y + n * ys.n + o * ys.c, per_row, blocks.begin(b));
        });
  }

  // False: out of memory.
  bool run() {
    const int64_t items = batch * channels, limit = num_threads();
    const int threads = static_cast<int>(items < limit ? (items > 0 ? items : 1) : limit);
    const int64_t plane_size = window.plane() + lanes<T>;
    Arena measure{nullptr};
    measure.take<int64_t>(window.taps());
    const int64_t shared = measure.used;
    measure.take<T>(plane_size);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * threads)));
    if (!memory) return false;
    taps = reinterpret_cast<int64_t*>(memory);
    for (int64_t kh = 0; kh < window.kernel_h; ++kh)
      for (int64_t kw = 0; kw < window.kernel_w; ++kw)
        taps[kh * window.kernel_w + kw] = window.tap(kh, kw);
    parallel_region(threads, [&](int64_t t, int64_t team) {
      T* plane = reinterpret_cast<T*>(memory + shared + t * own);
      fill(plane, plane_size, T(0));
      for (int64_t i = items * t / team; i < items * (t + 1) / team; ++i) item(i, plane);
    });
    return true;
  }
};

}  // namespace
}  // namespace grebe::GREBE_ISA
