// Adadelta: Zeiler 2012 (arXiv 1212.5701), in the form of torch.optim.Adadelta.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct AdadeltaOptions {
  double lr, rho, eps, weight_decay;
};

// g <- g + weight_decay p
// v <- rho v + (1 - rho) g^2
// d = sqrt(u + eps) / sqrt(v + eps) * g
// u <- rho u + (1 - rho) d^2
// p <- p - lr d
template <typename T>
struct Adadelta {
  static constexpr int kStates = 2;
  using Options = AdadeltaOptions;

  T lr, rho, one_minus_rho, eps;
  WeightDecay<T> weight_decay;

  FUSEDOPT_HD Adadelta(const Options& o, double)
      : lr(T(o.lr)),
        rho(T(o.rho)),
        one_minus_rho(T(1.0 - o.rho)),
        eps(T(o.eps)),
        weight_decay(o.weight_decay) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return within(lr, largest) && is_finite(one_minus_rho) && within(weight_decay.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = weight_decay(g, p);
    T& v = state[0];
    T& u = state[1];
    v = v * rho + one_minus_rho * g * g;
    const T d = square_root(u + eps) / square_root(v + eps) * g;
    u = u * rho + one_minus_rho * d * d;
    p = p - lr * d;
  }
};

}  // namespace fusedopt
