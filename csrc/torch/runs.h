// Which elements of the whole a DTensor's piece has: noise is a function of an element's number in
// the whole.
#pragma once

#include <c10/core/TensorImpl.h>

#include <cstdint>
#include <vector>

namespace fusedopt {

// Where a piece lies in the whole: its shape, and the coordinates of the piece's first element.
struct Extent {
  std::vector<int64_t> sizes;
  std::vector<int64_t> offsets;
};

// Elements of a piece that follow each other in the whole as well. Piece and whole count elements
// in the order of memory.
struct Run {
  int64_t start;
  int64_t numel;
  int64_t origin;  // the number of the first in the whole
};

std::vector<Run> runs_of(const c10::TensorImpl& piece, const Extent& extent);

}  // namespace fusedopt
