// Building the tables: reads the reading and step counts, and writes nothing but the tables.
#include "torch/build.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "engine/tuning.h"
#include "torch/count.h"
#include "torch/look.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

void clear(Tables& tables) {
  for (Bucket& bucket : tables.buckets) {
    bucket.tensors.clear();
    bucket.elements = 0;
    bucket.rules.clear();
    bucket.keys.clear();
    bucket.sources.clear();
    bucket.numbers.clear();
    bucket.rule_count = 0;
    bucket.layouts.clear();
    bucket.group = -1;
  }
  tables.layouts.clear();
  tables.counts.clear();
}

bool takes(const Bucket& bucket, const Variant& variant, const Work& work, bool rules_on_device) {
  return bucket.variant.cpu == variant.cpu && bucket.dtype == work.dtype &&
         bucket.device == work.device && bucket.rules_on_device == rules_on_device &&
         bucket.mixed == work.mixed &&
         (!work.mixed || std::equal(work.formats, work.formats + kMaxOperands, bucket.formats));
}

Bucket& bucket_for(Tables& tables, const Variant& variant, const Work& work, bool rules_on_device) {
  for (Bucket& bucket : tables.buckets) {
    if (takes(bucket, variant, work, rules_on_device)) return bucket;
  }
  Bucket& bucket = tables.buckets.emplace_back();
  bucket.variant = variant;
  bucket.dtype = work.dtype;
  bucket.device = work.device;
  bucket.rules_on_device = rules_on_device;
  bucket.mixed = work.mixed;
  std::copy_n(work.formats, kMaxOperands, bucket.formats);
  bucket.noisy = work.mixed &&
                 std::count(work.formats, work.formats + kMaxOperands, Format::kNoisyBFloat16) != 0;
  return bucket;
}

// torch's for-loop computes these numbers in Python, and raises an error where it divides by zero,
// takes the root of a negative number, or hands an operator a number for which there is no room.
// Infinite options give no error.
__attribute__((cold, noinline)) void refuse_invalid(const Reading& reading, int group,
                                                    const Bucket& bucket, const Counts& counts) {
  const Group& of = reading.groups[group];
  const cpu::Kernel& kernel = *bucket.variant.cpu;
  const double step = counts.step;
  bool finite = std::isfinite(step);
  for (const double before : counts.before) finite = finite && std::isfinite(before);
  for (size_t i = 0; i < kernel.options; ++i) finite = finite && std::isfinite(of.numbers[i]);
  if (!finite && !(step < 0)) return;
  std::vector<char> in_double(kernel.rule_bytes[1]);
  const bool overflow = kernel.prepare[1](of.numbers, counts, kLargest[1], in_double.data());
  if (!overflow && of.any_tensor && !(step < 0)) return;  // a tensor's arithmetic raises nothing
  std::ostringstream text;
  text << group_name(group) << ": "
       << (overflow ? "value cannot be converted to the parameter's dtype without overflow"
                    : "no step can be computed from these options")
       << ": ";
  for (const Option& option : reading.keys.optimizer->options) {
    if (option.kind == Option::kFlag) continue;
    for (int k = 0; k < option.count(); ++k) {
      text << (k == 0 ? option.key : " and") << " " << of.numbers[option.at[k]];
    }
    text << ", ";
  }
  text << "step " << step;
  if (overflow || step < 0) throw std::runtime_error(text.str());
  throw ZeroDivision(text.str());
}

// Is the newest rule of a bucket, made for another slot of the same group, this slot's rule, too?
FUSEDOPT_INLINE bool has_rule(const Bucket& bucket, const Work& work, const Group& group,
                              double step, double rounding) {
  return bucket.counts.step == step && (!bucket.noisy || bucket.rounding == rounding) &&
         (group.scalars <= 1 || has_numbers(work, *bucket.work, group, bucket.counts));
}

void add_rule(const Reading& reading, int group, const Work& work, double step, double rounding,
              Bucket& bucket) {
  const cpu::Kernel& kernel = *bucket.variant.cpu;  // a rule is the same on all devices
  const Group& of = reading.groups[group];
  const int compute = cpu::Kernel::compute(bucket.dtype);
  const size_t bytes = kernel.rule_bytes[compute];
  bucket.rules.resize((bucket.rule_count + 1) * bytes);
  const double largest = kLargest[static_cast<int>(bucket.dtype)];
  Counts counts{step};
  if (reading.keys.optimizer->scalars.size() > 1) {
    counts = read_counts(*reading.keys.optimizer, of, work, step);
    advance(*reading.keys.optimizer, of, work, counts);
  }
  if (!kernel.prepare[compute](of.numbers, counts, largest,
                               bucket.rules.data() + bucket.rule_count * bytes)) {
    refuse_invalid(reading, group, bucket, counts);
  }
  if (bucket.noisy) bucket.keys.push_back(step_key(of.precision.seed, rounding));
  ++bucket.rule_count;
  bucket.group = group;
  bucket.work = &work;
  bucket.counts = counts;
  bucket.rounding = rounding;
}

