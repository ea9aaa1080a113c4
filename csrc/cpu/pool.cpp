// Maximum and average pooling in two dimensions, forward and backward.
//
// Planes (NCHW): lanes hold neighbouring outputs. Windows of 2x2 side by side have kernels of their
// own (pool_tiles.h); all others are in pool_planes.h. Channels-last, here: lanes hold channels,
// windows are clipped per pixel, and each pixel of gx collects from the windows that reach it.
//
// The position of a maximum is kept as its number within the window (kh * kernel_w + kw), one byte
// when that fits. Floor: the bytes of input, output and index once each; see docs/kernels/pool.md.
#include "pool_planes.h"
#include "pool_tiles.h"

namespace grebe::GREBE_ISA {
namespace {

// ---- channels-last ----

// f(offset of the window in the input, offset of its output, oh, ow)
template <class F>
void each_pixel(const Pool& p, int64_t begin, int64_t end, const F& f) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / p.h.out, oh = i % p.h.out;
    for (int64_t ow = 0; ow < p.w.out; ++ow)
      f(n * p.in.n + p.h.begin(oh) * p.in.h + p.w.begin(ow) * p.in.w,
        n * p.out.n + oh * p.out.h + ow * p.out.w, oh, ow);
  }
}

// Calls f(number of vectors, first channel, channels in the last vector) for blocks of channels.
template <class T, class F>
inline void each_block(int64_t channels, const F& f) {
  constexpr int64_t L = lanes<T>;
  int64_t c = 0;
  for (; c + 4 * L <= channels; c += 4 * L) f(std::integral_constant<int, 4>{}, c, L);
  for (; c < channels; c += L) f(std::integral_constant<int, 1>{}, c, smaller(channels - c, L));
}

// Taps of a window that lie inside the input: their rows and columns.
struct Inside {
  int64_t h0, h1, w0, w1;
  Inside(const Pool& p, int64_t oh, int64_t ow)
      : h0(p.h.first_tap(oh)), h1(p.h.end_tap(oh)), w0(p.w.first_tap(ow)), w1(p.w.end_tap(ow)) {}
};

int64_t row_grain(const Pool& p) { return larger(1, kWork / (p.w.in * p.channels)); }

template <class T, class I, bool kNumbers>
void max_pixel(const Pool& p, const Inside& in, const T* x, T* y, I* index) {
  constexpr int64_t L = lanes<T>;
  const int64_t step_h = p.h.dilation * p.in.h, step_w = p.w.dilation * p.in.w;
  each_block<T>(p.channels, [=](auto count, int64_t c, int64_t n) {
    constexpr int V = count;
    Best<T> best[V];
    for (Best<T>& b : best) b.index = splat_index<T>(in.h0 * p.w.kernel + in.w0);
    for (int64_t kh = in.h0; kh < in.h1; ++kh)
      for (int64_t kw = in.w0; kw < in.w1; ++kw) {
        const T* at = x + kh * step_h + kw * step_w + c;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          best[v].template offer<kNumbers>(V > 1 ? load(at + v * L) : load_upto(at, n),
                                           kh * p.w.kernel + kw);
      }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store_upto(y + c + v * L, best[v].value, n);
      if (!index) continue;
      if (n == L)
        store_index<T>(index + c + v * L, best[v].index);
      else
        store_index_n<T>(index + c, best[v].index, n);
    }
  });
}

template <class T, class I>
void max_channels(const Pool& p, const T* x, T* y, I* index) {
  const int64_t row = p.w.in * p.channels;
  parallel_for(p.batch * p.h.out, row_grain(p), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / p.h.out, oh = i % p.h.out;
      bool nan = false;
      for (int64_t kh = p.h.first_tap(oh); kh < p.h.end_tap(oh); ++kh)
        nan |= has_nan(x + n * p.in.n + (p.h.begin(oh) + kh * p.h.dilation) * p.in.h, row);
      each_pixel(p, i, i + 1, [&](int64_t from, int64_t to, int64_t oh, int64_t ow) {
        I* k = index ? index + to : nullptr;
        const Inside in(p, oh, ow);
        nan ? max_pixel<T, I, false>(p, in, x + from, y + to, k)
            : max_pixel<T, I, true>(p, in, x + from, y + to, k);
      });
    }
  });
}

