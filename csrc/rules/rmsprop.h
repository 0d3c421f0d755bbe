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
template <typename T, bool kMomentum, bool kCentered>
struct Rmsprop {
  static constexpr int kStates = 1 + (kMomentum ? 1 : 0) + (kCentered ? 1 : 0);
  using Options = RmspropOptions;

  T lr, alpha, one_minus_alpha, eps, momentum;
  WeightDecay<T> weight_decay;
  Lerp<T> lerp;

  FUSEDOPT_HD Rmsprop(const Options& o, double)
      : lr(T(o.lr)),
        alpha(T(o.alpha)),
        one_minus_alpha(T(1.0 - o.alpha)),
        eps(T(o.eps)),
        momentum(T(o.momentum)),
        weight_decay(o.weight_decay),
        lerp(1.0 - o.alpha) {}

  FUSEDOPT_HD void operator()(T& p, T g, T* state) const {
    g = weight_decay(g, p);
    T& v = state[0];
    v = v * alpha + one_minus_alpha * g * g;
    T variance = v;
    if constexpr (kCentered) {
      T& a = state[kStates - 1];
      a = lerp(a, g);
      variance = v - a * a;
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
