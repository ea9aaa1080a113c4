// The Python module _cpu: one binding per line of ops.def, arrays on pooled memory, threads, ISA.
//
// Calls go through METH_FASTCALL: with py::array_t the conversion alone costs more than a small op.
#include <pybind11/pybind11.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <pthread.h>

#include <cstdlib>
#include <cstring>

#include "../binding.h"
#include "../memory.h"
#include "../tape.h"
#include "elementwise_driver.h"
#include "table.h"

namespace py = pybind11;

namespace grebe {

// In memory.cpp. Larger scratch space is refused from now on: for tests of kernels without memory.
void limit_scratch(size_t bytes);

namespace {

const Table* g_table;
const char* g_isa;
int g_bfloat16 = -1;  // NumPy's type number of ml_dtypes.bfloat16, once registered

// ---- arrays on pooled memory ----

struct Buffer {
  PyObject_HEAD
  void* data;
  size_t bytes;
};

void buffer_dealloc(PyObject* self) {
  Buffer* b = reinterpret_cast<Buffer*>(self);
  if (b->data) pool_free(b->data, b->bytes);
  Py_TYPE(self)->tp_free(self);
}

PyTypeObject buffer_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

constexpr size_t kPoolFrom = 2048;  // bytes: below, NumPy's own small-block cache is faster

// strides: in bytes, nullptr for C order. Steals no reference to descr.
PyObject* new_array(PyArray_Descr* descr, int ndim, const npy_intp* shape,
                    const npy_intp* strides) {
  int64_t bytes = PyDataType_ELSIZE(descr);
  for (int d = 0; d < ndim; ++d) {
    if (__builtin_mul_overflow(bytes, static_cast<int64_t>(shape[d]), &bytes)) {
      PyErr_SetString(PyExc_MemoryError, "array is too large");
      return nullptr;
    }
  }
  Py_INCREF(descr);
  if (static_cast<size_t>(bytes) < kPoolFrom)
    return PyArray_NewFromDescr(&PyArray_Type, descr, ndim, shape, strides, nullptr, 0, nullptr);
  Buffer* buffer = PyObject_New(Buffer, &buffer_type);
  if (!buffer) {
    Py_DECREF(descr);
    return nullptr;
  }
  buffer->bytes = static_cast<size_t>(bytes);
  buffer->data = pool_allocate(buffer->bytes);
  PyObject* array = nullptr;
  if (!buffer->data) {
    PyErr_Format(PyExc_MemoryError, "could not allocate %lld bytes", static_cast<long long>(bytes));
    Py_DECREF(descr);
  } else {
    array = PyArray_NewFromDescr(&PyArray_Type, descr, ndim, shape, strides, buffer->data,
                                 NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED, nullptr);
  }
  if (!array) {
    Py_DECREF(buffer);
    return nullptr;
  }
  if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array),
                            reinterpret_cast<PyObject*>(buffer)) < 0) {
    Py_DECREF(array);
    return nullptr;
  }
  return array;
}

// ---- conversion of arguments ----

bool dtype_of(PyArrayObject* a, DType* out) {
  switch (PyArray_TYPE(a)) {
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
  return PyArray_TYPE(a) == g_bfloat16;
}

}  // namespace

bool to_view(PyObject* o, View* v, bool writable, bool optional, const Where& w, Py_ssize_t i) {
  if (optional && o == Py_None) {
    *v = View{};
    return true;
  }
  if (!PyArray_Check(o)) {
    if (PyObject_HasAttrString(o, "strides"))  // another library's array
      device_error(w);
    else
      argument_error(w, i, "is not a numpy.ndarray");
    return false;
  }
  PyArrayObject* a = reinterpret_cast<PyArrayObject*>(o);
  v->data = PyArray_DATA(a);
  v->ndim = PyArray_NDIM(a);
  if (v->ndim > kMaxDims) return argument_error(w, i, "has more than 16 dimensions"), false;
  if (!dtype_of(a, &v->dtype)) return argument_error(w, i, "has an unsupported dtype"), false;
  if (!PyArray_ISALIGNED(a) || !PyArray_ISNOTSWAPPED(a))
    return argument_error(w, i, "is unaligned or byte-swapped"), false;
  if (writable && !PyArray_ISWRITEABLE(a)) return argument_error(w, i, "is read-only"), false;
  const int64_t itemsize = PyArray_ITEMSIZE(a);
  for (int d = 0; d < v->ndim; ++d) {
    v->shape[d] = PyArray_DIM(a, d);
    v->strides[d] = PyArray_STRIDE(a, d) / itemsize;
    if (PyArray_STRIDE(a, d) % itemsize)
      return argument_error(w, i, "has strides that are no multiple of its item size"), false;
  }
  return true;
}

