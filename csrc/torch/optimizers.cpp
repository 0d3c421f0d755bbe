// The table of optimizers: the few lines that a new one adds to the binding.
#include "torch/optimizers.h"

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/adamax.h"
#include "rules/asgd.h"
#include "rules/lion.h"
#include "rules/nadam.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/rprop.h"
#include "rules/sgd.h"

namespace fusedopt {

namespace {

#if defined(FUSEDOPT_WITH_CUDA)
#define FUSEDOPT_KERNELS(name) &cpu::name, &cuda::name
#else
#define FUSEDOPT_KERNELS(name) &cpu::name, nullptr
#endif

// A group's numbers, as structs: a rule's Options, then what only chooses the kernel.
template <typename Options>
struct GroupOf {
  Options rule;
};
using SgdGroup = GroupOf<SgdOptions>;
using AdagradGroup = GroupOf<AdagradOptions>;
struct RmspropGroup {
  RmspropOptions rule;
  double centered;
};
using AdadeltaGroup = GroupOf<AdadeltaOptions>;
struct AdamGroup {
  AdamOptions rule;
  double amsgrad;
};
using AdamaxGroup = GroupOf<AdamaxOptions>;
using RadamGroup = GroupOf<RadamOptions>;
using NadamGroup = GroupOf<NadamOptions>;
using AsgdGroup = GroupOf<AsgdOptions>;
using RpropGroup = GroupOf<RpropOptions>;
using LionGroup = GroupOf<LionOptions>;

// A key of a group and the member that has its name, so that their order is only that of messages.
// The numbers are copied over the struct, which a member of another type would not survive.
template <typename Member>
consteval int number_at(size_t offset) {
  static_assert(std::is_same_v<Member, double>, "every option of a rule is a double");
  return static_cast<int>(offset / sizeof(double));
}

consteval Option option_of(const char* key, Option::Kind kind, auto... at) {
  return {key, kind, {at...}};
}

#define FUSEDOPT_AT(Group, member) number_at<decltype(Group::member)>(offsetof(Group, member))
#define FUSEDOPT_NUMBER(Group, name) \
  option_of(#name, Option::kNumber, FUSEDOPT_AT(Group, rule.name))
#define FUSEDOPT_PAIR(Group, name, first, second) \
  option_of(#name, Option::kPair, FUSEDOPT_AT(Group, rule.first), FUSEDOPT_AT(Group, rule.second))
#define FUSEDOPT_TRIPLE(Group, name, first, second, third)          \
  option_of(#name, Option::kTriple, FUSEDOPT_AT(Group, rule.first), \
            FUSEDOPT_AT(Group, rule.second), FUSEDOPT_AT(Group, rule.third))
#define FUSEDOPT_FLAG(Group, name) option_of(#name, Option::kFlag, FUSEDOPT_AT(Group, rule.name))
#define FUSEDOPT_CHOICE(Group, name) option_of(#name, Option::kFlag, FUSEDOPT_AT(Group, name))

constexpr Option kSgdOptions[] = {
    FUSEDOPT_NUMBER(SgdGroup, lr),        FUSEDOPT_NUMBER(SgdGroup, momentum),
    FUSEDOPT_NUMBER(SgdGroup, dampening), FUSEDOPT_NUMBER(SgdGroup, weight_decay),
    FUSEDOPT_FLAG(SgdGroup, nesterov),
};
constexpr Option kAdagradOptions[] = {
    FUSEDOPT_NUMBER(AdagradGroup, lr),
    FUSEDOPT_NUMBER(AdagradGroup, lr_decay),
    FUSEDOPT_NUMBER(AdagradGroup, eps),
    FUSEDOPT_NUMBER(AdagradGroup, weight_decay),
};
constexpr Option kRmspropOptions[] = {
    FUSEDOPT_NUMBER(RmspropGroup, lr),       FUSEDOPT_NUMBER(RmspropGroup, alpha),
    FUSEDOPT_NUMBER(RmspropGroup, eps),      FUSEDOPT_NUMBER(RmspropGroup, weight_decay),
    FUSEDOPT_NUMBER(RmspropGroup, momentum), FUSEDOPT_CHOICE(RmspropGroup, centered),
};
constexpr Option kAdadeltaOptions[] = {
    FUSEDOPT_NUMBER(AdadeltaGroup, lr),
    FUSEDOPT_NUMBER(AdadeltaGroup, rho),
    FUSEDOPT_NUMBER(AdadeltaGroup, eps),
    FUSEDOPT_NUMBER(AdadeltaGroup, weight_decay),
};
constexpr Option kAdamOptions[] = {
    FUSEDOPT_NUMBER(AdamGroup, lr),
    FUSEDOPT_PAIR(AdamGroup, betas, beta1, beta2),
    FUSEDOPT_NUMBER(AdamGroup, eps),
    FUSEDOPT_NUMBER(AdamGroup, weight_decay),
    FUSEDOPT_FLAG(AdamGroup, decoupled_weight_decay),
    FUSEDOPT_CHOICE(AdamGroup, amsgrad),
};

constexpr Option kAdamaxOptions[] = {
    FUSEDOPT_NUMBER(AdamaxGroup, lr),
    FUSEDOPT_PAIR(AdamaxGroup, betas, beta1, beta2),
    FUSEDOPT_NUMBER(AdamaxGroup, eps),
    FUSEDOPT_NUMBER(AdamaxGroup, weight_decay),
};
constexpr Option kRadamOptions[] = {
    FUSEDOPT_NUMBER(RadamGroup, lr),
    FUSEDOPT_PAIR(RadamGroup, betas, beta1, beta2),
    FUSEDOPT_NUMBER(RadamGroup, eps),
    FUSEDOPT_NUMBER(RadamGroup, weight_decay),
    FUSEDOPT_FLAG(RadamGroup, decoupled_weight_decay),
};

constexpr Option kNadamOptions[] = {
    FUSEDOPT_NUMBER(NadamGroup, lr),
    FUSEDOPT_PAIR(NadamGroup, betas, beta1, beta2),
    FUSEDOPT_NUMBER(NadamGroup, eps),
    FUSEDOPT_NUMBER(NadamGroup, weight_decay),
    FUSEDOPT_NUMBER(NadamGroup, momentum_decay),
    FUSEDOPT_FLAG(NadamGroup, decoupled_weight_decay),
};

constexpr Option kAsgdOptions[] = {
    FUSEDOPT_NUMBER(AsgdGroup, lr),           FUSEDOPT_NUMBER(AsgdGroup, lambd),
    FUSEDOPT_NUMBER(AsgdGroup, alpha),        FUSEDOPT_NUMBER(AsgdGroup, t0),
    FUSEDOPT_NUMBER(AsgdGroup, weight_decay),
};

constexpr Option kRpropOptions[] = {
    FUSEDOPT_PAIR(RpropGroup, etas, etaminus, etaplus),
    FUSEDOPT_PAIR(RpropGroup, step_sizes, step_size_min, step_size_max),
};

constexpr Option kLionOptions[] = {
    FUSEDOPT_NUMBER(LionGroup, lr),
    FUSEDOPT_PAIR(LionGroup, betas, beta1, beta2),
    FUSEDOPT_NUMBER(LionGroup, weight_decay),
};

// How many numbers the options fill: all of the group's, each once, or it doesn't compile.
template <typename Group, size_t kCount>
consteval int filled_by(const Option (&options)[kCount]) {
  constexpr int kNumbers = sizeof(Group) / sizeof(double);
  static_assert(kNumbers <= kMaxOptions);
  int times[kNumbers] = {};
  for (const Option& option : options) {
    for (int k = 0; k < option.count(); ++k) ++times[option.at[k]];
  }
  for (const int n : times) {
    if (n != 1) throw "a number is filled by no option, or by two";
  }
  return kNumbers;
}

#define FUSEDOPT_OPTIONS(Group, options) options, filled_by<Group>(options)

template <typename Group>
Group group_of(const double* numbers) {
  Group group;
  std::memcpy(&group, numbers, sizeof group);
  return group;
}

// Is the parameter, times a weight decay, added to the gradient?
template <typename Group>
bool adds_parameter(const double* numbers) {
  const auto rule = group_of<Group>(numbers).rule;
  if constexpr (requires { rule.decoupled_weight_decay; }) {
    if (rule.decoupled_weight_decay != 0) return false;
  }
  return rule.weight_decay != 0;
}

Variant sgd(const double* numbers) {
  const bool momentum = group_of<SgdGroup>(numbers).rule.momentum != 0;
  return {FUSEDOPT_KERNELS(kSgd[momentum]), {0}, -1, false};
}

Variant adagrad(const double*) { return {FUSEDOPT_KERNELS(kAdagrad), {0}, -1, false}; }

Variant rmsprop(const double* numbers) {
  const auto group = group_of<RmspropGroup>(numbers);
  const bool momentum = group.rule.momentum > 0;
  const bool centered = group.centered != 0;
  return {FUSEDOPT_KERNELS(kRmsprop[momentum][centered]),
          {0, momentum ? 1 : 2, 2},
          centered ? 1 + momentum : -1,
          adds_parameter<RmspropGroup>(numbers)};
}

Variant adadelta(const double*) { return {FUSEDOPT_KERNELS(kAdadelta), {0, 1}, -1, false}; }

Variant adam(const double* numbers) {
  const bool amsgrad = group_of<AdamGroup>(numbers).amsgrad != 0;
  return {FUSEDOPT_KERNELS(kAdam[amsgrad]), {0, 1, 2}, 0, adds_parameter<AdamGroup>(numbers)};
}

Variant adamax(const double* numbers) {
  return {FUSEDOPT_KERNELS(kAdamax), {0, 1}, 0, adds_parameter<AdamaxGroup>(numbers)};
}

Variant radam(const double* numbers) {
  return {FUSEDOPT_KERNELS(kRadam), {0, 1}, 0, adds_parameter<RadamGroup>(numbers)};
}

Variant nadam(const double* numbers) {
  return {FUSEDOPT_KERNELS(kNadam), {0, 1}, 0, adds_parameter<NadamGroup>(numbers)};
}

Variant asgd(const double*) { return {FUSEDOPT_KERNELS(kAsgd), {0}, -1, false}; }

Variant rprop(const double*) { return {FUSEDOPT_KERNELS(kRprop), {0, 1}, -1, false}; }

Variant lion(const double*) { return {FUSEDOPT_KERNELS(kLion), {0}, -1, false}; }

const std::vector<State> kStep = {{"step"}};
const std::vector<State> kAdamStates = {{"exp_avg"}, {"exp_avg_sq"}, {"max_exp_avg_sq"}};

const Optimizer kOptimizers[] = {
    {"SGD", FUSEDOPT_OPTIONS(SgdGroup, kSgdOptions), {{"momentum_buffer"}}, {}, false, sgd},
    {"Adagrad",
     FUSEDOPT_OPTIONS(AdagradGroup, kAdagradOptions),
     {{"sum", "initial_accumulator_value"}},
     kStep,
     true,
     adagrad},
    {"RMSprop",
     FUSEDOPT_OPTIONS(RmspropGroup, kRmspropOptions),
     {{"square_avg"}, {"momentum_buffer"}, {"grad_avg"}},
     kStep,
     false,
     rmsprop},
    {"Adadelta",
     FUSEDOPT_OPTIONS(AdadeltaGroup, kAdadeltaOptions),
     {{"square_avg"}, {"acc_delta"}},
     kStep,
     false,
     adadelta},
    {"Adam", FUSEDOPT_OPTIONS(AdamGroup, kAdamOptions), kAdamStates, kStep, true, adam},
    {"AdamW", FUSEDOPT_OPTIONS(AdamGroup, kAdamOptions), kAdamStates, kStep, true, adam},
    {"Adamax",
     FUSEDOPT_OPTIONS(AdamaxGroup, kAdamaxOptions),
     {{"exp_avg"}, {"exp_inf"}},
     kStep,
     true,
     adamax},
    {"RAdam",
     FUSEDOPT_OPTIONS(RadamGroup, kRadamOptions),
     {{"exp_avg"}, {"exp_avg_sq"}},
     kStep,
     true,
     radam},
    {"NAdam",
     FUSEDOPT_OPTIONS(NadamGroup, kNadamOptions),
     {{"exp_avg"}, {"exp_avg_sq"}},
     {{"step"}, {"mu_product", nullptr, nullptr, 1}},
     true,
     nadam},
    {"ASGD",
     FUSEDOPT_OPTIONS(AsgdGroup, kAsgdOptions),
     {{"ax"}},
     {{"step"}, {"eta", nullptr, "lr", 0, true}, {"mu", nullptr, nullptr, 1, true}},
     true,
     asgd,
     true},
    {"Rprop",
     FUSEDOPT_OPTIONS(RpropGroup, kRpropOptions),
     {{"prev"}, {"step_size", nullptr, "lr"}},
     kStep,
     false,
     rprop},
    {"Lion", FUSEDOPT_OPTIONS(LionGroup, kLionOptions), {{"exp_avg"}}, {}, false, lion},
};

}  // namespace

std::span<const Optimizer> all_optimizers() { return kOptimizers; }

const Optimizer* find_optimizer(const char* name) {
  for (const Optimizer& optimizer : kOptimizers) {
    if (std::strcmp(optimizer.name, name) == 0) return &optimizer;
  }
  return nullptr;
}

}  // namespace fusedopt
