// Maximum and average pooling in two dimensions, forward and backward.
//
// Forward a thread makes one output, backward one element of the gradient of x, which it collects
// from the windows that reach it: no atomics, a fixed order. Neighbouring threads take neighbours in
// memory, along a row of a plane or along the channels of a pixel; of these a thread takes 16 bytes
// at a time. Windows of at most 3x3 have their loops unrolled, so that their reads are on the way
// together. An average over whole planes is a warp's work.
// The position of a maximum is its number within the window (kh * kernel_w + kw), a byte where that
// fits.
//
// Floor: memory, input, output and index once each; what windows share comes from the caches. Not
// measured on a device yet.
#include "divider.cuh"

namespace grebe::cuda {
namespace {

constexpr int64_t kLongWindow = 32;  // elements of a plane that a warp adds up
constexpr int kSmallSide = 3;  // of windows with unrolled loops

// One dimension of the windows. Adaptive (stride 0): window o is [o * in / out,
// ceil((o + 1) * in / out)).
struct Axis {
  int in, out, kernel, stride, pad, dilation;
  Divider by_stride;

  Axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        kernel(static_cast<int>(kernel)),
        stride(static_cast<int>(stride)),
        pad(static_cast<int>(pad)),
        dilation(static_cast<int>(dilation)),
        by_stride(stride) {}

  // i * a / b, and the same rounded up: of adaptive windows only.
  static DEVICE int scaled(int64_t i, int a, int b) { return static_cast<int>(i * a / b); }
  static DEVICE int scaled_up(int64_t i, int a, int b) {
    return static_cast<int>((i * a + b - 1) / b);
  }
  DEVICE bool adaptive() const { return stride == 0; }
  DEVICE int begin(int o) const { return adaptive() ? scaled(o, in, out) : o * stride - pad; }
  // Taps [first_tap, end_tap) of the window at `begin` lie inside the input.
  DEVICE int first_tap(int begin) const {
    return begin >= 0 ? 0 : (-begin + dilation - 1) / dilation;
  }
  DEVICE int end_tap(int begin, int o) const {
    if (adaptive()) return scaled_up(o + 1, in, out) - begin;
    if (begin + static_cast<int64_t>(kernel - 1) * dilation < in) return kernel;
    return (in - begin + dilation - 1) / dilation;
  }
  // Cells that an average divides by; with padding counted, but nothing beyond it.
  DEVICE int cells(int o, bool count_pad) const {
    const int b = begin(o);
    if (!count_pad || adaptive()) return end_tap(b, o) - first_tap(b);
    const int64_t end = int64_t{b} + kernel, limit = int64_t{in} + pad;
    return static_cast<int>((end < limit ? end : limit) - b);
  }
  // The windows [first, last] may reach input position i.
  DEVICE int first_window(int i) const {
    if (adaptive()) return scaled(i, out, in);
    const int64_t reach = int64_t{i} + pad - static_cast<int64_t>(kernel - 1) * dilation;
    return reach <= 0 ? 0 : static_cast<int>(by_stride(reach + stride - 1));
  }
  DEVICE int last_window(int i) const {
    const int last = adaptive() ? scaled_up(int64_t{i} + 1, out, in) - 1
                                : static_cast<int>(by_stride(int64_t{i} + pad));
    return last < out ? last : out - 1;
  }
  // The tap of window o that is input position i, or -1.
  DEVICE int tap(int i, int o) const {
    const int distance = i - begin(o);
    if (dilation == 1) return distance;
    return distance % dilation == 0 ? distance / dilation : -1;
  }
};

struct Strides {
  int64_t n, c, h, w;
};
Strides strides_of(const View& v) {
  return {v.strides[0], v.strides[1], v.strides[2], v.strides[3]};
}

// The images, and where a thread's elements lie: `pack` channels of one pixel.
struct Pool {
  Axis h, w;
  int64_t batch, channels;
  Strides in, out;  // of x and y, or of their gradients
  bool pixels;  // channels are neighbours in memory
  int pack;
  bool count_pad;
  int64_t override;  // what averages divide by; 0: the number of cells

