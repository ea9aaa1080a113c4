// What convolution and pooling share: the geometry of sliding windows, and copies of image planes
// into a form where the elements under one tap of the window lie side by side for a whole row of
// outputs: padded, and with columns split by their phase, i.e. padded column w of stride s stands
// at [w % s][w / s]. One copy of the input, from any strides, turns padding, stride, dilation and
// memory format into plain offsets: tap (kh, kw) of output (oh, ow) is at
//   (oh * stride_h + kh * dilation_h) * row + column(kw) + ow.
#pragma once
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

struct Window {
  int64_t in_h, in_w, out_h, out_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t align = 1;  // phases begin at multiples of this, so that vectors of two do not overlap

  // Extent of the padded input that the windows really touch.
  int64_t padded_h() const { return (out_h - 1) * stride_h + (kernel_h - 1) * dilation_h + 1; }
  int64_t padded_w() const { return (out_w - 1) * stride_w + (kernel_w - 1) * dilation_w + 1; }
  int64_t phase() const {
    return (out_w + (kernel_w - 1) * dilation_w / stride_w + align - 1) / align * align;
  }
  int64_t row() const { return stride_w * phase(); }
  int64_t plane() const { return padded_h() * row(); }
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t tap(int64_t kh, int64_t kw) const {
    const int64_t w = kw * dilation_w;
    return kh * dilation_h * row() + w % stride_w * phase() + w / stride_w;
  }
};

template <class T>
inline void fill(T* p, int64_t n, T value) {
  const vec<T> v = splat(value);
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) store(p + i, v);
  for (; i < n; ++i) p[i] = value;
}

// Transposes a square of lanes x lanes: log2(lanes) rounds of interleaving.
template <class T>
inline void transpose_square(vec<T>* r) {
  constexpr int n = lanes<T>;
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    vec<T> t[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      t[2 * i] = zip<T, false>(r[i], r[i + n / 2]);
      t[2 * i + 1] = zip<T, true>(r[i], r[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) r[i] = t[i];
  }
}

// The same for at most lanes rows and columns of memory.
template <class T>
inline void transpose_block(T* dst, int64_t dst_i, const T* src, int64_t src_j, int64_t rows,
                            int64_t columns) {
  vec<T> r[lanes<T>];
  for (int64_t j = 0; j < lanes<T>; ++j) {
    if (j >= columns)
      r[j] = vec<T>{};
    else
      r[j] = load_upto(src + j * src_j, rows);
  }
  transpose_square<T>(r);
  for (int64_t i = 0; i < rows; ++i) {
    if (columns == lanes<T>)
      store(dst + i * dst_i, r[i]);
    else
      store_n(dst + i * dst_i, r[i], columns);
  }
}

template <class T>
inline void copy_run(T* dst, const T* src, int64_t n) {
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) store(dst + i, load(src + i));
  if (i < n) store_n(dst + i, load_n(src + i, n - i), n - i);
}

// Elements 0, 2, 4, ... of a, then of b; or with kFirst = 1 elements 1, 3, 5, ...
template <int kFirst, class V, size_t... I>
inline V every_second(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (2 * static_cast<int>(I) + kFirst)...);
}
template <class T, int kFirst>
inline vec<T> every_second(vec<T> a, vec<T> b) {
  return every_second<kFirst>(a, b, std::make_index_sequence<lanes<T>>{});
}

// dst[i] = src[2 * i]
template <class T>
inline void copy_every_second(T* dst, const T* src, int64_t n) {
  int64_t i = 0;
  for (; i < n; i += lanes<T>, src += 2 * lanes<T>) {
    const int64_t left = 2 * (n - i) - 1;  // of src; the element after the last need not exist
    const vec<T> a = load_upto(src, left);
    vec<T> b{};
    if (left >= 2 * lanes<T>)
      b = load(src + lanes<T>);
    else if (left > lanes<T>)
      b = load_n(src + lanes<T>, left - lanes<T>);
    const vec<T> r = every_second<T, 0>(a, b);
    if (n - i >= lanes<T>)
      store(dst + i, r);
    else
      store_n(dst + i, r, n - i);
  }
}

// dst[i * dst_i + j * dst_j] = src[i * src_i + j * src_j]
template <class T>
void copy_plane(T* dst, int64_t dst_i, int64_t dst_j, const T* src, int64_t src_i, int64_t src_j,
                int64_t ni, int64_t nj) {
  if (nj == 1) dst_j = src_j = 1;
  if (dst_i == 1 && dst_j != 1) return copy_plane(dst, dst_j, dst_i, src, src_j, src_i, nj, ni);
  if (dst_j == 1 && src_j == 1) {
    for (int64_t i = 0; i < ni; ++i) copy_run(dst + i * dst_i, src + i * src_i, nj);
  } else if (dst_j == 1 && src_i == 1) {
    constexpr int64_t n = lanes<T>;
    for (int64_t j = 0; j < nj; j += n)
      for (int64_t i = 0; i < ni; i += n)
        transpose_block(dst + i * dst_i + j, dst_i, src + j * src_j + i, src_j,
                        ni - i < n ? ni - i : n, nj - j < n ? nj - j : n);
  } else if (dst_j == 1 && src_j == 2) {
    for (int64_t i = 0; i < ni; ++i) copy_every_second(dst + i * dst_i, src + i * src_i, nj);
  } else {
    for (int64_t i = 0; i < ni; ++i)
      for (int64_t j = 0; j < nj; ++j) dst[i * dst_i + j * dst_j] = src[i * src_i + j * src_j];
  }
}

