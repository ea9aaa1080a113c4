// Maximum and average over sliding or adaptive windows, forward and backward, for planes and
// channels-last images.
//
// Idea: a thread per output forward, a thread per input backward, which collects from the windows that
// reach it: no atomics. Neighbouring threads take neighbours in memory, along a row or along the
// channels. The position of a maximum is its tap's number within the window, a byte where that fits.
//
// Floor: memory. Not measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

// One dimension of the windows. Adaptive: window o is [o * in / out, ceil((o + 1) * in / out)).
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;
  bool adaptive;

  DEVICE int64_t begin(int64_t o) const { return adaptive ? o * in / out : o * stride - pad; }
  DEVICE int64_t first_tap(int64_t o) const {
    const int64_t b = begin(o);
    return b >= 0 ? 0 : (-b + dilation - 1) / dilation;
  }
  DEVICE int64_t end_tap(int64_t o) const {
    if (adaptive) return ((o + 1) * in + out - 1) / out - begin(o);
    const int64_t fitting = (in - begin(o) + dilation - 1) / dilation;
    return fitting < kernel ? fitting : kernel;
  }
  // Cells that an average divides by; with padding counted, but nothing beyond it.
  DEVICE int64_t cells(int64_t o, bool count_pad) const {
    if (!count_pad || adaptive) return end_tap(o) - first_tap(o);
    const int64_t b = begin(o), end = b + kernel, limit = in + pad;
    return (end < limit ? end : limit) - b;
  }
  // The first window that may reach input position i.
  DEVICE int64_t first_window(int64_t i) const {
    if (adaptive) {
      int64_t o = i * out / in;
      while (o > 0 && (o * in + out - 1) / out > i) --o;
      return o;
    }
    const int64_t reach = i + pad - (kernel - 1) * dilation;
    return reach <= 0 ? 0 : (reach + stride - 1) / stride;
  }
  // f(window, tap) for all windows that reach input position i.
  template <class F>
  DEVICE void each_window(int64_t i, F f) const {
    for (int64_t o = first_window(i); o < out && begin(o) <= i; ++o) {
      const int64_t offset = i - begin(o);
      if (offset % dilation == 0 && offset / dilation < (adaptive ? end_tap(o) : kernel))
        f(o, offset / dilation);
    }
  }
};

struct Strides {
  int64_t n, c, h, w;
  DEVICE int64_t at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return in * n + ic * c + ih * h + iw * w;
  }
};
Strides strides_of(const View& v) {
  return {v.strides[0], v.strides[1], v.strides[2], v.strides[3]};
}

struct Pool {
  Axis h, w;
  int64_t batch, channels;
  bool pixels;  // channels lie side by side
  Strides in, out, index;
  bool count_pad;
  int64_t override;  // what averages divide by; 0: the number of cells

  DEVICE int64_t cells(int64_t oh, int64_t ow) const {
    return override ? override : h.cells(oh, count_pad) * w.cells(ow, count_pad);
  }
};

// Coordinates of element `i` of images height x width, in the order of memory.
struct Position {
  int64_t n, c, h, w;
  DEVICE Position(const Pool& p, int64_t i, int64_t height, int64_t width) {
    if (p.pixels) {
      c = i % p.channels;
      i /= p.channels;
    }
    w = i % width;
    i /= width;
    h = i % height;
    i /= height;
    if (!p.pixels) {
      c = i % p.channels;
      i /= p.channels;
    }
    n = i;
  }
};

// The first maximum counts; a NaN beats everything before it.
template <class T, class I>
__global__ void __launch_bounds__(kThreads) max_forward(Pool p, const T* x, T* y, I* index) {
  const int64_t size = p.batch * p.channels * p.h.out * p.w.out;
  for (int64_t i = thread_number(); i < size; i += thread_count()) {
    const Position at(p, i, p.h.out, p.w.out);
    const int64_t h_end = p.h.end_tap(at.h), w_end = p.w.end_tap(at.w);
    T best = -infinity<T>();
    int64_t tap = 0;
    for (int64_t kh = p.h.first_tap(at.h); kh < h_end; ++kh)
      for (int64_t kw = p.w.first_tap(at.w); kw < w_end; ++kw) {
        const T v = x[p.in.at(at.n, at.c, p.h.begin(at.h) + kh * p.h.dilation,
                              p.w.begin(at.w) + kw * p.w.dilation)];
        if (v > best || v != v) {
          best = v;
          tap = kh * p.w.kernel + kw;
        }
      }
    y[p.out.at(at.n, at.c, at.h, at.w)] = best;
    if (index) index[p.index.at(at.n, at.c, at.h, at.w)] = static_cast<I>(tap);
  }
}

