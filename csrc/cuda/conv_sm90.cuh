// Convolution of 16-bit channels-last images on sm_90a: the products of gemm_sm90.cuh, whose windows
// come by bulk copies in im2col mode.
//
// Idea: a tile's 128 owners of windows (pixels of the result) are neighbours in scan order, and a slice
// of 64 of K = (tap, channel) is one tap and 64 channels: the copy engine walks the owners, adds the
// tap's place, and gives zeros outside the image. For the weight's gradient the roles turn: K are the
// pixels, and columns of the result are (tap, channel). So channels must be multiples of 64; else, and
// for strides in the input's gradient, conv.cu's other tiles do the work.
//
// Floor: 2 * outputs * K * pixels operations at the tensor cores' peak. Not measured on a device yet.
#pragma once
#include "gemm_sm90.cuh"

namespace grebe::cuda {
namespace {

// How the windows of an image lie: where the first owner's begins, the steps from owner to owner, and
// the taps. Two numbers are columns, then rows.
struct WindowWalk {
  Divider columns, rows;  // owners
  Divider channels, kernel_w;
  int first[2], step[2], dilation[2], last_tap[2];
  bool flipped;  // taps go from the last to the first: the input's gradient

  // The owner that a copy starts from, and tap and channels from element k of K.
  DEVICE void bring(void* to, const TensorMap& map, uint64_t* barrier, int owner, int k) const {
    const int row = static_cast<int>(columns(owner)), image = static_cast<int>(rows(row));
    const int x = owner - row * static_cast<int>(columns.divisor);
    const int y = row - image * static_cast<int>(rows.divisor);
    const int tap = static_cast<int>(channels(k)), tap_y = static_cast<int>(kernel_w(tap));
    const int tap_x = tap - tap_y * static_cast<int>(kernel_w.divisor);
    const int channel = k - tap * static_cast<int>(channels.divisor);
    tma_load_pixels(to, map, barrier, channel, first[0] + x * step[0], first[1] + y * step[1],
                    image, (flipped ? last_tap[0] - tap_x : tap_x) * dilation[0],
                    (flipped ? last_tap[1] - tap_y : tap_y) * dilation[1]);
  }
};

// Owners are rows of the result. b: [columns of the result][K].
template <class Tile>
__global__ void __launch_bounds__(Tile::kBlock, 1)
    multiply_windows_warpgroups(const __grid_constant__ TensorMap images,
                                const __grid_constant__ TensorMap b_map,
                                const __grid_constant__ WarpgroupProblem<typename Tile::T> p,
                                const __grid_constant__ WindowWalk windows) {
  if constexpr (kWarpgroups<Tile>) {
    using T = typename Tile::T;
    Tile tile(p);
    run_warpgroups(tile, [&](T* a, T* b, uint64_t* full, const typename Tile::Work& w, int k) {
      windows.bring(a, images, full, w.i, k);
      tile.bring_b(b, b_map, full, w, k);
    });
  }
}

// Elements of K are columns of the result, owners its K. a_map: [owners][rows of the result].
template <class Tile>
__global__ void __launch_bounds__(Tile::kBlock, 1)
    multiply_gradients_warpgroups(const __grid_constant__ TensorMap a_map,
                                  const __grid_constant__ TensorMap images,
                                  const __grid_constant__ WarpgroupProblem<typename Tile::T> p,
                                  const __grid_constant__ WindowWalk windows) {
  if constexpr (kWarpgroups<Tile>) {
    using T = typename Tile::T;
    constexpr int kBox = Tile::kBox;
    Tile tile(p);
    run_warpgroups(tile, [&](T* a, T* b, uint64_t* full, const typename Tile::Work& w, int k) {
      tile.bring_a(a, a_map, full, w, k);
      for (int j = 0; j < Tile::kN; j += kBox)
        windows.bring(b + j * Tile::kDepth, images, full, k,
                      w.j + j < p.n ? w.j + j : 0);  // of no column: any
    });
  }
}

// Owners and their windows, for a map of the image they see.
struct Windows2d {
  int64_t batch, height, width, channels;  // of the image
  int64_t rows, columns;  // owners'
  int64_t kernel[2], step[2], first[2], dilation[2];
  bool flipped;

