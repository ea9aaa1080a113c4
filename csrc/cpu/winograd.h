// Convolution of 3x3 kernels, stride 1 or 2, and of 5x5 kernels, stride 1, by Winograd's minimal
// filtering (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016), float32.
//
// 2x2 outputs of a channel come from 4x4 inputs d and the kernel g as A^T [(G g G^T) . (B^T d B)] A:
// 16 products instead of 36. Summed over the input channels, each of the 16 points is a matrix
// product of its own [tiles x in] [in x out], so 2.25 times fewer multiply-adds than the direct way.
// The input gradient is the same with kernels turned around and channels exchanged. The weight
// gradient is the transposed algorithm: G^T [sum over tiles (B^T d B) . (A dy A^T)] G.
//
// With stride 2, even inputs meet two taps, odd inputs one: two outputs of a row are F(2, 2) of three
// even inputs, three products, and two products of odd inputs. So 5x5 inputs give 2x2 outputs with 25
// products instead of 36; the same the other way for the input gradient, 3x3 gradients to 4x4 inputs.
//
// Larger tiles have 6x6 inputs and 4x4 outputs of 3x3 kernels or 2x2 of 5x5, with 49 products in place
// of 144 or 100. The usual points 2 and -2 would cost an order of magnitude in accuracy; these take
// 0, 1, -1, infinity and i, -i, as in S. Winograd's polynomials modulo x^2 + 1, whose complex products
// are three real ones. Their kernels are 49 numbers: few tiles do not pay for making them.
//
// Only halves, quarters and sums enter the transforms: errors stay below twice those of direct
// summation. Infinities and NaN spread over the inputs of a tile.
//
// Layout. A job is a run of tile rows (of one or more images) for some output channels. Input rows
// are copied padded with the channels in the lanes; then, per job: points V[point][tile][in], products
// M[point][tile][channel of a group], transformed into rows of results, copied out in any format.
// Kernels U[point][strip][in][lane] are made once for all jobs. V and M stay in the L2 cache.
#pragma once
#include "images.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kTilePoints = 768;  // of a job, where rows are no longer than that

// Distance of the points of one tile: not a multiple of 4096 bytes, or all of them would fall into
// the same set of the L1 cache.
inline int64_t apart(int64_t n) { return round_up(n, 1024) + lanes<float>; }

using V32 = vec<float>;

// ---- transforms of one tile ----

struct InputTransform {  // B^T
  static constexpr int kIn = 4, kOut = 4;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0] - x[2];
    y[1] = x[1] + x[2];
    y[2] = x[2] - x[1];
    y[3] = x[1] - x[3];
  }
};
struct KernelTransform {  // G
  static constexpr int kIn = 3, kOut = 4;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    const V32 half = splat(0.5f), ends = half * (x[0] + x[2]), middle = half * x[1];
    y[0] = x[0];
    y[1] = ends + middle;
    y[2] = ends - middle;
    y[3] = x[2];
  }
};
struct OutputTransform {  // A^T
  static constexpr int kIn = 4, kOut = 2;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0] + x[1] + x[2];
    y[1] = x[1] - x[2] - x[3];
  }
};
struct OutputGradTransform {  // A
  static constexpr int kIn = 2, kOut = 4;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0];
    y[1] = x[0] + x[1];
    y[2] = x[0] - x[1];
    y[3] = -x[1];
  }
};
struct KernelGradTransform {  // G^T
  static constexpr int kIn = 4, kOut = 3;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    const V32 half = splat(0.5f), sum = half * (x[1] + x[2]);
    y[0] = x[0] + sum;
    y[1] = half * (x[1] - x[2]);
    y[2] = sum + x[3];
  }
};

