// The Python modules _cuda (kernels by nvcc, arrays of CuPy) and _emulated (the same kernels run by
// the emulator, arrays of grebe.emulated): one binding per line of ops.def.
//
// An array is anything with shape, strides, dtype and data.ptr. Python hands in two functions, one
// that makes arrays and one that names the current stream, so nothing here links CuPy or a driver.
#include <pybind11/pybind11.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <vector>

#include "../binding.h"
#include "elementwise.h"
#include "probes.h"
#ifdef GREBE_EMULATE
#include "emulator.h"
#define GREBE_MODULE _emulated
#else
#include <cuda_runtime.h>
#define GREBE_MODULE _cuda
#endif

namespace py = pybind11;

namespace grebe {
namespace {

PyObject* g_empty;  // empty(shape, dtype, strides or None) -> array
PyObject* g_stream;  // stream() -> the address of the current stream
int g_bfloat16 = -1;
thread_local std::vector<PyObject*> t_workspaces;  // until the end of the running operation

PyObject *s_shape, *s_strides, *s_dtype, *s_data, *s_ptr;

// Owned reference, let go at the end of the scope.
struct Owned {
  PyObject* o;
  explicit Owned(PyObject* o) : o(o) {}
  Owned(const Owned&) = delete;
  ~Owned() { Py_XDECREF(o); }
  explicit operator bool() const { return o != nullptr; }
};

bool dtype_of(PyObject* descr, DType* out) {
  if (!PyArray_DescrCheck(descr)) return false;
  const int type = reinterpret_cast<PyArray_Descr*>(descr)->type_num;
  switch (type) {
    case NPY_FLOAT32: *out = DType::kFloat32; return true;
    case NPY_FLOAT64: *out = DType::kFloat64; return true;
    case NPY_FLOAT16: *out = DType::kFloat16; return true;
    case NPY_INT64: *out = DType::kInt64; return true;
    case NPY_LONGLONG: *out = DType::kInt64; return true;
    case NPY_INT32: *out = DType::kInt32; return true;
    case NPY_UINT8: *out = DType::kUInt8; return true;
    case NPY_BOOL: *out = DType::kBool; return true;
    default: break;
  }
  *out = DType::kBFloat16;
  return type == g_bfloat16;
}

// "": `o` is taken; otherwise why not. A Python error may be set.
const char* view_of(PyObject* o, View* v) {
  constexpr const char* kNoArray = "is not an array of this device";
  if (PyArray_Check(o)) return "is an array of the CPU";
  const Owned shape(PyObject_GetAttr(o, s_shape)), strides(PyObject_GetAttr(o, s_strides));
  const Owned dtype(PyObject_GetAttr(o, s_dtype)), data(PyObject_GetAttr(o, s_data));
  if (!shape || !strides || !dtype || !data) return PyErr_Clear(), kNoArray;
  const Owned pointer(PyObject_GetAttr(data.o, s_ptr));
  if (!pointer || !PyTuple_Check(shape.o) || !PyTuple_Check(strides.o))
    return PyErr_Clear(), kNoArray;
  v->data = PyLong_AsVoidPtr(pointer.o);
  v->ndim = static_cast<int>(PyTuple_GET_SIZE(shape.o));
  if (v->ndim > kMaxDims) return "has more than 16 dimensions";
  if (!dtype_of(dtype.o, &v->dtype)) return "has an unsupported dtype";
  const int64_t size = PyDataType_ELSIZE(reinterpret_cast<PyArray_Descr*>(dtype.o));
  for (int d = 0; d < v->ndim; ++d) {
    v->shape[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.o, d));
    const int64_t stride = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.o, d));
    if (stride % size) return "has strides that are no multiple of its item size";
    v->strides[d] = stride / size;
  }
  if (reinterpret_cast<uintptr_t>(v->data) % static_cast<uintptr_t>(size)) return "is unaligned";
  if (!v->data) v->data = reinterpret_cast<void*>(uintptr_t{16});  // no elements; null means None
  return "";
}

