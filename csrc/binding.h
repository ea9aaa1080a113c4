// From Python's arguments to those of a kernel, for the bindings of the lines of ops.def.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdlib>
#include <tuple>
#include <type_traits>
#include <utility>

#include "view.h"

namespace grebe {

// Where an argument stands, for error messages: "softmax: argument 2 of (In x, Out y)".
struct Where {
  const char* name;
  const char* signature;
};

static inline void argument_error(const Where& w, Py_ssize_t index, const char* problem) {
  PyErr_Format(PyExc_TypeError, "%s%s: argument %zd %s", w.name, w.signature, index + 1, problem);
}

static inline void device_error(const Where& w) {
  PyErr_Format(PyExc_RuntimeError, "%s: expected all tensors on the same device, got cpu and cuda",
               w.name);
}

// An array of this module's device as a View; false: a Python error is set. Each module has its own.
bool to_view(PyObject* o, View* v, bool writable, bool optional, const Where& w, Py_ssize_t i);
// A NumPy array, in every module.
bool to_host_view(PyObject* o, View* v, const Where& w, Py_ssize_t i);

// Owns what a converted argument needs for the time of the call.
template <class T>
struct Holder {
  T value;
  bool set(PyObject* o, const Where& w, Py_ssize_t i) {
    constexpr bool writable = std::is_same_v<T, Out> || std::is_same_v<T, OptOut>;
    constexpr bool optional = std::is_same_v<T, OptIn> || std::is_same_v<T, OptOut>;
    if constexpr (std::is_same_v<T, HostIn>) return to_host_view(o, &value, w, i);
    return to_view(o, &value, writable, optional, w, i);
  }
  int64_t work() const { return value.data ? numel(value) : 0; }
};

template <>
struct Holder<Views> {
  Views value{nullptr, 0};
  View* items = nullptr;
  ~Holder() { std::free(items); }
  bool set(PyObject* o, const Where& w, Py_ssize_t i) {
    if (!PyList_Check(o)) return argument_error(w, i, "is not a list of arrays"), false;
    value.size = PyList_GET_SIZE(o);
    items = static_cast<View*>(std::malloc(sizeof(View) * (value.size ? value.size : 1)));
    if (!items) return PyErr_NoMemory(), false;
    for (Py_ssize_t k = 0; k < value.size; ++k)
      if (!to_view(PyList_GET_ITEM(o, k), &items[k], false, false, w, i)) return false;
    value.items = items;
    return true;
  }
  int64_t work() const {
    int64_t n = 0;
    for (int64_t k = 0; k < value.size; ++k) n += numel(items[k]);
    return n;
  }
};

template <>
struct Holder<int64_t> {
  int64_t value;
  bool set(PyObject* o, const Where&, Py_ssize_t) {
    value = PyLong_AsLongLong(o);
    return value != -1 || !PyErr_Occurred();
  }
  int64_t work() const { return 0; }
};

template <>
struct Holder<double> {
  double value;
  bool set(PyObject* o, const Where&, Py_ssize_t) {
    value = PyFloat_AsDouble(o);
    return value != -1.0 || !PyErr_Occurred();
  }
  int64_t work() const { return 0; }
};

template <>
struct Holder<bool> {
  bool value;
  bool set(PyObject* o, const Where&, Py_ssize_t) {
    const int truth = PyObject_IsTrue(o);
    value = truth > 0;
    return truth >= 0;
  }
  int64_t work() const { return 0; }
};

constexpr int64_t kReleaseGilFrom = 32768;  // elements: handing the GIL over costs microseconds

struct GilRelease {
  PyThreadState* state = nullptr;
  explicit GilRelease(bool wanted) : state(wanted ? PyEval_SaveThread() : nullptr) {}
  ~GilRelease() {
    if (state) PyEval_RestoreThread(state);
  }
};

template <bool kReleaseGil, class R, class... A, size_t... I>
PyObject* call_kernel(R (*kernel)(A...), const Where& w, PyObject* const* args, Py_ssize_t count,
                      std::index_sequence<I...>) {
  if (count != sizeof...(A)) {
    return PyErr_Format(PyExc_TypeError, "%s%s: takes %zu arguments, got %zd", w.name, w.signature,
                        sizeof...(A), count);
  }
  std::tuple<Holder<std::remove_cvref_t<A>>...> holders;
  if (!(std::get<I>(holders).set(args[I], w, static_cast<Py_ssize_t>(I)) && ...)) return nullptr;
  const int64_t work = (std::get<I>(holders).work() + ... + 0);
  bool ok = true;
  {
    GilRelease release(kReleaseGil && work >= kReleaseGilFrom);
    if constexpr (std::is_same_v<R, bool>)
      ok = kernel(std::get<I>(holders).value...);
    else
      kernel(std::get<I>(holders).value...);
  }
  if (!ok) return PyErr_Format(PyExc_MemoryError, "%s: no memory for scratch space", w.name);
  Py_RETURN_NONE;
}

// kReleaseGil: other Python threads may run during long kernels, which then must not call Python.
template <bool kReleaseGil, class R, class... A>
PyObject* call_op(R (*kernel)(A...), const Where& w, PyObject* const* args, Py_ssize_t count) {
  return call_kernel<kReleaseGil>(kernel, w, args, count, std::index_sequence_for<A...>{});
}

}  // namespace grebe
