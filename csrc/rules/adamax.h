// Adamax: Kingma & Ba 2015, section 7.1, in the form of torch.optim.Adamax.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct AdamaxOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

// g <- g + weight_decay p
// m <- beta1 m + (1 - beta1) g
// u <- max(beta2 u, |g| + eps)
// p <- p - lr / (1 - beta1^step) * m / u
template <typename T>
struct Adamax {
  static constexpr int kStates = 2;
  using Options = AdamaxOptions;

  T step_size, beta2, eps;
  Lerp<T> lerp;
  WeightDecay<T> weight_decay;

  FUSEDOPT_HD Adamax(const Options& o, double step)
      : step_size(T(o.lr / one_minus_power(o.beta1, step))),
        beta2(T(o.beta2)),
        eps(T(o.eps)),
        lerp(1.0 - o.beta1),
        weight_decay(o.weight_decay) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return is_finite(step_size) && is_finite(lerp.weight) && within(weight_decay.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = weight_decay(g, p);
    T& m = state[0];
    T& u = state[1];
    m = lerp(m, g);
    u = maximum(u * beta2, absolute(g) + eps);
    p = p - step_size * m / u;
  }
};

}  // namespace fusedopt