struct StridedInputTransform {
  static constexpr int kIn = 5, kOut = 5;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0] - x[2];
    y[1] = x[2];
    y[2] = x[2] - x[4];
    y[3] = x[1];
    y[4] = x[3];
  }
};
struct StridedKernelTransform {
  static constexpr int kIn = 3, kOut = 5;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0];
    y[1] = x[0] + x[2];
    y[2] = x[2];
    y[3] = y[4] = x[1];
  }
};
struct StridedOutputTransform {
  static constexpr int kIn = 5, kOut = 2;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0] + x[1] + x[3];
    y[1] = x[1] - x[2] + x[4];
  }
};
struct StridedOutputGradTransform {
  static constexpr int kIn = 2, kOut = 5;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = y[3] = x[0];
    y[1] = x[0] + x[1];
    y[2] = -x[1];
    y[4] = x[1];
  }
};
struct StridedKernelGradTransform {
  static constexpr int kIn = 5, kOut = 3;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0] + x[1];
    y[1] = x[3] + x[4];
    y[2] = x[1] + x[2];
  }
};
// Gradients of stride 2 to inputs, kernels turned around. Inputs at even positions (padding counts)
// take two taps: where they come second in a tile, kOdd, they need one gradient more at its end.
template <bool kOdd>
struct UpsamplingInputTransform {
  static constexpr int kIn = 3, kOut = 5;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[0] = x[0] - x[1];
    y[1] = x[1];
    y[2] = x[1] - x[2];
    y[3] = x[kOdd ? 0 : 1];
    y[4] = x[kOdd ? 1 : 2];
  }
};
template <bool kOdd>
struct UpsamplingOutputTransform {
  static constexpr int kIn = 5, kOut = 4;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    y[kOdd ? 1 : 0] = x[0] + x[1];
    y[kOdd ? 3 : 2] = x[1] - x[2];
    y[kOdd ? 0 : 1] = x[3];
    y[kOdd ? 2 : 3] = x[4];
  }
};

// Six inputs give four outputs of three taps or two of five, with seven products: polynomials of
// kernel and gradient are multiplied at 0, 1, -1, infinity and i, where a complex product takes three
// real ones. Points on the unit circle keep the roundings small where +-2 or +-1/2 would not.
struct SixInputTransform {
  static constexpr int kIn = 6, kOut = 7;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    const V32 odd = x[1] + x[3], even = x[2] + x[4], real = x[2] - x[4], imaginary = x[1] - x[3];
    y[0] = x[0] - x[4];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = imaginary - real;
    y[4] = real;
    y[5] = imaginary;
    y[6] = x[5] - x[1];
  }
};
template <int kTaps>
struct SixKernelTransform {
  static constexpr int kIn = kTaps, kOut = 7;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    const V32 half = splat(0.5f), quarter = splat(0.25f);
    const V32 fourth = kTaps > 3 ? x[3] : V32{}, fifth = kTaps > 4 ? x[4] : V32{};
    const V32 even = quarter * (x[0] + x[2] + fifth), odd = quarter * (x[1] + fourth);
    const V32 real = half * (x[0] - x[2] + fifth), imaginary = half * (x[1] - fourth);
    y[0] = x[0];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = real + imaginary;
    y[4] = imaginary;
    y[5] = real;
    y[6] = x[kTaps - 1];
  }
};
template <int kTile>
struct SixOutputTransform {
  static constexpr int kIn = 7, kOut = kTile;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    const V32 even = x[1] + x[2], odd = x[1] - x[2];
    const V32 real = x[3] + x[4] - x[5], imaginary = x[4] + x[5];
    y[0] = x[0] + even + real;
    y[1] = odd + imaginary;
    if constexpr (kTile == 4) {
      y[2] = even - real;
      y[3] = odd - imaginary;
    }
    y[kTile - 1] += x[6];
  }
};
template <int kTile>
struct SixOutputGradTransform {
  static constexpr int kIn = kTile, kOut = 7;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    const V32 third = kTile > 2 ? x[2] : V32{}, fourth = kTile > 3 ? x[3] : V32{};
    const V32 even = x[0] + third, odd = x[1] + fourth;
    const V32 real = x[0] - third, imaginary = x[1] - fourth;
    y[0] = x[0];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = real;
    y[4] = real + imaginary;
    y[5] = imaginary - real;
    y[6] = x[kTile - 1];
  }
};
template <int kTaps>
struct SixKernelGradTransform {
  static constexpr int kIn = 7, kOut = kTaps;
  static GREBE_INLINE void apply(const V32* x, V32* y) {
    const V32 half = splat(0.5f), quarter = splat(0.25f);
    const V32 even = quarter * (x[1] + x[2]), odd = quarter * (x[1] - x[2]);
    const V32 real = half * (x[3] + x[5]), imaginary = half * (x[3] + x[4]);
    y[0] = x[0] + even + real;
    y[1] = odd + imaginary;
    y[2] = even - real;
    if constexpr (kTaps == 5) {
      y[3] = odd - imaginary;
      y[4] = even + real;
    }
    y[kTaps - 1] += x[6];
  }
};

