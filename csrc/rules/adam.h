// Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), AMSGrad (Reddi et al. 2018), in
// torch.optim's form.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct AdamOptions {
  double lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay;
};

// decoupled (AdamW): p <- (1 - lr weight_decay) p;  otherwise g <- g + weight_decay p
// m <- beta1 m + (1 - beta1) g
// v <- beta2 v + (1 - beta2) g^2
// amsgrad: x <- max(x, v), and x in the place of v below
// p <- p - lr / (1 - beta1^step) * m / (sqrt(v) / c + eps),  c = sqrt(1 - beta2^step)
//
// As lr c / (1 - beta1^step) * m / (sqrt(v) + c eps): the same without a division per element, and
// one rounding less. Divisions take the longest of a step's arithmetic (engine/tuning.h).
template <typename T, bool kAmsgrad>
struct Adam {
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  using Options = AdamOptions;

  T step_size, beta2, one_minus_beta2, eps;
  Lerp<T> lerp;
  WeightDecay<T> l2;
  DecoupledWeightDecay<T> decay;

  FUSEDOPT_HD Adam(const Options& o, double step)
      : Adam(o, one_minus_power(o.beta1, step), square_root(one_minus_power(o.beta2, step))) {}

  // Where lr / (1 - beta1^step) is beyond T's range, so that torch raises, the step size is too.
  FUSEDOPT_HD Adam(const Options& o, double first, double c)
      : step_size(T(is_finite(T(o.lr / first)) ? o.lr * c / first : o.lr / first)),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1.0 - o.beta2)),
        eps(T(o.eps * c) != T(0) || c == 0 ? T(o.eps * c) : T(o.eps)),  // not 0 by underflow
        lerp(1.0 - o.beta1),
        l2(o.decoupled_weight_decay != 0 ? 0.0 : o.weight_decay),
        decay(o.lr, o.decoupled_weight_decay != 0 ? o.weight_decay : 0.0) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return is_finite(step_size) && is_finite(lerp.weight) && is_finite(one_minus_beta2) &&
           within(l2.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = l2(g, p);
    T& m = state[0];
    T& v = state[1];
    m = lerp(m, g);
    v = v * beta2 + one_minus_beta2 * g * g;
    T second = v;
    if constexpr (kAmsgrad) second = state[2] = maximum(state[2], v);
    p = decay(p) - step_size * (m / (square_root(second) + eps));
  }
};

}  // namespace fusedopt
