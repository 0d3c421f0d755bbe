// The contract of a rule: what one step of one optimizer does to one element.
//
// template <typename T, bool kOption...>       T: float, or double for float64 tensors
// struct Rule {
//   static constexpr int kStates;  how many state tensors it reads and writes
//   using Options = ...;           the group's options, a struct of doubles only
//   Rule(const Options&, double step);
//       computes in double what depends on the step, once for each group and step
//   Rule(const Options&, const Counts&);
//       the same, in the place of the other, where Options::kScalars isn't 0
//   bool valid(double largest) const;
//       false where torch's step raises an error, because a dtype whose largest number is `largest`
//       has no room for one of the numbers
//   void operator()(T& p, T g, T* state) const;
//       the update of one element; state[kStates]
// };
//
// A rule is pure arithmetic: no torch, no CUDA header, no loop over elements, no storage type. It
// never sees `maximize`, the gradient's scale or strides: the sweep's load phase deals with those.
// A template option is for what changes the number of states; every other option is a number in
// Options.
//
// A state may hold single numbers beside its step count, such as NAdam's mu_product. Then Options
// has kScalars, how many there are, and
//   void advance(Counts& counts) const;
//       which writes counts.after, the numbers when this step is done
#pragma once

#include "engine/host_device.h"

namespace fusedopt {

inline constexpr int kMaxScalars = 2;

// The single numbers in a parameter's state.
struct Counts {
  double step = 0;                   // counted up already
  double before[kMaxScalars] = {};   // the others, as the last step left them
  double after[kMaxScalars] = {};    // and as this one will
  bool is_double[kMaxScalars] = {};  // computed and stored in float64, and not in float32
};

template <typename Options>
inline constexpr int kScalarsOf = 0;
template <typename Options>
  requires(Options::kScalars >= 0)
inline constexpr int kScalarsOf<Options> = Options::kScalars;

template <typename Options>
FUSEDOPT_HD void advance(const Options& options, Counts& counts) {
  if constexpr (kScalarsOf<Options> != 0) {
    options.advance(counts);
    for (int k = 0; k < Options::kScalars; ++k) {
      if (!counts.is_double[k]) counts.after[k] = static_cast<float>(counts.after[k]);
    }
  }
}

template <typename Rule>
FUSEDOPT_HD Rule make_rule(const typename Rule::Options& options, const Counts& counts) {
  if constexpr (kScalarsOf<typename Rule::Options> != 0) {
    return Rule(options, counts);
  } else {
    return Rule(options, counts.step);
  }
}

// The constructors of these decide what is the same for all elements, because comparing floats in
// the loop took 7 % of Adam's time in bfloat16.

// L2 regularisation. Without it g is left as it is, because 0 * inf would be NaN.
template <typename T>
struct WeightDecay {
  T factor;
  bool any;

  FUSEDOPT_HD explicit WeightDecay(double weight_decay)
      : factor(T(weight_decay)), any(factor != T(0)) {}

  FUSEDOPT_HD T operator()(T g, T p) const { return any ? g + factor * p : g; }
};

// Decay of the parameter itself, as in AdamW. Without decay an infinite lr leaves the parameter
// alone.
template <typename T>
struct DecoupledWeightDecay {
  T keep;

  FUSEDOPT_HD DecoupledWeightDecay(double lr, double weight_decay)
      : keep(T(weight_decay != 0 ? 1.0 - lr * weight_decay : 1.0)) {}

  FUSEDOPT_HD T operator()(T p) const { return p * keep; }
};

// torch.sign: 0 of NaN.
template <typename T>
FUSEDOPT_HD T sign(T x) {
  return T(x > T(0)) - T(x < T(0));
}

// a + weight * (b - a), in the two forms that torch.lerp uses: exact at weight = 1, accurate near
// 0.
template <typename T>
struct Lerp {
  T weight, rest;
  bool near_a;

  FUSEDOPT_HD explicit Lerp(double of_b)
      : weight(T(of_b)), rest(T(1) - weight), near_a(weight < T(0.5)) {}

  FUSEDOPT_HD T operator()(T a, T b) const {
    return near_a ? a + weight * (b - a) : b - (b - a) * rest;
  }
};

}  // namespace fusedopt