// Makes an array; nullptr: a Python error is set. strides in bytes, or nullptr for C order.
PyObject* new_array(int ndim, const int64_t* shape, PyObject* dtype, const int64_t* strides) {
  if (!g_empty) return PyErr_Format(PyExc_RuntimeError, "no device memory: set_device first");
  auto tuple = [&](const int64_t* values) -> PyObject* {
    PyObject* t = PyTuple_New(ndim);
    for (int d = 0; t && d < ndim; ++d) PyTuple_SET_ITEM(t, d, PyLong_FromLongLong(values[d]));
    return t;
  };
  const Owned shape_tuple(tuple(shape));
  const Owned strides_tuple(strides ? tuple(strides) : Py_NewRef(Py_None));
  if (!shape_tuple || !strides_tuple) return nullptr;
  PyObject* args[] = {shape_tuple.o, dtype, strides_tuple.o};
  return PyObject_Vectorcall(g_empty, args, 3, nullptr);
}

// Runs f, which returns a new reference or nullptr, with C++ exceptions as Python's, and lets the
// workspaces go.
template <class F>
PyObject* guarded(const F& f) {
  PyObject* result = nullptr;
  try {
    result = f();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  for (PyObject* o : t_workspaces) Py_DECREF(o);
  t_workspaces.clear();
  return result;
}

}  // namespace

bool to_view(PyObject* o, View* v, bool, bool optional, const Where& w, Py_ssize_t i) {
  if (optional && o == Py_None) {
    *v = View{};
    return true;
  }
  const char* problem = view_of(o, v);
  if (*problem && PyArray_Check(o))
    device_error(w);
  else if (*problem)
    argument_error(w, i, problem);
  return !*problem;
}

bool to_host_view(PyObject* o, View* v, const Where& w, Py_ssize_t i) {
  PyArrayObject* a = reinterpret_cast<PyArrayObject*>(o);
  if (!PyArray_Check(o) || !PyArray_ISCARRAY_RO(a) || PyArray_NDIM(a) > kMaxDims ||
      !dtype_of(reinterpret_cast<PyObject*>(PyArray_DESCR(a)), &v->dtype))
    return argument_error(w, i, "is not a contiguous numpy.ndarray"), false;
  v->data = PyArray_DATA(a);
  v->ndim = PyArray_NDIM(a);
  int64_t stride = 1;
  for (int d = v->ndim - 1; d >= 0; --d) {
    v->shape[d] = PyArray_DIM(a, d);
    v->strides[d] = stride;
    stride *= v->shape[d];
  }
  return true;
}

namespace cuda {

void* current_stream() {
  if (!g_stream) return nullptr;
  const Owned stream(PyObject_CallNoArgs(g_stream));
  if (!stream) throw std::runtime_error("current stream");
  return PyLong_AsVoidPtr(stream.o);
}

void* workspace(int64_t bytes) {
  const Owned dtype(reinterpret_cast<PyObject*>(PyArray_DescrFromType(NPY_UINT8)));
  const int64_t shape = std::max<int64_t>(bytes, 1);
  PyObject* array = new_array(1, &shape, dtype.o, nullptr);
  View view;
  if (!array || *view_of(array, &view)) throw std::bad_alloc();
  t_workspaces.push_back(array);
  return view.data;
}

size_t workspaces() { return t_workspaces.size(); }
void release_workspaces(size_t kept) {
  for (; t_workspaces.size() > kept; t_workspaces.pop_back()) Py_DECREF(t_workspaces.back());
}

int compute_capability() {
#ifdef GREBE_EMULATE
  return emulator::options.capability;
#else
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return 10 * major + minor;
#endif
}

static bool g_tf32 = false;
bool tf32_allowed() { return g_tf32; }

int multiprocessors() {
#ifdef GREBE_EMULATE
  return 2;
#else
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
#endif
}

void unsupported(const char* name, DType dtype) {
  static const char* names[] = {"float32", "float64", "bfloat16", "float16",
                                "int64",   "int32",   "uint8",    "bool"};
  PyErr_Format(PyExc_TypeError, "%s: no CUDA kernel for dtype %s", name,
               names[static_cast<int>(dtype)]);
  throw std::runtime_error(name);
}

}  // namespace cuda