// The transforms that belong together; inputs from one tile to the next.
template <class InputT, class KernelT, class OutputT, int kInputStep>
struct Scheme {
  using Input = InputT;
  using Kernel = KernelT;
  using Output = OutputT;
  static constexpr int kTaps = Kernel::kIn;
  static constexpr int kPoints = Input::kOut * Input::kOut, kStep = kInputStep;
  static constexpr int64_t kTiles = kTilePoints / kPoints;  // of a job
  static constexpr int64_t kGradTiles = kTiles;  // the same for the weight gradient
  static constexpr int64_t kChain = 256;  // channels between two stores of a tile

  static int64_t pixels(int64_t tiles) { return (tiles - 1) * kStep + Input::kIn; }  // of a row
};
struct Plain : Scheme<InputTransform, KernelTransform, OutputTransform, 2> {
  using OutputGrad = OutputGradTransform;
  using KernelGrad = KernelGradTransform;
};
struct Strided : Scheme<StridedInputTransform, StridedKernelTransform, StridedOutputTransform, 4> {
  using OutputGrad = StridedOutputGradTransform;
  using KernelGrad = StridedKernelGradTransform;
};
template <int kTaps>
struct Six : Scheme<SixInputTransform, SixKernelTransform<kTaps>, SixOutputTransform<7 - kTaps>,
                    7 - kTaps> {
  using OutputGrad = SixOutputGradTransform<7 - kTaps>;
  using KernelGrad = SixKernelGradTransform<kTaps>;
  static constexpr int64_t kTiles = 24, kGradTiles = 64, kChain = 96;
};
template <bool kOdd>
struct Upsampling : Scheme<UpsamplingInputTransform<kOdd>, StridedKernelTransform,
                           UpsamplingOutputTransform<kOdd>, 2> {};

