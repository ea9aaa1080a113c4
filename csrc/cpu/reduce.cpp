// Reductions over any dimensions of an array with any strides: sum, extrema, moments, arg-extrema.
//
// Idea: dimensions are split into kept and reduced ones, ordered by stride and merged, so that two
// loops serve every layout: "rows" where the fastest dimension is reduced (a vector accumulates
// along it) and "columns" where it is kept (a tile of columns accumulates down the reduced rows).
//
// Rows of up to some thousand elements would mostly be adding up lanes and keeping compensated
// totals: there as many rows as a vector has lanes are added up together, by a tree of interleavings
// that leaves one result per lane. Columns too many for registers go eight rows at a time into
// accumulators in cache, so that memory is read along the rows.
//
// Accuracy: vector accumulators take a few thousand elements at most (columns: 128 rows), then go
// into a compensated double total. The error is that of a short sum, whatever the length.
// Determinism: where few results have long reductions, the reduction is cut into chunks that depend
// on the shape only; partial totals are combined in the order of chunks.
//
// Floor: reading x once (moments: twice), 4 or 8 bytes per element. Measured: docs/kernels/reduce.md.
#include "rows.h"
#include "window.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kRowFlush = 64 * kVectorBytes;  // elements per flush of the vector accumulators
constexpr int64_t kColumnFlush = 128;  // rows per flush
constexpr int64_t kChunk = 65536;  // elements of x per unit of a cut reduction
constexpr int64_t kEnoughUnits = 16;  // with so many results nothing is cut
constexpr int64_t kThreadElements = 32768;  // a thread gets at least so much of x
constexpr int kTileVectors = 8;  // columns whose accumulators are registers
constexpr int kWideVectors = 64;  // columns whose accumulators stay in the first-level cache

// ---- how the array lies ----

struct Plan {
  int kept = 0, reduced = 0;
  int64_t outputs = 1, count = 1;  // results, and elements of x behind each
  int64_t size[kMaxDims], stride[kMaxDims], y_stride[kMaxDims], z_stride[kMaxDims];  // kept
  int64_t r_size[kMaxDims], r_stride[kMaxDims];  // reduced
  bool rows;
  int64_t chunks, chunk;  // the reduction is cut into chunks of `chunk` elements
};

inline int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

// A 0-d y stands for all dimensions reduced. z: a second array of y's shape, with strides of its
// own, or y again.
Plan make_plan(const View& x, const View& y, const View& z) {
  Plan p;
  int order[kMaxDims], n = 0;
  for (int d = 0; d < x.ndim; ++d) {
    if (x.shape[d] == 1) continue;
    int at = n++;
    for (; at > 0 && magnitude(x.strides[order[at - 1]]) < magnitude(x.strides[d]); --at)
      order[at] = order[at - 1];
    order[at] = d;
  }
  for (int i = 0; i < n; ++i) {
    const int d = order[i];
    const int64_t size = x.shape[d], stride = x.strides[d];
    if (y.ndim == 0 || y.shape[d] == 1) {
      const int last = p.reduced - 1;
      const bool merge = last >= 0 && p.r_stride[last] == stride * size;
      const int at = merge ? last : p.reduced++;
      p.r_size[at] = merge ? p.r_size[at] * size : size;
      p.r_stride[at] = stride;
      p.count *= size;
    } else {
      const int last = p.kept - 1;
      const bool merge = last >= 0 && p.stride[last] == stride * size &&
                         p.y_stride[last] == y.strides[d] * size &&
                         p.z_stride[last] == z.strides[d] * size;
      const int at = merge ? last : p.kept++;
      p.size[at] = merge ? p.size[at] * size : size;
      p.stride[at] = stride;
      p.y_stride[at] = y.strides[d];
      p.z_stride[at] = z.strides[d];
      p.outputs *= size;
    }
  }
  if (p.reduced == 0) p.r_size[p.reduced] = 1, p.r_stride[p.reduced++] = 0;
  if (p.kept == 0) {
    p.size[0] = 1;
    p.stride[0] = p.y_stride[0] = p.z_stride[0] = 0;
    p.kept = 1;
  }
  const int64_t columns = p.size[p.kept - 1], length = p.r_size[p.reduced - 1];
  p.rows = columns == 1 ||
           (length > 1 && magnitude(p.r_stride[p.reduced - 1]) < magnitude(p.stride[p.kept - 1]));
  if (length < 8 && columns >= 16) p.rows = false;  // too short to be worth a vector
  return p;
}