bool to_host_view(PyObject* o, View* v, const Where& w, Py_ssize_t i) {
  return to_view(o, v, false, false, w, i);
}

namespace {

// ---- UNARY and BINARY ----
//
// name(x, out=None, *params) and name(a, b, out=None, *params), positional. They return the result,
// or NotImplemented for what they leave to Python: other array types, mixed or other dtypes,
// shapes that do not broadcast, an output that overlaps an input in another layout.

constexpr int kMaxParams = 4;

struct Operand {
  PyArrayObject* array;  // nullptr: a Python number
  double number;
  float number32;
};

// 1: taken, 0: not for this path, -1: error.
int take_operand(PyObject* o, Operand* out, bool number_allowed) {
  if (PyArray_CheckExact(o)) {
    PyArrayObject* a = reinterpret_cast<PyArrayObject*>(o);
    const int type = PyArray_TYPE(a);
    if ((type != NPY_FLOAT32 && type != NPY_FLOAT64) || !PyArray_ISBEHAVED_RO(a) ||
        PyArray_NDIM(a) > kMaxDims)
      return 0;
    out->array = a;
    return 1;
  }
  out->array = nullptr;
  if (!number_allowed) return 0;
  if (PyFloat_CheckExact(o)) {
    out->number = PyFloat_AS_DOUBLE(o);
  } else if (PyLong_CheckExact(o)) {
    out->number = PyLong_AsDouble(o);
    if (out->number == -1.0 && PyErr_Occurred()) return -1;
  } else {
    return 0;
  }
  out->number32 = static_cast<float>(out->number);
  return 1;
}

bool same_layout(PyArrayObject* a, PyArrayObject* b) {
  if (PyArray_NDIM(a) != PyArray_NDIM(b)) return false;
  for (int d = 0; d < PyArray_NDIM(a); ++d)
    if (PyArray_DIM(a, d) != PyArray_DIM(b, d) ||
        (PyArray_DIM(a, d) != 1 && PyArray_STRIDE(a, d) != PyArray_STRIDE(b, d)))
      return false;
  return true;
}

// Could writing `out` change elements of `in` before they are read?
bool harmful_overlap(PyArrayObject* out, PyArrayObject* in) {
  if (PyArray_DATA(out) == PyArray_DATA(in) && same_layout(out, in)) return false;
  auto bounds = [](PyArrayObject* a, const char** low, const char** high) {
    *low = *high = PyArray_BYTES(a);
    for (int d = 0; d < PyArray_NDIM(a); ++d) {
      if (PyArray_DIM(a, d) == 0) return;
      const npy_intp span = (PyArray_DIM(a, d) - 1) * PyArray_STRIDE(a, d);
      (span < 0 ? *low : *high) += span;
    }
    *high += PyArray_ITEMSIZE(a);
  };
  const char *out_low, *out_high, *in_low, *in_high;
  bounds(out, &out_low, &out_high);
  bounds(in, &in_low, &in_high);
  return out_low < in_high && in_low < out_high;
}

// An output for operands that broadcast to `shape`: dense, in the dimension order of `like`; where
// that repeats elements (stride 0), its strides tell nothing, and the order is C's.
PyObject* output_like(PyArrayObject* like, int ndim, const npy_intp* shape) {
  npy_intp strides[kMaxDims];
  int order[kMaxDims];
  for (int d = 0; d < ndim; ++d) order[d] = d;
  bool keep = PyArray_NDIM(like) == ndim && !PyArray_IS_C_CONTIGUOUS(like);
  for (int d = 0; d < ndim && keep; ++d)
    keep = PyArray_STRIDE(like, d) != 0 || PyArray_DIM(like, d) <= 1;
  if (!keep) return new_array(PyArray_DESCR(like), ndim, shape, nullptr);
  auto key = [&](int d) { return std::abs(static_cast<long long>(PyArray_STRIDE(like, d))); };
  std::stable_sort(order, order + ndim, [&](int a, int b) { return key(a) > key(b); });
  npy_intp next = PyArray_ITEMSIZE(like);
  for (int i = ndim - 1; i >= 0; --i) {
    strides[order[i]] = next;
    next *= std::max<npy_intp>(shape[order[i]], 1);
  }
  return new_array(PyArray_DESCR(like), ndim, shape, strides);
}

struct Elementwise {
  Operand in[2];
  int inputs;
  PyArrayObject* like;  // an array among the inputs, the one with the most dimensions
  Iteration it;
  double params[kMaxParams] = {};

