// What the convolutions of many channels share: images as strided arrays, padded copies of some of
// their rows with the channels side by side, and threads taking jobs.
//
// Channel strides of the copies are a vector longer than the channels: with 2^n channels the
// pixels of a tile would otherwise fall into the same sets of the L1 cache.
#pragma once
#include "gemm.h"
#include "window.h"

namespace grebe::GREBE_ISA {
namespace {

template <class T>
struct Image {
  T* data;
  int64_t batch, channels, h, w;
  Strides s;
  T* row(int64_t n, int64_t c, int64_t y) const { return data + n * s.n + c * s.c + y * s.h; }
};
template <class T>
Image<T> image_of(const View& v) {
  return {data<T>(v), v.shape[0], v.shape[1], v.shape[2], v.shape[3], strides_of(v)};
}

template <class T>
int64_t padded_channels(int64_t channels) {
  return round_up(channels, lanes<T>) + lanes<T>;
}

struct Rectangle {
  int64_t row, rows, col, cols;  // may reach beyond the image
};

// dst[row][col][channel] of a rectangle of image n, zero outside of the image.
template <class T>
void copy_padded(T* dst, int64_t ld, const Image<T>& from, int64_t n, int64_t channel,
                 int64_t channels, const Rectangle& r) {
  const int64_t left = r.col < 0 ? smaller(-r.col, r.cols) : 0;
  const int64_t inside = smaller(r.cols, from.w - r.col) - left;
  for (int64_t y = r.row; y < r.row + r.rows; ++y, dst += r.cols * ld) {
    if (y < 0 || y >= from.h || inside <= 0) {
      fill(dst, r.cols * ld, T(0));
      continue;
    }
    fill(dst, left * ld, T(0));
    copy_plane(dst + left * ld, ld, int64_t{1}, from.row(n, channel, y) + (r.col + left) * from.s.w,
               from.s.w, from.s.c, inside, channels);
    fill(dst + (left + inside) * ld, (r.cols - left - inside) * ld, T(0));
  }
}

// The other direction: rows of `cols` pixels with `channels` channels from `channel` on.
template <class T>
void copy_rows_out(const Image<T>& to, int64_t n, int64_t channel, int64_t channels, int64_t row,
                   int64_t rows, const T* src, int64_t ld, int64_t src_row) {
  for (int64_t y = row; y < smaller(row + rows, to.h); ++y, src += src_row)
    copy_plane(to.row(n, channel, y), to.s.c, to.s.w, src, int64_t{1}, ld, channels, to.w);
}

// Every thread takes the next job until none is left: f(job, thread).
template <class F>
void take_jobs(int64_t jobs, int threads, const F& f) {
  int64_t next = 0;
  parallel_region(threads, [&](int thread, int) {
    for (;;) {
      const int64_t job = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (job >= jobs) return;
      f(job, thread);
    }
  });
}

inline int64_t clamp(int64_t n, int64_t low, int64_t high) {
  return n < low ? low : (n < high ? n : high);
}

// A finished tile begins or continues the sums in memory.
template <class T, int R, int V>
GREBE_INLINE void add_or_store(T* to, int64_t ld, vec<T> (&acc)[R][V], bool first) {
#pragma GCC unroll 6
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* at = to + i * ld + v * lanes<T>;
      store(at, first ? acc[i][v] : acc[i][v] + load(at));
    }
}

// Few blocks of pixels: threads share one, each for other groups of channels.
inline int64_t jobs_per_block(int64_t blocks, int64_t groups) {
  constexpr int64_t kJobsPerThread = 4;
  return clamp(divide_up(kJobsPerThread * num_threads(), blocks), 1, groups);
}

// `rows` in chunks for a weight gradient that falls into `tasks` anyway: their sums are added in
// order, so their number must not depend on the threads.
inline Tiling grad_chunks(int64_t rows, int64_t tasks) {
  constexpr int64_t kJobs = 16;
  return {rows, divide_up(rows, clamp(divide_up(kJobs, tasks), 1, rows))};
}

// to[i] = the sum of from[i], from[i + step], ..., `count` of them.
template <class T>
void add_chunks(T* to, const T* from, int64_t n, int64_t count, int64_t step) {
  for (int64_t i = 0; i < n; ++i) {
    T total = from[i];
    for (int64_t c = 1; c < count; ++c) total += from[c * step + i];
    to[i] = total;
  }
}

constexpr int64_t kGradChannels = 128;  // input channels of a job: its sums stay in L2

// Output channels in groups of strips: a strip is the row of a register tile, a group is what one
// pass over the pixels computes.
template <class T>
struct Strips {
  static constexpr int64_t kGroup = 64;  // channels, at most
  Tiling strips, groups;
  explicit Strips(int64_t channels)
      : strips(round_up(channels, lanes<T>) / lanes<T>, kVectors),
        groups(strips.count,
               kGroup / (kVectors * lanes<T>) > 0 ? kGroup / (kVectors * lanes<T>) : 1) {}
  int64_t width() const { return strips.n * lanes<T>; }
  int64_t count() const { return groups.count; }
  int64_t begin(int64_t group) const { return strips.begin(groups.begin(group)) * lanes<T>; }
  int64_t size(int64_t group) const { return begin(group + 1) - begin(group); }

  // f(first channel, constant number of vectors) for each strip of a group.
  template <class F>
  void each(int64_t group, const F& f) const {
    for (int64_t s = groups.begin(group); s < groups.begin(group + 1); ++s)
      with_count<kVectors>(strips.size(s),
                           [&](auto vectors) { f(strips.begin(s) * lanes<T>, vectors); });
  }
};

}  // namespace
}  // namespace grebe::GREBE_ISA