void cut(Plan& p, int64_t units, int64_t elements_per_step) {
  p.chunk = kChunk / elements_per_step > 256 ? kChunk / elements_per_step : 256;
  if (units >= kEnoughUnits || p.count < 2 * p.chunk) p.chunk = p.count > 0 ? p.count : 1;
  p.chunks = (p.count + p.chunk - 1) / p.chunk;
  if (p.chunks == 0) p.chunks = 1;
}

struct Offsets {
  int64_t x = 0, y = 0, z = 0;
};

// Offsets of kept element `index`, counting over dimensions [0, dims).
Offsets locate(const Plan& p, int dims, int64_t index) {
  Offsets o;
  for (int d = dims - 1; d >= 0; --d) {
    const int64_t i = index % p.size[d];
    index /= p.size[d];
    o.x += i * p.stride[d];
    o.y += i * p.y_stride[d];
    o.z += i * p.z_stride[d];
  }
  return o;
}

// f(offset, n) for the runs along the last reduced dimension that make up [begin, end).
template <class F>
inline void each_run(const Plan& p, int64_t begin, int64_t end, const F& f) {
  if (begin >= end) return;
  const int last = p.reduced - 1;
  const int64_t length = p.r_size[last];
  int64_t index[kMaxDims], offset = 0, row = begin / length, at = begin % length;
  for (int d = last - 1; d >= 0; --d) {
    index[d] = row % p.r_size[d];
    row /= p.r_size[d];
    offset += index[d] * p.r_stride[d];
  }
  while (begin < end) {
    const int64_t n = length - at < end - begin ? length - at : end - begin;
    f(offset + at * p.r_stride[last], n);
    begin += n;
    at = 0;
    for (int d = last - 1; d >= 0; --d) {
      offset += p.r_stride[d];
      if (++index[d] < p.r_size[d]) break;
      offset -= p.r_stride[d] * p.r_size[d];
      index[d] = 0;
    }
  }
}

// ---- what is computed ----

// high + low, compensated (Knuth's two-sum); an infinite or NaN sum stands in high alone.
inline void add_to(double& high, double& low, double v) {
  const double sum = high + v, part = sum - high;
  low += (high - (sum - part)) + (v - part);
  high = sum;
}
inline double total_of(double high, double low) { return high - high == 0 ? high + low : high; }

struct Sum {
  static constexpr bool kAdds = true;
  template <class V>
  static V step(V acc, V x, V) {
    return acc + x;
  }
};
struct SumSquares : Sum {
  template <class V>
  static V step(V acc, V x, V) {
    return fma(x, x, acc);
  }
};
struct SumCentred : Sum {  // of (x - center)^2
  template <class V>
  static V step(V acc, V x, V center) {
    const V d = x - center;
    return fma(d, d, acc);
  }
};
struct Max {
  static constexpr bool kAdds = false;
  static constexpr double kIdentity = -std::numeric_limits<double>::infinity();
  template <class V>
  static V step(V acc, V x, V) {
    return max_nan(x, acc);
  }
  template <class V>
  static auto across(V v) {
    return hmax(v);
  }
  static double pick(double a, double b) { return a != a || a > b ? a : b; }
};
struct Min {
  static constexpr bool kAdds = false;
  static constexpr double kIdentity = std::numeric_limits<double>::infinity();
  template <class V>
  static V step(V acc, V x, V) {
    return min_nan(x, acc);
  }
  template <class V>
  static auto across(V v) {
    return hmin(v);
  }
  static double pick(double a, double b) { return a != a || a < b ? a : b; }
};

