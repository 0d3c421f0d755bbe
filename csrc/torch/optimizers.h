// What the plan must know of each optimizer: its options, its state keys, its kernels.
#pragma once

#include <span>
#include <vector>

#include "cpu/kernel.h"
#include "cuda/kernel.h"

namespace fusedopt {

// The numbers of a parameter group: the rule's Options, then those that only choose the kernel.
using Numbers = double[kMaxOptions];

// A key of a parameter group, and which of the numbers it fills.
struct Option {
  enum Kind { kNumber, kPair, kTriple, kFlag };  // a flag is true or false
  const char* key;
  Kind kind;
  int at[3];

  constexpr int count() const { return kind == kTriple ? 3 : kind == kPair ? 2 : 1; }
};

// How a group's options select a kernel, and which state it then has.
struct Variant {
  const cpu::Kernel* cpu;
  const cuda::Kernel* cuda;  // null: not in this build
  int keys[kMaxStates];      // indices into Optimizer::states, in the order of the rule's state
  // torch's own step promotes dtypes where gradient, state and parameter differ. torch's lerp_
  // doesn't: the state and the gradient must have one dtype. This is the number of the state that
  // lerp_ takes, or -1.
  int lerp;
  // The parameter is added to the gradient before lerp_, which promotes the gradient.
  bool adds_parameter;
};

// A state of a parameter's size, or a single number. A fresh state is filled with a default of the
// optimizer, an option of the parameter's group, or `value`.
struct State {
  const char* key;
  const char* from_default = nullptr;
  const char* from_group = nullptr;
  double value = 0;
  bool is_anew = false;  // each step's value is a new tensor's, of torch's default dtype
};

// The keys of state that any optimizer may have: the lower halves of a parameter's float32, and,
// where the optimizer counts no steps, how often noise has rounded.
inline constexpr const char* kRemainder = "param_remainder";
inline constexpr const char* kRoundings = "step";

struct Optimizer {
  const char* name;
  std::span<const Option> options;
  int numbers;                // how many numbers the options fill
  std::vector<State> states;  // of a parameter's size, in the order in which torch creates them
  // Single numbers: the step count first. Without single numbers (SGD), the rule is told that there
  // were 0 earlier steps, or 1, and state that is not there yet is nothing unusual.
  std::vector<State> scalars;
  // Does the rule depend on the step count?
  bool computes_with_step;
  Variant (*variant)(const double* numbers);
  bool scalars_on_device = false;  // single numbers are with the parameter, `capturable` or not

  bool counts_steps() const { return !scalars.empty(); }
};

std::span<const Optimizer> all_optimizers();

// By the name of the class in Python; null if there is none.
const Optimizer* find_optimizer(const char* name);

}  // namespace fusedopt
