#include "tape.h"

#include <structmember.h>

#include <atomic>
#include <cstdlib>

namespace grebe {
namespace {

extern PyTypeObject tensor_base_type, node_type;
PyTypeObject* g_tensor_class;  // grebe.Tensor: what ops return
PyTypeObject* g_array_class;   // numpy.ndarray
PyObject* g_as_storage;        // turns anything else (NumPy scalars) into an array
thread_local bool t_grad_enabled = true;
std::atomic<int64_t> g_sequence{0};

bool is_tensor(PyObject* o) { return PyObject_TypeCheck(o, &tensor_base_type); }
TensorBase* as_tensor(PyObject* o) { return reinterpret_cast<TensorBase*>(o); }
Node* as_node(PyObject* o) { return reinterpret_cast<Node*>(o); }

// ---- Counter ----

void release(Counter* c) {
  if (c && --c->owners == 0) std::free(c);
}

// The tensor's counter, made now if it has none. nullptr: out of memory.
Counter* counter_of(TensorBase* t) {
  if (!t->counter) {
    t->counter = static_cast<Counter*>(std::malloc(sizeof(Counter)));
    if (t->counter) *t->counter = {0, 1};
  }
  return t->counter;
}

int64_t version_of(const TensorBase* t) { return t->counter ? t->counter->value : 0; }

// ---- TensorBase ----

PyObject* wrap_array(PyObject* array) {
  PyObject* storage = Py_IS_TYPE(array, g_array_class) ? Py_NewRef(array)
                                                       : PyObject_CallOneArg(g_as_storage, array);
  if (!storage) return nullptr;
  PyObject* self = g_tensor_class->tp_alloc(g_tensor_class, 0);
  if (self)
    as_tensor(self)->array = storage;
  else
    Py_DECREF(storage);
  return self;
}

int tensor_traverse(PyObject* self, visitproc visit, void* arg) {
  TensorBase* t = as_tensor(self);
  Py_VISIT(t->array);
  Py_VISIT(t->grad);
  Py_VISIT(t->node);
  Py_VISIT(t->base);
  Py_VISIT(t->views);
  Py_VISIT(t->hooks);
  return 0;
}

int tensor_clear(PyObject* self) {
  TensorBase* t = as_tensor(self);
  Py_CLEAR(t->array);
  Py_CLEAR(t->grad);
  Py_CLEAR(t->node);
  Py_CLEAR(t->base);
  Py_CLEAR(t->views);
  Py_CLEAR(t->hooks);
  return 0;
}

void tensor_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  if (as_tensor(self)->weakrefs) PyObject_ClearWeakRefs(self);
  Py_TRASHCAN_BEGIN(self, tensor_dealloc);
  tensor_clear(self);
  release(as_tensor(self)->counter);
  Py_TYPE(self)->tp_free(self);
  Py_TRASHCAN_END;
}

PyObject* tensor_version(PyObject* self, void*) {
  return PyLong_FromLongLong(version_of(as_tensor(self)));
}

PyMemberDef tensor_members[] = {
    {"array", T_OBJECT, offsetof(TensorBase, array), 0, "storage: numpy.ndarray or cupy.ndarray"},
    {"_grad", T_OBJECT, offsetof(TensorBase, grad), 0, "accumulated gradient or None"},
    {"_node", T_OBJECT, offsetof(TensorBase, node), 0, "node that made this tensor"},
    {"_base", T_OBJECT, offsetof(TensorBase, base), 0, "the tensor that this one views"},
    {"_views", T_OBJECT, offsetof(TensorBase, views), 0, "weak references to views"},
    {"_hooks", T_OBJECT, offsetof(TensorBase, hooks), 0, "gradient hooks"},
    {"_requires_grad", T_BOOL, offsetof(TensorBase, requires_grad), 0, "part of a graph"},
    {"_retains_grad", T_BOOL, offsetof(TensorBase, retains_grad), 0, "retain_grad() was called"},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef tensor_getset[] = {
    {"_version", tensor_version, nullptr, "in-place writes so far", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject tensor_base_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

// ---- Node ----

int node_traverse(PyObject* self, visitproc visit, void* arg) {
  Node* n = as_node(self);
  Py_VISIT(n->edges);
  Py_VISIT(n->saved);
  Py_VISIT(n->pending);
  Py_VISIT(n->hooks);
  Py_VISIT(n->metadata);
  return 0;
}

int node_release_saved(Node* n) {
  Py_CLEAR(n->saved);
  std::free(n->versions);
  n->versions = nullptr;
  release(n->output);
  n->output = nullptr;
  return 0;
}

int node_clear(PyObject* self) {
  Node* n = as_node(self);
  Py_CLEAR(n->edges);
  Py_CLEAR(n->pending);
  Py_CLEAR(n->hooks);
  Py_CLEAR(n->metadata);
  return node_release_saved(n);
}

void node_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  Py_TRASHCAN_BEGIN(self, node_dealloc);
  node_clear(self);
  Py_TYPE(self)->tp_free(self);
  Py_TRASHCAN_END;
}

PyObject* node_new(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* self = type->tp_alloc(type, 0);
  if (self) as_node(self)->sequence = ++g_sequence;
  return self;
}

PyObject* modified_error(PyObject* self, int64_t now, int64_t then) {
  PyErr_Format(PyExc_RuntimeError,
               "%s.backward: one of the tensors needed for gradient computation has been modified "
               "by an in-place operation: it is at version %lld, expected version %lld",
               Py_TYPE(self)->tp_name, static_cast<long long>(now), static_cast<long long>(then));
  return nullptr;
}

// The saved values, versions checked. The output's own array comes back as a tensor on this node.
PyObject* node_saved(PyObject* self, void*) {
  Node* n = as_node(self);
  if (!n->saved) {
    PyErr_Format(PyExc_RuntimeError,
                 "%s.backward: trying to go backward through the graph a second time: its saved "
                 "values are freed by the first backward(); pass retain_graph=True there",
                 Py_TYPE(self)->tp_name);
    return nullptr;
  }
  const Py_ssize_t size = PyTuple_GET_SIZE(n->saved);
  PyObject* result = PyTuple_New(size);
  for (Py_ssize_t i = 0; result && i < size; ++i) {
    PyObject* item = PyTuple_GET_ITEM(n->saved, i);
    const bool output = n->versions[i] < 0;
    if (output && n->output->value != 0) {
      Py_DECREF(result);
      return modified_error(self, n->output->value, 0);
    }
    if (!output && is_tensor(item) && version_of(as_tensor(item)) != n->versions[i]) {
      Py_DECREF(result);
      return modified_error(self, version_of(as_tensor(item)), n->versions[i]);
    }
    PyObject* value = output ? wrap_array(item) : Py_NewRef(item);
    if (!value) {
      Py_DECREF(result);
      return nullptr;
    }
    if (output) {
      as_tensor(value)->node = Py_NewRef(self);
      as_tensor(value)->requires_grad = 1;
    }
    PyTuple_SET_ITEM(result, i, value);
  }
  return result;
}

PyObject* node_release(PyObject* self, PyObject*) {
  node_release_saved(as_node(self));
  Py_RETURN_NONE;
}

PyMemberDef node_members[] = {
    {"edges", T_OBJECT, offsetof(Node, edges), 0, "per input the next node, or None"},
    {"pending", T_OBJECT, offsetof(Node, pending), 0, "gradient collected during backward"},
    {"hooks", T_OBJECT, offsetof(Node, hooks), 0, "functions called on the gradient"},
    {"metadata", T_OBJECT, offsetof(Node, metadata), 0, "facts about the output"},
    {"sequence", T_LONGLONG, offsetof(Node, sequence), READONLY, "order of creation"},
    {nullptr, 0, 0, 0, nullptr}};
PyGetSetDef node_getset[] = {{"saved", node_saved, nullptr, "values kept for backward", nullptr},
                             {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyMethodDef node_methods[] = {{"release", node_release, METH_NOARGS, "Frees the saved values."},
                              {nullptr, nullptr, 0, nullptr}};

PyTypeObject node_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

// ---- functions ----

// Where this input's gradient flows to: its node, the tensor itself if it is a leaf, or None.
PyObject* edge_of(PyObject* o) {
  if (!is_tensor(o) || !as_tensor(o)->requires_grad) return Py_None;
  return as_tensor(o)->node ? as_tensor(o)->node : o;
}

// A new tuple with the edge of each input; nullptr: a Python error is set.
PyObject* edges_of(PyObject* inputs) {
  const Py_ssize_t size = PyTuple_GET_SIZE(inputs);
  PyObject* edges = PyTuple_New(size);
  for (Py_ssize_t i = 0; edges && i < size; ++i)
    PyTuple_SET_ITEM(edges, i, Py_NewRef(edge_of(PyTuple_GET_ITEM(inputs, i))));
  return edges;
}

// Fills node->saved and versions. `output` is the result whose array may be among the items.
bool save(Node* n, PyObject* items, TensorBase* output) {
  const Py_ssize_t size = PyTuple_GET_SIZE(items);
  n->versions = static_cast<int64_t*>(std::malloc(sizeof(int64_t) * (size ? size : 1)));
  if (!n->versions) return PyErr_NoMemory(), false;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* item = PyTuple_GET_ITEM(items, i);
    if (output && item == output->array) {
      n->versions[i] = -1;
      if (!n->output) {
        n->output = counter_of(output);
        if (!n->output) return PyErr_NoMemory(), false;
        ++n->output->owners;
      }
    } else {
      n->versions[i] = is_tensor(item) ? version_of(as_tensor(item)) : 0;
    }
  }
  n->saved = Py_NewRef(items);
  return true;
}

// A node of `type` with edges to `inputs`; nullptr with an error set, or on failure.
PyObject* make_node(PyObject* type, PyObject* inputs) {
  PyTypeObject* t = reinterpret_cast<PyTypeObject*>(type);
  PyObject* node = t->tp_alloc(t, 0);
  if (!node) return nullptr;
  as_node(node)->edges = edges_of(inputs);
  as_node(node)->sequence = ++g_sequence;
  if (!as_node(node)->edges) Py_CLEAR(node);
  return node;
}

bool any_requires_grad(PyObject* inputs) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(inputs); ++i) {
    PyObject* item = PyTuple_GET_ITEM(inputs, i);
    if (is_tensor(item) && as_tensor(item)->requires_grad) return true;
  }
  return false;
}

// record(NodeClass, array, inputs, saved) -> Tensor
PyObject* record(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 4 || !PyType_Check(args[0]) || !PyTuple_Check(args[2]) || !PyTuple_Check(args[3]) ||
      !PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(args[0]), &node_type)) {
    PyErr_SetString(PyExc_TypeError, "record(NodeClass, array, inputs: tuple, saved: tuple)");
    return nullptr;
  }
  PyObject* result = wrap_array(args[1]);
  if (!result || !t_grad_enabled || !any_requires_grad(args[2])) return result;
  PyObject* node = make_node(args[0], args[2]);
  if (!node || !save(as_node(node), args[3], as_tensor(result))) {
    Py_XDECREF(node);
    Py_DECREF(result);
    return nullptr;
  }
  as_tensor(result)->node = node;
  as_tensor(result)->requires_grad = 1;
  return result;
}

