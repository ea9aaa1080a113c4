// The C half of Tensor and of the tape: TensorBase and Node, and `record`, which makes an op's
// result and, where a gradient is wanted, its node. In C because every op passes here.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>

namespace grebe {

// Counts the in-place writes to one piece of memory; shared by a tensor, its views and detached
// twins, and by the nodes that saved it.
struct Counter {
  int64_t value;
  int64_t owners;
};

struct TensorBase {
  PyObject_HEAD
  PyObject* array;  // numpy.ndarray or cupy.ndarray
  PyObject* grad;
  PyObject* node;   // node that made this tensor; nullptr: a leaf
  PyObject* base;   // of a view: the tensor that it views, never itself a view
  PyObject* views;  // weak references to live views, kept for in-place writes
  PyObject* hooks;
  Counter* counter;  // nullptr: never written, never shared
  PyObject* weakrefs;
  char requires_grad;
  char retains_grad;
};

// One recorded op. Python subclasses define backward(self, grad, ...) -> grad or tuple of grads.
struct Node {
  PyObject_HEAD
  PyObject* edges;     // tuple: per input its node, the input itself if a leaf, or None
  PyObject* saved;     // tuple, or nullptr after release
  int64_t* versions;   // per saved item: its version when saved
  Counter* output;     // counter of the output, when the output is among `saved`
  PyObject* pending;   // gradient collected so far during backward
  PyObject* hooks;
  PyObject* metadata;  // (shape, dtype) of the output, for checks
  int64_t sequence;    // order of creation
};

// Adds TensorBase, Node and the functions of this file to the module. False: a Python error is set.
bool add_tape(PyObject* module);

}  // namespace grebe
