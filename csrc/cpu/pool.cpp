// Maximum and average pooling in two dimensions, forward and backward.
//
// Planes (NCHW) under windows of 2x2 side by side: rows are read and written in place, pairs of
// columns taken apart (or put together) in registers. Other windows: one plane at a time is copied into padded, phase-split form (window.h), so that
// every tap of a row of outputs is one contiguous load. Lanes hold neighbouring outputs. Backward
// adds into a plane of the same form and merges the phases at the end. Channels-last: lanes hold
// channels, the window is clipped per pixel, nothing is copied.
//
// The position of a maximum is kept as its number within the window (kh * kernel_w + kw), one byte
// when that fits. Floor: the bytes of input, output and index once each; see docs/kernels/pool.md.
#include "rows.h"
#include "window.h"

namespace grebe::GREBE_ISA {
namespace {

// One dimension of the windows. Adaptive: window o is [o * in / out, ceil((o + 1) * in / out)).
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;
  bool adaptive;

  int64_t begin(int64_t o) const { return adaptive ? o * in / out : o * stride - pad; }
  int64_t first_tap(int64_t o) const {
    const int64_t b = begin(o);
    return b >= 0 ? 0 : (-b + dilation - 1) / dilation;
  }
  int64_t end_tap(int64_t o) const {
    if (adaptive) return ((o + 1) * in + out - 1) / out - begin(o);
    const int64_t fitting = (in - begin(o) + dilation - 1) / dilation;
    return fitting < kernel ? fitting : kernel;
  }
  // Cells that an average divides by; with padding counted, but nothing beyond it.
  int64_t cells(int64_t o, bool count_pad) const {
    if (!count_pad || adaptive) return end_tap(o) - first_tap(o);
    const int64_t b = begin(o), end = b + kernel, limit = in + pad;
    return (end < limit ? end : limit) - b;
  }
};

struct Divisor {
  bool count_pad;
  int64_t override;  // 0: the number of cells
};

// As many indices as vec<T> has lanes, bytes or int32.
template <class T, class I>
inline mask_of<T> load_index(const I* p) {
  if constexpr (sizeof(I) == 1) {
    return load_bytes<T>(p);
  } else {
    typedef I narrow __attribute__((vector_size(lanes<T> * sizeof(I))));
    narrow v;
    __builtin_memcpy(&v, p, sizeof(v));
    return __builtin_convertvector(v, mask_of<T>);
  }
}
template <class T, class I>
inline void store_index(I* p, mask_of<T> index) {
  if constexpr (sizeof(I) == 1) {
    store_bytes<T>(p, index);
  } else {
    typedef I narrow __attribute__((vector_size(lanes<T> * sizeof(I))));
    const narrow v = __builtin_convertvector(index, narrow);
    __builtin_memcpy(p, &v, sizeof(v));
  }
}
template <class T, class I>
inline mask_of<T> load_index_n(const I* p, int64_t n) {
  I buffer[lanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load_index<T>(buffer);
}
template <class T, class I>
inline void store_index_n(I* p, mask_of<T> index, int64_t n) {
  I buffer[lanes<T>];
  store_index<T>(buffer, index);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

template <class T>
inline mask_of<T> splat_index(int64_t k) {
  return mask_of<T>{} + static_cast<std::remove_reference_t<decltype(mask_of<T>{}[0])>>(k);
}

template <class T>
struct Best {
  vec<T> value = splat(-std::numeric_limits<T>::infinity());
  mask_of<T> index{};

  // The first maximum counts; a NaN beats everything before it.
  void offer(vec<T> v, int64_t k) {
    const mask_of<T> take = (v > value) | (v != v);
    value = select(take, v, value);
    index = select(take, splat_index<T>(k), index);
  }
};

struct Pool {
  Axis h, w;
  int64_t batch, channels;
  Strides in, out;  // of x or its gradient, of y or its gradient

  bool channels_last() const { return h.adaptive || (in.c == 1 && out.c == 1 && channels > 1); }
  Window window() const {
    return {h.in,     w.in,  h.out, w.out,      h.kernel,   w.kernel,        h.stride,
            w.stride, h.pad, w.pad, h.dilation, w.dilation, kVectorBytes / 4};
  }
};

// ---- channels-last ----

template <class T, class F>
void each_pixel(const Pool& p, int64_t begin, int64_t end, const F& f) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / p.h.out, oh = i % p.h.out;
    for (int64_t ow = 0; ow < p.w.out; ++ow)
      f(n * p.in.n + p.h.begin(oh) * p.in.h + p.w.begin(ow) * p.in.w,
        n * p.out.n + oh * p.out.h + ow * p.out.w, oh, ow);
  }
}

// f(offset of the tap, its number) for the taps of window (oh, ow) that lie inside the input.
template <class F>
inline void each_tap(const Pool& p, int64_t oh, int64_t ow, const F& f) {
  const int64_t h1 = p.h.end_tap(oh), w0 = p.w.first_tap(ow), w1 = p.w.end_tap(ow);
  for (int64_t kh = p.h.first_tap(oh); kh < h1; ++kh)
    for (int64_t kw = w0; kw < w1; ++kw)
      f(kh * p.h.dilation * p.in.h + kw * p.w.dilation * p.in.w, kh * p.w.kernel + kw);
}

template <class T, class I>
void max_channels(const Pool& p, const T* x, T* y, I* index) {
  parallel_for(p.batch * p.h.out, int64_t{4}, [&](int64_t begin, int64_t end) {
    each_pixel<T>(p, begin, end, [&](int64_t from, int64_t to, int64_t oh, int64_t ow) {
      const int64_t first = p.h.first_tap(oh) * p.w.kernel + p.w.first_tap(ow);
      for (int64_t c = 0; c < p.channels; c += lanes<T>) {
        const int64_t left = p.channels - c;
        Best<T> best{.index = splat_index<T>(first)};
        each_tap(p, oh, ow, [&](int64_t at, int64_t k) {
          const T* px = x + from + at + c;
          best.offer(left >= lanes<T> ? load(px) : load_n(px, left), k);
        });
        if (left >= lanes<T>) {
          store(y + to + c, best.value);
          if (index) store_index<T>(index + to + c, best.index);
        } else {
          store_n(y + to + c, best.value, left);
          if (index) store_index_n<T>(index + to + c, best.index, left);
        }
      }
    });
  });
}

inline int64_t cells_of(const Pool& p, Divisor d, int64_t oh, int64_t ow) {
  return d.override ? d.override : p.h.cells(oh, d.count_pad) * p.w.cells(ow, d.count_pad);
}

template <class T>
void avg_channels(const Pool& p, const T* x, T* y, Divisor divisor) {
  parallel_for(p.batch * p.h.out, int64_t{4}, [&](int64_t begin, int64_t end) {
    each_pixel<T>(p, begin, end, [&](int64_t from, int64_t to, int64_t oh, int64_t ow) {
      const vec<T> cells = splat(static_cast<T>(cells_of(p, divisor, oh, ow)));
      for (int64_t c = 0; c < p.channels; c += lanes<T>) {
        const int64_t left = p.channels - c;
        vec<T> sum{};
        each_tap(p, oh, ow, [&](int64_t at, int64_t) {
          const T* px = x + from + at + c;
          sum += left >= lanes<T> ? load(px) : load_n(px, left);
        });
        if (left >= lanes<T>)
          store(y + to + c, sum / cells);
        else
          store_n(y + to + c, sum / cells, left);
      }
    });
  });
}

// gx += share(gradient vector, index of its window, tap) over all taps; windows of one image may
// overlap, so an image belongs to one thread.
template <class T, class Share>
void spread_channels(const Pool& p, T* gx, const T* grad, const Share& share) {
  parallel_for(p.batch, int64_t{1}, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t h = 0; h < p.h.in; ++h)
        for (int64_t w = 0; w < p.w.in; ++w)
          fill(gx + n * p.in.n + h * p.in.h + w * p.in.w, p.channels, T(0));
    each_pixel<T>(p, begin * p.h.out, end * p.h.out,
                  [&](int64_t to, int64_t from, int64_t oh, int64_t ow) {
                    for (int64_t c = 0; c < p.channels; c += lanes<T>) {
                      const int64_t left = p.channels - c, size = left < lanes<T> ? left : lanes<T>;
                      const vec<T> g =
                          size == lanes<T> ? load(grad + from + c) : load_n(grad + from + c, size);
                      const auto part = share(g, from + c, size, oh, ow);
                      each_tap(p, oh, ow, [&](int64_t at, int64_t k) {
                        T* px = gx + to + at + c;
                        if (size == lanes<T>)
                          store(px, load(px) + part(k));
                        else
                          store_n(px, load_n(px, size) + part(k), size);
                      });
                    }
                  });
  });
}