// y = F x F^T: columns, then rows. Element (i, j) of x is read by from(i, j), of y given to to(i, j).
template <class F, class From, class To>
GREBE_INLINE void transform(const From& from, const To& to) {
  V32 half[F::kOut][F::kIn];
#pragma GCC unroll 7
  for (int j = 0; j < F::kIn; ++j) {
    V32 x[F::kIn], y[F::kOut];
#pragma GCC unroll 7
    for (int i = 0; i < F::kIn; ++i) x[i] = from(i, j);
    F::apply(x, y);
#pragma GCC unroll 7
    for (int i = 0; i < F::kOut; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 7
  for (int i = 0; i < F::kOut; ++i) {
    V32 y[F::kOut];
    F::apply(half[i], y);
#pragma GCC unroll 7
    for (int j = 0; j < F::kOut; ++j) to(i, j, y[j]);
  }
}

// `tiles` neighbours of size F::kIn, kStep pixels apart, of rows [kIn][pixels][ld] to points.
template <class F, int kStep>
void transform_tiles(const float* rows, int64_t pixels, int64_t channels, int64_t ld, int64_t tiles,
                     float* points, int64_t plane, int64_t ld_points) {
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t c = 0; c < channels; c += lanes<float>) {
      const float* from = rows + t * kStep * ld + c;
      float* to = points + t * ld_points + c;
      transform<F>([&](int i, int j) { return load(from + (i * pixels + j) * ld); },
                   [&](int i, int j, V32 v) { store(to + (i * F::kOut + j) * plane, v); });
    }
}

// ---- kernels ----

// Kernel of (lane, k) at w + lane * lane_step + k * k_step; flip turns it by 180 degrees.
struct Kernels {
  const float* w;
  int64_t lane_channels, k_channels, lane_step, k_step;
  bool flip;
};

// u[point][strip][k][lane]
template <class F>
void transform_kernels(const Kernels& from, const Strips<float>& strips, float* u) {
  constexpr int64_t L = lanes<float>;
  constexpr int kTaps = F::kIn * F::kIn;
  const int64_t plane = apart(from.k_channels * strips.width());
  parallel_for(from.k_channels, int64_t{4}, [&](int64_t begin, int64_t end) {
    float taps[kTaps * L];
    for (int64_t s = 0; s < strips.strips.count; ++s) {
      const int64_t first = strips.strips.begin(s) * L, size = strips.strips.size(s) * L;
      for (int64_t k = begin; k < end; ++k)
        for (int64_t lane = first; lane < first + size; lane += L) {
          const int64_t left = smaller(L, from.lane_channels - lane);
          if (left < L) fill(taps, kTaps * L, 0.0f);
          copy_plane(taps, L, int64_t{1}, from.w + lane * from.lane_step + k * from.k_step,
                     int64_t{1}, from.lane_step, int64_t{kTaps}, left);
          float* to = u + first * from.k_channels + k * size + lane - first;
          transform<F>(
              [&](int i, int j) {
                const int tap = F::kIn * i + j;
                return load(taps + (from.flip ? kTaps - 1 - tap : tap) * L);
              },
              [&](int i, int j, V32 v) { store(to + (F::kOut * i + j) * plane, v); });
        }
    }
  });
}

// ---- forward and input gradient ----

template <class S>
struct Winograd {
  Image<float> x, y;
  int64_t pad_h, pad_w;  // of x; negative: rows and columns left out
  Kernels kernels;
  const float* bias;

  static constexpr int kPoints = S::kPoints, kTile = S::Output::kOut, kIn = S::Input::kIn;
  int64_t tile_rows() const { return divide_up(y.h, kTile); }
  int64_t tile_cols() const { return divide_up(y.w, kTile); }
  int64_t pixels() const { return S::pixels(tile_cols()); }  // of a padded row
  int64_t tiles() const { return rows_of_job * tile_cols(); }
  int64_t plane() const { return apart(tiles() * ld); }
  int64_t products_plane() const { return apart(tiles() * Strips<float>::kGroup); }

  int64_t ld, rows_of_job, kernel_plane;
  const float* u;

  struct Memory {
    float *rows, *points, *products, *results;
  };
  Memory lay_out(Arena* arena) const {
    return {arena->take<float>(kIn * pixels() * ld), arena->take<float>(kPoints * plane()),
            arena->take<float>(kPoints * products_plane()),
            arena->take<float>(kTile * kTile * tile_cols() * Strips<float>::kGroup)};
  }

  // Tile rows [begin, end), counted over all images, to points.
  void make_points(int64_t begin, int64_t end, const Memory& m) const {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t top = r % tile_rows() * S::kStep - pad_h;
      copy_padded(m.rows, ld, x, r / tile_rows(), int64_t{0}, x.channels,
                  {top, kIn, -pad_w, pixels()});
      transform_tiles<typename S::Input, S::kStep>(m.rows, pixels(), x.channels, ld, tile_cols(),
                                                   m.points + (r - begin) * tile_cols() * ld,
                                                   plane(), ld);
    }
  }

  // Channels in blocks whose sums are added: shorter chains of roundings.
  template <int V>
  void multiply_strip(const float* points, const float* strip, int64_t count, float* out) const {
    constexpr int64_t L = lanes<float>;
    const Tiling rows(count, kRows), blocks(x.channels, S::kChain);
    for (int64_t b = 0; b < blocks.count; ++b)
      for (int64_t t = 0; t < rows.count; ++t)
        with_count<kRows>(rows.size(t), [&](auto n) {
          constexpr int R = decltype(n)::value;
          V32 acc[R][V] = {};
          multiply_add<float, R, V, false>(
              blocks.size(b), points + rows.begin(t) * ld + blocks.begin(b), ld, int64_t{1},
              strip + blocks.begin(b) * V * L, V * L, 0, acc);
          float* to = out + rows.begin(t) * Strips<float>::kGroup;
          add_or_store<float, R, V>(to, Strips<float>::kGroup, acc, b == 0);
        });
  }

  void multiply(const Strips<float>& strips, int64_t group, int64_t count, const Memory& m) const {
    for (int p = 0; p < kPoints; ++p)
      strips.each(group, [&](int64_t channel, auto vectors) {
        multiply_strip<decltype(vectors)::value>(
            m.points + p * plane(), u + p * kernel_plane + channel * x.channels, count,
            m.products + p * products_plane() + channel - strips.begin(group));
      });
  }

  // Products of one tile row to rows of results.
  void finish_row(const float* products, const float* b, int64_t width, float* results) const {
    constexpr int64_t G = Strips<float>::kGroup;
    const int64_t row = kTile * tile_cols() * G;
    for (int64_t t = 0; t < tile_cols(); ++t)
      for (int64_t c = 0; c < width; c += lanes<float>) {
        const float* from = products + t * G + c;
        float* to = results + kTile * t * G + c;
        const V32 start = load(b + c);
        transform<typename S::Output>(
            [&](int i, int j) { return load(from + (S::Output::kIn * i + j) * products_plane()); },
            [&](int i, int j, V32 v) { store(to + i * row + j * G, v + start); });
      }
  }

  void finish(const Strips<float>& strips, int64_t group, int64_t begin, int64_t end,
              const Memory& m) const {
    constexpr int64_t G = Strips<float>::kGroup;
    const int64_t channel = strips.begin(group), width = strips.size(group);
    const int64_t valid = smaller(width, y.channels - channel);
    float b[G] = {};
    if (bias) copy_run(b, bias + channel, valid);
    for (int64_t r = begin; r < end; ++r) {
      finish_row(m.products + (r - begin) * tile_cols() * G, b, width, m.results);
      copy_rows_out(y, r / tile_rows(), channel, valid, r % tile_rows() * kTile, kTile, m.results,
                    G, kTile * tile_cols() * G);
    }
  }

  bool run() {
    const Strips<float> strips(y.channels);
    const int64_t all = y.batch * tile_rows();
    ld = padded_channels<float>(x.channels);
    rows_of_job = clamp(S::kTiles / tile_cols(), 1, all);
    const Tiling blocks(all, rows_of_job);
    const int64_t parts = jobs_per_block(blocks.count, strips.count());
    const int threads = static_cast<int>(smaller(num_threads(), blocks.count * parts));

    Arena measure{nullptr};
    kernel_plane = apart(x.channels * strips.width());
    measure.take<float>(kPoints * kernel_plane);
    const int64_t shared = measure.used;
    lay_out(&measure);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * threads)));
    if (!memory) return false;
    u = reinterpret_cast<float*>(memory);
    transform_kernels<typename S::Kernel>(kernels, strips, reinterpret_cast<float*>(memory));
    take_jobs(blocks.count * parts, threads, [&](int64_t job, int thread) {
      Arena arena{memory + shared + thread * own};
      const Memory m = lay_out(&arena);
      const int64_t block = job / parts, part = job % parts;
      const int64_t begin = blocks.begin(block), end = blocks.begin(block + 1);
      make_points(begin, end, m);
      for (int64_t g = strips.count() * part / parts; g < strips.count() * (part + 1) / parts;
           ++g) {
        multiply(strips, g, (end - begin) * tile_cols(), m);
        finish(strips, g, begin, end, m);
      }
    });
    return true;
  }
};

