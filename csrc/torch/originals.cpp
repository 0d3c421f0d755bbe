// Noting and comparing what torch's step is made of: reads namespaces, and runs no Python code.
#include "torch/originals.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "torch/attributes.h"
#include "torch/optimizers.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

// What torch.optim's steps look up in parameters, gradients and states, but for the operators
// that torch calls as functions of its own.
constexpr const char* kOfTensors[] = {"__add__",
                                      "__bool__",
                                      "__float__",
                                      "__getattribute__",
                                      "__iadd__",
                                      "__mul__",
                                      "__neg__",
                                      "__pow__",
                                      "__radd__",
                                      "__rmul__",
                                      "__rpow__",
                                      "__rsub__",
                                      "__rtruediv__",
                                      "__sub__",
                                      "__torch_function__",
                                      "__truediv__",
                                      "_indices",
                                      "_values",
                                      "add",
                                      "add_",
                                      "addcdiv",
                                      "addcdiv_",
                                      "addcmul",
                                      "addcmul_",
                                      "clone",
                                      "coalesce",
                                      "copy_",
                                      "data",
                                      "detach",
                                      "device",
                                      "div",
                                      "div_",
                                      "dtype",
                                      "grad",
                                      "is_complex",
                                      "is_sparse",
                                      "item",
                                      "lerp",
                                      "lerp_",
                                      "maximum",
                                      "mul",
                                      "mul_",
                                      "neg",
                                      "numel",
                                      "size",
                                      "sparse_mask",
                                      "sqrt",
                                      "sqrt_",
                                      "sub_",
                                      "zero_"};

// What they look up in the optimizer.
constexpr const char* kOfOptimizers[] = {"__getattribute__", "_cuda_graph_capture_health_check",
                                         "_init_group",      "defaults",
                                         "param_groups",     "state"};

}  // namespace

struct Original {
  PyTypeObject* type;  // kept
  Attributes attributes;
  Attributes own;  // the same, of a class derived from it
  Functions functions;
};

namespace {

Attributes& of_tensors() {
  static auto* const all = new Attributes(kTensorType, kOfTensors);
  return *all;
}

Attributes& of_parameters() {
  static auto* const all = new Attributes(kParameterType, kOfTensors);
  return *all;
}

std::map<std::string, Original>& originals() {
  static auto* const all = new std::map<std::string, Original>;
  return *all;
}

void note(const std::string& name) {
  const auto optim = py::module_::import("torch.optim");
  if (!py::hasattr(optim, name.c_str())) return;
  auto* const type =
      reinterpret_cast<PyTypeObject*>(py::object(optim.attr(name.c_str())).release().ptr());
  // A class that derives from another optimizer of ours has the base's functions.
  const auto* base = type->tp_base;
  const std::string step = find_optimizer(base->tp_name) != nullptr ? base->tp_name : name;
  std::string lower = step;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  Functions functions(py::module_::import(("torch.optim." + lower).c_str()));
  for (const char* prefix : {"", "_single_tensor_", "_multi_tensor_", "_fused_"}) {
    functions.note(prefix + lower);
  }
  for (const char* name : {"_default_to_fused_or_foreach", "_get_value", "_to_scalar"}) {
    functions.note(name);
  }
  const Attributes attributes(type, kOfOptimizers);
  originals().emplace(name, Original{type, attributes, attributes, functions});
}

}  // namespace

Original* find_original(const std::string& name) {
  const auto found = originals().find(name);
  return found == originals().end() ? nullptr : &found->second;
}

void note_originals() {
  of_tensors();
  of_parameters();
  for (const Optimizer& optimizer : all_optimizers()) note(optimizer.name);
}

const char* why_not_original(Original* original, PyObject* optimizer) {
  if (!of_tensors().same_in(kTensorType) || !of_parameters().same_in(kParameterType)) {
    return "an attribute of torch.Tensor was replaced";
  }
  if (original == nullptr || !PyType_IsSubtype(Py_TYPE(optimizer), original->type)) return nullptr;
  if (!original->attributes.same_in(original->type) || !original->functions.same()) {
    return "torch.optim's step was replaced in part";
  }
  if (!original->own.same_in(Py_TYPE(optimizer))) {
    return "the optimizer's class overrides what torch's step calls";
  }
  const auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer, nullptr));
  if (!dict) throw py::error_already_set();
  if (original->own.hidden_by(dict.ptr())) return "the optimizer replaces what torch's step calls";
  // This default decides whether torch's step is recorded, whatever its groups say.
  static PyObject* const defaults = intern("defaults");
  static PyObject* const differentiable = intern("differentiable");
  const auto own =
      py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(dict.ptr(), defaults));
  PyObject* value =
      own && PyDict_Check(own.ptr()) ? PyDict_GetItemWithError(own.ptr(), differentiable) : nullptr;
  return value == nullptr || value == Py_False ? nullptr : "differentiable=True in its defaults";
}

bool replaces_attribute(PyObject* tensor) {
  const auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(tensor, nullptr));
  if (!dict) {
    PyErr_Clear();
    return false;
  }
  return of_tensors().any_in(dict.ptr());
}

}  // namespace fusedopt