// ---- planes: windows of 2 x 2, side by side ----

// No padding, no overlap, nothing left over but a last row and column: the usual pool.
bool is_tiled(const Pool& p) {
  auto tiled = [](const Axis& a) {
    return !a.adaptive && a.kernel == 2 && a.pad == 0 && a.dilation == 1 && 2 * a.out <= a.in &&
           2 * a.out + 1 >= a.in && (a.stride == 2 || a.out == 1);
  };
  return tiled(p.h) && tiled(p.w) && p.in.w == 1 && p.out.w == 1 && p.out.h == p.w.out &&
         p.out.c == p.h.out * p.w.out && p.out.n == p.channels * p.out.c;
}

// A plane of the input, or several that follow each other without a gap and so are a higher one.
struct Tiles {
  int64_t in_h, in_w, in_row, out_h, out_w;
};

// f(tiles, offset in the input, offset in the outputs) for planes [begin, end).
template <class F>
void each_tiled_plane(const Pool& p, int64_t begin, int64_t end, const F& f) {
  const int64_t channels = p.channels, pixels = p.out.c;
  const Strides in = p.in;
  Tiles t{p.h.in, p.w.in, in.h, p.h.out, p.w.out};
  const bool one = in.c == 2 * t.out_h * in.h && in.n == channels * in.c;
  const int64_t planes = one ? end - begin : 1;
  t.in_h *= planes;
  t.out_h *= planes;
  for (int64_t i = begin; i < end; i += planes)
    f(t, i / channels * in.n + i % channels * in.c, i * pixels);
}

