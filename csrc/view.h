// Plain argument structs: what a kernel sees of an array. No behaviour beyond arithmetic on shapes.
#pragma once
#include <cstdint>

namespace grebe {

enum class DType : int8_t {
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kInt64,
  kInt32,
  kUInt8,
  kBool
};

constexpr int kMaxDims = 16;

// A strided array that somebody else owns. Strides count elements, not bytes.
struct View {
  void* data;  // nullptr stands for Python's None
  int ndim;
  DType dtype;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxDims];
};

// The argument types of ops.def. The binding checks them: In takes any array, Out a writable one,
// the Opt forms also None, Views a list of arrays; HostIn is a NumPy array on every device.
struct In : View {};
struct HostIn : View {};
struct Out : View {};
struct OptIn : View {};
struct OptOut : View {};
struct Views {
  const View* items;
  int64_t size;
};

template <class T>
static inline T* data(const View& v) {
  return static_cast<T*>(v.data);
}

static inline int64_t numel(const View& v) {
  int64_t n = 1;
  for (int d = 0; d < v.ndim; ++d) n *= v.shape[d];
  return n;
}

// Shape and strides of elements as if dense in C order?
static inline bool is_contiguous(const View& v) {
  int64_t expected = 1;
  for (int d = v.ndim - 1; d >= 0; --d) {
    if (v.shape[d] != 1 && v.strides[d] != expected) return false;
    expected *= v.shape[d];
  }
  return true;
}

}  // namespace grebe