// attach(node, inputs, saved, output=None): edges and saved values of a node made in Python; the
// array of `output` among `saved` is kept as in record.
PyObject* attach(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count < 3 || count > 4 || !PyObject_TypeCheck(args[0], &node_type) ||
      !PyTuple_Check(args[1]) || !PyTuple_Check(args[2]) ||
      (count == 4 && args[3] != Py_None && !is_tensor(args[3]))) {
    PyErr_SetString(PyExc_TypeError, "attach(node, inputs: tuple, saved: tuple, output=None)");
    return nullptr;
  }
  TensorBase* output = count == 4 && args[3] != Py_None ? as_tensor(args[3]) : nullptr;
  Node* n = as_node(args[0]);
  PyObject* edges = edges_of(args[1]);
  if (!edges) return nullptr;
  Py_XSETREF(n->edges, edges);
  node_release_saved(n);
  if (!save(n, args[2], output)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* wrap(PyObject*, PyObject* array) { return wrap_array(array); }

// share(twin, tensor): twin's writes count as tensor's and the other way round.
PyObject* share(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !is_tensor(args[0]) || !is_tensor(args[1])) {
    PyErr_SetString(PyExc_TypeError, "share(twin: Tensor, tensor: Tensor)");
    return nullptr;
  }
  Counter* c = counter_of(as_tensor(args[1]));
  if (!c) return PyErr_NoMemory();
  ++c->owners;
  release(as_tensor(args[0])->counter);
  as_tensor(args[0])->counter = c;
  Py_RETURN_NONE;
}