int64_t tile_grain(const Pool& p) { return at_least_one(kWork / (p.h.in * p.w.in)); }

// The upper half of v, twice; the elements of the lower half, each twice.
template <class V, size_t... I>
inline V upper_half(V v, std::index_sequence<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(v, v, (static_cast<int>(I) % (n / 2) + n / 2)...);
}
template <class V>
constexpr auto lanes_of = std::make_index_sequence<sizeof(V) / sizeof(V{}[0])>{};
template <class V>
inline V upper_half(V v) {
  return upper_half(v, lanes_of<V>);
}
template <class V>
inline V twice(V v) {
  return zip<false>(v, v, lanes_of<V>);
}

// The four cells of a vector of windows.
template <class T>
struct Cells {
  vec<T> top_left, top_right, bottom_left, bottom_right;
};

// The windows over `na` columns at a, then nb at b, with in_row to the row below.
template <class T>
inline Cells<T> load_cells(const T* a, int64_t na, const T* b, int64_t nb, int64_t in_row) {
  const vec<T> top_a = load_upto(a, na), top_b = load_upto(b, nb);
  const vec<T> bottom_a = load_upto(a + in_row, na), bottom_b = load_upto(b + in_row, nb);
  return {every_second<T, 0>(top_a, top_b), every_second<T, 1>(top_a, top_b),
          every_second<T, 0>(bottom_a, bottom_b), every_second<T, 1>(bottom_a, bottom_b)};
}