  // Same results as take_operand.
  int take(PyObject* const* args, int n) {
    inputs = n;
    like = nullptr;
    for (int k = 0; k < n; ++k) {
      const int taken = take_operand(args[k], &in[k], n > 1);
      if (taken != 1) return taken;
      PyArrayObject* a = in[k].array;
      if (!a) continue;
      if (like && PyArray_TYPE(like) != PyArray_TYPE(a)) return 0;
      if (!like || PyArray_NDIM(a) > PyArray_NDIM(like) ||
          (PyArray_NDIM(a) == PyArray_NDIM(like) && PyArray_SIZE(a) > PyArray_SIZE(like)))
        like = a;
    }
    return like ? 1 : 0;
  }

  bool broadcast() {
    it.operands = inputs + 1;
    it.ndim = PyArray_NDIM(like);
    for (int d = 0; d < it.ndim; ++d) it.shape[d] = PyArray_DIM(like, d);
    for (int k = 0; k < inputs; ++k) {
      PyArrayObject* a = in[k].array;
      if (!a || a == like) continue;
      const int lead = it.ndim - PyArray_NDIM(a);
      for (int d = lead; d < it.ndim; ++d) {
        const int64_t size = PyArray_DIM(a, d - lead);
        if (size != it.shape[d] && size != 1 && it.shape[d] != 1) return false;
        if (it.shape[d] == 1) it.shape[d] = size;
      }
    }
    return true;
  }

  bool fits(PyArrayObject* out) const {
    if (PyArray_NDIM(out) != it.ndim || PyArray_TYPE(out) != PyArray_TYPE(like) ||
        !PyArray_ISBEHAVED(out))
      return false;
    for (int d = 0; d < it.ndim; ++d)
      if (PyArray_DIM(out, d) != it.shape[d]) return false;
    for (int k = 0; k < inputs; ++k)
      if (in[k].array && harmful_overlap(out, in[k].array)) return false;
    return true;
  }