// bump(tensor): an in-place write happened.
PyObject* bump(PyObject*, PyObject* tensor) {
  if (!is_tensor(tensor)) {
    PyErr_SetString(PyExc_TypeError, "bump(tensor: Tensor)");
    return nullptr;
  }
  Counter* c = counter_of(as_tensor(tensor));
  if (!c) return PyErr_NoMemory();
  ++c->value;
  Py_RETURN_NONE;
}

PyObject* grad_enabled(PyObject*, PyObject*) { return PyBool_FromLong(t_grad_enabled); }

PyObject* set_grad_enabled(PyObject*, PyObject* value) {
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) return nullptr;
  const bool before = t_grad_enabled;
  t_grad_enabled = truth;
  return PyBool_FromLong(before);
}

// set_classes(Tensor, ndarray, as_storage): what ops return, and what it holds.
PyObject* set_classes(PyObject*, PyObject* args) {
  PyObject *tensor, *array, *as_storage;
  if (!PyArg_ParseTuple(args, "O!O!O", &PyType_Type, &tensor, &PyType_Type, &array, &as_storage))
    return nullptr;
  if (!PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(tensor), &tensor_base_type)) {
    PyErr_SetString(PyExc_TypeError, "set_classes: the first class must derive from TensorBase");
    return nullptr;
  }
  g_tensor_class = reinterpret_cast<PyTypeObject*>(Py_NewRef(tensor));
  g_array_class = reinterpret_cast<PyTypeObject*>(Py_NewRef(array));
  g_as_storage = Py_NewRef(as_storage);
  Py_RETURN_NONE;
}

