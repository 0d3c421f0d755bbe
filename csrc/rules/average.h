// Averages of parameters, as torch.optim.swa_utils computes them: p is the average, and g the
// newest value.
#pragma once

#include "rules/rule.h"

namespace fusedopt {

struct AverageOptions {
  double weight;  // of the newest: 1 - decay, or 1 / how many there are
};

// p <- p + weight (g - p)
template <typename T>
struct Average {
  static constexpr int kStates = 0;
  using Options = AverageOptions;

  Lerp<T> lerp;

  FUSEDOPT_HD Average(const Options& o, double) : lerp(o.weight) {}

  FUSEDOPT_HD bool valid(double) const { return true; }

  FUSEDOPT_HD void operator()(T& p, T g, T*) const { p = lerp(p, g); }
};

struct WeightedOptions {
  double decay;  // of the average
  double rest;   // of the newest: 1 - decay
};

// p <- decay p + (1 - decay) g
template <typename T>
struct Weighted {
  static constexpr int kStates = 0;
  using Options = WeightedOptions;

  T decay, rest;

  FUSEDOPT_HD Weighted(const Options& o, double) : decay(T(o.decay)), rest(T(o.rest)) {}

  FUSEDOPT_HD bool valid(double) const { return true; }

  FUSEDOPT_HD void operator()(T& p, T g, T*) const { p = decay * p + rest * g; }
};

struct MeanOptions {
  double count;  // of values, the newest included
};

// p <- p + (g - p) / count
template <typename T>
struct Mean {
  static constexpr int kStates = 0;
  using Options = MeanOptions;

  T count;

  FUSEDOPT_HD Mean(const Options& o, double) : count(T(o.count)) {}

  FUSEDOPT_HD bool valid(double) const { return true; }

  // `ahead` is the newest value less the average, which is exact for integers.
  FUSEDOPT_HD T moved(T p, T ahead) const { return p + ahead / count; }

  FUSEDOPT_HD void operator()(T& p, T g, T*) const { p = moved(p, g - p); }
};

}  // namespace fusedopt
