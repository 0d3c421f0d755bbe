// Rprop: Riedmiller & Braun 1993, in the form of torch.optim.Rprop.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct RpropOptions {
  double etaminus, etaplus, step_size_min, step_size_max;
};

// d <- sign(g prev)
// step_size <- min(max(step_size (d > 0 ? etaplus : d < 0 ? etaminus : 1), min), max)
// g <- 0 where d < 0
// p <- p - sign(g) step_size
// prev <- g
template <typename T>
struct Rprop {
  static constexpr int kStates = 2;
  using Options = RpropOptions;

  T minus, plus, least, most;
  double greatest;  // magnitude of the options that are finite; torch converts infinite ones

  FUSEDOPT_HD Rprop(const Options& o, double)
      : minus(T(o.etaminus)),
        plus(T(o.etaplus)),
        least(T(o.step_size_min)),
        most(T(o.step_size_max)),
        greatest(0) {
    for (const double option : {o.etaminus, o.etaplus, o.step_size_min, o.step_size_max}) {
      const double size = absolute(option);
      if (is_finite(size) && size > greatest) greatest = size;
    }
  }

  FUSEDOPT_HD bool valid(double largest) const { return greatest <= largest; }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    T& prev = state[0];
    T& step_size = state[1];
    const T direction = g * prev;
    const T factor = direction > T(0) ? plus : direction < T(0) ? minus : T(1);
    step_size = clamp(step_size * factor, least, most);
    g = factor == minus ? T(0) : g;
    p = p - sign(g) * step_size;
    prev = g;
  }
};

}  // namespace fusedopt
