// Maps of tensors for bulk copies (tma_load, tma_store), made on the host and given to kernels as
// `const __grid_constant__ TensorMap`.
#pragma once
#include "kernels.cuh"
#ifdef __CUDACC__
#include <cudaTypedefs.h>
#endif

namespace grebe::cuda {

constexpr int kMostMapDims = 5;

#ifdef __CUDACC__
inline CUtensorMapDataType map_type(const bf16*) { return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16; }
inline CUtensorMapDataType map_type(const half*) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT16; }
inline CUtensorMapDataType map_type(const float*) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT32; }

// The driver's function, found at run time, so that nothing links the driver.
inline PFN_cuTensorMapEncodeTiled_v12000 find_tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  check("tensor map", cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                       cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) throw Error("tensor map: the driver is too old");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}
#endif

// The map of a tensor of `ndim` dimensions, the dense one first, with strides in elements, of which
// boxes are copied. `data` is a multiple of 16, and so are all strides in bytes but the first. With
// `swizzled` a box is at most 128 bytes wide.
template <class T>
TensorMap make_tensor_map(const T* data, int ndim, const int64_t* shape, const int64_t* strides,
                          const int* box, bool swizzled = true) {
#ifdef __CUDACC__
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_tensor_map_encoder();
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

}  // namespace grebe::cuda
