// Rounding by a hash: which of two neighbours a number becomes depends on where it is stored and
// when, so that means are right and every run has the same bits.
//
// Noise is a function of a key (the seed, the step, the parameter's position, the operand's role)
// and of the element's index in the whole parameter. It knows no generator and no state.
#pragma once

#include <cstdint>
#include <cstring>

#include "engine/dtype.h"
#include "engine/host_device.h"

namespace fusedopt {

// SplitMix64's finalizer (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
// 2014), of a multiple of its odd constant more.
FUSEDOPT_HD uint64_t hashed(uint64_t key, uint64_t number) {
  uint64_t x = key + (number + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What all tensors of a group share in one step.
FUSEDOPT_HD uint64_t step_key(uint64_t seed, double step) {
  uint64_t bits;
  memcpy(&bits, &step, sizeof bits);
  return hashed(hashed(0, seed), bits);
}

FUSEDOPT_HD uint64_t operand_key(uint64_t step_key, uint32_t position, int role) {
  return hashed(hashed(step_key, position), static_cast<uint64_t>(role));
}

// Of the elements whose indices have the same upper half.
struct NoiseKey {
  uint32_t before = 0, between = 0;  // the multiplications

  NoiseKey() = default;
  FUSEDOPT_HD NoiseKey(uint64_t operand_key, uint64_t index) {
    const uint64_t key = hashed(operand_key, index >> 32);
    before = static_cast<uint32_t>(key);
    between = static_cast<uint32_t>(key >> 32);
  }
};

// 16 bits, below 2^16, by the lower half of an element's index. Two rounds of multiplication with
// the constants of lowbias32 (Wellons, Prospecting for Hash Functions, 2018); multiplied and
// shifted in 32 bits, which every vector unit can.
FUSEDOPT_HD uint32_t noise_at(const NoiseKey& key, uint32_t index) {
  uint32_t x = index * 0x9e3779b1u + key.before;
  x = (x ^ (x >> 16)) * 0x7feb352du + key.between;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x >> 16;
}

// To bfloat16, away from 0 if the noise says so. What is beyond the largest finite number, and a
// NaN, is stored as rounding to nearest stores it.
FUSEDOPT_HD uint16_t round_with(uint32_t noise, float x) {
  const uint32_t bits = bits_of(x);
  const bool finite = (bits & 0x7fffffffu) <= 0x7f7f0000u;
  return finite ? static_cast<uint16_t>((bits + noise) >> 16) : Storage<Dtype::kBFloat16>::store(x);
}

}  // namespace fusedopt
