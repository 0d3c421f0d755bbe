// RAdam: Liu et al. 2020 (arXiv 1908.03265), in the form of torch.optim.RAdam.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct RadamOptions {
  double lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay;
};

// How far the variance of the first steps' gradients is to be trusted.
struct Rectification {
  double length;  // rho_t, of the average that beta2 makes
  double factor;  // r_t
  bool known;     // rho_t > 5

  FUSEDOPT_HD Rectification(double beta2, double step, double second) {
    const double most = 2.0 / (1.0 - beta2) - 1.0;
    length = most - 2.0 * step * (1.0 - second) / second;
    known = length > 5.0;
    factor = square_root((length - 4.0) * (length - 2.0) * most /
                         ((most - 4.0) * (most - 2.0) * length));
  }
};

// decoupled: p <- (1 - lr weight_decay) p;  otherwise g <- g + weight_decay p
// m <- beta1 m + (1 - beta1) g
// v <- beta2 v + (1 - beta2) g^2
// p <- p - lr / (1 - beta1^step) * m * (r_t sqrt(1 - beta2^step) / (sqrt(v) + eps) if it is known)
template <typename T>
struct Radam {
  static constexpr int kStates = 2;
  using Options = RadamOptions;

  T step_size, beta2, one_minus_beta2, eps, length;
  bool divides;
  Lerp<T> lerp;
  WeightDecay<T> l2;
  DecoupledWeightDecay<T> decay;

  FUSEDOPT_HD Radam(const Options& o, double step)
      : Radam(o, one_minus_power(o.beta1, step), one_minus_power(o.beta2, step), step) {}

  FUSEDOPT_HD Radam(const Options& o, double first, double second, double step)
      : Radam(o, first, second, Rectification(o.beta2, step, second)) {}

  FUSEDOPT_HD Radam(const Options& o, double first, double second, const Rectification& r)
      : step_size(T(r.known ? o.lr * square_root(second) * r.factor / first : o.lr / first)),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1.0 - o.beta2)),
        eps(T(o.eps)),
        length(T(r.length)),
        divides(r.known),
        lerp(1.0 - o.beta1),
        l2(o.decoupled_weight_decay != 0 ? 0.0 : o.weight_decay),
        decay(o.lr, o.decoupled_weight_decay != 0 ? o.weight_decay : 0.0) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return is_finite(length) && is_finite(lerp.weight) && is_finite(one_minus_beta2) &&
           within(l2.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = l2(g, p);
    T& m = state[0];
    T& v = state[1];
    m = lerp(m, g);
    v = v * beta2 + one_minus_beta2 * g * g;
    const T root = square_root(v) + eps;
    p = decay(p) - step_size * (m / (divides ? root : T(1)));
  }
};

}  // namespace fusedopt