template <class P>
constexpr double identity() {
  if constexpr (P::kAdds)
    return 0;
  else
    return P::kIdentity;
}
template <class P, class V>
inline V merge(V a, V b) {
  if constexpr (P::kAdds)
    return a + b;
  else
    return P::step(a, b, b);
}
template <class P, class V>
inline scalar<V> across(V v) {
  if constexpr (P::kAdds)
    return hsum(v);
  else
    return P::across(v);
}
template <class P>
inline void accumulate(double& high, double& low, double v) {
  if constexpr (P::kAdds)
    add_to(high, low, v);
  else
    high = P::pick(v, high);
}

// Not inlined: the compiler makes a large vectorised loop of it.
template <class P, class T>
__attribute__((noinline)) void accumulate_all(int64_t n, const T* v, double* high, double* low) {
  for (int64_t j = 0; j < n; ++j) accumulate<P>(high[j], low[j], v[j]);
}

// ---- the two loops ----

// Not inlined: a gather is dozens of instructions, and the loops name it many times.
template <class T>
__attribute__((noinline)) vec<T> gather(const T* p, int64_t stride, int64_t n) {
  return n == lanes<T> ? load_strided(p, stride) : load_strided_n(p, stride, n);
}
template <bool kUnit, class T>
inline vec<T> fetch(const T* p, int64_t stride) {
  if constexpr (kUnit)
    return load(p);
  else
    return gather(p, stride, lanes<T>);
}
template <bool kUnit, class T>
inline vec<T> fetch_n(const T* p, int64_t stride, int64_t n) {
  if constexpr (kUnit)
    return load_upto(p, n);
  else
    return gather(p, stride, n);
}

// Elements [begin, end) of one result's reduction.
template <bool kUnit, class P, class T>
void reduce_row(const Plan& plan, const T* x, int64_t begin, int64_t end, T center, double* high,
                double* low) {
  const vec<T> c = splat(center), start = splat(static_cast<T>(identity<P>()));
  const int64_t s = plan.r_stride[plan.reduced - 1];
  vec<T> a0 = start, a1 = start, a2 = start, a3 = start;
  int64_t filled = 0;
  auto flush = [&] {
    accumulate<P>(*high, *low, across<P>(merge<P>(merge<P>(a0, a1), merge<P>(a2, a3))));
    a0 = a1 = a2 = a3 = start;
    filled = 0;
  };
  each_run(plan, begin, end, [&](int64_t offset, int64_t run) {
    const T* p = x + offset;
    for (int64_t done = 0; done < run;) {
      const int64_t n = run - done < kRowFlush ? run - done : kRowFlush;
      int64_t i = 0;
      for (; i + 4 * lanes<T> <= n; i += 4 * lanes<T>) {
        a0 = P::step(a0, fetch<kUnit>(p + i * s, s), c);
        a1 = P::step(a1, fetch<kUnit>(p + (i + lanes<T>)*s, s), c);
        a2 = P::step(a2, fetch<kUnit>(p + (i + 2 * lanes<T>)*s, s), c);
        a3 = P::step(a3, fetch<kUnit>(p + (i + 3 * lanes<T>)*s, s), c);
      }
      for (; i + lanes<T> <= n; i += lanes<T>) a0 = P::step(a0, fetch<kUnit>(p + i * s, s), c);
      if (i < n) {
        const vec<T> next = P::step(a1, fetch_n<kUnit>(p + i * s, s, n - i), c);
        a1 = select(lane_mask<T>(n - i), next, a1);
      }
      done += n;
      p += n * s;
      filled += n;
      if (filled >= kRowFlush) flush();
    }
  });
  flush();
}