template <class F>
PyCFunction method(F f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

}  // namespace

bool add_tape(PyObject* module) {
  tensor_base_type.tp_name = "grebe._cpu.TensorBase";
  tensor_base_type.tp_basicsize = sizeof(TensorBase);
  tensor_base_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  tensor_base_type.tp_new = PyType_GenericNew;
  tensor_base_type.tp_traverse = tensor_traverse;
  tensor_base_type.tp_clear = tensor_clear;
  tensor_base_type.tp_dealloc = tensor_dealloc;
  tensor_base_type.tp_members = tensor_members;
  tensor_base_type.tp_getset = tensor_getset;
  tensor_base_type.tp_weaklistoffset = offsetof(TensorBase, weakrefs);
  g_tensor_class = &tensor_base_type;

  node_type.tp_name = "grebe._cpu.Node";
  node_type.tp_basicsize = sizeof(Node);
  node_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  node_type.tp_new = node_new;
  node_type.tp_traverse = node_traverse;
  node_type.tp_clear = node_clear;
  node_type.tp_dealloc = node_dealloc;
  node_type.tp_members = node_members;
  node_type.tp_getset = node_getset;
  node_type.tp_methods = node_methods;

  static PyMethodDef methods[] = {
      {"record", method(record), METH_FASTCALL, "record(NodeClass, array, inputs, saved)"},
      {"attach", method(attach), METH_FASTCALL, "attach(node, inputs, saved, output=None)"},
      {"share", method(share), METH_FASTCALL, "share(twin, tensor)"},
      {"wrap", method(wrap), METH_O, "wrap(array) -> Tensor"},
      {"bump", method(bump), METH_O, "bump(tensor)"},
      {"grad_enabled", method(grad_enabled), METH_NOARGS, "grad_enabled() -> bool"},
      {"set_grad_enabled", method(set_grad_enabled), METH_O, "returns the mode before"},
      {"set_classes", method(set_classes), METH_VARARGS,
       "set_classes(Tensor, ndarray, as_storage)"},
      {nullptr, nullptr, 0, nullptr}};
  if (PyType_Ready(&tensor_base_type) < 0 || PyType_Ready(&node_type) < 0) return false;
  if (PyModule_AddObjectRef(module, "TensorBase", (PyObject*)&tensor_base_type) < 0) return false;
  if (PyModule_AddObjectRef(module, "Node", (PyObject*)&node_type) < 0) return false;
  return PyModule_AddFunctions(module, methods) == 0;
}

}  // namespace grebe