  void set_strides(PyArrayObject* out) {
    it.data[0] = PyArray_BYTES(out);
    for (int d = 0; d < it.ndim; ++d) it.strides[0][d] = PyArray_STRIDE(out, d);
    for (int k = 0; k < inputs; ++k) {
      PyArrayObject* a = in[k].array;
      int64_t* strides = it.strides[k + 1];
      for (int d = 0; d < it.ndim; ++d) strides[d] = 0;
      if (!a) {
        const bool single = PyArray_TYPE(like) == NPY_FLOAT32;
        it.data[k + 1] = single ? reinterpret_cast<char*>(&in[k].number32)
                                : reinterpret_cast<char*>(&in[k].number);
        continue;
      }
      it.data[k + 1] = PyArray_BYTES(a);
      const int lead = it.ndim - PyArray_NDIM(a);
      for (int d = lead; d < it.ndim; ++d)
        if (PyArray_DIM(a, d - lead) != 1) strides[d] = PyArray_STRIDE(a, d - lead);
    }
  }
};

template <class Run>
PyObject* elementwise(PyObject* const* args, Py_ssize_t count, int inputs, const Run& run) {
  if (count < inputs || count > inputs + 1 + kMaxParams)
    return PyErr_Format(PyExc_TypeError, "expected %d operands, an output and parameters", inputs);
  Elementwise e;
  const int taken = e.take(args, inputs);
  if (taken < 0) return nullptr;
  if (taken == 0 || !e.broadcast()) Py_RETURN_NOTIMPLEMENTED;
  for (Py_ssize_t i = inputs + 1; i < count; ++i) {
    const double p = PyFloat_AsDouble(args[i]);
    if (p == -1.0 && PyErr_Occurred()) return nullptr;
    e.params[i - inputs - 1] = p;
  }
  PyObject* out;
  if (count > inputs && args[inputs] != Py_None) {
    if (!PyArray_Check(args[inputs]) || !e.fits(reinterpret_cast<PyArrayObject*>(args[inputs])))
      Py_RETURN_NOTIMPLEMENTED;
    out = Py_NewRef(args[inputs]);
  } else {
    npy_intp shape[kMaxDims];
    for (int d = 0; d < e.it.ndim; ++d) shape[d] = e.it.shape[d];
    out = output_like(e.like, e.it.ndim, shape);
    if (!out) return nullptr;
  }
  PyArrayObject* array = reinterpret_cast<PyArrayObject*>(out);
  e.set_strides(array);
  const DType dtype = PyArray_TYPE(e.like) == NPY_FLOAT32 ? DType::kFloat32 : DType::kFloat64;
  const int64_t itemsize = PyArray_ITEMSIZE(e.like);
  {
    GilRelease release(PyArray_SIZE(array) >= kReleaseGilFrom);
    iterate(e.it, [&](int64_t n, char** p, const int64_t* strides) {
      run(dtype, n, p, strides, itemsize, e.params);
    });
  }
  return out;
}

PyObject* call_unary(UnaryLoop* loop, PyObject* const* args, Py_ssize_t count) {
  return elementwise(
      args, count, 1,
      [loop](DType t, int64_t n, char** p, const int64_t* s, int64_t size, const double* params) {
        loop(t, n, p[1], s[1] / size, p[0], s[0] / size, params);
      });
}

PyObject* call_binary(BinaryLoop* loop, PyObject* const* args, Py_ssize_t count) {
  return elementwise(
      args, count, 2,
      [loop](DType t, int64_t n, char** p, const int64_t* s, int64_t size, const double* params) {
        loop(t, n, p[1], s[1] / size, p[2], s[2] / size, p[0], s[0] / size, params);
      });
}

// ---- one function per line of ops.def ----

#define UNARY(name, ...)                                                    \
  PyObject* py_##name(PyObject*, PyObject* const* args, Py_ssize_t count) { \
    return call_unary(g_table->name, args, count);                          \
  }
#define BINARY(name, ...)                                                   \
  PyObject* py_##name(PyObject*, PyObject* const* args, Py_ssize_t count) { \
    return call_binary(g_table->name, args, count);                         \
  }