// f(cells, where their outputs go, how many, whether the upper half is that many of the next row)
// for all outputs of a plane, in order of memory. Narrow rows share a vector.
template <class T, class F>
inline void each_vector_of_tiles(const Tiles& t, const T* x, const F& f) {
  constexpr int64_t L = lanes<T>;
  int64_t oh = 0;
  if (2 * t.out_w <= L)
    for (; oh + 2 <= t.out_h; oh += 2) {
      const T* row = x + 2 * oh * t.in_row;
      f(load_cells(row, 2 * t.out_w, row + 2 * t.in_row, 2 * t.out_w, t.in_row), oh * t.out_w,
        t.out_w, true);
    }
  for (; oh < t.out_h; ++oh)
    for (int64_t ow = 0; ow < t.out_w; ow += L) {
      const T* a = x + 2 * oh * t.in_row + 2 * ow;
      const int64_t n = at_most(t.out_w - ow, L), na = at_most(2 * n, L);
      f(load_cells(a, na, a + L, 2 * n - na, t.in_row), oh * t.out_w + ow, n, false);
    }
}

// Stores n lanes of v at p, or n lanes of either half one after the other. Where a whole vector
// fits before `end`, it may run over: what belongs there is written later.
template <class V, class P, class Store, class StoreN>
inline void store_tiles(V v, P* p, int64_t n, bool halves, P* end, const Store& store,
                        const StoreN& store_n) {
  constexpr int64_t size = sizeof(V) / sizeof(v[0]);
  for (int half = 0; half < 1 + halves; ++half, p += n, v = upper_half(v))
    p + size <= end ? store(p, v) : store_n(p, v, n);
}

template <class T, class I>
void max_tiles(const Pool& p, const T* x, T* y, I* index) {
  parallel_for(p.batch * p.channels, tile_grain(p), [&](int64_t begin, int64_t end) {
    T* y_end = y + end * p.out.c;
    I* index_end = index ? index + end * p.out.c : nullptr;
    each_tiled_plane(p, begin, end, [=](Tiles t, int64_t from, int64_t to) {
      each_vector_of_tiles(t, x + from, [=](Cells<T> c, int64_t at, int64_t n, bool halves) {
        Best<T> best{c.top_left};
        best.offer(c.top_right, 1);
        best.offer(c.bottom_left, 2);
        best.offer(c.bottom_right, 3);
        store_tiles(best.value, y + to + at, n, halves, y_end, store<T>, store_n<T>);
        if (index)
          store_tiles(best.index, index + to + at, n, halves, index_end, store_index<T, I>,
                      store_index_n<T, I>);
      });
    });
  });
}

template <class T>
void avg_tiles(const Pool& p, const T* x, T* y, Divisor divisor) {
  const T share = T(1) / static_cast<T>(cells_of(p, divisor, 0, 0));
  parallel_for(p.batch * p.channels, tile_grain(p), [&](int64_t begin, int64_t end) {
    T* y_end = y + end * p.out.c;
    const vec<T> factor = splat(share);
    each_tiled_plane(p, begin, end, [=](Tiles t, int64_t from, int64_t to) {
      each_vector_of_tiles(t, x + from, [=](Cells<T> c, int64_t at, int64_t n, bool halves) {
        const vec<T> sum = (c.top_left + c.top_right) + (c.bottom_left + c.bottom_right);
        store_tiles(sum * factor, y + to + at, n, halves, y_end, store<T>, store_n<T>);
      });
    });
  });
}

// Two vectors of gx, one below the other, are share(gradients, each twice; their position; how
// many)(row), row 0 and 1.
template <class T, class Share>
void spread_tiles(const Pool& p, T* gx, const T* grad, const Share& share) {
  constexpr int64_t L = lanes<T>;
  parallel_for(p.batch * p.channels, tile_grain(p), [&](int64_t begin, int64_t end) {
    each_tiled_plane(p, begin, end, [=](Tiles t, int64_t to, int64_t from) {
      for (int64_t oh = 0; oh < t.out_h; ++oh) {
        T* top = gx + to + 2 * oh * t.in_row;
        T* bottom = top + t.in_row;
        for (int64_t w = 0; w < t.in_w; w += L) {
          const int64_t at = from + oh * t.out_w + w / 2, n = at_most(t.out_w - w / 2, L / 2);
          const auto part = share(twice(load_n(grad + at, n)), at, n);
          const int64_t columns = at_most(t.in_w - w, L);
          store_upto(top + w, part(0), columns);
          store_upto(bottom + w, part(1), columns);
        }
      }
      for (int64_t h = 2 * t.out_h; h < t.in_h; ++h) fill(gx + to + h * t.in_row, t.in_w, T(0));
    });
  });
}

