// Averaging: reads modules, and writes averages, buffers and how many values there are.
#include "torch/average.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "cpu/passes.h"
#include "torch/attributes.h"
#include "torch/formula.h"
#include "torch/modes.h"
#include "torch/modules.h"
#include "torch/originals.h"
#include "torch/pairs.h"

namespace fusedopt {

namespace {

// What torch's method looks up in the average's class and in its attributes.
constexpr const char* kOfAverages[] = {"__getattr__",     "__setattr__", "avg_fn",
                                       "module",          "n_averaged",  "multi_avg_fn",
                                       "register_buffer", "use_buffers"};
constexpr const char* kOfAveragedTensors[] = {"__add__",  "__eq__",       "__gt__",
                                              "__iadd__", "__rtruediv__", "to"};
constexpr const char* kOfTorchsAverages[] = {"update_parameters"};

struct AverageNames {
  Attributes averages;
  Attributes torchs;
  Attributes tensors;
  Attributes parameters;
  Functions functions;
  Functions of_torch;
  Functions of_modules;
  PyTypeObject* type;  // torch's AveragedModel
  PyObject* buffers = intern("_buffers");
  PyObject* modules = intern("_modules");
  PyObject* parameters_key = intern("_parameters");
  PyObject* module = intern("module");
  PyObject* n_averaged = intern("n_averaged");
  PyObject* use_buffers = intern("use_buffers");
};

Functions noted_functions(const char* module, std::initializer_list<const char*> names) {
  Functions functions(py::module_::import(module));
  for (const char* name : names) functions.note(name);
  return functions;
}

AverageNames& average_names() {
  static auto* const all = [] {
    const auto swa_utils = py::module_::import("torch.optim.swa_utils");
    py::object averaged = swa_utils.attr("AveragedModel");
    auto* const type = reinterpret_cast<PyTypeObject*>(averaged.release().ptr());
    return new AverageNames{
        {type, kOfAverages},
        {type, kOfTorchsAverages},
        {kTensorType, kOfAveragedTensors},
        {kParameterType, kOfAveragedTensors},
        noted_functions("torch.optim.swa_utils",
                        {"_get_foreach_kernels_supported_devices",
                         "_group_tensors_by_device_and_dtype", "get_swa_avg_fn", "get_ema_avg_fn",
                         "get_ema_multi_avg_fn", "get_swa_multi_avg_fn", "itertools", "torch"}),
        noted_functions("torch", {"_foreach_lerp_", "is_complex", "is_floating_point", "no_grad"}),
        noted_functions("torch.nn.modules.module", {"_global_buffer_registration_hooks"}),
        type};
  }();
  return *all;
}

// Is all torch's own that torch's method would call?
bool is_torchs(PyObject* averaged) {
  AverageNames& all = average_names();
  return why_transformed() == nullptr && !c10::InferenceMode::is_enabled() &&
         why_not_original(nullptr, averaged) == nullptr && all.tensors.same_in(kTensorType) &&
         all.parameters.same_in(kParameterType) && all.torchs.same_in(all.type) &&
         all.functions.same() && all.of_torch.same() && all.of_modules.same();
}

// An AveragedModel with the attributes that its constructor gives it.
struct Averaged {
  py::object attributes;
  py::object module;
  at::Tensor num_averaged;
  bool use_buffers;
};

bool is_count(const at::Tensor& number) {
  const c10::TensorImpl& tensor = *number.unsafeGetTensorImpl();
  return tensor.key_set() == kPlainKeys && tensor.dim() == 0 && is_allocated(tensor) &&
         tensor.dtype() == caffe2::TypeMeta::Make<int64_t>();
}

int64_t read_count(const at::Tensor& number) {
  return *static_cast<const int64_t*>(number.const_data_ptr());
}

bool any_buffer_hook() {
  static PyObject* kept = nullptr;
  PyObject* hooks = imported(kept, "torch.nn.modules.module", "_global_buffer_registration_hooks");
  return !PyDict_Check(hooks) || PyDict_GET_SIZE(hooks) != 0;
}

bool read_averaged(PyObject* object, Averaged& averaged) {
  AverageNames& all = average_names();
  averaged.attributes = dict_of(object);
  if (!averaged.attributes || !all.averages.same_in(Py_TYPE(object)) ||
      all.averages.hidden_by(averaged.attributes.ptr()) || any_buffer_hook() ||
      find(averaged.attributes, all.module) != nullptr ||
      find(averaged.attributes, all.n_averaged) != nullptr) {
    return false;
  }
  PyObject* use_buffers = find(averaged.attributes, all.use_buffers);
  if (use_buffers != Py_True && use_buffers != Py_False) return false;
  averaged.use_buffers = use_buffers == Py_True;
  // There must be nothing beside the module and the number, so that the average's parameters are
  // the module's.
  const auto only = [&](PyObject* key, PyObject* name) -> py::object {
    const auto dict = py::reinterpret_borrow<py::object>(find(averaged.attributes, key));
    if (!dict || !PyDict_CheckExact(dict.ptr()) || PyDict_GET_SIZE(dict.ptr()) != 1) return {};
    return py::reinterpret_borrow<py::object>(find(dict, name));
  };
  averaged.module = only(all.modules, all.module);
  const py::object number = only(all.buffers, all.n_averaged);
  PyObject* parameters = find(averaged.attributes, all.parameters_key);
  if (!averaged.module || !number || !is_exact(number.ptr()) || parameters == nullptr ||
      !PyDict_CheckExact(parameters) || PyDict_GET_SIZE(parameters) != 0) {
    return false;
  }
  averaged.num_averaged = THPVariable_Unpack(number.ptr());
  return is_count(averaged.num_averaged);
}

// The newest value's weight, as torch computes it from what it is given.
std::optional<double> weight_after(const py::object& num_averaged) {
  PyObject* number = num_averaged.ptr();
  if (PyLong_CheckExact(number)) {
    const double count = PyLong_AsDouble(number);
    if (count >= 0 && count < 1e15) return 1 / (count + 1);
    PyErr_Clear();
    return {};
  }
  if (!is_exact(number) || !is_count(THPVariable_Unpack(number))) return {};
  return reciprocal_after(read_count(THPVariable_Unpack(number)));
}

void write(Pairs& pairs, Members& averages, Members& newest) {
  // To freeze the tensors of 10,000 parameters of 120 elements takes 2 ms, half of what it takes to
  // average them (an EPYC of Zen 4, 2026-11-28).
  if (pairs.copy_takes_long()) {
    averages.freeze();
    newest.freeze();
  } else if (pairs.takes_long()) {
    averages.own();
    newest.own();
  }
  pairs.write();
}

// Other threads may have made something else of the number while the average was written.
void count_up(at::Tensor& number) {
  const at::AutoDispatchBelowADInplaceOrView below;
  if (is_count(number)) {
    ++*static_cast<int64_t*>(number.mutable_data_ptr());
  } else {
    number.add_(1);
  }
  number.unsafeGetTensorImpl()->bump_version();
}

bool gather_list(const py::object& list, Members& members) {
  if (!PyList_CheckExact(list.ptr()) && !PyTuple_CheckExact(list.ptr())) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.ptr()); ++i) {
    if (!members.add(PySequence_Fast_GET_ITEM(list.ptr(), i), members.parameters)) return false;
  }
  return true;
}

}  // namespace

