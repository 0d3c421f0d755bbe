// Dropping and zeroing gradients: reads an optimizer's groups, and writes gradients only. What is
// dropped is let go at the very end, because that may run a user's code.
#include "torch/zero_grad.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/tuning.h"
#include "torch/attributes.h"
#include "torch/modes.h"
#include "torch/modules.h"
#include "torch/originals.h"
#include "torch/tensors.h"

namespace fusedopt {

namespace {

using torch::autograd::AutogradMeta;

// Up to this many bytes are zeroed here; torch shares more among its threads.
constexpr size_t kSmallZero = 131072;

// What torch's method looks up in the optimizer.
constexpr const char* kOfZeroing[] = {"__getattribute__", "_zero_grad_profile_name", "defaults",
                                      "param_groups"};
constexpr const char* kOfZeroed[] = {"detach_", "grad", "grad_fn", "is_sparse", "requires_grad_"};

struct ZeroNames {
  Attributes optimizers;
  Attributes tensors;
  Attributes parameters;
  Functions profiler;
  Functions functions;
  py::object method;  // torch's
  PyObject* zero_grad = intern("zero_grad");
  PyObject* profile_name = intern("_zero_grad_profile_name");
  PyObject* defaults = intern("defaults");
  PyObject* param_groups = intern("param_groups");
  PyObject* params = intern("params");
};

ZeroNames& zero_names() {
  static auto* const all = [] {
    py::object optimizer = py::module_::import("torch.optim").attr("Optimizer");
    auto* const type = reinterpret_cast<PyTypeObject*>(optimizer.release().ptr());
    py::object method =
        py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type)).attr("zero_grad");
    Functions profiler(py::module_::import("torch.autograd.profiler"));
    profiler.note("record_function");
    Functions functions(py::module_::import("torch"));
    functions.note("_foreach_zero_");
    return new ZeroNames{{type, kOfZeroing},
                         {kTensorType, kOfZeroed},
                         {kParameterType, kOfZeroed},
                         profiler,
                         functions,
                         method};
  }();
  return *all;
}

// Would our method, called of an object of this class, call torch's?
bool finds_torchs(PyTypeObject* type, PyObject* ours) {
  bool after = false;
  const auto bases = py::reinterpret_borrow<py::tuple>(type->tp_mro);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases.ptr()); ++i) {
    PyObject* base = PyTuple_GET_ITEM(bases.ptr(), i);
    if (after) {
      const auto* class_dict = reinterpret_cast<PyTypeObject*>(base)->tp_dict;
      PyObject* found =
          class_dict == nullptr
              ? nullptr
              : PyDict_GetItemWithError(const_cast<PyObject*>(class_dict), zero_names().zero_grad);
      if (found != nullptr) return is_same(found, zero_names().method);
    }
    after = after || base == ours;
  }
  return false;
}

// The same question, and: are the class's attributes torch's? The answer is kept until the class
// changes.
bool is_usual_class(PyTypeObject* type, PyObject* ours) {
  struct Known {
    unsigned tag;
    bool usual;
  };
  static auto* const classes = new std::unordered_map<PyTypeObject*, Known>;
  Known& known = (*classes)[type];
  if (known.tag != 0 && known.tag == version_of_class(type)) return known.usual;
  known.usual = zero_names().optimizers.compare(type) && finds_torchs(type, ours);
  known.tag = version_of_class(type);
  return known.usual;
}

bool is_torchs_zero_grad(PyObject* optimizer, PyObject* ours) {
  ZeroNames& all = zero_names();
  return why_transformed() == nullptr && why_not_original(nullptr, optimizer) == nullptr &&
         all.tensors.same_in(kTensorType) && all.parameters.same_in(kParameterType) &&
         all.profiler.same() && all.functions.same() && is_usual_class(Py_TYPE(optimizer), ours);
}

// Finds the groups' lists of parameters. A key of a user's may run Python code meanwhile, so each
// object is held from the moment it is found.
bool find_lists(const py::object& attributes, std::vector<py::object>& lists) {
  ZeroNames& all = zero_names();
  PyObject* defaults = find(attributes, all.defaults);
  if (defaults == nullptr || !PyDict_CheckExact(defaults) ||
      find(attributes, all.profile_name) == nullptr) {
    return false;
  }
  const auto groups = py::reinterpret_borrow<py::object>(find(attributes, all.param_groups));
  if (!groups || !PyList_CheckExact(groups.ptr())) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups.ptr()); ++i) {
    const auto group = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), i));
    if (!PyDict_CheckExact(group.ptr())) return false;
    const auto params = py::reinterpret_borrow<py::object>(find(group, all.params));
    if (!params || (!PyList_CheckExact(params.ptr()) && !PyTuple_CheckExact(params.ptr()))) {
      return false;
    }
    lists.push_back(params);
  }
  return true;
}