// Rows [begin, end) of a tile of columns, added to the columns' totals. Few columns take several
// rows at once, for enough independent additions.
template <int kVectors, bool kUnit, class P, class T>
void reduce_tile(const Plan& plan, const T* x, int64_t columns, int64_t begin, int64_t end,
                 const T* center, double* high, double* low) {
  constexpr int kRows = kTileVectors / kVectors;
  const int64_t s = plan.stride[plan.kept - 1], r = plan.r_stride[plan.reduced - 1];
  const vec<T> start = splat(static_cast<T>(identity<P>()));
  vec<T> acc[kRows][kVectors], c[kVectors];
  int64_t width[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = columns - v * lanes<T>;
    width[v] = left < 0 ? 0 : left < lanes<T> ? left : lanes<T>;
    c[v] = load(center + v * lanes<T>);
    for (int u = 0; u < kRows; ++u) acc[u][v] = start;
  }
  int64_t filled = 0;
  auto flush = [&] {
    T sums[kVectors * lanes<T>];
    for (int v = 0; v < kVectors; ++v) {
      for (int u = 1; u < kRows; ++u) acc[0][v] = merge<P>(acc[0][v], acc[u][v]);
      store(sums + v * lanes<T>, acc[0][v]);
      for (int u = 0; u < kRows; ++u) acc[u][v] = start;
    }
    accumulate_all<P>(columns, sums, high, low);
    filled = 0;
  };
  const bool full = columns == kVectors * lanes<T>;
  auto row = [&](const T* p, int u) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const T* at = p + v * lanes<T> * s;
      const vec<T> value = full ? fetch<kUnit>(at, s) : fetch_n<kUnit>(at, s, width[v]);
      acc[u][v] = P::step(acc[u][v], value, c[v]);
    }
  };
  each_run(plan, begin, end, [&](int64_t offset, int64_t run) {
    const T* p = x + offset;
    for (int64_t i = 0; i < run;) {
      const int64_t stop = i + kColumnFlush < run ? i + kColumnFlush : run;
      filled += stop - i;
      for (; i + kRows <= stop; i += kRows)
#pragma GCC unroll 8
        for (int u = 0; u < kRows; ++u) row(p + (i + u) * r, u);
      for (; i < stop; ++i) row(p + i * r, 0);
      if (filled >= kColumnFlush) flush();
    }
  });
  flush();
}

// Columns side by side in memory, more than fit in registers: the accumulators wait in cache while
// kTogether rows, each read from end to end, are added to them.
template <class P, class T>
void reduce_wide(const Plan& plan, const T* x, int64_t columns, int64_t begin, int64_t end,
                 const T* center, double* high, double* low) {
  constexpr int64_t L = lanes<T>;
  constexpr int kTogether = 8;
  const int64_t r = plan.r_stride[plan.reduced - 1];
  alignas(64) T acc[kWideVectors * L] = {};
  auto clear = [&] {
    for (int64_t j = 0; j < columns; ++j) acc[j] = static_cast<T>(identity<P>());
  };
  auto add = [&]<int kRows>(const T* p, std::integral_constant<int, kRows>) {
    auto step = [&](int64_t j, int64_t n) {
      const vec<T> c = load(center + j);
      vec<T> a = load(acc + j);
#pragma GCC unroll 8
      for (int u = 0; u < kRows; ++u) a = P::step(a, load_upto(p + u * r + j, n), c);
      store_upto(acc + j, a, n);
    };
    int64_t j = 0;
    for (; j + L <= columns; j += L) step(j, L);
    if (j < columns) step(j, columns - j);
  };
  int64_t filled = 0;
  auto flush = [&] {
    accumulate_all<P>(columns, acc, high, low);
    clear();
    filled = 0;
  };
  clear();
  each_run(plan, begin, end, [&](int64_t offset, int64_t run) {
    for (int64_t i = 0; i < run;) {
      const int64_t stop = smaller(i + kColumnFlush, run);
      filled += stop - i;
      for (; i + kTogether <= stop; i += kTogether)
        add(x + offset + i * r, std::integral_constant<int, kTogether>{});
      for (; i < stop; ++i) add(x + offset + i * r, std::integral_constant<int, 1>{});
      if (filled >= kColumnFlush) flush();
    }
  });
  flush();
}