  // Cells of a row of windows, by which those of a column are multiplied.
  DEVICE int64_t row_cells(int oh) const { return override ? override : h.cells(oh, count_pad); }
  DEVICE int64_t column_cells(int ow) const { return override ? 1 : w.cells(ow, count_pad); }
};

// Thread numbers as places in images of height x width, in the order of memory.
struct Places {
  bool pixels;
  int pack;
  int64_t count;
  Divider channels, height, width;  // channels in packs

  Places(const Pool& p, int64_t height, int64_t width)
      : pixels(p.pixels),
        pack(p.pack),
        count(p.batch * p.channels / p.pack * height * width),
        channels(p.channels / p.pack),
        height(height),
        width(width) {}
};
struct Place {
  int64_t n, c;
  int h, w;

  DEVICE Place(const Places& a, int64_t i) {
    c = 0;
    if (a.pixels) c = split(i, a.channels) * a.pack;
    w = static_cast<int>(split(i, a.width));
    h = static_cast<int>(split(i, a.height));
    if (!a.pixels) c = split(i, a.channels);
    n = i;
  }
  // The remainder; i becomes the quotient.
  static DEVICE int64_t split(int64_t& i, const Divider& d) {
    const int64_t quotient = d(i), remainder = i - quotient * d.divisor;
    i = quotient;
    return remainder;
  }
  DEVICE int64_t at(const Strides& s) const { return n * s.n + c * s.c + h * s.h + w * s.w; }
  DEVICE int64_t image(const Strides& s) const { return n * s.n + c * s.c; }
};

// The taps of an output's window.
struct Window {
  int h0, h1, w0, w1;  // those inside the input
  int64_t at, step_h, step_w;  // offset of tap (0, 0), and from tap to tap

  DEVICE Window(const Pool& p, const Place& o) {
    const int top = p.h.begin(o.h), left = p.w.begin(o.w);
    h0 = p.h.first_tap(top);
    h1 = p.h.end_tap(top, o.h);
    w0 = p.w.first_tap(left);
    w1 = p.w.end_tap(left, o.w);
    at = o.image(p.in) + top * p.in.h + left * p.in.w;
    step_h = p.h.dilation * p.in.h;
    step_w = p.w.dilation * p.in.w;
  }
  // f(offset, kh, kw) for all taps, by rows; end_row() after each row. kSmall: no more than
  // kSmallSide each way.
  template <bool kSmall, class F, class R>
  DEVICE void each(F f, R end_row) const {
    if constexpr (kSmall) {
#pragma unroll
      for (int kh = 0; kh < kSmallSide; ++kh) {
#pragma unroll
        for (int kw = 0; kw < kSmallSide; ++kw)
          if (kh >= h0 && kh < h1 && kw >= w0 && kw < w1) f(at + kh * step_h + kw * step_w, kh, kw);
        end_row();
      }
    } else {
      for (int kh = h0; kh < h1; ++kh) {
        for (int kw = w0; kw < w1; ++kw) f(at + kh * step_h + kw * step_w, kh, kw);
        end_row();
      }
    }
  }
};

// ---- maximum ----

// The first maximum counts; a NaN beats everything before it.
template <int kCount, bool kSmall, class I, class T>
__global__ void __launch_bounds__(kThreads)
    max_forward(Pool p, Places places, const T* x, T* y, I* index) {
  using W = Wide<T>;
  const int64_t i = thread_number();
  if (i >= places.count) return;
  const Place o(places, i);
  const Window window(p, o);
  W best[kCount];
  int tap[kCount];
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    best[t] = -infinity<W>();
    tap[t] = window.h0 * p.w.kernel + window.w0;
  }
  window.each<kSmall>(
      [&](int64_t at, int kh, int kw) {
        const Pack<T, kCount> v = *reinterpret_cast<const Pack<T, kCount>*>(x + at);
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
          const W value = widen(v.v[t]);
          const bool take = value > best[t] || value != value;
          best[t] = take ? value : best[t];
          tap[t] = take ? kh * p.w.kernel + kw : tap[t];
        }
      },
      [] {});
  Pack<T, kCount> values;
  Pack<I, kCount> taps;
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    values.v[t] = narrow<T>(best[t]);
    taps.v[t] = static_cast<I>(tap[t]);
  }
  const int64_t to = o.at(p.out);
  *reinterpret_cast<Pack<T, kCount>*>(y + to) = values;
  if (index) *reinterpret_cast<Pack<I, kCount>*>(index + to) = taps;
}

