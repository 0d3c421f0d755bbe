// The part of a step that changes something: new state, step counts, tables, the sweep.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DefaultDtype.h>

#include <algorithm>
#include <optional>

#include "engine/tuning.h"
#include "torch/overlap.h"
#include "torch/parallel.h"
#include "torch/plan.h"

namespace fusedopt {

namespace {

py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

void set_item(PyObject* dict, PyObject* key, PyObject* value) {
  if (PyDict_SetItem(dict, key, value) != 0) throw py::error_already_set();
}

// Adds 1 in the step's own dtype, as torch does, and returns the new count. check_step has seen
// that it is a plain tensor.
double count_step(const Work& work) {
  if (work.float_step) return *reinterpret_cast<float*>(written_address(work.step)) += 1.0f;
  work.step.tensor->bump_version();
  const at::NoGradGuard no_grad;
  return tensor_of(work.step.tensor).add_(1).item().toDouble();
}

// The same count on a device.
at::Tensor step_on_device(const at::Tensor& step, c10::Device device) {
  const auto dtype = step.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::full({}, step.item(), at::TensorOptions().dtype(dtype).device(device));
}

// What filling the tables reads and writes of a slot.
void prefetch_counters(const Work& work) {
  const auto prefetch_operand = [](const Operand& operand) {
    prefetch<48>(operand.tensor);
    prefetch<96>(operand.storage);
    prefetch<1, true>(operand.version);
  };
  for (const Operand& operand : work.operands) {
    if (operand.tensor != nullptr) prefetch_operand(operand);
  }
  prefetch_operand(work.step);
  prefetch<1, true>(work.step.address);
}

// State that is missing for one parameter.
struct Fresh {
  py::object param;  // owned: a DTensor's state, and putting state in place, run Python code
  py::object state;  // optimizer.state[param]; null: not there yet
  py::object step;   // what is to be moved to the device; null: all state is to be made
  const Group* group;
  c10::Device step_device;
  std::vector<std::pair<PyObject*, at::Tensor>> entries;
};

// Enters new state in optimizer.state; if that fails, takes back what is there already.
void put_in_place(const py::object& state, std::vector<Fresh>& all) {
  size_t placed = 0;
  try {
    for (; placed < all.size(); ++placed) {
      Fresh& fresh = all[placed];
      py::dict entries;
      for (const auto& [key, tensor] : fresh.entries)
        set_item(entries.ptr(), key, wrap(tensor).ptr());
      const int failed = fresh.state
                             ? PyDict_Update(fresh.state.ptr(), entries.ptr())
                             : PyObject_SetItem(state.ptr(), fresh.param.ptr(), entries.ptr());
      if (failed != 0) throw py::error_already_set();
    }
  } catch (...) {
    for (size_t i = 0; i < placed; ++i) {
      for (const auto& [key, tensor] : all[i].entries) {
        if (!all[i].state) continue;
        const int failed = all[i].step ? PyDict_SetItem(all[i].state.ptr(), key, all[i].step.ptr())
                                       : PyDict_DelItem(all[i].state.ptr(), key);
        if (failed != 0) PyErr_Clear();
      }
      if (!all[i].state && PyObject_DelItem(state.ptr(), all[i].param.ptr()) != 0) PyErr_Clear();
    }
    throw;
  }
}

}  // namespace

// Makes all missing state before putting any of it in place, and takes back what is in place if
// that fails: running out of memory or an interrupt leaves nothing half done. Returns whether there
// was any; `created` gets the parameters.
bool Plan::create_states(const py::object& state, const py::dict& defaults,
                         std::vector<at::Tensor>& created) {
  if (!any_fresh_) return false;
  std::vector<Fresh> all;
  double initial = 0;
  if (optimizer_->initial_value != nullptr) {
    initial = defaults[optimizer_->initial_value].cast<double>();
  }
  for (const int index : ready_) {
    const Work& work = works_[index];
    if (!work.fresh && !work.move_step) continue;
    const Slot& slot = slots_[index];
    const Group& group = groups_[slot.group];
    const bool there = work.device != kHost && (group.fused || group.capturable || scaled_there_);
    PyObject* step = work.move_step ? work.traces.state[state_keys_.size()] : nullptr;
    all.push_back({py::reinterpret_borrow<py::object>(slot.param),
                   py::reinterpret_borrow<py::object>(slot.state),
                   py::reinterpret_borrow<py::object>(step),
                   &group,
                   there ? work.operands[0].tensor->device() : c10::Device(c10::kCPU),
                   {}});
  }
  const at::NoGradGuard no_grad;
  for (Fresh& fresh : all) {
    const Group& group = *fresh.group;
    if (fresh.step) {
      const at::Tensor& step = THPVariable_Unpack(fresh.step.ptr());
      fresh.entries.emplace_back(step_key_, step_on_device(step, fresh.step_device));
      continue;
    }
    if (optimizer_->counts_steps) {
      const bool wide =
          !group.fused && c10::get_default_dtype() == caffe2::TypeMeta::Make<double>();
      const auto options = at::TensorOptions().dtype(wide ? at::kDouble : at::kFloat);
      fresh.entries.emplace_back(step_key_, at::zeros({}, options.device(fresh.step_device)));
    }
    const at::Tensor& param = THPVariable_Unpack(fresh.param.ptr());
    for (int k = 0; k < group.variant.cpu->states; ++k) {
      fresh.entries.emplace_back(state_keys_[group.variant.keys[k]],
                                 at::full_like(param, initial, {}, at::MemoryFormat::Preserve));
    }
    created.push_back(param);
  }
  put_in_place(state, all);
  return !all.empty();
}

// A gradient that is written (unscaled) must not be read under another name: where one is expanded,
// or belongs to several parameters, each parameter gets a copy of its own. Returns whether Python
// code ran, as it does to copy a DTensor: then all has to be looked at again.
bool Plan::separate_gradients() {
  std::vector<Range> ranges;
  std::vector<char> shared(works_.size(), 0);
  for (const int slot : ready_) {
    const c10::TensorImpl& grad = *works_[slot].operands[1].tensor;
    if (grad.numel() == 0) continue;
    ranges.push_back(range_of(grad, slot));
    shared[slot] = may_overlap_itself(grad);
  }
  for (const int slot : find_overlapping(ranges)) shared[slot] = 1;
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> sharded;
  for (const int slot : ready_) {
    if (!shared[slot]) continue;
    Work& work = works_[slot];
    if (work.cut != 0) {
      sharded.push_back(THPVariable_Unpack(slots_[slot].param));
      continue;
    }
    const at::Tensor param = tensor_of(work.operands[0].tensor);
    const at::Tensor copy = at::zeros_like(param, {}, at::MemoryFormat::Preserve);
    copy.copy_(tensor_of(work.operands[1].tensor));
    param.mutable_grad() = copy;
    work.operands[1] = operand_of(*copy.unsafeGetTensorImpl());
    work.dense = false;  // its layout is found anew
  }
  for (const at::Tensor& param : sharded) param.mutable_grad() = param.grad().clone();
  return !sharded.empty();
}

int64_t Bucket::elements() const {
  return tensors.empty() ? 0 : tensors.back().start + tensors.back().numel;
}

void Bucket::add_rule(const Group& of, int index, double at_step) {
  const cpu::Kernel& kernel = *variant.cpu;  // a rule is the same on all devices
  const int compute = cpu::Kernel::compute(dtype);
  const size_t bytes = kernel.rule_bytes[compute];
  rules.resize((rule_count + 1) * bytes);
  kernel.prepare[compute](of.numbers, at_step, rules.data() + rule_count++ * bytes);
  group = index;
  step = at_step;
}

bool Bucket::takes(const Variant& of, const Work& work, bool there) const {
  return variant.cpu == of.cpu && dtype == work.dtype && device == work.device &&
         made_there == there;
}

Bucket& Plan::bucket_for(const Variant& variant, const Work& work, bool there) {
  for (Bucket& bucket : buckets_) {
    if (bucket.takes(variant, work, there)) return bucket;
  }
  buckets_.push_back({variant, work.dtype, work.device, {}, there, {}, {}, {}, {}});
  return buckets_.back();
}

// Counts the steps and writes the tables. From here on nothing can fail.
void Plan::fill_buckets(bool scaled) {
  for (Bucket& bucket : buckets_) {
    bucket.tensors.clear();
    bucket.rules.clear();
    bucket.sources.clear();
    bucket.numbers.clear();
    bucket.rule_count = 0;
    bucket.layouts.clear();
    bucket.group = -1;
  }
  layouts_.clear();
  Bucket* bucket = nullptr;
  for (size_t i = 0; i < ready_.size(); ++i) {
    if (i + kFillAhead < ready_.size()) prefetch_counters(works_[ready_[i + kFillAhead]]);
    const Work& work = works_[ready_[i]];
    const int group_index = slots_[ready_[i]].group;
    const Group& group = groups_[group_index];
    const int operands = 2 + group.variant.cpu->states;
    const bool there = work.device != kHost && (work.device_step || group.any_on_device);
    double step = work.first ? 0 : 1;
    if (optimizer_->counts_steps && !work.device_step) step = count_step(work);
    TensorEntry entry;
    if (work.cut != 0) {
      enter_pieces(slots_[ready_[i]], work, operands, scaled, entry);
    } else {
      for (int k = 0; k < operands; ++k) {
        const Operand& operand = work.operands[k];
        const bool written = k != 1 || scaled;
        entry.operands[k] = written ? written_address(operand) : const_cast<char*>(operand.address);
      }
    }
    if (work.numel == 0 && !there) continue;
    if (bucket == nullptr || !bucket->takes(group.variant, work, there)) {
      bucket = &bucket_for(group.variant, work, there);
    }
    if (there) {
      add_source(work, group_index, step, *bucket);
      if (work.numel == 0) continue;
    } else if (bucket->group != group_index || bucket->step != step) {
      bucket->add_rule(group, group_index, step);
    }
    entry.start = bucket->elements();
    entry.numel = work.numel;
    entry.rule = bucket->rule_count - 1;
    entry.layout = work.dense ? -1 : add_layout(work, operands, *bucket);
    entry.maximize = group.maximize;
    bucket->tensors.push_back(entry);
  }
}

int32_t Plan::add_layout(const Work& work, int operands, Bucket& bucket) {
  std::vector<const int64_t*> strides;
  for (int k = 0; k < operands; ++k) {
    strides.push_back(work.operands[k].tensor->strides().data());
  }
  const auto sizes = work.operands[0].tensor->sizes();
  layouts_.push_back(make_layout(static_cast<int>(sizes.size()), sizes.data(), strides));
  bucket.layouts.push_back(layouts_.back().view());
  return static_cast<int32_t>(bucket.layouts.size()) - 1;
}

void Plan::sweep(const Scaler& scaler) {
  int64_t elements = 0;
  for (const Bucket& bucket : buckets_) elements += bucket.device == kHost ? bucket.elements() : 0;
  // While the lock is released other threads may drop tensors: the storages are held, for a long
  // sweep only.
  std::vector<c10::Storage> held;
  std::optional<py::gil_scoped_release> release;
  if (elements >= kReleaseElements) {
    for (const int slot : ready_) {
      for (const Operand& operand : works_[slot].operands) {
        if (operand.tensor != nullptr) held.push_back(operand.tensor->storage());
      }
    }
    release.emplace();
  }
  for (const Bucket& bucket : buckets_) {
    const Table table{bucket.tensors.data(), static_cast<int64_t>(bucket.tensors.size()),
                      bucket.rules.data(),   bucket.layouts.data(),
                      scaler.scaled,         scaler.scale};
    if (bucket.device == kHost) {
      cpu::run(*bucket.variant.cpu, bucket.dtype, table, parallel);
    } else {
      launch(bucket, table, scaler);
    }
  }
}

}  // namespace fusedopt
