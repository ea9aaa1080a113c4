// What the kinds of pooling share: geometry of the windows, indices of maxima, the running maximum,
// and which windows reach an input position.
#pragma once
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
using int_of = std::remove_reference_t<decltype(mask_of<T>{}[0])>;
template <class T>
inline mask_of<T> splat_index(int64_t k) {
  return mask_of<T>{} + static_cast<int_of<T>>(k);
}

// The running maximum of windows and its tap. The first maximum counts; a NaN beats everything
// before it. kNumbers: there is no NaN, which saves two instructions of five.
template <class T>
struct Best {
  vec<T> value = splat(-std::numeric_limits<T>::infinity());
  mask_of<T> index{};

  template <bool kNumbers = false>
  void offer(vec<T> v, int64_t k) {
    const mask_of<T> take = kNumbers ? v > value : (v > value) | (v != v);
    value = select(take, v, value);
    index = select(take, splat_index<T>(k), index);
  }
};

template <class T>
inline bool has_nan(const T* p, int64_t n) {
  mask_of<T> found{};
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) found |= load(p + i) != load(p + i);
  if (i < n) found |= load_n(p + i, n - i) != load_n(p + i, n - i);
  return any(found);
}

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

inline int64_t cells_of(const Pool& p, Divisor d, int64_t oh, int64_t ow) {
  return d.override ? d.override : p.h.cells(oh, d.count_pad) * p.w.cells(ow, d.count_pad);
}

// For each input position along an axis, the windows that reach it and by which tap: what a
// gradient is collected from. Entries of position i: items[start[i]] up to items[start[i + 1]].
struct Reach {
  struct Item {
    int64_t window, tap;
  };
  int64_t* start;
  Item* items;

  static int64_t bytes(const Axis& a) {
    return (a.in + 2) * static_cast<int64_t>(sizeof(int64_t)) +
           a.out * a.kernel * static_cast<int64_t>(sizeof(Item));
  }
  // Builds the lists at `memory`: counts one place ahead, sums up, then fills in.
  Reach(const Axis& a, char* memory)
      : start(reinterpret_cast<int64_t*>(memory)),
        items(reinterpret_cast<Item*>(start + a.in + 2)) {
    for (int64_t i = 0; i < a.in + 2; ++i) start[i] = 0;
    each(a, [&](int64_t i, int64_t, int64_t) { ++start[i + 2]; });
    for (int64_t i = 2; i < a.in + 2; ++i) start[i] += start[i - 1];
    each(a, [&](int64_t i, int64_t o, int64_t k) { items[start[i + 1]++] = {o, k}; });
  }
  template <class F>
  static void each(const Axis& a, const F& f) {
    for (int64_t o = 0; o < a.out; ++o)
      for (int64_t k = a.first_tap(o); k < a.end_tap(o); ++k) f(a.begin(o) + k * a.dilation, o, k);
  }
};

}  // namespace
}  // namespace grebe::GREBE_ISA
