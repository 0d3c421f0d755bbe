// What clips gradients, as torch.nn.utils does: here p is the gradient, and g is p.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct ScaleOptions {
  double factor;
};

// p <- factor g
template <typename T>
struct Scale {
  static constexpr int kStates = 0;
  using Options = ScaleOptions;

  T factor;

  FUSEDOPT_HD Scale(const Options& o, double) : factor(T(o.factor)) {}

  FUSEDOPT_HD bool valid(double) const { return true; }

  FUSEDOPT_HD void operator()(T& p, T g, T*) const { p = factor * g; }
};

struct ClampOptions {
  double least, greatest;
};

// p <- min(max(g, least), greatest)
template <typename T>
struct Clamp {
  static constexpr int kStates = 0;
  using Options = ClampOptions;

  T least, greatest;

  FUSEDOPT_HD Clamp(const Options& o, double) : least(T(o.least)), greatest(T(o.greatest)) {}

  FUSEDOPT_HD bool valid(double) const { return true; }

  FUSEDOPT_HD void operator()(T& p, T g, T*) const { p = clamp(g, least, greatest); }
};

}  // namespace fusedopt
