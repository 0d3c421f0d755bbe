// CPU kernels of clipping and averaging.
#include "cpu/passes.h"

#include "cpu/sweep.h"
#include "rules/average.h"
#include "rules/clip.h"

namespace fusedopt::cpu {

const Kernel kAverage = make_kernel<Average<float>, Average<double>>();
const Kernel kClamp = make_kernel<Clamp<float>, Clamp<double>>();
const Kernel kMean = make_kernel<Mean<float>, Mean<double>>();
const Kernel kScale = make_kernel<Scale<float>, Scale<double>>();
const Kernel kWeighted = make_kernel<Weighted<float>, Weighted<double>>();

}  // namespace fusedopt::cpu