template <bool kUnit, class P, class T>
void reduce_columns(const Plan& plan, const T* x, int64_t columns, int64_t begin, int64_t end,
                    const T* center, double* high, double* low) {
  if constexpr (kUnit) {
    const auto run = columns > 8 * lanes<T>   ? reduce_wide<P, T>
                     : columns > 4 * lanes<T> ? reduce_tile<8, true, P, T>
                     : columns > 2 * lanes<T> ? reduce_tile<4, true, P, T>
                     : columns > lanes<T>     ? reduce_tile<2, true, P, T>
                                              : reduce_tile<1, true, P, T>;
    return run(plan, x, columns, begin, end, center, high, low);
  }
  for (int64_t j = 0; j < columns; j += lanes<T>) {
    const int64_t n = columns - j < lanes<T> ? columns - j : lanes<T>;
    reduce_tile<1, false, P, T>(plan, x + j * plan.stride[plan.kept - 1], n, begin, end, center + j,
                                high + j, low + j);
  }
}

// ---- short rows ----

constexpr int64_t kShortVectors = 64;  // longest row, in vectors for each of four accumulators

// Rows of contiguous elements, few of them, results side by side.
template <class T>
bool has_short_rows(const Plan& p) {
  return p.reduced == 1 && p.kept == 1 && p.r_stride[0] == 1 && p.y_stride[0] == 1 &&
         p.count <= 4 * kShortVectors * lanes<T> && p.count > 1 && p.outputs >= lanes<T>;
}

template <class T>
inline vec<T> scaled(vec<T> v, double scale) {
  if constexpr (sizeof(T) == 4) {
    const f64pair w = widen(v);
    return narrow({w.low * splat(scale), w.high * splat(scale)});
  } else {
    return v * splat(scale);
  }
}

// Lanes of one row of n elements, of which the last vector has those of `tail`.
template <class P, class T>
inline vec<T> row_lanes(const T* row, int64_t n, mask_of<T> tail, vec<T> c) {
  constexpr int64_t L = lanes<T>;
  const vec<T> start = splat(static_cast<T>(identity<P>()));
  const int64_t whole = (n - 1) / L * L;
  vec<T> a = start;
  int64_t j = 0;
  if (whole >= 8 * L) {
    vec<T> a1 = start, a2 = start, a3 = start;
    for (; j + 4 * L <= whole; j += 4 * L) {
      a = P::step(a, load(row + j), c);
      a1 = P::step(a1, load(row + j + L), c);
      a2 = P::step(a2, load(row + j + 2 * L), c);
      a3 = P::step(a3, load(row + j + 3 * L), c);
    }
    a = merge<P>(merge<P>(a, a1), merge<P>(a2, a3));
  }
  for (; j < whole; j += L) a = P::step(a, load(row + j), c);
  return select(tail, P::step(a, load_n(row + whole, n - whole), c), a);
}

// `rows` <= lanes<T> results.
template <class P, class T>
void reduce_short(const T* x, int64_t stride, int64_t n, int64_t rows, const T* center, T* y,
                  double scale) {
  constexpr int64_t L = lanes<T>;
  const mask_of<T> tail = lane_mask<T>(n - (n - 1) / L * L);
  vec<T> acc[L];
  for (int64_t i = 0; i < L; ++i) {
    const int64_t at = i < rows ? i : 0;
    acc[i] = row_lanes<P>(x + at * stride, n, tail, splat(center[at]));
  }
  const vec<T> all = combine_each<T>(acc, [](vec<T> a, vec<T> b) { return merge<P>(a, b); });
  store_upto(y, P::kAdds ? scaled<T>(all, scale) : all, rows);
}

template <class P, class T>
void reduce_short_rows(const Plan& plan, const T* x, const T* center, T* y, double scale) {
  const int64_t grain = round_up(kThreadElements / plan.count, lanes<T>);
  parallel_for(plan.outputs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += lanes<T>)
      reduce_short<P>(x + i * plan.stride[0], plan.stride[0], plan.count,
                      smaller(end - i, lanes<T>), center + i, y + i, scale);
  });
}

// ---- units of work and their threads ----

// `width` results side by side: one result, or a tile of columns.
struct Grid {
  int64_t width, tiles, units;  // tiles along the last kept dimension; units without chunks
};

template <class T>
Grid make_grid(Plan& plan) {
  constexpr int64_t kTile = kWideVectors * lanes<T>;
  const int64_t columns = plan.size[plan.kept - 1];
  Grid g;
  g.width = plan.rows ? 1 : columns < kTile ? columns : kTile;
  g.tiles = g.width > 0 ? (columns + g.width - 1) / g.width : 0;
  g.units = columns > 0 ? plan.outputs / columns * g.tiles : 0;
  cut(plan, g.units, g.width > 0 ? g.width : 1);
  return g;
}

