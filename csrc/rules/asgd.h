// ASGD: Polyak & Juditsky 1992, in the form of torch.optim.ASGD.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

// eta <- lr / (1 + lambd lr step)^alpha
// mu <- 1 / max(1, step - t0)
struct AsgdOptions {
  static constexpr int kScalars = 2;
  double lr, lambd, alpha, t0, weight_decay;

  FUSEDOPT_HD void advance(Counts& c) const {
    const double divisor = power(1.0 + lambd * lr * c.step, alpha);
    c.after[0] = divisor != 0.0 ? lr / divisor : divisor / divisor;
    c.after[1] = 1.0 / (c.step - t0 > 1.0 ? c.step - t0 : 1.0);
  }
};

// With eta and mu as the last step left them:
// g <- g + weight_decay p
// p <- p - eta (g + lambd p), which is (1 - lambd eta) p - eta g where the sum overflows
// ax <- ax + mu (p - ax), which is p where mu is 1
template <typename T>
struct Asgd {
  static constexpr int kStates = 1;
  using Options = AsgdOptions;

  T keep, eta, mu, next;  // next: eta of the next step
  bool averages;
  WeightDecay<T> l2, decay;

  FUSEDOPT_HD Asgd(const Options& o, const Counts& c)
      : keep(T(1.0 - o.lambd * c.before[0])),
        eta(T(c.before[0])),
        mu(T(c.before[1])),
        next(T(c.after[0])),
        averages(c.before[1] != 1.0),
        l2(o.weight_decay),
        decay(o.lambd) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return next == next && within(eta, largest) && within(l2.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    T& ax = state[0];
    g = l2(g, p);
    const T sum = decay(g, p);
    p = is_finite(sum) ? p - eta * sum : p * keep - eta * g;
    ax = averages ? ax + mu * (p - ax) : p;
  }
};

}  // namespace fusedopt