template <int kCount, class I, class T>
__global__ void __launch_bounds__(kThreads, 4)
    max_backward(Pool p, Places places, const T* grad, const I* index, T* gx) {
  using W = Wide<T>;
  const int64_t i = thread_number();
  if (i >= places.count) return;
  const Place e(places, i);
  const int h_last = p.h.last_window(e.h);
  const int w_first = p.w.first_window(e.w), w_last = p.w.last_window(e.w);
  const int64_t image = e.image(p.out);
  W sum[kCount] = {};
  for (int oh = p.h.first_window(e.h); oh <= h_last; ++oh) {
    const int kh = p.h.tap(e.h, oh);
    if (kh < 0) continue;
    for (int ow = w_first; ow <= w_last; ++ow) {
      const int kw = p.w.tap(e.w, ow);
      if (kw < 0) continue;
      const int64_t at = image + oh * p.out.h + ow * p.out.w;
      const Pack<I, kCount> taps = *reinterpret_cast<const Pack<I, kCount>*>(index + at);
      const Pack<T, kCount> g = *reinterpret_cast<const Pack<T, kCount>*>(grad + at);
#pragma unroll
      for (int t = 0; t < kCount; ++t)
        sum[t] += taps.v[t] == kh * p.w.kernel + kw ? widen(g.v[t]) : W(0);
    }
  }
  Pack<T, kCount> out;
#pragma unroll
  for (int t = 0; t < kCount; ++t) out.v[t] = narrow<T>(sum[t]);
  *reinterpret_cast<Pack<T, kCount>*>(gx + e.at(p.in)) = out;
}

// ---- average ----

template <int kCount, bool kSmall, class T>
__global__ void __launch_bounds__(kThreads) avg_forward(Pool p, Places places, const T* x, T* y) {
  using W = Wide<T>;
  const int64_t i = thread_number();
  if (i >= places.count) return;
  const Place o(places, i);
  const Window window(p, o);
  W sum[kCount] = {}, row[kCount] = {};  // rows first: long windows stay accurate
  window.each<kSmall>(
      [&](int64_t at, int, int) {
        const Pack<T, kCount> v = *reinterpret_cast<const Pack<T, kCount>*>(x + at);
#pragma unroll
        for (int t = 0; t < kCount; ++t) row[t] += widen(v.v[t]);
      },
      [&] {
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
          sum[t] += row[t];
          row[t] = 0;
        }
      });
  const W cells = static_cast<W>(p.row_cells(o.h) * p.column_cells(o.w));
  Pack<T, kCount> out;
#pragma unroll
  for (int t = 0; t < kCount; ++t) out.v[t] = narrow<T>(sum[t] / cells);
  *reinterpret_cast<Pack<T, kCount>*>(y + o.at(p.out)) = out;
}

