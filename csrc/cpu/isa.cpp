// Run-time detection and choice of the instruction set.
#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fusedopt::cpu {

namespace {

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports doesn't know f16c.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

int best_isa() {
  int best = 0;
  for (int isa = 0; isa < kIsas; ++isa) {
    if (isa_detected(isa)) best = isa;
  }
  return best;
}

int active = best_isa();

std::string usable_names() {
  std::string names;
  for (int isa = 0; isa < kIsas; ++isa) {
    if (isa_detected(isa)) names += (names.empty() ? "" : ", ") + std::string(kIsaNames[isa]);
  }
  return names;
}

}  // namespace

bool isa_detected(int isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case 1:
      return __builtin_cpu_supports("avx2") && has_f16c();
    case 2:
      return has_f16c() && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    default:
      break;
  }
#endif
  return isa == 0;
}

int active_isa() { return active; }

std::string select_isa(const char* name) {
  if (name == nullptr || *name == '\0') {
    active = best_isa();
    return "";
  }
  for (int isa = 0; isa < kIsas; ++isa) {
    if (name == std::string(kIsaNames[isa]) && isa_detected(isa)) {
      active = isa;
      return "";
    }
  }
  return "FUSEDOPT_CPU_ISA=" + std::string(name) + ": this machine and build have " +
         usable_names();
}

}  // namespace fusedopt::cpu