int32_t add_layout(const Work& work, int operands, Bucket& bucket, Tables& tables) {
  std::vector<const int64_t*> strides;
  for (int k = 0; k < operands; ++k) {
    strides.push_back(work.operands[k].tensor->strides().data());
  }
  const auto sizes = work.operands[kParam].tensor->sizes();
  tables.layouts.push_back(
      make_layout(static_cast<int>(sizes.size()), sizes.data(), strides, work.mixed));
  bucket.layouts.push_back(tables.layouts.back().view());
  return static_cast<int32_t>(bucket.layouts.size()) - 1;
}

// Replaces the newest entry, a DTensor's piece, by an entry for each run of elements that follow
// each other in the whole, because noise depends on an element's number in the whole.
void cut_into_runs(const Reading& reading, int slot, Bucket& bucket) {
  const Work& work = reading.works()[slot];
  PyObject* spec = piece_of(reading.slots()[slot].param).spec;
  const auto runs = runs_of(*work.operands[kParam].tensor, *reading.cache.cuts.extent_of(spec));
  TensorEntry entry = bucket.tensors.back();
  if (runs.size() > 1 && !work.dense) {
    throw std::runtime_error(
        name_of(reading, reading.slots()[slot]) +
        ": stochastic_rounding=True of a DTensor's piece whose rows are no rows "
        "of the whole, and whose operands lie differently in memory");
  }
  bucket.tensors.pop_back();
  for (const Run& run : runs) {
    TensorEntry& part = bucket.tensors.emplace_back(entry);
    for (int k = 0; k < reading.group_of(slot).operands; ++k) {
      const int64_t item =
          is_remainder(reading.group_of(slot), k) ? kRemainderBytes : item_bytes(work.formats[k]);
      part.operands[k] = static_cast<char*>(part.operands[k]) + run.start * item;
    }
    part.numel = run.numel;
    part.origin = run.origin;
    append(part, bucket.elements);
  }
}

// Asks for what filling the tables reads of a slot.
void prefetch_scalars(const Work& work, const Group& group) {
  for (int k = group.operands; k < group.held; ++k) {
    prefetch<0, 1, true>(work.operands[k].address);
  }
}

}  // namespace

void build(const Reading& reading, Tables& tables) {
  clear(tables);
  const size_t scalars = reading.keys.optimizer->scalars.size();
  const std::vector<int>& ready = reading.ready;
  const Slot* slots = reading.slots().data();
  const Work* works = reading.works().data();
  const Group* groups = reading.groups.data();
  Bucket* bucket = nullptr;
  for (size_t i = 0; i < ready.size(); ++i) {
    const Work& work = works[ready[i]];
    const int group_index = slots[ready[i]].group;
    const Group& group = groups[group_index];
    if (i + kFillAhead < ready.size()) prefetch_scalars(works[ready[i + kFillAhead]], group);
    const bool on_device = work.device != kHost && (work.any_on_device || group.any_on_device);
    const double step = next_step(work, group, scalars);
    const double rounding = !group.precision.noisy ? 0
                            : scalars != 0         ? step
                                                   : next_rounding(work, group);
    if (bucket == nullptr || !takes(*bucket, group.variant, work, on_device)) {
      bucket = &bucket_for(tables, group.variant, work, on_device);
    }
    if (on_device) {
      add_source(reading, ready[i], step, rounding, *bucket);
    } else if (bucket->group != group_index || !has_rule(*bucket, work, group, step, rounding)) {
      add_rule(reading, group_index, work, step, rounding, *bucket);
    }
    if (scalars > 1) tables.counts.push_back(bucket->counts);
    if (work.numel == 0) continue;
    const int operands = group.operands;
    // Where state is still to be made, this table is only built to see whether the options are
    // refused.
    const int32_t layout =
        work.dense || work.fresh ? -1 : add_layout(work, operands, *bucket, tables);
    TensorEntry& entry = bucket->tensors.emplace_back();
    for (int k = 0; k < operands; ++k) {
      entry.operands[k] = const_cast<char*>(work.operands[k].address);
    }
    entry.numel = work.numel;
    entry.rule = bucket->rule_count - 1;
    entry.layout = layout;
    entry.maximize = group.maximize;
    entry.position = static_cast<uint32_t>(ready[i]);
    entry.origin = 0;
    if (work.cut != 0 && bucket->noisy) {
      cut_into_runs(reading, ready[i], *bucket);
    } else {
      append(entry, bucket->elements);
    }
  }
}

}  // namespace fusedopt