// A warp per output: its lanes share the elements of a long window.
template <class T>
__global__ void __launch_bounds__(kThreads) avg_long(Pool p, Places places, const T* x, T* y) {
  using W = Wide<T>;
  const int64_t i = thread_number() / 32;
  if (i >= places.count) return;
  const Place o(places, i);
  const Window window(p, o);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int width = window.w1 - window.w0, taps = (window.h1 - window.h0) * width;
  W sum = 0;
  for (int k = lane; k < taps; k += 32) {
    const int kh = window.h0 + k / width, kw = window.w0 + k % width;
    sum += widen(x[window.at + kh * window.step_h + kw * window.step_w]);
  }
  sum = warp_combine(sum, Plus{});
  if (lane == 0)
    y[o.at(p.out)] = narrow<T>(sum / static_cast<W>(p.row_cells(o.h) * p.column_cells(o.w)));
}

template <int kCount, class T>
__global__ void __launch_bounds__(kThreads, 3)
    avg_backward(Pool p, Places places, const T* grad, T* gx) {
  using W = Wide<T>;
  const int64_t i = thread_number();
  if (i >= places.count) return;
  const Place e(places, i);
  const int h_last = p.h.last_window(e.h);
  const int w_first = p.w.first_window(e.w), w_last = p.w.last_window(e.w);
  const int64_t image = e.image(p.out);
  W sum[kCount] = {};
  for (int oh = p.h.first_window(e.h); oh <= h_last; ++oh) {
    const int64_t row_cells = p.row_cells(oh);
    for (int ow = w_first; ow <= w_last; ++ow) {
      const int64_t at = image + oh * p.out.h + ow * p.out.w;
      const Pack<T, kCount> g = *reinterpret_cast<const Pack<T, kCount>*>(grad + at);
      const W share = 1 / static_cast<W>(row_cells * p.column_cells(ow));
#pragma unroll
      for (int t = 0; t < kCount; ++t) sum[t] = fma(widen(g.v[t]), share, sum[t]);
    }
  }
  Pack<T, kCount> out;
#pragma unroll
  for (int t = 0; t < kCount; ++t) out.v[t] = narrow<T>(sum[t]);
  *reinterpret_cast<Pack<T, kCount>*>(gx + e.at(p.in)) = out;
}

// ---- launches ----

// x, y: the arrays of the input's and the output's shape.
Pool pool_of(const View& x, const View& y, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
             int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
             int64_t dilation_w) {
  const Strides in = strides_of(x), out = strides_of(y);
  const bool pixels = in.c == 1 && out.c == 1 && x.shape[1] > 1;
  return {Axis(x.shape[2], y.shape[2], kernel_h, stride_h, pad_h, dilation_h),
          Axis(x.shape[3], y.shape[3], kernel_w, stride_w, pad_w, dilation_w),
          x.shape[0],
          x.shape[1],
          in,
          out,
          pixels,
          1,
          false,
          0};
}

// Can packs of `count` channels move together?
template <class T>
bool can_pack(const Pool& p, const View& x, const View& y) {
  constexpr int64_t kCount = kPack<T>;
  auto whole = [](const Strides& s) {
    return s.n % kCount == 0 && s.h % kCount == 0 && s.w % kCount == 0;
  };
  return p.pixels && p.channels % kCount == 0 && whole(p.in) && whole(p.out) &&
         is_aligned(data<T>(x)) && is_aligned(data<T>(y));
}

bool is_small(const Pool& p) { return p.h.kernel <= kSmallSide && p.w.kernel <= kSmallSide; }

unsigned blocks_of(const Places& places) { return blocks_for(places.count, kThreads); }

