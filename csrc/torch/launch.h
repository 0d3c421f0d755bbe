// Handing tables to the CPU's threads or to a device: the last phase of a step.
#pragma once

#include "torch/build.h"

namespace fusedopt {

// launch.cpp: takes memory of the devices, which may fail.
void prepare_devices(Reading& reading);

// launch.cpp: one kernel, dtype and device.
void launch(Reading& reading, const Bucket& bucket, const Table& table);

// Releases the interpreter lock during the sweep, if the sweep takes long.
void sweep(Reading& reading, const Tables& tables);

}  // namespace fusedopt
