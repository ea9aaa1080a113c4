// Pooling of planes (NCHW) by windows of 2x2 side by side, the usual pool: rows are read and written
// in place, pairs of columns taken apart, or put together, in registers. See docs/kernels/pool.md.
#pragma once
#include "pool.h"

namespace grebe::GREBE_ISA {
namespace {

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

int64_t tile_grain(const Pool& p) { return larger(1, kWork / (p.h.in * p.w.in)); }

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

template <class T, bool kNumbers>
inline Best<T> best_of(const Cells<T>& c) {
  Best<T> best{c.top_left};
  best.template offer<kNumbers>(c.top_right, 1);
  best.template offer<kNumbers>(c.bottom_left, 2);
  best.template offer<kNumbers>(c.bottom_right, 3);
  return best;
}
template <class T>
inline Best<T> best_of(const Cells<T>& c) {
  const vec<T> nan_if_any = (c.top_left + c.top_right) + (c.bottom_left + c.bottom_right);
  return any(nan_if_any != nan_if_any) ? best_of<T, false>(c) : best_of<T, true>(c);
}

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
      const int64_t n = smaller(t.out_w - ow, L), na = smaller(2 * n, L);
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

template <class T>
void max_tiles(const Pool& p, const T* x, T* y, uint8_t* index) {
  parallel_for(p.batch * p.channels, tile_grain(p), [&](int64_t begin, int64_t end) {
    T* y_end = y + end * p.out.c;
    uint8_t* index_end = index ? index + end * p.out.c : nullptr;
    each_tiled_plane(p, begin, end, [=](Tiles t, int64_t from, int64_t to) {
      each_vector_of_tiles(t, x + from, [=](Cells<T> c, int64_t at, int64_t n, bool halves) {
        const Best<T> best = best_of(c);
        store_tiles(best.value, y + to + at, n, halves, y_end, store<T>, store_n<T>);
        if (index)
          store_tiles(best.index, index + to + at, n, halves, index_end, store_bytes<T>,
                      store_index_n<T, uint8_t>);
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
          const int64_t at = from + oh * t.out_w + w / 2, n = smaller(t.out_w - w / 2, L / 2);
          const auto part = share(twice(load_n(grad + at, n)), at, n);
          const int64_t columns = smaller(t.in_w - w, L);
          store_upto(top + w, part(0), columns);
          store_upto(bottom + w, part(1), columns);
        }
      }
      for (int64_t h = 2 * t.out_h; h < t.in_h; ++h) fill(gx + to + h * t.in_row, t.in_w, T(0));
    });
  });
}

template <class T>
void max_tiles_grad(const Pool& p, T* gx, const T* grad, const uint8_t* index) {
  const uint8_t* end = index + p.batch * p.out.n;
  spread_tiles(p, gx, grad, [=](vec<T> g, int64_t at, int64_t n) {
    const uint8_t* from = index + at;
    const mask_of<T> k = from + lanes<T> <= end ? load_bytes<T>(from) : load_index_n<T>(from, n);
    // 0 or 2 in the window's left column where the maximum is there, -1 or 1 where it is not; in
    // its right column the other way round.
    const mask_of<T> row = twice(k) - (to_int(iota<T>()) & 1);
    return [=](int64_t kh) { return select(row == splat_index<T>(2 * kh), g, vec<T>{}); };
  });
}

template <class T>
void avg_tiles_grad(const Pool& p, T* gx, const T* grad, Divisor divisor) {
  const vec<T> part = splat(T(1) / static_cast<T>(cells_of(p, divisor, 0, 0)));
  spread_tiles(p, gx, grad,
               [=](vec<T> g, int64_t, int64_t) { return [=](int64_t) { return g * part; }; });
}

}  // namespace
}  // namespace grebe::GREBE_ISA
