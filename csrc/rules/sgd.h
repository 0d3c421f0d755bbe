// SGD with momentum: Sutskever et al. 2013, in the form of torch.optim.SGD.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct SgdOptions {
  double lr, momentum, dampening, weight_decay, nesterov;
};

// g <- g + weight_decay p
// b <- g on the first step, then momentum b + (1 - dampening) g
// p <- p - lr (nesterov ? g + momentum b : b)
// `step` is the number of earlier steps of this buffer: 0 on the first.
template <typename T, bool kMomentum>
struct Sgd {
  static constexpr int kStates = kMomentum ? 1 : 0;
  using Options = SgdOptions;

  T lr, momentum, take;
  WeightDecay<T> weight_decay;
  bool nesterov, first;

  FUSEDOPT_HD Sgd(const Options& o, double step)
      : lr(T(o.lr)),
        momentum(T(o.momentum)),
        take(T(1.0 - o.dampening)),
        weight_decay(o.weight_decay),
        nesterov(o.nesterov != 0),
        first(step == 0) {}

  FUSEDOPT_HD bool valid(double largest) const {
    const bool taken = !kMomentum || first || within(take, largest);
    return taken && within(lr, largest) && within(weight_decay.factor, largest) &&
           (!nesterov || within(momentum, largest));
  }

  FUSEDOPT_HD void operator()(T& p, T g, [[maybe_unused]] T* state) const {
    g = weight_decay(g, p);
    if constexpr (kMomentum) {
      T& b = state[0];
      b = first ? g : momentum * b + take * g;
      g = nesterov ? g + momentum * b : b;
    }
    p = p - lr * g;
  }
};

}  // namespace fusedopt