// ---- planes: any windows ----

// Scratch of one thread: a split plane, and whatever else a kernel needs per plane.
struct PlaneScratch {
  char* base;
  int64_t* taps;
  int64_t shared, plane_bytes, extra_bytes;
  int threads;
  bool ok() const { return base != nullptr; }
  char* plane(int64_t t) const { return base + shared + t * (plane_bytes + extra_bytes); }
  char* extra(int64_t t) const { return plane(t) + plane_bytes; }
};

template <class T>
PlaneScratch plane_scratch(const Pool& p, int64_t shared, int64_t extra) {
  PlaneScratch s;
  const Window g = p.window();
  const int64_t planes = p.batch * p.channels, most = num_threads();
  s.threads = static_cast<int>(planes < most ? (planes > 0 ? planes : 1) : most);
  const int64_t table = round_up(shared, 64);
  s.shared = table + round_up(g.taps() * static_cast<int64_t>(sizeof(int64_t)), 64);
  s.extra_bytes = round_up(extra, 64);
  s.plane_bytes = round_up((g.plane() + lanes<T>)*static_cast<int64_t>(sizeof(T)), 64);
  s.base = static_cast<char*>(
      scratch(static_cast<size_t>(s.shared + s.threads * (s.plane_bytes + s.extra_bytes))));
  s.taps = reinterpret_cast<int64_t*>(s.base + table);
  if (!s.base) return s;
  for (int64_t kh = 0, k = 0; kh < g.kernel_h; ++kh)
    for (int64_t kw = 0; kw < g.kernel_w; ++kw, ++k) s.taps[k] = g.tap(kh, kw);
  return s;
}

// f(plane of x, plane of y, thread) for every plane, shared out among threads.
template <class F>
void each_plane(const Pool& p, int64_t t, int64_t team, const F& f) {
  const int64_t planes = p.batch * p.channels;
  for (int64_t i = planes * t / team; i < planes * (t + 1) / team; ++i) {
    const int64_t n = i / p.channels, c = i % p.channels;
    f(n * p.in.n + c * p.in.c, n * p.out.n + c * p.out.c);
  }
}

template <class T, class I>
bool max_planes(const Pool& p, const T* x, T* y, I* index) {
  using Int = std::remove_reference_t<decltype(mask_of<T>{}[0])>;
  const Window g = p.window();
  const int64_t row = g.row(), taps = g.taps(), width = round_up(p.w.out, lanes<T>);
  const PlaneScratch s =
      plane_scratch<T>(p, width * static_cast<int64_t>(sizeof(Int)),
                       (p.h.out * p.w.out + lanes<T>)*static_cast<int64_t>(sizeof(I)));
  if (!s.ok()) return false;
  Int* first_column = reinterpret_cast<Int*>(s.base);
  for (int64_t i = 0; i < width; ++i)
    first_column[i] = static_cast<Int>(i < p.w.out ? p.w.first_tap(i) : 0);
  parallel_region(s.threads, [&](int64_t t, int64_t team) {
    T* plane = reinterpret_cast<T*>(s.plane(t));
    I* indices = reinterpret_cast<I*>(s.extra(t));
    fill(plane, g.plane() + lanes<T>, -std::numeric_limits<T>::infinity());
    each_plane(p, t, team, [&](int64_t from, int64_t to) {
      split_planes(plane, x + from, p.in, int64_t{1}, g);
      for (int64_t oh = 0; oh < p.h.out; ++oh) {
        const mask_of<T> first_row = splat_index<T>(p.h.first_tap(oh) * p.w.kernel);
        for (int64_t ow = 0; ow < p.w.out; ow += lanes<T>) {
          const T* at = plane + oh * p.h.stride * row + ow;
          mask_of<T> first;
          __builtin_memcpy(&first, first_column + ow, sizeof(first));
          Best<T> best{.index = first + first_row};
          for (int64_t k = 0; k < taps; ++k) best.offer(load(at + s.taps[k]), k);
          T* py = y + to + oh * p.out.h + ow;
          if (p.w.out - ow >= lanes<T>)
            store(py, best.value);
          else
            store_n(py, best.value, p.w.out - ow);
          // Runs over into the next row, which is written later.
          if (index) store_index<T>(indices + oh * p.w.out + ow, best.index);
        }
      }
      if (index) __builtin_memcpy(index + to, indices, sizeof(I) * p.h.out * p.w.out);
    });
  });
  return true;
}

