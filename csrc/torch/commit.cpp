// The part of a step that changes something: step counts, tables, the sweep.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <optional>

#include "engine/tuning.h"
#include "torch/overlap.h"
#include "torch/parallel.h"
#include "torch/plan.h"

namespace fusedopt {

namespace {

// Adds 1 in the step's own dtype, as torch does, and returns the new count. check_step has seen
// that it is a plain tensor.
double count_step(const Work& work) {
  count_version(work.step);
  if (work.float_step) {
    return *reinterpret_cast<float*>(const_cast<char*>(work.step.address)) += 1.0f;
  }
  const at::NoGradGuard no_grad;
  return tensor_of(work.step.tensor).add_(1).item().toDouble();
}

// What filling the tables reads and writes of a slot.
void prefetch_counters(const Work& work) {
  for (const Operand& operand : work.operands) prefetch<0, 1, true>(operand.version);
  prefetch<0, 1, true>(work.step.version);
  prefetch<0, 1, true>(work.step.address);
}

}  // namespace

// A gradient that is written (unscaled) must not be read under another name: where one is expanded,
// or belongs to several parameters, each parameter gets a copy of its own. Returns whether Python
// code ran, as it does to copy a DTensor, or other addresses may be stale: then all has to be
// looked at again.
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
  bool stale = false;
  for (const int slot : ready_) {
    Work& work = works_[slot];
    if (!shared[slot]) {
      stale = make_own(work.operands[1]) || stale;
      continue;
    }
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
  return stale || !sharded.empty();
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
        entry.operands[k] = const_cast<char*>(operand.address);
        if (k != 1 || scaled) count_version(operand);
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