#define OP(result, name, signature)                                             \
  PyObject* py_##name(PyObject*, PyObject* const* args, Py_ssize_t count) {     \
    return call_op<true>(g_table->name, Where{#name, #signature}, args, count); \
  }
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP

PyCFunction fast(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

// empty(shape: tuple, dtype: numpy.dtype, strides: tuple | None = None): on pooled memory.
PyObject* py_empty(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count < 2 || count > 3 || !PyTuple_Check(args[0]) || !PyArray_DescrCheck(args[1]))
    return PyErr_Format(PyExc_TypeError, "empty(shape: tuple, dtype: numpy.dtype, strides=None)");
  const bool strided = count == 3 && args[2] != Py_None;
  const Py_ssize_t ndim = PyTuple_GET_SIZE(args[0]);
  PyArray_Descr* descr = reinterpret_cast<PyArray_Descr*>(args[1]);
  if (ndim > kMaxDims)
    return PyErr_Format(PyExc_ValueError, "at most %d dimensions, got %zd", kMaxDims, ndim);
  if (PyDataType_REFCHK(descr)) return PyErr_Format(PyExc_TypeError, "dtype holds objects");
  if (strided && (!PyTuple_Check(args[2]) || PyTuple_GET_SIZE(args[2]) != ndim))
    return PyErr_Format(PyExc_TypeError, "strides must be a tuple as long as shape");
  npy_intp shape[kMaxDims], strides[kMaxDims];
  npy_intp reach = PyDataType_ELSIZE(descr), size = reach;
  for (Py_ssize_t d = 0; d < ndim; ++d) {
    shape[d] = PyLong_AsSsize_t(PyTuple_GET_ITEM(args[0], d));
    if (shape[d] == -1 && PyErr_Occurred()) return nullptr;
    if (shape[d] < 0) return PyErr_Format(PyExc_ValueError, "negative dimension %zd", shape[d]);
    if (__builtin_mul_overflow(size, shape[d], &size))
      return PyErr_Format(PyExc_MemoryError, "an array of this shape has more bytes than 2^63");
    if (!strided) continue;
    strides[d] = PyLong_AsSsize_t(PyTuple_GET_ITEM(args[2], d));
    if (strides[d] == -1 && PyErr_Occurred()) return nullptr;
    if (strides[d] < 0) return PyErr_Format(PyExc_ValueError, "negative stride %zd", strides[d]);
    if (shape[d] > 0) reach += (shape[d] - 1) * strides[d];
  }
  if (strided && size > 0 && reach > size)
    return PyErr_Format(PyExc_ValueError, "strides reach beyond the array");
  return new_array(descr, static_cast<int>(ndim), shape, strided ? strides : nullptr);
}

// A vector or matrix that the matmul kernel takes as it is?
bool is_operand(PyObject* o, View* view) {
  if (!PyArray_CheckExact(o)) return false;
  PyArrayObject* a = reinterpret_cast<PyArrayObject*>(o);
  const int ndim = PyArray_NDIM(a);
  if (ndim < 1 || ndim > 2 || !PyArray_ISBEHAVED_RO(a) || !dtype_of(a, &view->dtype)) return false;
  const DType t = view->dtype;
  if (t != DType::kFloat32 && t != DType::kFloat64 && t != DType::kBFloat16) return false;
  const int64_t size = PyArray_ITEMSIZE(a);
  for (int d = 0; d < ndim; ++d)
    if (PyArray_STRIDE(a, d) % size) return false;
  return to_view(o, view, false, false, Where{"product", "(a, b)"}, 0);
}

// product(a, b): a @ b of matrices and vectors, on pooled memory. The short way of frequent cases;
// NotImplemented for all else: other dimensions or dtypes, shapes that don't fit, odd memory.
PyObject* py_product(PyObject*, PyObject* const* args, Py_ssize_t count) {
  In a, b;
  if (count != 2 || !is_operand(args[0], &a) || !is_operand(args[1], &b) || a.dtype != b.dtype ||
      a.shape[a.ndim - 1] != b.shape[0])
    Py_RETURN_NOTIMPLEMENTED;
  npy_intp shape[2];
  int ndim = 0;
  if (a.ndim == 2) shape[ndim++] = a.shape[0];
  if (b.ndim == 2) shape[ndim++] = b.shape[1];
  PyArrayObject* first = reinterpret_cast<PyArrayObject*>(args[0]);
  PyObject* result = new_array(PyArray_DESCR(first), ndim, shape, nullptr);
  Out c;
  if (!result || !to_view(result, &c, true, false, Where{"product", "(a, b)"}, 0)) return nullptr;
  bool ok;
  {
    GilRelease release(numel(a) + numel(b) + numel(c) >= kReleaseGilFrom);
    ok = g_table->matmul(a, b, OptIn{}, c, 0, 0.0);
  }
  if (ok) return result;
  Py_DECREF(result);
  return PyErr_Format(PyExc_MemoryError, "matmul: no memory for scratch space");
}

// expand(array, shape): a view that repeats dimensions of size 1 (stride 0); new ones in front.
PyObject* py_expand(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !PyArray_Check(args[0]) || !PyTuple_Check(args[1]))
    return PyErr_Format(PyExc_TypeError, "expand(array: numpy.ndarray, shape: tuple)");
  PyArrayObject* a = reinterpret_cast<PyArrayObject*>(args[0]);
  const Py_ssize_t ndim = PyTuple_GET_SIZE(args[1]), lead = ndim - PyArray_NDIM(a);
  if (ndim > kMaxDims || lead < 0)
    return PyErr_Format(PyExc_ValueError, "expand: %d to %zd dimensions", PyArray_NDIM(a), ndim);
  npy_intp shape[kMaxDims], strides[kMaxDims];
  for (Py_ssize_t d = 0; d < ndim; ++d) {
    shape[d] = PyLong_AsSsize_t(PyTuple_GET_ITEM(args[1], d));
    if (shape[d] == -1 && PyErr_Occurred()) return nullptr;
    const bool same = d >= lead && PyArray_DIM(a, d - lead) == shape[d];
    if (shape[d] < 0 || (!same && d >= lead && PyArray_DIM(a, d - lead) != 1))
      return PyErr_Format(PyExc_ValueError, "expand: size %zd in dimension %zd", shape[d], d);
    strides[d] = same ? PyArray_STRIDE(a, d - lead) : 0;
  }
  Py_INCREF(PyArray_DESCR(a));
  PyObject* view =
      PyArray_NewFromDescr(&PyArray_Type, PyArray_DESCR(a), static_cast<int>(ndim), shape, strides,
                           PyArray_DATA(a), PyArray_FLAGS(a) & NPY_ARRAY_WRITEABLE, nullptr);
  if (view && PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(view), Py_NewRef(args[0])) < 0)
    Py_CLEAR(view);
  return view;
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
    {"product", fast(py_product), METH_FASTCALL, "product(a, b) of matrices and vectors"},
    {"expand", fast(py_expand), METH_FASTCALL, "expand(array, shape)"},
    {nullptr, nullptr, 0, nullptr}};

