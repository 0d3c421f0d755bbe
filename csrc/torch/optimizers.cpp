// The table of optimizers: the few lines that a new one adds to the binding.
#include "torch/optimizers.h"

#include <cstring>

#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace fusedopt {

namespace {

#if defined(FUSEDOPT_WITH_CUDA)
#define FUSEDOPT_KERNELS(name) &cpu::name, &cuda::name
#else
#define FUSEDOPT_KERNELS(name) &cpu::name, nullptr
#endif

Variant sgd(const double* o) {
  const bool momentum = o[1] != 0;
  return {FUSEDOPT_KERNELS(kSgd[momentum]), {0}, -1, false};
}

Variant adagrad(const double*) { return {FUSEDOPT_KERNELS(kAdagrad), {0}, -1, false}; }

Variant rmsprop(const double* o) {
  const bool momentum = o[4] > 0;
  const bool centered = o[5] != 0;
  return {FUSEDOPT_KERNELS(kRmsprop[momentum][centered]),
          {0, momentum ? 1 : 2, 2},
          centered ? 1 + momentum : -1,
          o[3] != 0};
}

Variant adadelta(const double*) { return {FUSEDOPT_KERNELS(kAdadelta), {0, 1}, -1, false}; }

Variant adam(const double* o) {
  const bool amsgrad = o[6] != 0;
  return {FUSEDOPT_KERNELS(kAdam[amsgrad]), {0, 1, 2}, 0, o[4] != 0 && o[5] == 0};
}

const std::vector<const char*> kAdamOptions = {"lr", "betas", "eps", "weight_decay"};
const std::vector<const char*> kAdamFlags = {"decoupled_weight_decay", "amsgrad"};
const std::vector<const char*> kAdamKeys = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};

const Optimizer kOptimizers[] = {
    {"SGD",
     {"lr", "momentum", "dampening", "weight_decay"},
     {"nesterov"},
     {"momentum_buffer"},
     false,
     nullptr,
     sgd},
    {"Adagrad",
     {"lr", "lr_decay", "eps", "weight_decay"},
     {},
     {"sum"},
     true,
     "initial_accumulator_value",
     adagrad},
    {"RMSprop",
     {"lr", "alpha", "eps", "weight_decay", "momentum"},
     {"centered"},
     {"square_avg", "momentum_buffer", "grad_avg"},
     true,
     nullptr,
     rmsprop},
    {"Adadelta",
     {"lr", "rho", "eps", "weight_decay"},
     {},
     {"square_avg", "acc_delta"},
     true,
     nullptr,
     adadelta},
    {"Adam", kAdamOptions, kAdamFlags, kAdamKeys, true, nullptr, adam},
    {"AdamW", kAdamOptions, kAdamFlags, kAdamKeys, true, nullptr, adam},
};

}  // namespace

const Optimizer* find_optimizer(const char* name) {
  for (const Optimizer& optimizer : kOptimizers) {
    if (std::strcmp(optimizer.name, name) == 0) return &optimizer;
  }
  return nullptr;
}

}  // namespace fusedopt