// ---- weight gradient ----

template <class S>
struct WinogradWeight {
  Image<float> x, grad;
  int64_t pad_h, pad_w;
  float *gw, *gb;

  static constexpr int kPoints = S::kPoints, kTile = S::Output::kOut, kIn = S::Input::kIn;
  static constexpr int kTaps = S::kTaps * S::kTaps;
  int64_t tile_rows() const { return divide_up(grad.h, kTile); }
  int64_t tile_cols() const { return divide_up(grad.w, kTile); }
  int64_t pixels() const { return S::pixels(tile_cols()); }
  int64_t tiles() const { return rows_of_block * tile_cols(); }
  int64_t plane() const { return apart(tiles() * ld); }
  int64_t grad_plane() const { return apart(tiles() * Strips<float>::kGroup); }

  int64_t ld, rows_of_block;

  struct Memory {
    float *rows, *points, *grads;
  };
  Memory lay_out(Arena* arena) const {
    const int64_t width = ld > Strips<float>::kGroup ? ld : Strips<float>::kGroup;
    return {arena->take<float>(kIn * pixels() * width), arena->take<float>(kPoints * plane()),
            arena->take<float>(kPoints * grad_plane())};
  }

  void make_points(int64_t begin, int64_t end, int64_t c, int64_t channels, int64_t o,
                   int64_t outputs, const Memory& m) const {
    constexpr int64_t G = Strips<float>::kGroup;
    const int64_t valid = smaller(outputs, grad.channels - o), cols = tile_cols();
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / tile_rows(), row = r % tile_rows(), at = (r - begin) * cols;
      copy_padded(m.rows, ld, x, n, c, channels, {row * S::kStep - pad_h, kIn, -pad_w, pixels()});
      transform_tiles<typename S::Input, S::kStep>(m.rows, pixels(), channels, ld, cols,
                                                   m.points + at * ld, plane(), ld);
      if (valid < outputs) fill(m.rows, kTile * kTile * cols * G, 0.0f);
      copy_padded(m.rows, G, grad, n, o, valid, {kTile * row, kTile, 0, kTile * cols});
      transform_tiles<typename S::OutputGrad, kTile>(m.rows, kTile * cols, outputs, G, cols,
                                                     m.grads + at * G, grad_plane(), G);
    }
  }

  // sums[channel][lane] += points^T grads, for one point and strip.
  template <int V>
  void multiply_strip(const float* points, const float* grads, int64_t channels, int64_t count,
                      float* sums, bool first) const {
    constexpr int64_t L = lanes<float>;
    const Tiling rows(channels, kRows);
    for (int64_t t = 0; t < rows.count; ++t)
      with_count<kRows>(rows.size(t), [&](auto n) {
        constexpr int R = decltype(n)::value;
        float* to = sums + rows.begin(t) * V * L;
        V32 acc[R][V] = {};
        multiply_add<float, R, V, false>(count, points + rows.begin(t), int64_t{1}, ld, grads,
                                         Strips<float>::kGroup, 0, acc);
        add_or_store<float, R, V>(to, V * L, acc, first);
      });
  }

  // Point (1, 1) of a tile of gradients is the sum of all.
  void add_bias(const float* grads, int64_t width, int64_t count, float* sum) const {
    for (int64_t c = 0; c < width; c += lanes<float>) {
      V32 total = load(sum + c);
      for (int64_t t = 0; t < count; ++t)
        total += load(grads + (S::Input::kOut + 1) * grad_plane() + t * Strips<float>::kGroup + c);
      store(sum + c, total);
    }
  }

  void finish(const Strips<float>& strips, const float* sums, int64_t chunks, int64_t size) const {
    constexpr int64_t L = lanes<float>;
    const int64_t point = apart(x.channels * strips.width());
    parallel_for(x.channels, int64_t{4}, [&](int64_t begin, int64_t end) {
      float taps[kTaps * L];
      for (int64_t s = 0; s < strips.strips.count; ++s) {
        const int64_t first = strips.strips.begin(s) * L, width = strips.strips.size(s) * L;
        for (int64_t lane = first; lane < first + width; lane += L)
          for (int64_t c = begin; c < end; ++c) {
            const float* from = sums + first * x.channels + c * width + lane - first;
            transform<typename S::KernelGrad>(
                [&](int i, int j) {
                  const float* p = from + (S::KernelGrad::kIn * i + j) * point;
                  V32 total = load(p);
                  for (int64_t k = 1; k < chunks; ++k) total += load(p + k * size);
                  return total;
                },
                [&](int i, int j, V32 v) { store(taps + (S::kTaps * i + j) * L, v); });
            copy_plane(gw + (lane * x.channels + c) * kTaps, kTaps * x.channels, int64_t{1}, taps,
                       int64_t{1}, L, smaller(L, grad.channels - lane), int64_t{kTaps});
          }
      }
    });
  }

  // Tile rows [begin, end) for one group of output and some input channels.
  void job(const Strips<float>& strips, int64_t group, int64_t c, int64_t channels, int64_t begin,
           int64_t end, float* sums, const Memory& m) const {
    const int64_t o = strips.begin(group), width = strips.size(group);
    float* bias = sums + kPoints * apart(x.channels * strips.width()) + o;
    if (c == 0) fill(bias, width, 0.0f);
    const Tiling blocks(end - begin, rows_of_block);
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t count = blocks.size(b) * tile_cols();
      make_points(begin + blocks.begin(b), begin + blocks.begin(b + 1), c, channels, o, width, m);
      if (gb && c == 0) add_bias(m.grads, width, count, bias);
      for (int p = 0; p < kPoints; ++p)
        strips.each(group, [&](int64_t channel, auto vectors) {
          constexpr int V = decltype(vectors)::value;
          float* to = sums + p * apart(x.channels * strips.width()) + channel * x.channels +
                      c * V * lanes<float>;
          multiply_strip<V>(m.points + p * plane(), m.grads + p * grad_plane() + channel - o,
                            channels, count, to, b == 0);
        });
    }
  }

  bool run() {
    const Strips<float> strips(grad.channels);
    const Tiling inputs(x.channels, kGradChannels);
    const int64_t all = x.batch * tile_rows(), tasks = strips.count() * inputs.count;
    ld = padded_channels<float>(divide_up(x.channels, inputs.count));
    rows_of_block = clamp(S::kGradTiles / tile_cols(), 1, all);
    const Tiling chunks = grad_chunks(all, tasks);
    const int64_t size = kPoints * apart(x.channels * strips.width()) + strips.width();
    const int threads = static_cast<int>(smaller(num_threads(), chunks.count * tasks));

    Arena measure{nullptr};
    measure.take<float>(chunks.count * size);
    const int64_t shared = measure.used;
    lay_out(&measure);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * threads)));
    if (!memory) return false;
    float* const sums = reinterpret_cast<float*>(memory);
    take_jobs(chunks.count * tasks, threads, [&](int64_t j, int thread) {
      Arena arena{memory + shared + thread * own};
      const int64_t chunk = j / tasks, group = j % tasks / inputs.count, part = j % inputs.count;
      job(strips, group, inputs.begin(part), inputs.size(part), chunks.begin(chunk),
          chunks.begin(chunk + 1), sums + chunk * size, lay_out(&arena));
    });
    finish(strips, sums, chunks.count, size);
    if (gb)
      add_chunks(gb, sums + kPoints * apart(x.channels * strips.width()), grad.channels,
                 chunks.count, size);
    return true;
  }
};

}  // namespace
}  // namespace grebe::GREBE_ISA
