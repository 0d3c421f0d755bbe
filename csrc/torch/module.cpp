// The Python module fusedopt._C.
#include <ATen/record_function.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "cpu/isa.h"
#include "torch/average.h"
#include "torch/clip.h"
#include "torch/groups.h"
#include "torch/modes.h"
#include "torch/operand.h"
#include "torch/originals.h"
#include "torch/plan.h"
#include "torch/stream.h"
#include "torch/zero_grad.h"

namespace fusedopt {

namespace {

py::list isa_names(bool only_detected) {
  py::list names;
  for (int isa = 0; isa < cpu::kIsas; ++isa) {
    if (!only_detected || cpu::isa_detected(isa)) names.append(cpu::kIsaNames[isa]);
  }
  return names;
}

// What Python derives its tables and lists from.
py::dict optimizers() {
  py::dict all;
  for (const Optimizer& optimizer : all_optimizers()) {
    py::list options, states, scalars, anew;
    py::dict filled_from;   // fresh state, from which option of the group
    py::dict filled_early;  // state that the constructor makes, from which default
    for (const Option& option : optimizer.options) options.append(option.key);
    for (const State& state : optimizer.states) {
      states.append(state.key);
      if (state.from_group != nullptr) filled_from[state.key] = state.from_group;
      if (state.from_default != nullptr) filled_early[state.key] = state.from_default;
    }
    for (const State& scalar : optimizer.scalars) {
      scalars.append(scalar.key);
      if (scalar.is_anew) anew.append(scalar.key);
    }
    py::dict description;
    description["options"] = py::tuple(options);
    description["states"] = py::tuple(states);
    description["scalars"] = py::tuple(scalars);  // the step count first
    description["anew"] = py::tuple(anew);        // those that are a new tensor after each step
    description["counts_steps"] = optimizer.counts_steps();
    description["computes_with_step"] = optimizer.computes_with_step;
    description["filled_from"] = filled_from;
    description["filled_early"] = filled_early;
    all[optimizer.name] = description;
  }
  return all;
}

// Why a kernel doesn't agree with the table of optimizers, or with the other compiler's; or empty.
std::string why_not_variant(const Optimizer& optimizer, const Variant& variant) {
  const cpu::Kernel& host = *variant.cpu;
  const size_t scalars = optimizer.scalars.size();  // the step count, and those of the rule
  if (host.options > static_cast<size_t>(optimizer.numbers)) {
    return "its options fill fewer numbers than the rule's Options have";
  }
  if (static_cast<size_t>(host.states) > optimizer.states.size()) {
    return "the rule has more states than the table";
  }
  const int* keys = variant.keys;
  for (int k = 0; k < host.states; ++k) {
    const bool known = keys[k] >= 0 && keys[k] < static_cast<int>(optimizer.states.size());
    if (!known || std::count(keys, keys + host.states, keys[k]) != 1)
      return "a Variant's keys aren't one for each state of its rule";
  }
  if (variant.lerp < -1 || variant.lerp >= host.states) return "the state that torch's lerp_ takes";
  if (static_cast<size_t>(host.scalars) != (scalars == 0 ? 0 : scalars - 1)) {
    return "the table's single numbers and the rule's kScalars differ";
  }
  if (variant.cuda == nullptr) return "";
  const cuda::Kernel& device = *variant.cuda;
  const bool same = device.states == host.states && device.scalars == host.scalars &&
                    device.options == host.options &&
                    std::equal(host.rule_bytes, host.rule_bytes + 2, device.rule_bytes);
  return same ? "" : "what nvcc makes of it";
}

// Why an optimizer's kernels don't agree with its table, for any choice of its options; or empty.
std::string why_not_table(const Optimizer& optimizer) {
  if (Keys(optimizer.name).entries.size() > kMaxEntries) {
    return "its state has more entries than kMaxEntries (torch/reading.h)";
  }
  unsigned reached = 0;  // which of its states any kernel has
  for (unsigned choice = 0; choice < 1u << optimizer.numbers; ++choice) {
    Numbers numbers = {};
    for (int k = 0; k < optimizer.numbers; ++k) numbers[k] = choice >> k & 1;
    const Variant variant = optimizer.variant(numbers);
    const std::string wrong = why_not_variant(optimizer, variant);
    if (!wrong.empty()) return wrong;
    for (int k = 0; k < variant.cpu->states; ++k) reached |= 1u << variant.keys[k];
  }
  for (size_t k = 0; k < optimizer.states.size(); ++k) {
    if ((reached >> k & 1) == 0) {
      return std::string(optimizer.states[k].key) + ", a state of no kernel";
    }
  }
  return "";
}

// Is the torch that is loaded the one that this was compiled for, or of that minor version?
void check_version() {
  const std::string built = FUSEDOPT_TORCH_VERSION;
  const std::string found = py::str(py::module_::import("torch.version").attr("__version__"));
  if (found == built || found.compare(0, built.size() + 1, built + ".") == 0) return;
  throw py::import_error("this extension of fusedopt is for torch " + built + " and found torch " +
                         found);
}

// Fails at import rather than by a wrong number, or by sending everything to torch.
void check_build() {
  const std::string reason = why_not_this_torch();
  if (!reason.empty()) {
    throw py::import_error("fusedopt's extension doesn't know this torch: " + reason +
                           ". Build fusedopt again with it.");
  }
  for (const Optimizer& optimizer : all_optimizers()) {
    const std::string wrong = why_not_table(optimizer);
    if (wrong.empty()) continue;
    throw py::import_error(std::string("fusedopt's ") + optimizer.name +
                           " is not built as its table says: " + wrong);
  }
}

void define_plan(py::module_& module) {
  py::class_<Plan>(module, "Plan")
      .def(py::init<const std::string&>(), py::arg("optimizer"))
      // So that C++'s exceptions become torch's, such as OutOfMemoryError.
      // No more arguments: with `self`, pybind11 takes memory from the heap for more than six.
      .def("step", torch::wrap_pybind_function(&Plan::step))
      .def("explain", torch::wrap_pybind_function(&Plan::explain))
      // A copied or unpickled optimizer starts with a plan that has seen nothing yet.
      .def("__reduce__", [](const py::object& self) {
        return py::make_tuple(py::type::of(self),
                              py::make_tuple(self.cast<const Plan&>().optimizer()));
      });
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  const std::string wrong = cpu::select_isa(std::getenv("FUSEDOPT_CPU_ISA"));
  if (!wrong.empty()) throw py::import_error(wrong);
  check_version();
  check_build();
  note_originals();
  note_averages();
  note_zero_grad();
  module.def("isa", [] { return cpu::kIsaNames[cpu::active_isa()]; });
  module.def("isa_built", [] { return isa_names(false); });
  module.def("isa_detected", [] { return isa_names(true); });
#if defined(FUSEDOPT_WITH_CUDA)
  module.def("cuda_built", [] { return true; });
#else
  module.def("cuda_built", [] { return false; });
#endif
  // By name: the options and states of each optimizer, whether it counts steps and computes with
  // the count, and the default that its constructor fills state with, if it does.
  module.def("optimizers", &optimizers);
  // Whether anything, such as torch's profiler, is told of record_function's ranges.
  module.def("has_record_callbacks", &at::hasCallbacks);
  // torch.nn.utils' functions; None: torch's own has to do it.
  module.def("get_total_norm", &get_total_norm);
  module.def("norm_part", &norm_part);
  module.def("refuse_nonfinite", &refuse_nonfinite);
  module.def("is_transformed", [] { return why_transformed() != nullptr; });
  module.def("clip_grad_norm", &clip_grad_norm);
  module.def("clip_grads_with_norm", &clip_grads_with_norm);
  module.def("clip_grad_value", &clip_grad_value);
  // torch.optim.swa_utils' averages; False: torch's own has to do it.
  module.def("update_parameters", &update_parameters);
  module.def("average_tensors", &average_tensors);
  // torch.optim.Optimizer.zero_grad; False: torch's own has to do it.
  module.def("zero_grad", &zero_grad);
  // For tests.
  module.def("_set_accelerator", [](const std::optional<py::capsule>& other) {
    set_accelerator(other ? other->get_pointer<const Accelerator>() : nullptr);
  });
  module.def("stream", &stream, py::arg("read"), py::arg("updated"));
  module.def("stream_read", &stream_read);
  define_plan(module);
}

}  // namespace fusedopt