// Walks the columns of one padded row phase by phase: f(position of the first, its input column,
// how many), the columns stride_w apart in the input. Padding is left out.
template <class F>
inline void for_phases(const Window& g, const F& f) {
  for (int64_t p = 0; p < g.stride_w; ++p) {
    int64_t first = g.pad_w > p ? (g.pad_w - p + g.stride_w - 1) / g.stride_w : 0;
    const int64_t column = first * g.stride_w + p - g.pad_w;
    int64_t count = column < g.in_w ? (g.in_w - column + g.stride_w - 1) / g.stride_w : 0;
    if (count > g.phase() - first) count = g.phase() - first;
    if (count > 0) f(p * g.phase() + first, column, count);
  }
}

// Rows [begin, end) of the input that the windows touch.
inline int64_t rows_touched(const Window& g) {
  const int64_t end = g.padded_h() - g.pad_h;
  return end < 0 ? 0 : (end < g.in_h ? end : g.in_h);
}

// Strides of one array as (batch, channel, row, column).
struct Strides {
  int64_t n, c, h, w;
};
inline Strides strides_of(const View& v) {
  return {v.strides[0], v.strides[1], v.strides[2], v.strides[3]};
}

// even[i] = src[2 * i], odd[i] = src[2 * i + 1], for n elements of src.
template <class T>
inline void split_pairs(T* even, T* odd, const T* src, int64_t n) {
  constexpr int64_t L = lanes<T>;
  for (; n > 0; n -= 2 * L, src += 2 * L, even += L, odd += L) {
    if (n >= 2 * L) {
      const vec<T> a = load(src), b = load(src + L);
      store(even, every_second<T, 0>(a, b));
      store(odd, every_second<T, 1>(a, b));
      continue;
    }
    const vec<T> a = n >= L ? load(src) : load_n(src, n),
                 b = n > L ? load_n(src + L, n - L) : vec<T>{};
    store_n(even, every_second<T, 0>(a, b), (n + 1) / 2);
    store_n(odd, every_second<T, 1>(a, b), n / 2);
  }
}

// One plane with stride_w 2, both phases in one go.
template <class T>
inline void split_plane_in_two(T* dst, const T* src, int64_t src_h, const Window& g) {
  // Even columns of the input stand in phase pad_w % 2, odd columns in the other one.
  const int64_t row = g.row(), phase = g.phase(), rows = rows_touched(g), p = g.pad_w % 2;
  const int64_t even = p * phase + g.pad_w / 2, odd = (1 - p) * phase + (g.pad_w + 1) / 2;
  const int64_t room = 2 * phase - g.pad_w, columns = room < g.in_w ? room : g.in_w;
  for (int64_t h = 0; h < rows; ++h) {
    T* to = dst + (g.pad_h + h) * row;
    split_pairs(to + even, to + odd, src + h * src_h, columns);
  }
}

// `channels` planes in padded, phase-split form; the padding of dst is set before, once.
template <class T>
inline void split_planes(T* dst, const T* src, const Strides& s, int64_t channels,
                         const Window& g) {
  if (channels == 1 && g.stride_w == 2 && s.w == 1) return split_plane_in_two(dst, src, s.h, g);
  const int64_t row = g.row(), plane = g.plane(), rows = rows_touched(g);
  for_phases(g, [&](int64_t at, int64_t column, int64_t count) {
    T* to = dst + g.pad_h * row + at;
    const T* from = src + column * s.w;
    if (channels == 1)
      return copy_plane(to, row, int64_t{1}, from, s.h, g.stride_w * s.w, rows, count);
    for (int64_t h = 0; h < rows; ++h)
      copy_plane(to + h * row, plane, int64_t{1}, from + h * s.h, s.c, g.stride_w * s.w, channels,
                 count);
  });
}

// ---- tiles and scratch memory ----

#define GREBE_INLINE inline __attribute__((always_inline))

// n items in the fewest tiles of at most `most`, as even as can be: where tile t begins.
struct Tiling {
  int64_t n, count;
  Tiling(int64_t items, int64_t most) : n(items), count((items + most - 1) / most) {}
  int64_t begin(int64_t t) const { return n * t / count; }
  int64_t size(int64_t t) const { return begin(t + 1) - begin(t); }
  int64_t largest() const { return count ? (n + count - 1) / count : 0; }
};

// Cuts scratch memory into 64-byte aligned pieces; first pass with base == nullptr to measure.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(base + used);
    used += round_up(n * static_cast<int64_t>(sizeof(T)), 64);
    return p;
  }
};

// pass.item(job, own) for all jobs on a team, after pass.prepare() has filled the memory that they
// share. pass.lay_out takes that from an arena, pass.own a thread's. False: out of memory.
template <class Pass>
bool run_jobs(Pass& pass, int64_t jobs) {
  const int64_t limit = num_threads();
  const int threads = static_cast<int>(jobs < limit ? (jobs > 0 ? jobs : 1) : limit);
  Arena measure{nullptr};
  pass.lay_out(&measure);
  const int64_t shared = measure.used;
  Arena measure_own{nullptr};
  pass.own(&measure_own);
  char* memory =
      static_cast<char*>(scratch(static_cast<size_t>(shared + measure_own.used * threads)));
  if (!memory) return false;
  Arena arena{memory};
  pass.lay_out(&arena);
  pass.prepare();
  parallel_region(threads, [&](int64_t t, int64_t team) {
    Arena mine{memory + shared + t * measure_own.used};
    auto own = pass.own(&mine);
    for (int64_t i = jobs * t / team; i < jobs * (t + 1) / team; ++i) pass.item(i, own);
  });
  return true;
}

}  // namespace
}  // namespace grebe::GREBE_ISA
