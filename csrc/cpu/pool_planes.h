// Pooling of planes (NCHW), any windows.
//
// Forward: a plane is copied into padded, phase-split form (window.h), where every tap of a row of
// outputs is one contiguous load. Backward: each element of gx collects from the windows that reach
// it, in registers; adding to cells that were just stored costs the store-to-load forwarding of
// overlapping windows. A window over the whole plane is a sum of its row.
#pragma once
#include "pool.h"

namespace grebe::GREBE_ISA {
namespace {

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

// The maxima of one split plane. first_column: the first tap of each column of windows.
// kTaps: their number, or 0 for any.
template <class T, class I, bool kNumbers, int kTaps>
void max_plane(const Pool& p, const PlaneScratch& s, const T* plane, const int_of<T>* first_column,
               T* y, I* indices) {
  const Window g = p.window();
  const int64_t row = g.row(), taps = kTaps ? kTaps : g.taps(), width = p.w.out;
  for (int64_t oh = 0; oh < p.h.out; ++oh) {
    const mask_of<T> first_row = splat_index<T>(p.h.first_tap(oh) * p.w.kernel);
    for (int64_t ow = 0; ow < width; ow += lanes<T>) {
      const T* at = plane + oh * p.h.stride * row + ow;
      mask_of<T> first;
      __builtin_memcpy(&first, first_column + ow, sizeof(first));
      Best<T> best{.index = first + first_row};
#pragma GCC unroll 9
      for (int64_t k = 0; k < taps; ++k) best.template offer<kNumbers>(load(at + s.taps[k]), k);
      store_upto(y + oh * p.out.h + ow, best.value, width - ow);
      // Runs over into the next row, which is written later.
      if (indices) store_index<T>(indices + oh * width + ow, best.index);
    }
  }
}

template <class T, class I>
bool max_planes(const Pool& p, const T* x, T* y, I* index) {
  const Window g = p.window();
  const int64_t width = round_up(p.w.out, lanes<T>), pixels = p.h.out * p.w.out;
  const PlaneScratch s = plane_scratch<T>(p, width * static_cast<int64_t>(sizeof(T)),
                                          (pixels + lanes<T>)*static_cast<int64_t>(sizeof(I)));
  if (!s.ok()) return false;
  int_of<T>* first_column = reinterpret_cast<int_of<T>*>(s.base);
  for (int64_t i = 0; i < width; ++i)
    first_column[i] = static_cast<int_of<T>>(i < p.w.out ? p.w.first_tap(i) : 0);
  parallel_region(s.threads, [&](int64_t t, int64_t team) {
    T* plane = reinterpret_cast<T*>(s.plane(t));
    I* indices = index ? reinterpret_cast<I*>(s.extra(t)) : nullptr;
    fill(plane, g.plane() + lanes<T>, -std::numeric_limits<T>::infinity());
    each_plane(p, t, team, [&](int64_t from, int64_t to) {
      split_planes(plane, x + from, p.in, int64_t{1}, g);
      if (has_nan(plane, g.plane()))
        max_plane<T, I, false, 0>(p, s, plane, first_column, y + to, indices);
      else if (g.taps() == 9)
        max_plane<T, I, true, 9>(p, s, plane, first_column, y + to, indices);
      else
        max_plane<T, I, true, 0>(p, s, plane, first_column, y + to, indices);
      if (index) __builtin_memcpy(index + to, indices, sizeof(I) * pixels);
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

// ---- gradients: each input position collects from the windows that reach it ----

// The gradient of one plane lies in rows with a margin on either side, so that the windows of a
// whole vector of columns are one load, shifted by the tap: column s * j + r of the input (s the
// stride) is reached by window j + shift through tap kw, for a few pairs (shift, kw) per r.
struct Collect {
  struct Tap {
    int64_t shift, kw;
  };
  int64_t left, row;  // margin, and length of a row with both margins
  int64_t stride, kernel_w, pad, dilation;
  int64_t* start;  // of each r, in `taps`
  Tap* taps;

  static int64_t bytes(const Axis& w) {
    return (w.stride + 1) * static_cast<int64_t>(sizeof(int64_t)) +
           w.kernel * static_cast<int64_t>(sizeof(Tap));
  }
  static int64_t margin(const Axis& w) { return ((w.kernel - 1) * w.dilation) / w.stride + 1; }
  static int64_t row_of(const Axis& w, int64_t vector) {
    const int64_t columns = round_up((w.in + w.stride - 1) / w.stride, vector);
    const int64_t right = (w.stride - 1 + w.pad) / w.stride;
    return round_up(margin(w) + (columns + right > w.out ? columns + right : w.out), vector);
  }
  Collect(const Axis& w, int64_t vector, char* memory)
      : left(margin(w)),
        row(row_of(w, vector)),
        stride(w.stride),
        kernel_w(w.kernel),
        pad(w.pad),
        dilation(w.dilation),
        start(reinterpret_cast<int64_t*>(memory)),
        taps(reinterpret_cast<Tap*>(start + w.stride + 1)) {
    int64_t n = 0;
    for (int64_t r = 0; r < w.stride; ++r) {
      start[r] = n;
      for (int64_t kw = 0; kw < w.kernel; ++kw) {
        const int64_t distance = r + w.pad - kw * w.dilation;
        if (distance % w.stride == 0) taps[n++] = {distance / w.stride, kw};
      }
    }
    start[w.stride] = n;
  }

  int64_t step() const { return stride; }
  int64_t kernel() const { return kernel_w; }
  // f(shift, kw) for the taps that reach columns s * j + r.
  template <class F>
  void each(int64_t r, const F& f) const {
    for (int64_t i = start[r]; i < start[r + 1]; ++i) f(taps[i].shift, taps[i].kw);
  }
};

// The same for windows known to the compiler.
template <int kKernel, int kStride, int kPad>
struct FixedCollect {
  int64_t row;
  static constexpr int64_t step() { return kStride; }
  static constexpr int64_t kernel() { return kKernel; }
  template <class F>
  void each(int64_t r, const F& f) const {
#pragma GCC unroll 3
    for (int64_t kw = 0; kw < kKernel; ++kw)
      if ((r + kPad + kKernel * kStride - kw) % kStride == 0)
        f((r + kPad + kKernel * kStride - kw) / kStride - kKernel, kw);
  }
};

// f(columns): windows of three columns, as in most networks, are known to the compiler.
template <class F>
void with_columns(const Collect& c, const F& f) {
  const bool three = c.kernel_w == 3 && c.dilation == 1;
  if (three && c.stride == 2 && c.pad == 1)
    f(FixedCollect<3, 2, 1>{c.row});
  else if (three && c.stride == 2 && c.pad == 0)
    f(FixedCollect<3, 2, 0>{c.row});
  else if (three && c.stride == 1 && c.pad == 1)
    f(FixedCollect<3, 1, 1>{c.row});
  else
    f(c);
}

// Writes column s * j + r of a row from lane j of f(r), for `columns` columns.
template <class T, class F>
inline void store_phases(T* to, int64_t s, int64_t columns, const F& f) {
  constexpr int64_t L = lanes<T>;
  if (s == 1) return store_upto(to, f(0), columns);
  if (s == 2) {
    const vec<T> even = f(0), odd = f(1);
    store_upto(to, zip<T, false>(even, odd), columns);
    if (columns > L) store_upto(to + L, zip<T, true>(even, odd), columns - L);
    return;
  }
  for (int64_t r = 0; r < s && r < columns; ++r)
    store_strided_n(to + r, s, f(r), smaller((columns - r + s - 1) / s, L));
}

// One row of gx, from n rows of windows.
template <class T, class Columns, class Share>
void collect_row(T* gx, int64_t width, const Reach::Item* from, int64_t n, const Columns& columns,
                 const T* rows, const Share& share) {
  const int64_t s = columns.step(), kernel_w = columns.kernel(), row = columns.row;
  for (int64_t j = 0; s * j < width; j += lanes<T>)
    store_phases(gx + s * j, s, width - s * j, [=](int64_t r) {
      vec<T> sum{};
      for (int64_t i = 0; i < n; ++i) {
        const T* at = rows + from[i].window * row + j;
        const int64_t tap = from[i].tap * kernel_w;
        columns.each(r, [&](int64_t shift, int64_t kw) { sum += share(at + shift, tap + kw); });
      }
      return sum;
    });
}

// gx of planes. Each thread has `arrays` arrays of rows of Collect: prepare(memory, its elements,
// first window, length of a row) is called once, copy(first window, length of a row, offset of the
// plane) brings the gradient of each plane there; share(place there, tap) is what a vector of
// windows gives through one tap.
template <class T, class Prepare, class Copy, class Share>
bool collect_planes(const Pool& p, T* gx, int64_t arrays, const Prepare& prepare, const Copy& copy,
                    const Share& share) {
  constexpr int64_t L = lanes<T>;
  const int64_t planes = p.batch * p.channels, size = p.h.out * Collect::row_of(p.w, L);
  const int64_t reach_bytes = round_up(Reach::bytes(p.h), 64);
  const int64_t table = reach_bytes + round_up(Collect::bytes(p.w), 64);
  const int64_t own = round_up(arrays * size * static_cast<int64_t>(sizeof(T)), 64);
  const int threads = static_cast<int>(smaller(num_threads(), larger(1, planes)));
  char* memory = static_cast<char*>(scratch(static_cast<size_t>(table + threads * own)));
  if (!memory) return false;
  const Reach reach(p.h, memory);
  const Collect columns(p.w, L, memory + reach_bytes);
  parallel_region(threads, [&](int64_t t, int64_t team) {
    T* rows = reinterpret_cast<T*>(memory + table + t * own);
    prepare(rows, arrays * size, rows + columns.left, columns.row);
    each_plane(p, t, team, [&](int64_t to, int64_t from) {
      copy(rows + columns.left, columns.row, from);
      with_columns(columns, [&](const auto& some) {
        for (int64_t h = 0; h < p.h.in; ++h)
          collect_row(gx + to + h * p.in.h, p.w.in, reach.items + reach.start[h],
                      reach.start[h + 1] - reach.start[h], some, rows + columns.left, share);
      });
    });
  });
  return true;
}

template <class T, class I>
bool max_planes_grad(const Pool& p, T* gx, const T* grad, const I* index) {
  // After the gradients, in the same form, the indices as integers in the bits of T.
  const int64_t size = p.h.out * Collect::row_of(p.w, lanes<T>);
  const I* end = index + p.batch * p.out.n;
  const T no_tap = as_float(splat_index<T>(-1))[0];
  return collect_planes(
      p, gx, 2, [=](T* memory, int64_t n, T*, int64_t) { fill(memory, n, no_tap); },
      [=](T* rows, int64_t row, int64_t from) {
        for (int64_t oh = 0; oh < p.h.out; ++oh)
          for (int64_t ow = 0; ow < p.w.out; ow += lanes<T>) {
            const int64_t at = from + oh * p.out.h + ow, n = smaller(p.w.out - ow, lanes<T>);
            const mask_of<T> k = index + at + lanes<T> <= end ? load_index<T>(index + at)
                                                              : load_index_n<T>(index + at, n);
            T* to = rows + oh * row + ow;
            store_upto(to, load_upto(grad + at, n), n);
            store_upto(to + size, as_float(k), n);
          }
      },
      [=](const T* at, int64_t tap) {
        return select(as_int(load(at + size)) == splat_index<T>(tap), load(at), vec<T>{});
      });
}

template <class T>
bool avg_planes_grad(const Pool& p, T* gx, const T* grad, Divisor divisor) {
  // After the gradients, in the same form, one over what each window divides by.
  const int64_t size = p.h.out * Collect::row_of(p.w, lanes<T>);
  return collect_planes(
      p, gx, 2,
      [=](T* memory, int64_t n, T* rows, int64_t row) {
        fill(memory, n, T(0));
        for (int64_t oh = 0; oh < p.h.out; ++oh)
          for (int64_t ow = 0; ow < p.w.out; ++ow)
            rows[size + oh * row + ow] = T(1) / static_cast<T>(cells_of(p, divisor, oh, ow));
      },
      [=](T* rows, int64_t row, int64_t from) {
        for (int64_t oh = 0; oh < p.h.out; ++oh)
          for (int64_t ow = 0; ow < p.w.out; ow += lanes<T>) {
            const int64_t n = smaller(p.w.out - ow, lanes<T>);
            T* to = rows + oh * row + ow;
            store_upto(to, load_upto(grad + from + oh * p.out.h + ow, n) * load(to + size), n);
          }
      },
      [](const T* at, int64_t) { return load(at); });
}

// ---- one window over each whole plane ----

bool is_whole(const Pool& p) {
  auto whole = [](const Axis& a) { return a.out == 1 && a.kernel == a.in && a.pad == 0; };
  return !p.h.adaptive && whole(p.h) && whole(p.w) && p.in.w == 1 && p.in.h == p.w.in &&
         p.out.c == 1;
}

template <class T, class F>
void each_whole_plane(const Pool& p, const F& f) {
  const int64_t n = p.h.in * p.w.in, channels = p.channels;
  parallel_for(p.batch * channels, larger(1, kWork / n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i / channels * p.in.n + i % channels * p.in.c, n, i);
  });
}

template <class T>
void avg_whole(const Pool& p, const T* x, T* y, Divisor divisor) {
  const T cells = static_cast<T>(cells_of(p, divisor, 0, 0));
  each_whole_plane<T>(p, [=](int64_t from, int64_t n, int64_t i) {
    y[i] = row_sum(x + from, n, [](vec<T> v, int64_t, int64_t) { return v; }) / cells;
  });
}

template <class T>
void avg_whole_grad(const Pool& p, T* gx, const T* grad, Divisor divisor) {
  const T cells = static_cast<T>(cells_of(p, divisor, 0, 0));
  each_whole_plane<T>(p,
                      [=](int64_t to, int64_t n, int64_t i) { fill(gx + to, n, grad[i] / cells); });
}

}  // namespace
}  // namespace grebe::GREBE_ISA
