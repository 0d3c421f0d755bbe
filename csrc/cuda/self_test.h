// A kernel's first launch on a device, compared with the CPU's sweep. Plain C++: no CUDA header.
#pragma once

#include <string>

#include "cpu/kernel.h"
#include "cuda/kernel.h"
#include "engine/api.h"

namespace fusedopt::cuda {

// Steps a few tensors on the current device and on the host, with the rules made here and made
// there. `mixed`: the kernel for operands in several formats. Returns why the kernel must not be
// used, such as an error of CUDA's or other bits than the CPU's; empty: it can be used. Takes
// memory of the device, aligned to 16 bytes, and one of its streams, which it waits for. Throws
// OutOfMemory.
FUSEDOPT_API std::string self_test(const Kernel& kernel, const cpu::Kernel& expected, Dtype dtype,
                                   bool mixed, void* memory, int device, void* stream);

// How much memory that takes.
FUSEDOPT_API int64_t self_test_bytes(const Kernel& kernel);

}  // namespace fusedopt::cuda
