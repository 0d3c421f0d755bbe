// Cuts the work of one step into launches whose arguments hold it. Knows no CUDA.
#pragma once

#include <cstdint>

#include "cuda/arguments.h"
#include "cuda/kernel.h"

namespace fusedopt::cuda {

inline constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;  // of a grid

// Elements per block, for `count` tensors with that many elements in all.
uint32_t choose_chunk(int64_t elements, int64_t count, Dtype dtype, int multiprocessors);

class SweepPacker {
 public:
  // Keeps references.
  SweepPacker(const Kernel& kernel, Dtype dtype, const Table& table, const Scalars& scalars,
              int multiprocessors);

  // Writes the next launch's arguments and returns how many blocks it has; 0: all is launched.
  uint32_t next(SweepArguments& args);

 private:
  bool fits(const SweepArguments& args, const TensorEntry& tensor) const;
  void add(SweepArguments& args, const TensorEntry& tensor);
  int tensor_words() const { return operands_ + (mixed_ ? kMixedWords : kTensorWords); }
  int laid_out() const { return operands_ + is_split(table_); }
  bool noisy() const { return table_.keys != nullptr || (mixed_ && keys_on_device()); }
  bool keys_on_device() const {
    return scalars_.rules != nullptr && scalars_.rules->keys != nullptr;
  }
  uint32_t place_rule(SweepArguments& args, int32_t rule);
  uint32_t place_layout(SweepArguments& args, const TensorEntry& tensor);

  const Table& table_;
  const Scalars& scalars_;
  int operands_;
  Dtype dtype_;
  size_t rule_bytes_;
  int rule_words_;
  bool mixed_;
  uint32_t chunk_ = 0;
  int64_t done_ = 0;  // tensors
  // Of the launch that is being packed:
  int back_ = 0;  // the first of the words that are filled from the back
  int64_t blocks_ = 0;
  int32_t rule_ = 0;  // the latest rule, and its place; of the device's rules the first
  int rule_place_ = 0;
};

class PreparePacker {
 public:
  PreparePacker(const Kernel& kernel, Dtype dtype, const Scalars& scalars);

  // Writes the next launch's arguments and returns how many blocks it has; 0: all is launched.
  uint32_t next(PrepareArguments& args);

 private:
  const DeviceRules* rules_;
  const float* found_inf_;
  int options_;
  int scalars_;
  int counts_;  // of each rule
  size_t rule_bytes_;
  int64_t done_ = 0;  // rules
};

}  // namespace fusedopt::cuda