// One chunk of one unit, into high and low.
template <class P, class T>
void reduce_unit(const Plan& plan, const T* x, int64_t columns, int64_t chunk, const T* center,
                 double* high, double* low) {
  const int64_t begin = chunk * plan.chunk;
  const int64_t end = begin + plan.chunk < plan.count ? begin + plan.chunk : plan.count;
  for (int64_t j = 0; j < columns; ++j) high[j] = identity<P>(), low[j] = 0;
  if (plan.rows) {
    const bool unit = plan.r_stride[plan.reduced - 1] == 1;
    (unit ? reduce_row<true, P, T> : reduce_row<false, P, T>)(plan, x, begin, end, *center, high,
                                                              low);
  } else {
    const bool unit = plan.stride[plan.kept - 1] == 1;
    (unit ? reduce_columns<true, P, T> : reduce_columns<false, P, T>)(plan, x, columns, begin, end,
                                                                      center, high, low);
  }
}

// y = reduction of x by P, times scale. center: an array of y's shape, or y where P needs none.
template <class P, class T>
bool reduce(const View& x, const View& y, const View& center, double scale) {
  constexpr int64_t kTile = kWideVectors * lanes<T>;
  Plan plan = make_plan(x, y, center);
  if (has_short_rows<T>(plan) && plan.z_stride[0] == 1) {
    reduce_short_rows<P>(plan, data<T>(x), data<T>(center), data<T>(y), scale);
    return true;
  }
  const Grid grid = make_grid<T>(plan);
  if (grid.units == 0) return true;
  const int64_t columns = plan.size[plan.kept - 1], units = grid.units * plan.chunks;
  double* partial = nullptr;
  if (plan.chunks > 1) {
    partial = static_cast<double*>(scratch(sizeof(double) * 2 * units * grid.width));
    if (!partial) return false;
  }
  auto tile_of = [&](int64_t unit, Offsets* at) {
    const int64_t first = unit % grid.tiles * grid.width;
    *at = locate(plan, plan.kept - 1, unit / grid.tiles);
    at->x += first * plan.stride[plan.kept - 1];
    at->y += first * plan.y_stride[plan.kept - 1];
    at->z += first * plan.z_stride[plan.kept - 1];
    return columns - first < grid.width ? columns - first : grid.width;
  };
  auto write = [&](int64_t offset, int64_t n, const double* high, const double* low) {
    T* to = data<T>(y) + offset;
    for (int64_t j = 0; j < n; ++j)
      to[j * plan.y_stride[plan.kept - 1]] = static_cast<T>(total_of(high[j], low[j]) * scale);
  };
  const int64_t work = plan.chunk * grid.width;
  const int64_t grain = work > 0 && work < kThreadElements ? kThreadElements / work : 1;
  parallel_for(units, grain, [&](int64_t begin, int64_t end) {
    double high[kTile], low[kTile];
    T centers[kTile] = {};
    for (int64_t u = begin; u < end; ++u) {
      Offsets at;
      const int64_t n = tile_of(u / plan.chunks, &at);
      if constexpr (std::is_same_v<P, SumCentred>)
        for (int64_t j = 0; j < n; ++j)
          centers[j] = data<T>(center)[at.z + j * plan.z_stride[plan.kept - 1]];
      double* h = partial ? partial + 2 * u * grid.width : high;
      double* l = partial ? h + grid.width : low;
      reduce_unit<P>(plan, data<T>(x) + at.x, n, u % plan.chunks, centers, h, l);
      if (!partial) write(at.y, n, h, l);
    }
  });
  for (int64_t unit = 0; partial && unit < grid.units; ++unit) {
    Offsets at;
    const int64_t n = tile_of(unit, &at);
    double* high = partial + 2 * unit * plan.chunks * grid.width;
    double* low = high + grid.width;
    for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
      const double* next = high + 2 * chunk * grid.width;
      for (int64_t j = 0; j < n; ++j) {
        accumulate<P>(high[j], low[j], next[j]);
        low[j] += next[grid.width + j];
      }
    }
    write(at.y, n, high, low);
  }
  return true;
}

