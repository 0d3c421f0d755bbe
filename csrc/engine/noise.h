// Rounding by a hash: which of two neighbours a number becomes depends on where it is stored and
// when, so that means are right and every run has the same bits.
//
// Noise is a function of a key (the seed, the step, the parameter's position), of the operand's
// role and of the element's index in the whole parameter. It knows no generator and no state.
#pragma once

#include <cstdint>
#include <cstring>

#include "engine/dtype.h"
#include "engine/host_device.h"

namespace fusedopt {

// SplitMix64's finalizer (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
// 2014), of the key and a multiple of SplitMix64's odd constant.
FUSEDOPT_HD uint64_t hashed(uint64_t key, uint64_t number) {
  uint64_t x = key + (number + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The key that all tensors of a group share in one step.
FUSEDOPT_HD uint64_t step_key(uint64_t seed, double step) {
  uint64_t bits;
  memcpy(&bits, &step, sizeof bits);
  return hashed(hashed(0, seed), bits);
}

// The key of those elements of one parameter whose indices have the same upper half.
struct NoiseKey {
  uint32_t before = 0, between = 0;  // added after the first and the second product

  NoiseKey() = default;
  FUSEDOPT_HD NoiseKey(uint64_t step_key, uint32_t position, uint64_t index) {
    const uint64_t key = hashed(hashed(step_key, position), index >> 32);
    before = static_cast<uint32_t>(key);
    between = static_cast<uint32_t>(key >> 32);
  }
};

inline constexpr uint32_t kNoiseFirst = 0x9e3779b1u;
inline constexpr uint32_t kNoiseSecond = 0x7feb352du;

// Each operand has a factor of its own in the last multiplication. The first two constants are
// lowbias32's (Wellons, Prospecting for Hash Functions, 2018); the others were chosen at random, so
// that 2^21 pairs of noises by any two factors have, in 8 bits each, upper, middle or lower, a
// chi-squared within 4.5 standard deviations.
FUSEDOPT_HD uint32_t noise_factor(int role) {
  return role == 0 ? 0x846ca68bu : role == 2 ? 0x218d35cfu : role == 3 ? 0x7e36c1adu : 0xae2ae10du;
}

// What the operands of two neighbouring elements, a pair, have in common. Every vector unit
// multiplies 32 bits, so the arithmetic is in 32 bits.
FUSEDOPT_HD uint32_t noise_of_pair(const NoiseKey& key, uint32_t pair) {
  const uint32_t x = pair * kNoiseFirst + key.before;
  const uint32_t y = (x ^ (x >> 16)) * kNoiseSecond + key.between;
  return y ^ (y >> 15);
}

// 16 bits of noise for an element, by the lower half of the element's index.
FUSEDOPT_HD uint32_t noise_at(const NoiseKey& key, uint32_t factor, uint32_t index) {
  const uint32_t x = noise_of_pair(key, index >> 1) * factor;
  return (index & 1) != 0 ? x >> 16 : (x ^ (x >> 16)) & 0xffffu;
}

// Rounds to bfloat16: away from 0, if the lower half is more than the noise. A NaN, or a number
// beyond the largest finite one, is stored as rounding to nearest stores it.
FUSEDOPT_HD uint16_t round_with(uint32_t noise, float x) {
  const uint32_t bits = bits_of(x);
  const bool finite = (bits & 0x7fffffffu) <= 0x7f7f0000u;
  const uint32_t away = (bits & 0xffffu) > noise ? 1 : 0;
  return finite ? static_cast<uint16_t>((bits >> 16) + away) : Storage<Dtype::kBFloat16>::store(x);
}

}  // namespace fusedopt