namespace {

// ---- elementwise ----
//
// name(x, out=None, *params) and name(a, b, out=None, *params), positional, as in _cpu: they return
// the result, or NotImplemented for what they leave to Python.

constexpr int kMaxParams = 4;

bool is_floating(DType t) { return t <= DType::kFloat16; }

// Bytes from the first element to behind the last; `low` may be negative.
void bounds(const View& v, int64_t* low, int64_t* high) {
  *low = *high = 0;
  for (int d = 0; d < v.ndim; ++d) {
    if (v.shape[d] == 0) return void(*low = *high = 0);
    const int64_t span = (v.shape[d] - 1) * v.strides[d];
    (span < 0 ? *low : *high) += span;
  }
  *high += 1;
}

bool same_layout(const View& a, const View& b) {
  if (a.ndim != b.ndim || a.data != b.data) return false;
  for (int d = 0; d < a.ndim; ++d)
    if (a.shape[d] != b.shape[d] || (a.shape[d] != 1 && a.strides[d] != b.strides[d])) return false;
  return true;
}

// Could writing `out` change elements of `in` before they are read?
bool harmful_overlap(const View& out, const View& in, int64_t size) {
  if (same_layout(out, in)) return false;
  int64_t out_low, out_high, in_low, in_high;
  bounds(out, &out_low, &out_high);
  bounds(in, &in_low, &in_high);
  const char *o = data<char>(out), *i = data<char>(in);
  return o + out_low * size < i + in_high * size && i + in_low * size < o + out_high * size;
}

struct Elementwise {
  View in[2];
  bool is_array[2] = {};
  double numbers[2] = {};
  int inputs;
  int like = -1;  // the input whose layout the result takes
  PyObject* dtype = nullptr;
  int64_t size = 0;
  Iteration it;

  // 1: taken, 0: not for these kernels, -1: error.
  int take(PyObject* const* args, int n) {
    inputs = n;
    for (int k = 0; k < n; ++k) {
      if (PyFloat_CheckExact(args[k]) || PyLong_CheckExact(args[k])) {
        numbers[k] = PyFloat_AsDouble(args[k]);
        if (numbers[k] == -1.0 && PyErr_Occurred()) return -1;
        continue;
      }
      if (*view_of(args[k], &in[k]) || !is_floating(in[k].dtype)) return 0;
      is_array[k] = true;
      if (like >= 0 && in[like].dtype != in[k].dtype) return 0;
      if (like < 0 || in[k].ndim > in[like].ndim ||
          (in[k].ndim == in[like].ndim && numel(in[k]) > numel(in[like])))
        like = k;
    }
    if (like < 0) return 0;
    size = in[like].dtype == DType::kFloat64 ? 8 : in[like].dtype == DType::kFloat32 ? 4 : 2;
    return 1;
  }

  bool broadcast() {
    it.operands = inputs + 1;
    it.ndim = in[like].ndim;
    std::copy_n(in[like].shape, it.ndim, it.shape);
    for (int k = 0; k < inputs; ++k) {
      if (!is_array[k]) continue;
      const int lead = it.ndim - in[k].ndim;
      for (int d = lead; d < it.ndim; ++d) {
        const int64_t n = in[k].shape[d - lead];
        if (n != it.shape[d] && n != 1 && it.shape[d] != 1) return false;
        if (it.shape[d] == 1) it.shape[d] = n;
      }
    }
    return true;
  }

  bool fits(const View& out) const {
    if (out.ndim != it.ndim || out.dtype != in[like].dtype) return false;
    if (!std::equal(out.shape, out.shape + out.ndim, it.shape)) return false;
    for (int k = 0; k < inputs; ++k)
      if (is_array[k] && harmful_overlap(out, in[k], size)) return false;
    return true;
  }

