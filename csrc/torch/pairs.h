// Pairs of averages and newest values, which are written all or not at all.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "torch/formula.h"
#include "torch/placements.h"
#include "torch/tensors.h"

namespace fusedopt {

class Pairs {
 public:
  Pairs(const Formula& formula, const Placements& placements)
      : formula_(formula), placements_(placements) {}

  // Adds averages and newest values, which have to outlive this object; `copied`: the newest
  // replace the averages. False: torch's own function has to take them.
  bool add(std::vector<Covered>& targets, std::vector<Covered>& sources, bool copied);

  // May all averages be written, and `other` as well? Not where memory is shared.
  bool may_write_beside(const at::Tensor* other) const;

  // Will writing take so long that the interpreter's lock is released meanwhile? And in its first
  // part, which reads the tensors as it goes?
  bool takes_long() const;
  bool copy_takes_long() const;
  void write();

 private:
  bool have_own_memory(const at::Tensor* other) const;
  bool add_average(Covered& target, Covered& source);
  bool add_copy(const Covered& target, const Covered& source);
  void copy();
  void average_integers();

  Formula formula_;
  const Placements& placements_;
  std::vector<Pair> averaged_;
  std::vector<Pair> integers_;
  std::vector<Pair> copied_;
};

}  // namespace fusedopt
