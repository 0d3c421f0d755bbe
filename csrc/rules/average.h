// A moving average of parameters, as torch.optim.swa_utils computes it.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct AverageOptions {
  double weight;  // of the newest: 1 - decay, or 1 / how many there are
};

// p <- p + weight (g - p), where p is the average and g the newest value
template <typename T>
struct Average {
  static constexpr int kStates = 0;
  using Options = AverageOptions;

  Lerp<T> lerp;

  FUSEDOPT_HD Average(const Options& o, double) : lerp(o.weight) {}

  FUSEDOPT_HD bool valid(double) const { return true; }

  FUSEDOPT_HD void operator()(T& p, T g, T*) const { p = lerp(p, g); }
};

}  // namespace fusedopt