  // A result in the dimension order of `like`; where that repeats elements, in C's.
  PyObject* new_output(PyObject* descr) const {
    const View& v = in[like];
    bool keep = v.ndim == it.ndim && !is_contiguous(v);
    for (int d = 0; d < it.ndim && keep; ++d) keep = v.strides[d] != 0 || v.shape[d] <= 1;
    if (!keep) return new_array(it.ndim, it.shape, descr, nullptr);
    int order[kMaxDims];
    int64_t strides[kMaxDims], next = size;
    for (int d = 0; d < it.ndim; ++d) order[d] = d;
    std::stable_sort(order, order + it.ndim,
                     [&](int a, int b) { return std::abs(v.strides[a]) > std::abs(v.strides[b]); });
    for (int i = it.ndim - 1; i >= 0; --i) {
      strides[order[i]] = next;
      next *= std::max<int64_t>(it.shape[order[i]], 1);
    }
    return new_array(it.ndim, it.shape, descr, strides);
  }

  void set_operand(int k, const View& v) {
    it.data[k] = data<char>(v);
    const int lead = it.ndim - v.ndim;
    for (int d = 0; d < it.ndim; ++d)
      it.strides[k][d] = d < lead || v.shape[d - lead] == 1 ? 0 : v.strides[d - lead] * size;
  }
};

PyObject* elementwise(cuda::ElementwiseKernel* kernel, PyObject* const* args, Py_ssize_t count,
                      int inputs) {
  if (count < inputs || count > inputs + 1 + kMaxParams)
    return PyErr_Format(PyExc_TypeError, "expected %d operands, an output and parameters", inputs);
  Elementwise e;
  const int taken = e.take(args, inputs);
  if (taken < 0) return nullptr;
  if (taken == 0 || !e.broadcast()) Py_RETURN_NOTIMPLEMENTED;
  double params[kMaxParams] = {};
  for (Py_ssize_t i = inputs + 1; i < count; ++i) {
    params[i - inputs - 1] = PyFloat_AsDouble(args[i]);
    if (PyErr_Occurred()) return nullptr;
  }
  View view;
  PyObject* out;
  if (count > inputs && args[inputs] != Py_None) {
    if (*view_of(args[inputs], &view) || !e.fits(view)) Py_RETURN_NOTIMPLEMENTED;
    out = Py_NewRef(args[inputs]);
  } else {
    const Owned descr(PyObject_GetAttr(args[e.like], s_dtype));
    out = descr ? e.new_output(descr.o) : nullptr;
    if (!out || *view_of(out, &view)) return Py_XDECREF(out), nullptr;
  }
  const Owned result(out);
  if (numel(view) == 0) return Py_NewRef(out);
  e.set_operand(0, view);
  for (int k = 0; k < inputs; ++k) {
    if (e.is_array[k]) {
      e.set_operand(k + 1, e.in[k]);
    } else {
      e.it.data[k + 1] = nullptr;
      std::fill_n(e.it.strides[k + 1], e.it.ndim, int64_t{0});
    }
  }
  coalesce(e.it);
  kernel(view.dtype, e.it, e.numbers, params);
  return Py_NewRef(out);
}

// ---- one function per line of ops.def; what has no kernel yet is a null pointer ----

}  // namespace

namespace cuda {
#define UNARY(name, ...)
#define BINARY(name, ...)
#define OP(result, name, args) __attribute__((weak)) result name args;
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP
}  // namespace cuda

namespace {

#define UNARY(name, ...)                                                     \
  PyObject* py_##name(PyObject*, PyObject* const* args, Py_ssize_t count) {  \
    return guarded([&] { return elementwise(cuda::name, args, count, 1); }); \
  }
#define BINARY(name, ...)                                                    \
  PyObject* py_##name(PyObject*, PyObject* const* args, Py_ssize_t count) {  \
    return guarded([&] { return elementwise(cuda::name, args, count, 2); }); \
  }
