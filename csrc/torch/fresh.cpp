#include "torch/fresh.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DefaultDtype.h>

#include <algorithm>

#include "engine/tuning.h"
#include "torch/plan.h"

namespace fusedopt {

namespace {

// The same count on a device.
at::Tensor step_on_device(const at::Tensor& step, c10::Device device) {
  const auto dtype = step.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::full({}, step.item(), at::TensorOptions().dtype(dtype).device(device));
}

}  // namespace

void put_in_place(const py::object& state, Fresh& fresh) {
  py::dict entries;
  for (const auto& [key, tensor] : fresh.entries) {
    const auto value = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
    if (!value || PyDict_SetItem(entries.ptr(), key, value.ptr()) != 0) {
      throw py::error_already_set();
    }
    PyObject* before = fresh.state ? PyDict_GetItemWithError(fresh.state.ptr(), key) : nullptr;
    if (before == nullptr && PyErr_Occurred()) throw py::error_already_set();
    fresh.before.push_back(py::reinterpret_borrow<py::object>(before));
  }
  fresh.placed = true;
  const int failed = fresh.state ? PyDict_Update(fresh.state.ptr(), entries.ptr())
                                 : PyObject_SetItem(state.ptr(), fresh.param.ptr(), entries.ptr());
  if (failed != 0) throw py::error_already_set();
}

void take_back(const py::object& state, const std::vector<Fresh>& all) {
  const auto ignore = [](int failed) {
    if (failed != 0) PyErr_Clear();
  };
  for (const Fresh& fresh : all) {
    if (!fresh.placed) continue;
    if (!fresh.state) {
      ignore(PyObject_DelItem(state.ptr(), fresh.param.ptr()));
      continue;
    }
    for (size_t i = 0; i < fresh.entries.size(); ++i) {
      PyObject* key = fresh.entries[i].first;
      PyObject* before = fresh.before[i].ptr();
      ignore(before != nullptr ? PyDict_SetItem(fresh.state.ptr(), key, before)
                               : PyDict_DelItem(fresh.state.ptr(), key));
    }
  }
}

// Makes all missing state before putting any of it in place: running out of memory leaves nothing
// half done. Returns whether there was any, and adds it to `made`.
bool Plan::create_states(const py::object& state, const py::dict& defaults,
                         std::vector<Fresh>& made) {
  if (!any_fresh_) return false;
  double initial = 0;
  if (optimizer_->initial_value != nullptr) {
    initial = defaults[optimizer_->initial_value].cast<double>();
  }
  const size_t first = made.size();
  for (const int index : ready_) {
    const Work& work = works_[index];
    if (!work.fresh && !work.move_step) continue;
    const Slot& slot = slots_[index];
    const Group& group = groups_[slot.group];
    const bool there = work.device != kHost && (group.fused || group.capturable || scaled_there_);
    PyObject* step = work.move_step ? work.traces.state[state_keys_.size()] : nullptr;
    made.push_back({py::reinterpret_borrow<py::object>(slot.param),
                    py::reinterpret_borrow<py::object>(slot.state),
                    py::reinterpret_borrow<py::object>(step),
                    &group,
                    there ? work.operands[0].tensor->device() : c10::Device(c10::kCPU),
                    {},
                    {}});
  }
  const at::NoGradGuard no_grad;
  const std::vector<Fresh> filling = fill_holes({made.begin() + first, made.end()}, initial);
  for (size_t i = first; i < made.size(); ++i) fill_state(made[i], initial);
  for (size_t i = first; i < made.size(); ++i) put_in_place(state, made[i]);
  return made.size() != first;
}

// The same state of small parameters once more, to be dropped when the other is made: it takes the
// holes that other code has left all over the heap, so that the other lies together.
std::vector<Fresh> Plan::fill_holes(std::vector<Fresh> made, double initial) const {
  const auto elsewhere = [](const Fresh& fresh) {
    const c10::TensorImpl& param = *THPVariable_Unpack(fresh.param.ptr()).unsafeGetTensorImpl();
    return !is_plain_cpu(param) || param.numel() > kSmallStateBytes / int64_t(param.itemsize());
  };
  made.erase(std::remove_if(made.begin(), made.end(), elsewhere), made.end());
  for (Fresh& fresh : made) fill_state(fresh, initial);
  return made;
}

void Plan::fill_state(Fresh& fresh, double initial) const {
  const Group& group = *fresh.group;
  if (fresh.step) {
    const at::Tensor& step = THPVariable_Unpack(fresh.step.ptr());
    fresh.entries.emplace_back(step_key_, step_on_device(step, fresh.step_device));
    return;
  }
  if (optimizer_->counts_steps) {
    const bool wide = !group.fused && c10::get_default_dtype() == caffe2::TypeMeta::Make<double>();
    const auto options = at::TensorOptions().dtype(wide ? at::kDouble : at::kFloat);
    fresh.entries.emplace_back(step_key_, at::zeros({}, options.device(fresh.step_device)));
  }
  const at::Tensor& param = THPVariable_Unpack(fresh.param.ptr());
  for (int k = 0; k < group.variant.cpu->states; ++k) {
    fresh.entries.emplace_back(state_keys_[group.variant.keys[k]],
                               at::full_like(param, initial, {}, at::MemoryFormat::Preserve));
  }
}

}  // namespace fusedopt