// Cells of each column of outputs, 1 after the last; rows multiply.
template <class T>
void fill_cells(T* cells, int64_t width, const Axis& w, Divisor d) {
  for (int64_t i = 0; i < width; ++i)
    cells[i] = static_cast<T>(d.override || i >= w.out ? 1 : w.cells(i, d.count_pad));
}
template <class T>
vec<T> row_cells(const Axis& h, Divisor d, int64_t oh) {
  return splat(static_cast<T>(d.override ? d.override : h.cells(oh, d.count_pad)));
}

template <class T>
bool avg_planes(const Pool& p, const T* x, T* y, Divisor divisor) {
  const Window g = p.window();
  const int64_t row = g.row(), taps = g.taps(), width = round_up(p.w.out, lanes<T>);
  const PlaneScratch s = plane_scratch<T>(p, width * static_cast<int64_t>(sizeof(T)), 0);
  if (!s.ok()) return false;
  T* cells = reinterpret_cast<T*>(s.base);
  fill_cells(cells, width, p.w, divisor);
  parallel_region(s.threads, [&](int64_t t, int64_t team) {
    T* plane = reinterpret_cast<T*>(s.plane(t));
    fill(plane, g.plane() + lanes<T>, T(0));
    each_plane(p, t, team, [&](int64_t from, int64_t to) {
      split_planes(plane, x + from, p.in, int64_t{1}, g);
      for (int64_t oh = 0; oh < p.h.out; ++oh) {
        const vec<T> rows = row_cells<T>(p.h, divisor, oh);
        for (int64_t ow = 0; ow < p.w.out; ow += lanes<T>) {
          const T* at = plane + oh * p.h.stride * row + ow;
          vec<T> sum{};
          for (int64_t k = 0; k < taps; ++k) sum += load(at + s.taps[k]);
          sum = sum / (rows * load(cells + ow));
          T* py = y + to + oh * p.out.h + ow;
          if (p.w.out - ow >= lanes<T>)
            store(py, sum);
          else
            store_n(py, sum, p.w.out - ow);
        }
      }
    });
  });
  return true;
}

// dst[2 i] = a[i], dst[2 i + 1] = b[i] for elements of dst below n.
template <class T>
inline void interleave(T* dst, const T* a, const T* b, int64_t n) {
  for (int64_t i = 0; i < n; i += 2 * lanes<T>, a += lanes<T>, b += lanes<T>) {
    const vec<T> u = load(a), v = load(b), low = zip<T, false>(u, v), high = zip<T, true>(u, v);
    const int64_t left = n - i;
    if (left >= 2 * lanes<T>) {
      store(dst + i, low);
      store(dst + i + lanes<T>, high);
    } else {
      store_n(dst + i, low, left < lanes<T> ? left : lanes<T>);
      if (left > lanes<T>) store_n(dst + i + lanes<T>, high, left - lanes<T>);
    }
  }
}

// The inverse of split_planes for one plane; what no window touches gets zero.
template <class T>
void merge_plane(T* dst, const T* src, const Strides& s, const Window& g) {
  const int64_t rows = rows_touched(g);
  const int64_t row = g.row();
  const bool simple = g.stride_w == 2 && g.pad_w == 0 && s.w == 1 && g.in_w <= 2 * g.phase();
  for (int64_t h = 0; h < g.in_h; ++h) {
    T* to = dst + h * s.h;
    const T* from = src + (h + g.pad_h) * row;
    if (h < rows && simple) {
      interleave(to, from, from + g.phase(), g.in_w);
      continue;
    }
    if (h >= rows || g.stride_w * g.phase() - g.pad_w < g.in_w)
      for (int64_t w = 0; w < g.in_w; ++w) to[w * s.w] = T(0);
    if (h < rows)
      for_phases(g, [&](int64_t at, int64_t column, int64_t count) {
        copy_plane(to + column * s.w, int64_t{0}, g.stride_w * s.w, from + at, int64_t{0},
                   int64_t{1}, int64_t{1}, count);
      });
  }
}

