// What the rest of the library sees of a CPU kernel: function pointers per instruction set and
// dtype.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "engine/api.h"
#include "engine/dtype.h"
#include "engine/table.h"
#include "rules/rule.h"

namespace fusedopt::cpu {

struct Kernel {
  int states;
  int scalars;     // single numbers in its state beside the step count
  size_t options;  // numbers in the rule's Options
  // Rules compute in float, for float64 tensors in double: index 0 and 1 here.
  size_t rule_bytes[2];
  // Returns whether the rule is valid for tensors of a dtype whose largest number is this.
  bool (*prepare[2])(const double* options, const Counts& counts, double largest, void* rule);
  // Writes counts.after, not yet rounded to 16 bits.
  void (*advance)(const double* options, Counts& counts);
  // Steps elements [begin, end) of the table's work list.
  void (*sweep[kIsas][kDtypes])(const Table& table, int64_t begin, int64_t end);

  static constexpr int compute(Dtype dtype) { return dtype == Dtype::kFloat64 ? 1 : 0; }
};

// Calls task(first, context) at least once and on at most `most` threads, each with the first of
// its share of [0, most). The caller brings its own thread pool (torch's), so that this folder
// knows none.
using Parallel = void (*)(int64_t most, void (*task)(int64_t first, void* context), void* context);

// One step of everything in the table with the active instruction set.
FUSEDOPT_API void run(const Kernel& kernel, Dtype dtype, const Table& table, Parallel parallel);

}  // namespace fusedopt::cpu
