// Maps of tensors for bulk copies (tma_load, tma_store), made on the host and given to kernels as
// `const __grid_constant__ TensorMap`.
#pragma once
#include "kernels.cuh"
#ifdef __CUDACC__
#include <cudaTypedefs.h>
#endif

namespace grebe::cuda {

constexpr int kMostMapDims = 5;

// Is this compilation for a device whose warpgroups multiply? Kernels of other targets are empty and
// never launched. A template, so that what depends on it is not even made.
template <class Work>
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kWarpgroups = true;
#else
constexpr bool kWarpgroups = false;
#endif

#ifdef __CUDACC__
inline CUtensorMapDataType map_type(const bf16*) { return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16; }
inline CUtensorMapDataType map_type(const half*) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT16; }
inline CUtensorMapDataType map_type(const float*) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT32; }

// A function of the driver, found at run time, so that nothing links the driver.
template <class Function>
Function find_in_driver(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  check("tensor map",
        cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) throw Error("tensor map: the driver is too old");
  return reinterpret_cast<Function>(function);
}
#endif

// The map of a tensor of `ndim` dimensions, the dense one first, with strides in elements, of which
// boxes are copied. `data` is a multiple of 16, and so are all strides in bytes but the first. With
// `swizzled` a box is at most 128 bytes wide.
template <class T>
TensorMap make_tensor_map(const T* data, int ndim, const int64_t* shape, const int64_t* strides,
                          const int* box, bool swizzled = true) {
#ifdef __CUDACC__
  static const auto encode =
      find_in_driver<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  cuuint64_t sizes[kMostMapDims], steps[kMostMapDims];
  cuuint32_t boxes[kMostMapDims], ones[kMostMapDims];
  for (int d = 0; d < ndim; ++d) {
    sizes[d] = static_cast<cuuint64_t>(shape[d]);
    if (d > 0) steps[d - 1] = static_cast<cuuint64_t>(strides[d]) * sizeof(T);
    boxes[d] = static_cast<cuuint32_t>(box[d]);
    ones[d] = 1;
  }
  TensorMap map;
  const CUresult result =
      encode(&map, map_type(data), static_cast<cuuint32_t>(ndim), const_cast<T*>(data), sizes,
             steps, boxes, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw Error("tensor map: error " + std::to_string(result));
  return map;
#else
  TensorMap map{};
  map.data = const_cast<char*>(reinterpret_cast<const char*>(data));
  map.ndim = ndim;
  map.element = sizeof(T);
  map.swizzled = swizzled;
  bool allowed = is_aligned(data) && ndim >= 1 && ndim <= kMostMapDims && strides[0] == 1;
  for (int d = 0; d < ndim && allowed; ++d) {
    map.shape[d] = shape[d];
    map.strides[d] = strides[d] * map.element;
    map.box[d] = box[d];
    allowed = shape[d] > 0 && shape[d] <= int64_t{1} << 32 && box[d] > 0 && box[d] <= 256;
    if (d > 0)
      allowed = allowed && map.strides[d] % 16 == 0 && map.strides[d] >= 0 &&
                map.strides[d] < int64_t{1} << 40;
  }
  if (!allowed || map.row_bytes() % 16 || (swizzled && map.row_bytes() > 128))
    throw Error("tensor map: error 1");
  return map;
#endif
}

// The map of channels-last images for tma_load_pixels: shape and strides in elements of channels,
// columns, rows, images. A copy takes `channels` of `pixels` places. Filters start at `first` (minus
// the padding), `step` apart, and the last starts `last` behind the image's last column and row
// (padding minus the filter's reach). Two numbers are columns, then rows.
struct ImageWindow {
  int first[2], last[2], step[2];
};
// Do the numbers fit into a map.
inline bool fits_image_map(const ImageWindow& w, int reach_x, int reach_y) {
  bool fits = reach_x < 256 && reach_y < 256;
  for (int d = 0; d < 2; ++d)
    fits = fits && w.first[d] >= -128 && w.first[d] < 128 && w.last[d] >= -128 && w.last[d] < 128 &&
           w.step[d] <= 8;
  return fits;
}
template <class T>
TensorMap make_image_map(const T* data, const int64_t* shape, const int64_t* strides,
                         const ImageWindow& window, int channels, int pixels) {
#ifdef __CUDACC__
  static const auto encode =
      find_in_driver<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  cuuint64_t sizes[4], steps[3];
  for (int d = 0; d < 4; ++d) {
    sizes[d] = static_cast<cuuint64_t>(shape[d]);
    if (d > 0) steps[d - 1] = static_cast<cuuint64_t>(strides[d]) * sizeof(T);
  }
  const cuuint32_t traversal[4] = {1, static_cast<cuuint32_t>(window.step[0]),
                                   static_cast<cuuint32_t>(window.step[1]), 1};
  TensorMap map;
  const CUresult result =
      encode(&map, map_type(data), 4, const_cast<T*>(data), sizes, steps, window.first, window.last,
             static_cast<cuuint32_t>(channels), static_cast<cuuint32_t>(pixels), traversal,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw Error("tensor map: error " + std::to_string(result));
  return map;
#else
  const int box[4] = {channels, 1, 1, 1};
  TensorMap map = make_tensor_map(data, 4, shape, strides, box);
  map.pixels = pixels;
  for (int d = 0; d < 2; ++d) {
    map.first[d] = window.first[d];
    map.last[d] = static_cast<int>(shape[d + 1]) - 1 + window.last[d];
    map.step[d] = window.step[d];
    if (map.last[d] < map.first[d]) throw Error("tensor map: error 1");
  }
  if (pixels < 1 || pixels > 1024 || !fits_image_map(window, 0, 0))
    throw Error("tensor map: error 1");
  return map;
#endif
}

}  // namespace grebe::cuda