  ImageWindow bounds() const {
    ImageWindow w;
    const int64_t owners[2] = {columns, rows}, sizes[2] = {width, height};
    for (int d = 0; d < 2; ++d) {
      w.first[d] = static_cast<int>(first[d]);
      w.step[d] = static_cast<int>(step[d]);
      w.last[d] = static_cast<int>(first[d] + (owners[d] - 1) * step[d] - (sizes[d] - 1));
    }
    return w;
  }
  bool fit() const {
    return channels % 64 == 0 && batch * rows * columns >= 128 &&
           fits_image_map(bounds(), (kernel[0] - 1) * dilation[0], (kernel[1] - 1) * dilation[1]);
  }
  template <class T>
  TensorMap map(const T* data, int pixels) const {
    const int64_t shape[4] = {channels, width, height, batch};
    const int64_t strides[4] = {1, channels, channels * width, channels * width * height};
    return make_image_map(data, shape, strides, bounds(), 64, pixels);
  }
  WindowWalk walk() const {
    WindowWalk w{};
    w.columns = Divider(columns);
    w.rows = Divider(rows);
    w.channels = Divider(channels);
    w.kernel_w = Divider(kernel[0]);
    for (int d = 0; d < 2; ++d) {
      w.first[d] = static_cast<int>(first[d]);
      w.step[d] = static_cast<int>(step[d]);
      w.dilation[d] = static_cast<int>(dilation[d]);
      w.last_tap[d] = static_cast<int>(kernel[d] - 1);
    }
    w.flipped = flipped;
    return w;
  }
};

template <class T>
TensorMap map_of_rows(const T* data, int64_t width, int64_t rows, int box_rows) {
  const int64_t shape[3] = {width, rows, 1}, strides[3] = {1, width, width};
  const int box[3] = {64, box_rows, 1};
  return make_tensor_map(data, 3, shape, strides, box);
}

template <class Tile>
unsigned persistent_blocks(const WarpgroupProblem<typename Tile::T>& p) {
  const int64_t work = int64_t{p.tile_rows} * p.tile_columns * p.parts;
  return static_cast<unsigned>(work < multiprocessors() ? work : multiprocessors());
}
template <class Tile>
void set_sizes(WarpgroupProblem<typename Tile::T>& p, int64_t m, int64_t n, int64_t k,
               int64_t part) {
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.tile_rows = static_cast<int>(divide_up(m, Tile::kM));
  p.tile_columns = static_cast<int>(divide_up(n, Tile::kN));
  p.items = 1;
  p.part = static_cast<int>(part);
  p.parts = static_cast<int>(divide_up(k, part));
}

// y[owner, column] = windows times weight [columns][K], plus bias. Of `strides` (n, c, h, w) h is
// columns * w.
template <int kN, class T>
void launch_windows(const Windows2d& q, const T* image, const T* weight, const T* bias, T* y,
                    const int64_t (&strides)[4], int64_t columns) {
  using Tile = WarpgroupTile<T, kN, true, true, 1, true>;
  const int64_t depth = q.kernel[0] * q.kernel[1] * q.channels;
  WarpgroupProblem<T> p{};
  set_sizes<Tile>(p, q.batch * q.rows * q.columns, columns, depth, depth);
  p.c = y;
  p.plane = Divider(q.rows * q.columns);
  p.c_plane = strides[0];
  p.c_row = strides[3];
  p.c_column = strides[1];
  p.wide = is_aligned(y) && p.c_row % kPack<T> == 0 && p.c_plane % kPack<T> == 0;
  p.bias = bias;
  p.bias_column = 1;
  launch("conv2d", multiply_windows_warpgroups<Tile>, persistent_blocks<Tile>(p), Tile::kBlock,
         Tile::kSharedBytes, q.map(image, Tile::kM), map_of_rows(weight, depth, columns, kN), p,
         q.walk());
}

// partials [parts][rows][K] = grad (channels-last, of `rows` channels) times windows, by parts of
// `part` owners.
template <class T>
void launch_gradients(const Windows2d& q, const T* image, const T* grad, int64_t rows, int64_t part,
                      float* partials) {
  using Tile = WarpgroupTile<T, 128, false, false>;
  const int64_t owners = q.batch * q.rows * q.columns;
  WarpgroupProblem<T> p{};
  set_sizes<Tile>(p, rows, q.kernel[0] * q.kernel[1] * q.channels, owners, part);
  p.partials = partials;
  launch("conv2d", multiply_gradients_warpgroups<Tile>, persistent_blocks<Tile>(p), Tile::kBlock,
         Tile::kSharedBytes, map_of_rows(grad, rows, owners, Tile::kDepth),
         q.map(image, Tile::kDepth), p, q.walk());
}

}  // namespace
}  // namespace grebe::cuda