template <class P>
bool reduce_any(const View& x, const View& y, const View& center, double scale) {
  return x.dtype == DType::kFloat32 ? reduce<P, float>(x, y, center, scale)
                                    : reduce<P, double>(x, y, center, scale);
}

// ---- position of the extreme ----

// The first position in [begin, end) of a row; NaN counts as the extreme.
template <bool kLargest, bool kUnit, class T>
int64_t find_in_row(const T* x, int64_t stride, int64_t begin, int64_t end) {
  using P = std::conditional_t<kLargest, Max, Min>;
  vec<T> best = splat(static_cast<T>(P::kIdentity));
  const T* p = x + begin * stride;
  const int64_t n = end - begin, whole = n / lanes<T> * lanes<T>;
  for (int64_t i = 0; i < whole; i += lanes<T>)
    best = P::step(best, fetch<kUnit>(p + i * stride, stride), best);
  if (whole < n) {
    const vec<T> last = fetch_n<kUnit>(p + whole * stride, stride, n - whole);
    best = select(lane_mask<T>(n - whole), P::step(best, last, best), best);
  }
  const T extreme = P::across(best);
  const vec<T> wanted = splat(extreme);
  int64_t i = 0;
  for (; i < whole; i += lanes<T>) {
    const vec<T> v = fetch<kUnit>(p + i * stride, stride);
    if (any((v == wanted) | (v != v))) break;
  }
  for (; i < n; ++i)
    if (p[i * stride] == extreme || p[i * stride] != p[i * stride]) break;
  return begin + i;
}

template <bool kLargest, class T>
bool better(T a, T b) {  // does a displace an earlier b?
  return a != a ? b == b : kLargest ? a > b : a < b;
}

// Running extremes of a vector of results, and where they stand.
template <bool kLargest, class T>
struct Found {
  vec<T> best;
  mask_of<T> index{};

  void offer(vec<T> v, int64_t at) {
    const auto wins = ((kLargest ? v > best : v < best) | (v != v)) & (best == best);
    best = select(wins, v, best);
    index = wins ? mask_of<T>{} + static_cast<decltype(index[0] + 0)>(at) : index;
  }
};

// Positions for up to lanes<T> neighbouring columns, at most 2^31 rows.
template <bool kLargest, class T>
void find_in_columns(const T* x, int64_t n, int64_t stride, int64_t columns, int64_t* index,
                     int64_t index_stride) {
  Found<kLargest, T> found{load_n(x, columns)};
  for (int64_t i = 1; i < n; ++i) found.offer(fetch_n<true>(x + i * stride, 1, columns), i);
  for (int64_t j = 0; j < columns; ++j) index[j * index_stride] = found.index[j];
}

// Positions for up to lanes<T> short rows: turned into columns, a square at a time.
template <bool kLargest, class T>
void find_in_short_rows(const T* x, int64_t n, int64_t stride, int64_t rows, int64_t* index) {
  constexpr int64_t L = lanes<T>;
  Found<kLargest, T> found;
  for (int64_t j = 0; j < n; j += L) {
    vec<T> r[L];
    const int64_t columns = smaller(n - j, L);
    for (int64_t i = 0; i < L; ++i) r[i] = load_n(x + (i < rows ? i : 0) * stride + j, columns);
    transpose_square<T>(r);
    if (j == 0) found.best = r[0];
    for (int64_t k = j == 0; k < columns; ++k) found.offer(r[k], j + k);
  }
  for (int64_t i = 0; i < rows; ++i) index[i] = found.index[i];
}

