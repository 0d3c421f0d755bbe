// RMSprop: Hinton's lecture 6e (2012), centered as in Graves 2013, in the form of
// torch.optim.RMSprop.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct RmspropOptions {
  double lr, alpha, eps, weight_decay, momentum;
};

// g <- g + weight_decay p
// v <- alpha v + (1 - alpha) g^2
// centered: a <- alpha a + (1 - alpha) g,  d = sqrt(v - a^2) + eps;  otherwise d = sqrt(v) + eps
// momentum: b <- momentum b + g / d,  p <- p - lr b;                 otherwise p <- p - lr g / d
// States in this order: v, then b, then a, where they exist.
//
// v - a^2 is only negative because v and a are rounded, and errors add up over 1 / (1 - alpha)
// steps. A number that this explains is taken for 0, of which torch's root makes a NaN.
template <typename T, bool kMomentum, bool kCentered>
struct Rmsprop {
  static constexpr int kStates = 1 + (kMomentum ? 1 : 0) + (kCentered ? 1 : 0);
  using Options = RmspropOptions;

  T lr, alpha, one_minus_alpha, eps, momentum, tolerance;
  WeightDecay<T> weight_decay;
  Lerp<T> lerp;

  FUSEDOPT_HD Rmsprop(const Options& o, double)
      : lr(T(o.lr)),
        alpha(T(o.alpha)),
        one_minus_alpha(T(1.0 - o.alpha)),
        eps(T(o.eps)),
        momentum(T(o.momentum)),
        tolerance(T((sizeof(T) == 4 ? 0x1p-7 : 0x1p-49) / (1.0 - o.alpha))),  // float: 16 bits, too
        weight_decay(o.weight_decay),
        lerp(1.0 - o.alpha) {}

  FUSEDOPT_HD bool valid(double largest) const {
    return (kMomentum ? within(lr, largest) : is_finite(lr)) && is_finite(one_minus_alpha) &&
           within(weight_decay.factor, largest);
  }

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = weight_decay(g, p);
    T& v = state[0];
    v = v * alpha + one_minus_alpha * g * g;
    T variance = v;
    if constexpr (kCentered) {
      T& a = state[kStates - 1];
      a = lerp(a, g);
      variance = minus_square(v, a);
      const T positive = variance > T(0) ? variance : T(0);
      variance = variance >= -tolerance * v ? positive : variance;
    }
    const T d = square_root(variance) + eps;
    if constexpr (kMomentum) {
      T& b = state[1];
      b = b * momentum + g / d;
      p = p - lr * b;
    } else {
      p = p - lr * g / d;
    }
  }
};

}  // namespace fusedopt