void note_averages() {
  note_modules();
  average_names();
}

bool update_parameters(const py::object& averaged, const py::object& model) {
  find_dtensor();
  Averaged target;
  if (!is_torchs(averaged.ptr()) || !read_averaged(averaged.ptr(), target)) return false;
  const int64_t number = read_count(target.num_averaged);
  const auto formula = formula_of(target.attributes, number);
  if (number < 0 || !formula) return false;
  Members averages;
  Members newest;
  // torch calls the parameters() and buffers() of these.
  if (!has_own_members(averaged.ptr()) || !gather(target.module.ptr(), averages) ||
      !gather(model.ptr(), newest) || !averages.are_same() || !newest.are_same()) {
    return false;
  }
  Placements placements;
  placements.learn(averages, newest);
  if (!is_count(target.num_averaged) || read_count(target.num_averaged) != number) return false;
  Pairs pairs(*formula, placements);
  const bool first = number == 0;
  if (averages.parameters.empty() || !pairs.add(averages.parameters, newest.parameters, first) ||
      !pairs.add(averages.buffers, newest.buffers, first || !target.use_buffers) ||
      !pairs.may_write_beside(&target.num_averaged)) {
    return false;
  }
  write(pairs, averages, newest);
  count_up(target.num_averaged);
  return true;
}

bool average_tensors(const py::object& function, const py::object& averages,
                     const py::object& newest, const py::object& num_averaged) {
  find_dtensor();
  const auto known = function_of(function.ptr());
  if (!known || !known->multi || !is_torchs(averages.ptr())) return false;
  const auto rest = known->decay ? std::optional(1 - *known->decay) : weight_after(num_averaged);
  Members targets;
  Members sources;
  if (!rest || !gather_list(averages, targets) || !gather_list(newest, sources)) return false;
  Placements placements;
  placements.learn(targets, sources);
  Pairs pairs({{true, {}}, 0, &cpu::kAverage, {*rest}, false}, placements);
  if (targets.parameters.empty() || !pairs.add(targets.parameters, sources.parameters, false) ||
      !pairs.may_write_beside(nullptr)) {
    return false;
  }
  write(pairs, targets, sources);
  return true;
}

}  // namespace fusedopt
