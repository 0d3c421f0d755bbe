// The instruction sets: which are built, which this machine has, which one is used.
#pragma once

#include <string>

#include "engine/api.h"

namespace fusedopt::cpu {

#if defined(__x86_64__)
inline constexpr int kIsas = 3;
#else
inline constexpr int kIsas = 1;
#endif
inline constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

FUSEDOPT_API bool isa_detected(int isa);

// The best one detected, or the one that FUSEDOPT_CPU_ISA names. It is chosen once, by select_isa.
FUSEDOPT_API int active_isa();

// Chooses; `name` may be null or empty for the best. Returns what is wrong with `name`, or an empty
// string.
FUSEDOPT_API std::string select_isa(const char* name);

}  // namespace fusedopt::cpu