template <int kCount, class I, class T>
void run_max(Pool p, const T* x, T* y, I* index) {
  p.pack = kCount;
  const Places places(p, p.h.out, p.w.out);
  launch("max_pool2d",
         is_small(p) ? max_forward<kCount, true, I, T> : max_forward<kCount, false, I, T>,
         blocks_of(places), kThreads, 0, p, places, x, y, index);
}
template <int kCount, class I, class T>
void run_max_grad(Pool p, const T* grad, const I* index, T* gx) {
  p.pack = kCount;
  const Places places(p, p.h.in, p.w.in);
  launch("max_pool2d", max_backward<kCount, I, T>, blocks_of(places), kThreads, 0, p, places, grad,
         index, gx);
}
template <int kCount, class T>
void run_avg(Pool p, const T* x, T* y) {
  p.pack = kCount;
  const Places places(p, p.h.out, p.w.out);
  launch("avg_pool2d", is_small(p) ? avg_forward<kCount, true, T> : avg_forward<kCount, false, T>,
         blocks_of(places), kThreads, 0, p, places, x, y);
}
template <int kCount, class T>
void run_avg_grad(Pool p, const T* grad, T* gx) {
  p.pack = kCount;
  const Places places(p, p.h.in, p.w.in);
  launch("avg_pool2d", avg_backward<kCount, T>, blocks_of(places), kThreads, 0, p, places, grad,
         gx);
}

// f(element, index): their types. No index: bytes.
template <class F>
void with_types(DType x, const View& index, const F& f) {
  with_float("max_pool2d", x, [&](auto t) {
    if (index.data && index.dtype == DType::kInt32)
      f(t, int32_t{});
    else
      f(t, uint8_t{});
  });
}

}  // namespace

bool max_pool2d(In x, Out y, OptOut index, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                int64_t dilation_w) {
  const Pool p =
      pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w);
  with_types(x.dtype, index, [&](auto t, auto i) {
    using T = decltype(t);
    using I = decltype(i);
    const bool pack = can_pack<T>(p, x, y) && is_aligned(data<I>(index));
    (pack ? run_max<kPack<T>, I, T> : run_max<1, I, T>)(p, data<T>(x), data<T>(y), data<I>(index));
  });
  return true;
}

bool max_pool2d_grad(In grad, In index, Out gx, int64_t kernel_h, int64_t kernel_w,
                     int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                     int64_t dilation_h, int64_t dilation_w) {
  const Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
                         dilation_w);
  with_types(gx.dtype, index, [&](auto t, auto i) {
    using T = decltype(t);
    using I = decltype(i);
    const bool pack = can_pack<T>(p, gx, grad) && is_aligned(data<I>(index));
    (pack ? run_max_grad<kPack<T>, I, T> : run_max_grad<1, I, T>)(p, data<T>(grad), data<I>(index),
                                                                  data<T>(gx));
  });
  return true;
}

bool avg_pool2d(In x, Out y, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                int64_t pad_h, int64_t pad_w, bool count_include_pad, int64_t divisor_override) {
  Pool p = pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  p.count_pad = count_include_pad;
  p.override = divisor_override;
  with_float("avg_pool2d", x.dtype, [&](auto t) {
    using T = decltype(t);
    const Places places(p, p.h.out, p.w.out);
    if (!p.pixels && kernel_h * kernel_w >= kLongWindow)
      launch("avg_pool2d", avg_long<T>, blocks_for(places.count, kThreads / 32), kThreads, 0, p,
             places, static_cast<const T*>(data<T>(x)), data<T>(y));
    else
      (can_pack<T>(p, x, y) ? run_avg<kPack<T>, T> : run_avg<1, T>)(p, data<T>(x), data<T>(y));
  });
  return true;
}

bool avg_pool2d_grad(In grad, Out gx, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                     int64_t stride_w, int64_t pad_h, int64_t pad_w, bool count_include_pad,
                     int64_t divisor_override) {
  Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  p.count_pad = count_include_pad;
  p.override = divisor_override;
  with_float("avg_pool2d", gx.dtype, [&](auto t) {
    using T = decltype(t);
    (can_pack<T>(p, gx, grad) ? run_avg_grad<kPack<T>, T> : run_avg_grad<1, T>)(p, data<T>(grad),
                                                                                data<T>(gx));
  });
  return true;
}

}  // namespace grebe::cuda
