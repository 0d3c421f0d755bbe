// What torch/ calls of the core: visible, where the core is a library of its own, as in a wheel.
#pragma once

#if defined(FUSEDOPT_SHARED)
#define FUSEDOPT_API __attribute__((visibility("default")))
#else
#define FUSEDOPT_API
#endif
