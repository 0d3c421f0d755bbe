// The contract of a rule: what one step of one optimizer does to one element.
//
// template <typename T, bool kOption...>       T: float, or double for float64 tensors
// struct Rule {
//   static constexpr int kStates;              how many state tensors it reads and writes
//   using Options = ...;                       the group's options, a struct of doubles only
//   Rule(const Options&, double step);         what depends on the step, in double, once per
//   (group, step) void operator()(T& p, T g, T* state) const;  the update; state[kStates]
// };
//
// A rule is pure arithmetic: no torch, no CUDA header, no loop over elements, no storage type. It
// never sees `maximize`, the gradient's scale or strides: the sweep's load phase deals with those.
// A template option is for what changes the number of states; every other option is a number in
// Options.
#pragma once

#include "engine/host_device.h"

namespace fusedopt {

// L2 regularisation. Without it g is left as it is: 0 * inf would be NaN.
template <typename T>
FUSEDOPT_HD T add_weight_decay(T g, T p, T weight_decay) {
  return weight_decay != T(0) ? g + weight_decay * p : g;
}

}  // namespace fusedopt
