// Lion: Chen et al. 2023 (arXiv 2302.06675).
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct LionOptions {
  double lr, beta1, beta2, weight_decay;
};

// p <- (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g)
// m <- beta2 m + (1 - beta2) g
template <typename T>
struct Lion {
  static constexpr int kStates = 1;
  using Options = LionOptions;

  T lr;
  Lerp<T> update, average;
  DecoupledWeightDecay<T> decay;

  FUSEDOPT_HD Lion(const Options& o, double)
      : lr(T(o.lr)),
        update(1.0 - o.beta1),
        average(1.0 - o.beta2),
        decay(o.lr, o.weight_decay) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return within(lr, largest) && is_finite(update.weight) && is_finite(average.weight);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    T& m = state[0];
    p = decay(p) - lr * sign(update(m, g));
    m = average(m, g);
  }
};

}  // namespace fusedopt
