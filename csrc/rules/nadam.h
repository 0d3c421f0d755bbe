// NAdam: Dozat 2016 (OpenReview OM0jvwB8jIp57ZJjtNEZ), in the form of torch.optim.NAdam.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

// mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2), mu_product <- mu_product mu_t
struct NadamOptions {
  static constexpr int kScalars = 1;
  double lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay;

  FUSEDOPT_HD double mu(double step) const {
    return beta1 * (1.0 - 0.5 * power(0.96, step * momentum_decay));
  }

  FUSEDOPT_HD void advance(Counts& c) const {
    const double factor = mu(c.step);
    c.after[0] = c.before[0] * (c.is_double[0] ? factor : double(float(factor)));
  }
};

// decoupled: p <- (1 - lr weight_decay) p;  otherwise g <- g + weight_decay p
// m <- beta1 m + (1 - beta1) g
// v <- beta2 v + (1 - beta2) g^2
// p <- p - lr ((1 - mu_t) / (1 - mu_product) g + mu_t+1 / (1 - mu_product mu_t+1) m)
//          / (sqrt(v / (1 - beta2^step)) + eps)
template <typename T>
struct Nadam {
  static constexpr int kStates = 2;
  using Options = NadamOptions;

  T of_gradient, of_average, beta2, one_minus_beta2, correction, eps;
  Lerp<T> lerp;
  WeightDecay<T> l2;
  DecoupledWeightDecay<T> decay;

  FUSEDOPT_HD Nadam(const Options& o, const Counts& c) : Nadam(o, c, o.mu(c.step + 1.0)) {}

  FUSEDOPT_HD Nadam(const Options& o, const Counts& c, double next)
      : of_gradient(T(o.lr * (1.0 - o.mu(c.step)) / (1.0 - c.after[0]))),
        of_average(T(o.lr * next / (1.0 - c.after[0] * next))),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1.0 - o.beta2)),
        correction(T(1.0 / one_minus_power(o.beta2, c.step))),
        eps(T(o.eps)),
        lerp(1.0 - o.beta1),
        l2(o.decoupled_weight_decay != 0 ? 0.0 : o.weight_decay),
        decay(o.lr, o.decoupled_weight_decay != 0 ? o.weight_decay : 0.0) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return is_finite(of_gradient) && is_finite(of_average) && is_finite(lerp.weight) &&
           is_finite(one_minus_beta2) && within(l2.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = l2(g, p);
    T& m = state[0];
    T& v = state[1];
    m = lerp(m, g);
    v = v * beta2 + one_minus_beta2 * g * g;
    const T denominator = square_root(v * correction) + eps;
    p = decay(p) - (of_gradient * g + of_average * m) / denominator;
  }
};

}  // namespace fusedopt
