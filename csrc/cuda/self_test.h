// A kernel's first launch on a device, compared with the CPU's sweep. Plain C++: no CUDA header.
#pragma once

#include <string>

#include "cpu/kernel.h"
#include "cuda/kernel.h"

namespace fusedopt::cuda {

// Steps a few tensors on the device and on the host, with the rules made here and made there. Why
// the kernel must not be used, such as an error of CUDA's or other bits than the CPU's; empty: it
// can. Waits for the device.
std::string self_test(const Kernel& kernel, const cpu::Kernel& expected, Dtype dtype, int device);

}  // namespace fusedopt::cuda
