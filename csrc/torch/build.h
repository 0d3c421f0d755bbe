// From a reading to the tables that sweeps walk.
#pragma once

#include <deque>
#include <stdexcept>
#include <vector>

#include "engine/layout.h"
#include "torch/reading.h"

namespace fusedopt {

// Everything in one step that one kernel sweeps in one dtype on one device.
struct Bucket {
  Variant variant;
  Dtype dtype;
  int device;
  bool rules_on_device;  // the device makes the rules, from `sources` and `numbers`
  bool mixed;
  Format formats[kMaxOperands];  // of the operands
  std::vector<TensorEntry> tensors;
  std::vector<char> rules;
  bool noisy;
  std::vector<uint64_t> keys;  // of noise, by rule
  std::vector<cuda::RuleSource> sources;
  std::vector<cuda::Number> numbers;
  std::vector<Layout> layouts;
  int32_t rule_count = 0;
  // Of the newest rule.
  int group = -1;
  const Work* work = nullptr;
  Counts counts = {};
  double rounding = 0;   // the count on which the rule's noise depends
  int64_t elements = 0;  // in the work list: `append`
};

// The tables of one step. The next step uses the same memory.
struct Tables {
  std::deque<Bucket> buckets;
  std::deque<LayoutBuffer> layouts;
  std::vector<Counts> counts;  // of the slots that are ready, if there is more to count than steps
};

// Becomes Python's ZeroDivisionError.
struct ZeroDivision : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Writes the tables, and changes nothing else. Throws where torch refuses options or step counts,
// such as a learning rate beyond float32's range.
void build(const Reading& reading, Tables& tables);

// launch.cpp: adds what one parameter's rule is made of, if the device makes the rule.
void add_source(const Reading& reading, int slot, double step, double rounding, Bucket& bucket);

}  // namespace fusedopt