#define OP(result, name, signature)                                                           \
  PyObject* py_##name(PyObject*, PyObject* const* args, Py_ssize_t count) {                   \
    result(*volatile kernel) signature = cuda::name;                                          \
    if (!kernel)                                                                              \
      return PyErr_Format(PyExc_NotImplementedError, "%s: not available on CUDA yet", #name); \
    return guarded(                                                                           \
        [&] { return call_op<false>(+kernel, Where{#name, #signature}, args, count); });      \
  }
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP

PyCFunction fast(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

// empty(shape, dtype, strides=None), by the function that set_device was given.
PyObject* py_empty(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!g_empty)
    return PyErr_Format(PyExc_RuntimeError, "empty: no device memory: set_device first");
  return PyObject_Vectorcall(g_empty, args, static_cast<size_t>(count), nullptr);
}

PyMethodDef g_methods[] = {
#define UNARY(name, ...) {#name, fast(py_##name), METH_FASTCALL, #name "(x, out=None, *params)"},
#define BINARY(name, ...) \
  {#name, fast(py_##name), METH_FASTCALL, #name "(a, b, out=None, *params)"},
#define OP(result, name, signature) {#name, fast(py_##name), METH_FASTCALL, #name #signature},
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP
    {"empty", fast(py_empty), METH_FASTCALL, "empty(shape, dtype, strides=None)"},
    {nullptr, nullptr, 0, nullptr}};

// The functions that make arrays and name the current stream (None: the default one).
void set_device(py::object empty, py::object stream) {
  Py_XSETREF(g_empty, empty.release().ptr());
  Py_XSETREF(g_stream, stream.is_none() ? nullptr : stream.release().ptr());
}

bool init_numpy() {
  import_array1(false);
  return true;
}

void intern_names() {
  s_shape = PyUnicode_InternFromString("shape");
  s_strides = PyUnicode_InternFromString("strides");
  s_dtype = PyUnicode_InternFromString("dtype");
  s_data = PyUnicode_InternFromString("data");
  s_ptr = PyUnicode_InternFromString("ptr");
}

// probe(name, inputs, output): a kernel of probes.cu.
void run_probe(const std::string& name, const py::list& inputs, const py::object& output) {
  std::vector<View> in(inputs.size());
  View out;
  bool taken = !*view_of(output.ptr(), &out);
  for (size_t i = 0; i < in.size(); ++i) taken = taken && !*view_of(inputs[i].ptr(), &in[i]);
  if (!taken) throw py::type_error("probe: takes arrays of this device");
  cuda::probe(name, in, out);
}

#ifdef GREBE_EMULATE
// How the emulator runs: asynchronous work as late as allowed, a seed for the threads' order, and
// the compute capability, times 10, of the device that it passes for.
void set_options(bool lazy, uint64_t seed, int capability) {
  emulator::options = {lazy, seed, capability};
}
py::dict take_counts() {
  py::dict d;
  d["launches"] = emulator::counts.launches;
  d["switches"] = emulator::counts.switches;
  d["conflicts"] = emulator::counts.conflicts;
  emulator::counts = {};
  return d;
}
#endif

}  // namespace
}  // namespace grebe

PYBIND11_MODULE(GREBE_MODULE, m) {
  using namespace grebe;
  m.doc() = "Kernels for CUDA. Private: use grebe.";
  if (!init_numpy()) throw py::error_already_set();
  intern_names();
  if (PyModule_AddFunctions(m.ptr(), g_methods) != 0) throw py::error_already_set();
  m.def("set_device", &set_device);
  m.def("probe", &run_probe);
  m.def("allow_tf32", [](bool allowed) { grebe::cuda::g_tf32 = allowed; });
  m.def("set_bfloat16", [](int type_number) { g_bfloat16 = type_number; });
#ifdef GREBE_EMULATE
  m.def("set_options", &set_options, py::arg("lazy"), py::arg("seed"), py::arg("capability") = 90);
  m.def("take_counts", &take_counts);
#endif
}