// As spread_channels: share(gradient vector, position of its first output in the plane, oh, ow)
// gives a function of the tap. `load_plane(thread, offset)` prepares a plane.
template <class T, class Prepare, class Share>
void spread_planes(const Pool& p, const PlaneScratch& s, T* gx, const T* grad,
                   const Prepare& prepare, const Share& share) {
  const Window g = p.window();
  const int64_t taps = g.taps(), row = g.row();
  parallel_region(s.threads, [&](int64_t t, int64_t team) {
    T* plane = reinterpret_cast<T*>(s.plane(t));
    each_plane(p, t, team, [&](int64_t to, int64_t from) {
      fill(plane, g.plane() + lanes<T>, T(0));
      prepare(t, from);
      for (int64_t oh = 0; oh < p.h.out; ++oh)
        for (int64_t ow = 0; ow < p.w.out; ow += lanes<T>) {
          const T* pg = grad + from + oh * p.out.h + ow;
          const int64_t left = p.w.out - ow;
          const vec<T> value = left >= lanes<T> ? load(pg) : load_n(pg, left);
          const auto part = share(value, t, oh, ow);
          T* at = plane + oh * p.h.stride * row + ow;
          for (int64_t k = 0; k < taps; ++k) {
            T* cell = at + s.taps[k];
            store(cell, load(cell) + part(k));
          }
        }
      merge_plane(gx + to, plane, p.in, g);
    });
  });
}

// ---- dispatch ----

template <class T, class I>
bool max_forward(const Pool& p, In x, Out y, OptOut index) {
  if (is_tiled(p))
    max_tiles(p, data<T>(x), data<T>(y), data<I>(index));
  else if (p.channels_last())
    max_channels(p, data<T>(x), data<T>(y), data<I>(index));
  else
    return max_planes(p, data<T>(x), data<T>(y), data<I>(index));
  return true;
}

template <class T, class I>
bool max_backward(const Pool& p, In grad, In index, Out gx) {
  const I* indices = data<I>(index);
  auto chosen = [](vec<T> g, mask_of<T> best) {
    return [=](int64_t k) { return select(best == splat_index<T>(k), g, vec<T>{}); };
  };
  if (is_tiled(p)) {
    const I* end = indices + p.batch * p.out.n;
    spread_tiles(p, data<T>(gx), data<T>(grad), [=](vec<T> g, int64_t at, int64_t n) {
      const I* from = indices + at;
      const mask_of<T> k = from + lanes<T> <= end ? load_index<T>(from) : load_index_n<T>(from, n);
      // 0 or 2 in the window's left column where the maximum is there, -1 or 1 where it is not; in
      // its right column the other way round.
      const mask_of<T> row = twice(k) - (to_int(iota<T>()) & 1);
      return [=](int64_t kh) { return select(row == splat_index<T>(2 * kh), g, vec<T>{}); };
    });
    return true;
  }
  if (p.channels_last()) {
    spread_channels(p, data<T>(gx), data<T>(grad),
                    [&](vec<T> g, int64_t at, int64_t size, int64_t, int64_t) {
                      return chosen(g, size == lanes<T> ? load_index<T>(indices + at)
                                                        : load_index_n<T>(indices + at, size));
                    });
    return true;
  }
  const int64_t pixels = p.h.out * p.w.out;
  const PlaneScratch s =
      plane_scratch<T>(p, 0, (pixels + lanes<T>)*static_cast<int64_t>(sizeof(I)));
  if (!s.ok()) return false;
  spread_planes(
      p, s, data<T>(gx), data<T>(grad),
      [&](int64_t t, int64_t from) {
        I* own = reinterpret_cast<I*>(s.extra(t));
        __builtin_memcpy(own, indices + from, sizeof(I) * pixels);
        for (int64_t i = 0; i < lanes<T>; ++i) own[pixels + i] = I(0);
      },
      [&](vec<T> g, int64_t t, int64_t oh, int64_t ow) {
        return chosen(g, load_index<T>(reinterpret_cast<I*>(s.extra(t)) + oh * p.w.out + ow));
      });
  return true;
}

