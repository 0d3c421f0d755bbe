// What the rest of the library sees of a CUDA kernel, and how to run it. Plain C++: no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/arguments.h"
#include "engine/api.h"
#include "engine/dtype.h"
#include "engine/table.h"
#include "rules/rule.h"

namespace fusedopt::cuda {

struct Kernel {
  const char* name;  // for messages
  int states;
  int scalars;     // numbers in its state beside the step count
  size_t options;  // numbers in the rule's Options
  // Rules compute in float, for float64 tensors in double: index 0 and 1 here.
  size_t rule_bytes[2];
  void (*prepare[2])(PrepareArguments);
  void (*sweep[kDtypes])(SweepArguments);
  // Of a table with formats, none of them float64: the same in double would add a tenth to the
  // library, for what hardly occurs on a device.
  void (*mixed)(SweepArguments);

  static constexpr int compute(Dtype dtype) { return dtype == Dtype::kFloat64 ? 1 : 0; }
};

// A number that the host knows, or one that is on the device: then `value` says nothing.
struct Number {
  double value;
  void* address;  // on the device; null: the number is `value`
  Dtype dtype;    // what is at the address
};

// What a rule is made of. The device counts up a step that it has, in float32 or float64, so no two
// sources share one; the caller has counted a step of the host's.
struct RuleSource {
  int32_t group;
  Number step;
  Number scalars[kMaxScalars];  // written by the device: any dtype, and no two the same
  // For noise: the group's seed, and how often was rounded, if the optimizer counts no steps.
  uint64_t seed = 0;
  Number roundings = {};
};

// Rules that the device makes, because some of their numbers are only there.
struct DeviceRules {
  const Number* options;      // the groups' one after the other, Kernel::options of each
  const RuleSource* sources;  // TensorEntry::rule is an index into these
  int64_t count;
  void* memory;              // on the device, aligned to 16 bytes: count * rule_bytes
  uint64_t* keys = nullptr;  // on the device, of noise: count; null: there is none
  bool roundings = false;    // the sources say how often was rounded
};

// Numbers that are not in the table because they are on the device. Null: there is none.
struct Scalars {
  const float* found_inf;        // not 0: nothing is changed, no step is counted
  const float* grad_scale;       // in the place of Table::grad_scale, if Table::scaled
  const DeviceRules* rules;      // in the place of Table::rules
  const double* clip = nullptr;  // in the place of Table::clip
};

// The device can only access an element at a multiple of its size: run() throws for anything else.
FUSEDOPT_API bool is_aligned(const void* address, Format format);

// Memory was short, so another try may succeed.
struct FUSEDOPT_API OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One step of everything in the table, queued on a stream (a cudaStream_t) of the device, which has
// to be the current one. Copies what it is given, waits for nothing, allocates nothing, and may be
// captured in a graph. Throws std::runtime_error, which names the kernel, if a launch fails.
FUSEDOPT_API void run(const Kernel& kernel, Dtype dtype, const Table& table, const Scalars& scalars,
                      int device, void* stream);

// Is the stream being captured into a graph? A launch would freeze what the host knows into it.
FUSEDOPT_API bool is_capturing(void* stream);

// Why a kernel can't run on the current device: too old, say. Empty: it can.
FUSEDOPT_API std::string why_not(const Kernel& kernel, Dtype dtype, bool mixed);

}  // namespace fusedopt::cuda
