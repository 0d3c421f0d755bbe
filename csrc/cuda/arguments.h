// What one launch gets: a kernel's arguments, as the host packs and the device reads them.
#pragma once

#include <cstdint>

#include "engine/format.h"
#include "engine/table.h"

namespace fusedopt::cuda {

// From sm_70 and CUDA 12.1 on a kernel's arguments may have this many bytes. The launch itself
// copies them, so there is nothing to allocate or to keep alive, and graphs can capture them.
inline constexpr int kArgumentBytes = 32764;

// A tensor's words in SweepArguments: the operands' addresses, its number of elements, a Place. Of
// a table with formats: the addresses, the remainder's (or null), the parameter's position, the
// first element's index, then the same.
struct Place {
  uint32_t first;        // chunks of the tensors before it in this launch
  uint32_t rule : 12;    // the word where its rule is; or its index, if the device made the rules
  uint32_t layout : 12;  // the word where its layout is: ndim, sizes, strides; 0: dense and alike
  uint32_t lead : 4;     // elements from the 16-byte boundary before the first element to it
  uint32_t vectors : 1;  // all operands are dense and lie alike towards 16-byte boundaries
  uint32_t maximize : 1;
};
static_assert(sizeof(Place) == sizeof(uint64_t));

inline constexpr int kMaxWordIndex = 1 << 12;  // what the fields `rule` and `layout` can hold

// Beside the operands' addresses.
inline constexpr int kTensorWords = 2;
inline constexpr int kMixedWords = 3 + kTensorWords;

struct SweepHeader {
  const void*
      device_rules;        // where prepare() put this launch's first rule; null: they are in words
  const float* found_inf;  // not null and not 0: nothing is changed
  const float* scale_at;   // where the gradients' scale is; null: it is `scale`
  double scale;
  const double* clip_at;  // where Table::clip is; null: it is `clip`
  double clip;
  int32_t scaled;  // gradients are divided by their scale, and stored so
  int32_t count;   // tensors
  uint32_t chunk;  // elements per block, a multiple of a row (tuning.h)
  // Of a table with formats. A key of noise follows its rule in words.
  Format formats[kMaxOperands];
  bool noisy;
  const uint64_t* device_keys;  // as device_rules
};

inline constexpr int kWords =
    (kArgumentBytes - static_cast<int>(sizeof(SweepHeader))) / static_cast<int>(sizeof(uint64_t));
static_assert(kWords < kMaxWordIndex);

// One type for all kernels. Tensors fill `words` from the front, rules and layouts from the back.
struct SweepArguments : SweepHeader {
  uint64_t words[kWords];
};
static_assert(sizeof(SweepArguments) <= kArgumentBytes);

// The operands of prepare(), which makes rules on the device, one thread each.
inline constexpr int kPreparedGroups = 192;
inline constexpr int kPreparedRules = 1600;  // whose state holds no number but the step count
inline constexpr uint8_t kGiven = 0xff;      // in the place of a Dtype: the number itself

struct PrepareArguments {
  void* rules;  // where the first of them goes
  const float* found_inf;
  int32_t count;
  int32_t numbers;  // of each rule, in `counts`
  uint64_t* keys;   // of noise, where the first goes; null: there is none
  uint64_t seeds[kPreparedGroups];
  uint64_t options[kPreparedGroups][kMaxOptions];      // a double's bits, or an address
  uint64_t counts[kPreparedRules];                     // a rule's step, its scalars, its roundings
  uint8_t option_types[kPreparedGroups][kMaxOptions];  // what is at the address: a Dtype; kGiven
  uint8_t count_types[kPreparedRules];
  uint8_t groups[kPreparedRules];
};
static_assert(sizeof(PrepareArguments) <= kArgumentBytes);

}  // namespace fusedopt::cuda