template <class T>
bool avg_forward(const Pool& p, In x, Out y, Divisor divisor) {
  if (is_tiled(p))
    avg_tiles(p, data<T>(x), data<T>(y), divisor);
  else if (p.channels_last())
    avg_channels(p, data<T>(x), data<T>(y), divisor);
  else
    return avg_planes(p, data<T>(x), data<T>(y), divisor);
  return true;
}

template <class T>
bool avg_backward(const Pool& p, In grad, Out gx, Divisor divisor) {
  auto constant = [](vec<T> g) { return [=](int64_t) { return g; }; };
  if (is_tiled(p)) {
    const vec<T> part = splat(T(1) / static_cast<T>(cells_of(p, divisor, 0, 0)));
    spread_tiles(p, data<T>(gx), data<T>(grad),
                 [=](vec<T> g, int64_t, int64_t) { return constant(g * part); });
    return true;
  }
  if (p.channels_last()) {
    spread_channels(p, data<T>(gx), data<T>(grad),
                    [&](vec<T> g, int64_t, int64_t, int64_t oh, int64_t ow) {
                      return constant(g / splat(static_cast<T>(cells_of(p, divisor, oh, ow))));
                    });
    return true;
  }
  const int64_t width = round_up(p.w.out, lanes<T>);
  const PlaneScratch s = plane_scratch<T>(p, width * static_cast<int64_t>(sizeof(T)), 0);
  if (!s.ok()) return false;
  T* cells = reinterpret_cast<T*>(s.base);
  fill_cells(cells, width, p.w, divisor);
  spread_planes(
      p, s, data<T>(gx), data<T>(grad), [](int64_t, int64_t) {},
      [&](vec<T> g, int64_t, int64_t oh, int64_t ow) {
        return constant(g / (row_cells<T>(p.h, divisor, oh) * load(cells + ow)));
      });
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

}  // namespace

bool max_pool2d(In x, Out y, OptOut index, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                int64_t dilation_w) {
  const Pool p =
      pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w);
  const bool bytes = !index.data || index.dtype == DType::kUInt8;
  if (x.dtype == DType::kFloat32)
    return bytes ? max_forward<float, uint8_t>(p, x, y, index)
                 : max_forward<float, int32_t>(p, x, y, index);
  return bytes ? max_forward<double, uint8_t>(p, x, y, index)
               : max_forward<double, int32_t>(p, x, y, index);
}

bool max_pool2d_grad(In grad, In index, Out gx, int64_t kernel_h, int64_t kernel_w,
                     int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                     int64_t dilation_h, int64_t dilation_w) {
  const Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
                         dilation_w);
  const bool bytes = index.dtype == DType::kUInt8;
  if (gx.dtype == DType::kFloat32)
    return bytes ? max_backward<float, uint8_t>(p, grad, index, gx)
                 : max_backward<float, int32_t>(p, grad, index, gx);
  return bytes ? max_backward<double, uint8_t>(p, grad, index, gx)
               : max_backward<double, int32_t>(p, grad, index, gx);
}

bool avg_pool2d(In x, Out y, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                int64_t pad_h, int64_t pad_w, bool count_include_pad, int64_t divisor_override) {
  const Pool p = pool_of(x, y, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  const Divisor d{count_include_pad, divisor_override};
  return x.dtype == DType::kFloat32 ? avg_forward<float>(p, x, y, d)
                                    : avg_forward<double>(p, x, y, d);
}

bool avg_pool2d_grad(In grad, Out gx, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                     int64_t stride_w, int64_t pad_h, int64_t pad_w, bool count_include_pad,
                     int64_t divisor_override) {
  const Pool p = pool_of(gx, grad, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1);
  const Divisor d{count_include_pad, divisor_override};
  return gx.dtype == DType::kFloat32 ? avg_backward<float>(p, grad, gx, d)
                                     : avg_backward<double>(p, grad, gx, d);
}

}  // namespace grebe::GREBE_ISA
