// Noting and comparing what torch's step is made of: reads namespaces, and runs no Python code.
#include "torch/originals.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <utility>
#include <vector>

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

using Entries = std::vector<std::pair<PyObject*, py::object>>;

namespace {

// torch.compile wraps some of torch.optim's functions, so that they are left alone.
bool is_same(PyObject* found, const py::object& original) {
  if (found == original.ptr()) return true;
  if (found == nullptr || !PyFunction_Check(found)) return false;
  PyObject* dict = reinterpret_cast<PyFunctionObject*>(found)->func_dict;
  const auto wraps = [&](const char* name) {
    return dict != nullptr && find_text(dict, name) == original.ptr();
  };
  return wraps("_torchdynamo_orig_callable") && wraps("__wrapped__");
}

}  // namespace

// Attributes of a class. They are looked up again only where the class has been changed.
class Attributes {
 public:
  template <size_t kCount>
  Attributes(PyTypeObject* original, const char* const (&names)[kCount]) {
    for (const char* name : names) {
      PyObject* key = intern(name);
      entries_.emplace_back(key, py::reinterpret_borrow<py::object>(_PyType_Lookup(original, key)));
    }
  }

  bool same_in(PyTypeObject* type) {
    const unsigned tag = version_of_class(type);
    if (type == type_ && tag != 0 && tag == tag_) return same_;
    same_ = std::all_of(entries_.begin(), entries_.end(), [&](const auto& entry) {
      return is_same(_PyType_Lookup(type, entry.first), entry.second);
    });
    type_ = type;
    tag_ = version_of_class(type);
    return same_;
  }

  // Does an object's dict hide one of these that isn't made to be there?
  bool hidden_by(PyObject* dict) const {
    return std::any_of(entries_.begin(), entries_.end(), [&](const auto& entry) {
      return entry.second && PyDict_GetItemWithError(dict, entry.first) != nullptr;
    });
  }

  // The same question, for objects whose dicts are mostly empty.
  bool any_in(PyObject* dict) const {
    if (PyDict_GET_SIZE(dict) == 0) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value)) {
      for (const auto& entry : entries_) {
        if (entry.first == key) return true;
      }
    }
    return false;
  }

 private:
  Entries entries_;
  PyTypeObject* type_ = nullptr;
  unsigned tag_ = 0;
  bool same_ = true;
};

// Functions of a module.
class Functions {
 public:
  explicit Functions(const py::module_& module) : dict_(module.attr("__dict__")) {}

  void note(const std::string& name) {
    PyObject* key = intern(name.c_str());
    PyObject* value = PyDict_GetItemWithError(dict_.ptr(), key);
    if (value != nullptr) entries_.emplace_back(key, py::reinterpret_borrow<py::object>(value));
  }

  bool same() {
    const uint64_t version = version_of(dict_.ptr());
    if (version != 0 && version == version_) return same_;
    same_ = std::all_of(entries_.begin(), entries_.end(), [&](const auto& entry) {
      return is_same(PyDict_GetItemWithError(dict_.ptr(), entry.first), entry.second);
    });
    version_ = version;
    return same_;
  }

 private:
  py::object dict_;
  Entries entries_;
  uint64_t version_ = 0;
  bool same_ = true;
};

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
  // A class that derives from another one that we know has that one's functions.
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
  // Which decides whether torch's step is recorded, whatever its groups say.
  static PyObject* const defaults = intern("defaults");
  static PyObject* const differentiable = intern("differentiable");
  PyObject* own = PyDict_GetItemWithError(dict.ptr(), defaults);
  PyObject* value =
      own != nullptr && PyDict_Check(own) ? PyDict_GetItemWithError(own, differentiable) : nullptr;
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
