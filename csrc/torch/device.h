// The devices beside the host that a step meets.
#pragma once

#include <c10/core/Device.h>

#include <vector>

#include "torch/reading.h"

namespace fusedopt {

c10::Device place(int index);

// Adds the device, with its current stream, if it is new.
Device& device_of(std::vector<Device>& devices, int index);
// One that was added.
const Device& device_of(const std::vector<Device>& devices, int index);

}  // namespace fusedopt
