// Adagrad: Duchi et al. 2011, in the form of torch.optim.Adagrad.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct AdagradOptions {
  double lr, lr_decay, eps, weight_decay;
};

// g <- g + weight_decay p
// s <- s + g^2
// p <- p - lr / (1 + (step - 1) lr_decay) * g / (sqrt(s) + eps)
template <typename T>
struct Adagrad {
  static constexpr int kStates = 1;
  using Options = AdagradOptions;

  T lr, eps;
  WeightDecay<T> weight_decay;

  FUSEDOPT_HD Adagrad(const Options& o, double step)
      : lr(T(o.lr / (1.0 + (step - 1.0) * o.lr_decay))),
        eps(T(o.eps)),
        weight_decay(o.weight_decay) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return is_finite(lr) && within(weight_decay.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = weight_decay(g, p);
    T& s = state[0];
    s = s + g * g;
    p = p - lr * g / (square_root(s) + eps);
  }
};

}  // namespace fusedopt