template <class T, class I>
__global__ void __launch_bounds__(kThreads)
    max_backward(Pool p, const T* grad, const I* index, T* gx) {
  const int64_t size = p.batch * p.channels * p.h.in * p.w.in;
  for (int64_t i = thread_number(); i < size; i += thread_count()) {
    const Position at(p, i, p.h.in, p.w.in);
    T sum = 0;
    p.h.each_window(at.h, [&](int64_t oh, int64_t kh) {
      p.w.each_window(at.w, [&](int64_t ow, int64_t kw) {
        if (index[p.index.at(at.n, at.c, oh, ow)] == kh * p.w.kernel + kw)
          sum += grad[p.out.at(at.n, at.c, oh, ow)];
      });
    });
    gx[p.in.at(at.n, at.c, at.h, at.w)] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) avg_forward(Pool p, const T* x, T* y) {
  const int64_t size = p.batch * p.channels * p.h.out * p.w.out;
  for (int64_t i = thread_number(); i < size; i += thread_count()) {
    const Position at(p, i, p.h.out, p.w.out);
    const int64_t h_end = p.h.end_tap(at.h), w_end = p.w.end_tap(at.w);
    T sum = 0;
    for (int64_t kh = p.h.first_tap(at.h); kh < h_end; ++kh) {
      T row = 0;  // two levels keep the chains of additions short
      for (int64_t kw = p.w.first_tap(at.w); kw < w_end; ++kw)
        row += x[p.in.at(at.n, at.c, p.h.begin(at.h) + kh, p.w.begin(at.w) + kw)];
      sum += row;
    }
    y[p.out.at(at.n, at.c, at.h, at.w)] = sum / static_cast<T>(p.cells(at.h, at.w));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) avg_backward(Pool p, const T* grad, T* gx) {
  const int64_t size = p.batch * p.channels * p.h.in * p.w.in;
  for (int64_t i = thread_number(); i < size; i += thread_count()) {
    const Position at(p, i, p.h.in, p.w.in);
    T sum = 0;
    p.h.each_window(at.h, [&](int64_t oh, int64_t) {
      p.w.each_window(at.w, [&](int64_t ow, int64_t) {
        sum += grad[p.out.at(at.n, at.c, oh, ow)] / static_cast<T>(p.cells(oh, ow));
      });
    });
    gx[p.in.at(at.n, at.c, at.h, at.w)] = sum;
  }
}

// x: the input or its gradient, y: the output or its.
Pool pool_of(const View& x, const View& y, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
             int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
             int64_t dilation_w) {
  const bool adaptive = stride_h == 0;
  Pool p{};
  p.h = {x.shape[2], y.shape[2], kernel_h, stride_h, pad_h, dilation_h, adaptive};
  p.w = {x.shape[3], y.shape[3], kernel_w, stride_w, pad_w, dilation_w, adaptive};
  p.batch = x.shape[0];
  p.channels = x.shape[1];
  p.pixels = x.strides[1] == 1 && y.strides[1] == 1;
  p.in = strides_of(x);
  p.out = strides_of(y);
  return p;
}

// f(element, index): their types.
template <class F>
void with_types(DType x, DType index, const F& f) {
  if (x == DType::kFloat32)
    index == DType::kUInt8 ? f(float{}, uint8_t{}) : f(float{}, int32_t{});
  else if (x == DType::kFloat64)
    index == DType::kUInt8 ? f(double{}, uint8_t{}) : f(double{}, int32_t{});
  else
    unsupported("max_pool2d", x);
}

}  // namespace

bool max_pool2d(In x, Out y, OptOut index, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                int64_t dilation_w) {
  Pool p =
      pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w);
  if (index.data) p.index = strides_of(index);
  with_types(x.dtype, index.data ? index.dtype : DType::kUInt8, [&](auto t, auto i) {
    using T = decltype(t);
    using I = decltype(i);
    launch("max_pool2d", max_forward<T, I>, blocks_for(numel(y), kThreads), kThreads, 0, p,
           static_cast<const T*>(data<T>(x)), data<T>(y), data<I>(index));
  });
  return true;
}

bool max_pool2d_grad(In grad, In index, Out gx, int64_t kernel_h, int64_t kernel_w,
                     int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                     int64_t dilation_h, int64_t dilation_w) {
  Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
                   dilation_w);
  p.index = strides_of(index);
  with_types(gx.dtype, index.dtype, [&](auto t, auto i) {
    using T = decltype(t);
    using I = decltype(i);
    launch("max_pool2d", max_backward<T, I>, blocks_for(numel(gx), kThreads), kThreads, 0, p,
           static_cast<const T*>(data<T>(grad)), static_cast<const I*>(data<I>(index)),
           data<T>(gx));
  });
  return true;
}

bool avg_pool2d(In x, Out y, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                int64_t pad_h, int64_t pad_w, bool count_include_pad, int64_t divisor_override) {
  Pool p = pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  p.count_pad = count_include_pad;
  p.override = divisor_override;
  with_types(x.dtype, DType::kUInt8, [&](auto t, auto) {
    using T = decltype(t);
    launch("avg_pool2d", avg_forward<T>, blocks_for(numel(y), kThreads), kThreads, 0, p,
           static_cast<const T*>(data<T>(x)), data<T>(y));
  });
  return true;
}

bool avg_pool2d_grad(In grad, Out gx, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                     int64_t stride_w, int64_t pad_h, int64_t pad_w, bool count_include_pad,
                     int64_t divisor_override) {
  Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  p.count_pad = count_include_pad;
  p.override = divisor_override;
  with_types(gx.dtype, DType::kUInt8, [&](auto t, auto) {
    using T = decltype(t);
    launch("avg_pool2d", avg_backward<T>, blocks_for(numel(gx), kThreads), kThreads, 0, p,
           static_cast<const T*>(data<T>(grad)), data<T>(gx));
  });
  return true;
}

}  // namespace grebe::cuda