template <class T>
void avg_channels(const Pool& p, const T* x, T* y, Divisor divisor) {
  constexpr int64_t L = lanes<T>;
  const int64_t step_h = p.in.h, step_w = p.in.w;
  parallel_for(p.batch * p.h.out, row_grain(p), [&](int64_t begin, int64_t end) {
    each_pixel(p, begin, end, [&](int64_t from, int64_t to, int64_t oh, int64_t ow) {
      const vec<T> cells = splat(static_cast<T>(cells_of(p, divisor, oh, ow)));
      const Inside in(p, oh, ow);
      each_block<T>(p.channels, [=](auto count, int64_t c, int64_t n) {
        constexpr int V = count;
        vec<T> sum[V] = {};
        for (int64_t kh = in.h0; kh < in.h1; ++kh) {
          vec<T> row[V] = {};  // rows first: long windows stay accurate
          for (int64_t kw = in.w0; kw < in.w1; ++kw) {
            const T* at = x + from + kh * step_h + kw * step_w + c;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) row[v] += V > 1 ? load(at + v * L) : load_upto(at, n);
          }
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) sum[v] += row[v];
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store_upto(y + to + c + v * L, sum[v] / cells, n);
      });
    });
  });
}

// Each pixel of gx collects share(offset of a window's channel, tap, channels) from the windows
// that reach it; oh * w.out + ow is the window's number.
template <class T, class Share>
void collect_channels(const Pool& p, const Reach& rows, const Reach& columns, T* gx,
                      const Share& share) {
  constexpr int64_t L = lanes<T>;
  const int64_t in_h = p.h.in, in_w = p.w.in, kernel_w = p.w.kernel;
  parallel_for(p.batch * in_h, row_grain(p), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / in_h, h = i % in_h;
      for (int64_t w = 0; w < in_w; ++w)
        each_block<T>(p.channels, [&](auto count, int64_t c, int64_t left) {
          constexpr int V = count;
          vec<T> sum[V] = {};
          for (int64_t a = rows.start[h]; a < rows.start[h + 1]; ++a)
            for (int64_t b = columns.start[w]; b < columns.start[w + 1]; ++b) {
              const int64_t oh = rows.items[a].window, ow = columns.items[b].window;
              const int64_t at = n * p.out.n + oh * p.out.h + ow * p.out.w + c;
              const auto part =
                  share(oh * p.w.out + ow, rows.items[a].tap * kernel_w + columns.items[b].tap);
#pragma GCC unroll 4
              for (int v = 0; v < V; ++v) sum[v] += part(at + v * L, V > 1 ? L : left);
            }
          T* to = gx + n * p.in.n + h * p.in.h + w * p.in.w + c;
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) store_upto(to + v * L, sum[v], left);
        });
    }
  });
}

// Memory for the two lists of collect_channels, with `more` bytes after them.
struct ReachScratch {
  int64_t rows, columns;
  char* base;
  ReachScratch(const Pool& p, int64_t more)
      : rows(round_up(Reach::bytes(p.h), 64)), columns(round_up(Reach::bytes(p.w), 64)) {
    base = static_cast<char*>(scratch(static_cast<size_t>(rows + columns + more)));
  }
};

template <class T, class I>
bool max_channels_grad(const Pool& p, T* gx, const T* grad, const I* index) {
  const ReachScratch s(p, 0);
  if (!s.base) return false;
  collect_channels(
      p, Reach(p.h, s.base), Reach(p.w, s.base + s.rows), gx, [=](int64_t, int64_t tap) {
        return [=](int64_t at, int64_t n) {
          const mask_of<T> k =
              n == lanes<T> ? load_index<T>(index + at) : load_index_n<T>(index + at, n);
          return select(k == splat_index<T>(tap), load_upto(grad + at, n), vec<T>{});
        };
      });
  return true;
}

template <class T>
bool avg_channels_grad(const Pool& p, T* gx, const T* grad, Divisor divisor) {
  const ReachScratch s(p, p.h.out * p.w.out * static_cast<int64_t>(sizeof(T)));
  if (!s.base) return false;
  T* parts = reinterpret_cast<T*>(s.base + s.rows + s.columns);
  for (int64_t oh = 0; oh < p.h.out; ++oh)
    for (int64_t ow = 0; ow < p.w.out; ++ow)
      parts[oh * p.w.out + ow] = T(1) / static_cast<T>(cells_of(p, divisor, oh, ow));
  collect_channels(p, Reach(p.h, s.base), Reach(p.w, s.base + s.rows), gx,
                   [=](int64_t window, int64_t) {
                     const vec<T> part = splat(parts[window]);
                     return [=](int64_t at, int64_t n) { return load_upto(grad + at, n) * part; };
                   });
  return true;
}

