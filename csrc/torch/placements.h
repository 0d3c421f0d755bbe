// How the pieces of DTensors lie in their wholes, for averages: runs torch's Python code.
#pragma once

#include "torch/dtensor.h"
#include "torch/modules.h"
#include "torch/tensors.h"

namespace fusedopt {

class Placements {
 public:
  // Compares how all that are pieces are cut. Owns them first, as this is Python code.
  void learn(Members& averages, Members& newest);

  // Are both whole tensors, or the same piece of wholes that are cut alike?
  bool alike(const Covered& one, const Covered& other) const;

 private:
  Cuts cuts_;
};

}  // namespace fusedopt