// ---- set-up ----

void choose_level() {
  const char* wanted = std::getenv("GREBE_ISA");
  g_isa = wanted && *wanted ? wanted : best_level();
  g_table = table_for(g_isa);
  if (!g_table)
    throw py::import_error(
        std::string("GREBE_ISA=") + g_isa +
        ": no such level in this build, or not supported by this machine (best: " + best_level() +
        ")");
}

bool init_numpy() {
  import_array1(false);
  return true;
}

void init_buffer_type() {
  buffer_type.tp_name = "grebe._cpu.Buffer";
  buffer_type.tp_basicsize = sizeof(Buffer);
  buffer_type.tp_flags = Py_TPFLAGS_DEFAULT;
  buffer_type.tp_dealloc = buffer_dealloc;
  if (PyType_Ready(&buffer_type) < 0) throw py::error_already_set();
}

py::dict memory_stats() {
  const MemoryStats s = pool_stats();
  py::dict d;
  d["allocated"] = s.allocated;
  d["cached"] = s.cached;
  d["peak"] = s.peak;
  return d;
}

// [(name, runs on this machine)] of the levels in this build.
py::list levels() {
  py::list list;
  for (int i = 0; const char* name = built_level(i); ++i)
    list.append(py::make_tuple(name, table_for(name) != nullptr));
  return list;
}

void set_num_threads(int n) {
  if (n < 1) throw py::value_error("set_num_threads: expected n >= 1, got " + std::to_string(n));
  omp_set_num_threads(n);
}

}  // namespace
}  // namespace grebe

PYBIND11_MODULE(_cpu, m) {
  using namespace grebe;
  m.doc() = "Kernels for the CPU. Private: use grebe.";
  if (!init_numpy()) throw py::error_already_set();
  init_buffer_type();
  choose_level();
  pthread_atfork(nullptr, nullptr, [] { g_forked_child = true; });
  if (!add_tape(m.ptr()) || PyModule_AddFunctions(m.ptr(), g_methods) != 0)
    throw py::error_already_set();
  m.def("isa", [] { return std::string(g_isa); });
  m.def("levels", &levels);
  m.def("num_threads", [] { return num_threads(); });
  m.def("set_num_threads", &set_num_threads);
  m.def("memory_stats", &memory_stats);
  m.def("empty_cache", &pool_empty_cache);
  m.def("limit_scratch", &limit_scratch);
  m.def("reset_peak_memory_stats", &pool_reset_peak);
  m.def("set_bfloat16", [](int type_number) { g_bfloat16 = type_number; });
}
