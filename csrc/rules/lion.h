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

  T lr, beta1, one_minus_beta1, beta2, one_minus_beta2;
  DecoupledWeightDecay<T> decay;

  FUSEDOPT_HD Lion(const Options& o, double)
      : lr(T(o.lr)),
        beta1(T(o.beta1)),
        one_minus_beta1(T(1.0 - o.beta1)),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1.0 - o.beta2)),
        decay(o.lr, o.weight_decay) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return within(lr, largest) && is_finite(one_minus_beta1) && is_finite(one_minus_beta2);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    T& m = state[0];
    p = decay(p) - lr * sign(beta1 * m + one_minus_beta1 * g);
    m = beta2 * m + one_minus_beta2 * g;
  }
};

}  // namespace fusedopt