template <bool kLargest, class T>
bool arg_rows(const Plan& plan, const T* x, int64_t* index) {
  const int64_t n = plan.count, stride = plan.r_stride[0];
  int64_t* partial = nullptr;
  if (plan.chunks > 1) {
    partial = static_cast<int64_t*>(scratch(sizeof(int64_t) * plan.outputs * plan.chunks));
    if (!partial) return false;
  }
  const int64_t grain = plan.chunk < kThreadElements ? kThreadElements / plan.chunk : 1;
  parallel_for(plan.outputs * plan.chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const Offsets at = locate(plan, plan.kept, u / plan.chunks);
      const int64_t first = u % plan.chunks * plan.chunk;
      const int64_t last = first + plan.chunk < n ? first + plan.chunk : n;
      const auto find =
          stride == 1 ? find_in_row<kLargest, true, T> : find_in_row<kLargest, false, T>;
      *(partial ? partial + u : index + at.y) = find(x + at.x, stride, first, last);
    }
  });
  for (int64_t o = 0; partial && o < plan.outputs; ++o) {
    const Offsets at = locate(plan, plan.kept, o);
    const int64_t* found = partial + o * plan.chunks;
    int64_t best = found[0];
    for (int64_t chunk = 1; chunk < plan.chunks; ++chunk)
      if (better<kLargest>(x[at.x + found[chunk] * stride], x[at.x + best * stride]))
        best = found[chunk];
    index[at.y] = best;
  }
  return true;
}

template <bool kLargest, class T>
bool arg_extreme(const View& x, const View& index) {
  Plan plan = make_plan(x, index, index);
  if (plan.outputs == 0 || plan.count == 0) return true;
  if (has_short_rows<T>(plan)) {
    const int64_t stride = plan.stride[0], n = plan.count;
    const int64_t grain = round_up(kThreadElements / n, lanes<T>);
    parallel_for(plan.outputs, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += lanes<T>)
        find_in_short_rows<kLargest>(data<T>(x) + i * stride, n, stride, smaller(end - i, lanes<T>),
                                     data<int64_t>(index) + i);
    });
    return true;
  }
  const int last = plan.kept - 1;
  if (plan.rows || plan.stride[last] != 1 || plan.count > std::numeric_limits<int32_t>::max()) {
    cut(plan, plan.outputs, 1);
    return arg_rows<kLargest>(plan, data<T>(x), data<int64_t>(index));
  }
  const int64_t columns = plan.size[last], tiles = (columns + lanes<T> - 1) / lanes<T>;
  const int64_t work = plan.count * lanes<T>;
  const int64_t grain = work < kThreadElements ? kThreadElements / work : 1;
  parallel_for(plan.outputs / columns * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const Offsets at = locate(plan, last, u / tiles);
      const int64_t first = u % tiles * lanes<T>, left = columns - first;
      find_in_columns<kLargest>(data<T>(x) + at.x + first, plan.count, plan.r_stride[0],
                                left < lanes<T> ? left : lanes<T>,
                                data<int64_t>(index) + at.y + first * plan.y_stride[last],
                                plan.y_stride[last]);
    }
  });
  return true;
}

}  // namespace

bool reduce_sum(In x, Out y, double scale) { return reduce_any<Sum>(x, y, y, scale); }
bool reduce_sum_squares(In x, Out y, double scale) {
  return reduce_any<SumSquares>(x, y, y, scale);
}
bool reduce_max(In x, Out y) { return reduce_any<Max>(x, y, y, 1); }
bool reduce_min(In x, Out y) { return reduce_any<Min>(x, y, y, 1); }

// var = sum((x - mean)^2) / max(n - correction, 0); not a number where there is nothing to divide.
bool reduce_moments(In x, Out mean, Out var, double correction) {
  const double results = static_cast<double>(numel(mean));
  const double n = results > 0 ? static_cast<double>(numel(x)) / results : 0;
  const double degrees = n - correction > 0 ? n - correction : 0;
  return reduce_any<Sum>(x, mean, mean, 1 / n) && reduce_any<SumCentred>(x, var, mean, 1 / degrees);
}

bool argmax(In x, Out index, int64_t, bool largest) {
  if (x.dtype == DType::kFloat32)
    return largest ? arg_extreme<true, float>(x, index) : arg_extreme<false, float>(x, index);
  return largest ? arg_extreme<true, double>(x, index) : arg_extreme<false, double>(x, index);
}

}  // namespace grebe::GREBE_ISA