// Calls each(parameter), which runs no Python code, until a call returns false, and then returns
// false.
template <typename Each>
bool for_each_parameter(const std::vector<py::object>& lists, const Each& each) {
  for (const py::object& params : lists) {
    for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(params.ptr()); ++k) {
      PyObject* param = PySequence_Fast_GET_ITEM(params.ptr(), k);
      if (!is_exact(param) || !each(param)) return false;
    }
  }
  return true;
}

// Where a parameter's gradient is held. Null: torch's `param.grad` is None. Sets `warns` where
// reading that makes torch warn.
AutogradMeta* holder_of(PyObject* param, bool& warns) {
  const at::Tensor& tensor = THPVariable_Unpack(param);
  auto* const meta = static_cast<AutogradMeta*>(tensor.unsafeGetTensorImpl()->autograd_meta());
  if (meta == nullptr) return nullptr;
  if (meta->grad_.defined()) return meta;
  warns = warns || (meta->grad_fn_ != nullptr && !tensor.is_leaf() && !tensor.retains_grad());
  return nullptr;
}

bool drop_gradients(const std::vector<py::object>& lists) {
  std::vector<AutogradMeta*> holders;
  bool warns = false;
  const bool usual = for_each_parameter(lists, [&](PyObject* param) {
    AutogradMeta* holder = holder_of(param, warns);
    if (holder != nullptr) holders.push_back(holder);
    return !warns;
  });
  if (!usual) return false;
  std::vector<at::Tensor> dropped;
  dropped.reserve(holders.size());
  for (AutogradMeta* holder : holders) dropped.push_back(std::move(holder->grad_));
  return true;
}

// May a gradient be zeroed as it lies in memory? Of a view of what requires a gradient autograd may
// forbid it.
bool is_plain_gradient(const at::Tensor& grad) {
  return is_covered(grad) && grad.unsafeGetTensorImpl()->is_non_overlapping_and_dense() &&
         grad.grad_fn() == nullptr && !(grad.requires_grad() && grad.is_view());
}

void zero(at::Tensor& grad) {
  const at::AutoDispatchBelowADInplaceOrView below;
  grad.zero_();
}

// What is zeroed of small gradients, whatever other threads make of their tensors meanwhile.
struct Stretch {
  c10::Storage storage;
  void* begin;
  size_t bytes;
};

// Does what torch does beside zeroing.
void prepare(at::Tensor& grad) {
  if (grad.requires_grad()) grad.set_requires_grad(false);
  count_version(operand_of(*grad.unsafeGetTensorImpl()));
}

// Zeroes gradients without the interpreter's lock.
void zero_unlocked(std::vector<at::Tensor>& grads) {
  std::vector<Stretch> small;
  std::vector<at::Tensor> large;
  small.reserve(grads.size());
  for (at::Tensor& grad : grads) {
    prepare(grad);
    const size_t bytes = grad.nbytes();
    if (bytes > kSmallZero) {
      large.push_back(frozen(grad));
    } else if (bytes != 0) {
      void* begin = grad.mutable_data_ptr();
      small.push_back({grad.storage(), begin, bytes});
    }
  }
  const py::gil_scoped_release release;
  for (const Stretch& stretch : small) std::memset(stretch.begin, 0, stretch.bytes);
  for (at::Tensor& grad : large) zero(grad);
}

bool zero_gradients(const std::vector<py::object>& lists) {
  std::vector<at::Tensor> grads;  // owned: autograd replaces them without the interpreter's lock
  int64_t elements = 0;
  bool warns = false;
  const bool usual = for_each_parameter(lists, [&](PyObject* param) {
    const AutogradMeta* holder = holder_of(param, warns);
    if (holder == nullptr) return !warns;
    grads.push_back(holder->grad_);
    elements += grads.back().numel();
    return is_plain_gradient(grads.back());
  });
  if (!usual) return false;
  if (elements >= kReleaseElements) {
    zero_unlocked(grads);
    return true;
  }
  for (at::Tensor& grad : grads) {
    prepare(grad);
    if (grad.nbytes() > kSmallZero) {
      zero(grad);
    } else if (grad.nbytes() != 0) {
      std::memset(grad.mutable_data_ptr(), 0, grad.nbytes());
    }
  }
  return true;
}

}  // namespace

void note_zero_grad() { zero_names(); }

bool zero_grad(const py::object& optimizer, const py::object& ours, const py::object& set_to_none) {
  const bool known = set_to_none.ptr() == Py_True || set_to_none.ptr() == Py_False;
  if (!known || !is_torchs_zero_grad(optimizer.ptr(), ours.ptr())) return false;
  std::vector<py::object> lists;
  if (!find_lists(dict_of(optimizer.ptr()), lists)) return false;
  return set_to_none.ptr() == Py_True ? drop_gradients(lists) : zero_gradients(lists);
}

}  // namespace fusedopt