// ---- dispatch ----

// The positions in windows of 2x2 are bytes, so tiles know no other index.
template <class T, class I>
bool max_forward(const Pool& p, const T* x, T* y, I* index) {
  if constexpr (sizeof(I) == 1)
    if (is_tiled(p)) return max_tiles(p, x, y, index), true;
  if (p.channels_last()) return max_channels(p, x, y, index), true;
  return max_planes(p, x, y, index);
}

template <class T, class I>
bool max_backward(const Pool& p, const T* grad, const I* index, T* gx) {
  if constexpr (sizeof(I) == 1)
    if (is_tiled(p)) return max_tiles_grad(p, gx, grad, index), true;
  return p.channels_last() ? max_channels_grad(p, gx, grad, index)
                           : max_planes_grad(p, gx, grad, index);
}

template <class T>
bool avg_forward(const Pool& p, const T* x, T* y, Divisor divisor) {
  if (is_tiled(p))
    avg_tiles(p, x, y, divisor);
  else if (is_whole(p))
    avg_whole(p, x, y, divisor);
  else if (p.channels_last())
    avg_channels(p, x, y, divisor);
  else
    return avg_planes(p, x, y, divisor);
  return true;
}

template <class T>
bool avg_backward(const Pool& p, const T* grad, T* gx, Divisor divisor) {
  if (is_tiled(p))
    avg_tiles_grad(p, gx, grad, divisor);
  else if (is_whole(p))
    avg_whole_grad(p, gx, grad, divisor);
  else
    return p.channels_last() ? avg_channels_grad(p, gx, grad, divisor)
                             : avg_planes_grad(p, gx, grad, divisor);
  return true;
}

Pool pool_of(const View& x, const View& y, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
             int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
             int64_t dilation_w) {
  const bool adaptive = stride_h == 0;
  return {{x.shape[2], y.shape[2], kernel_h, stride_h, pad_h, dilation_h, adaptive},
          {x.shape[3], y.shape[3], kernel_w, stride_w, pad_w, dilation_w, adaptive},
          x.shape[0],
          x.shape[1],
          strides_of(x),
          strides_of(y)};
}

// f(element, index): their types.
template <class F>
bool with_types(DType x, DType index, const F& f) {
  if (x == DType::kFloat32)
    return index == DType::kUInt8 ? f(float{}, uint8_t{}) : f(float{}, int32_t{});
  return index == DType::kUInt8 ? f(double{}, uint8_t{}) : f(double{}, int32_t{});
}

}  // namespace

bool max_pool2d(In x, Out y, OptOut index, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                int64_t dilation_w) {
  const Pool p =
      pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w);
  return with_types(x.dtype, index.data ? index.dtype : DType::kUInt8, [&](auto t, auto i) {
    return max_forward(p, data<decltype(t)>(x), data<decltype(t)>(y), data<decltype(i)>(index));
  });
}

bool max_pool2d_grad(In grad, In index, Out gx, int64_t kernel_h, int64_t kernel_w,
                     int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                     int64_t dilation_h, int64_t dilation_w) {
  const Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
                         dilation_w);
  return with_types(gx.dtype, index.dtype, [&](auto t, auto i) {
    return max_backward(p, data<decltype(t)>(grad), data<decltype(i)>(index),
                        data<decltype(t)>(gx));
  });
}

bool avg_pool2d(In x, Out y, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                int64_t pad_h, int64_t pad_w, bool count_include_pad, int64_t divisor_override) {
  const Pool p = pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  const Divisor d{count_include_pad, divisor_override};
  return x.dtype == DType::kFloat32 ? avg_forward(p, data<float>(x), data<float>(y), d)
                                    : avg_forward(p, data<double>(x), data<double>(y), d);
}

bool avg_pool2d_grad(In grad, Out gx, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                     int64_t stride_w, int64_t pad_h, int64_t pad_w, bool count_include_pad,
                     int64_t divisor_override) {
  const Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  const Divisor d{count_include_pad, divisor_override};
  return gx.dtype == DType::kFloat32 ? avg_backward(p, data<float>(grad), data<float>(gx), d)
                                     : avg_backward(p, data<double>(grad), data<double>(gx), d);
}

}  // namespace grebe::GREBE_ISA
