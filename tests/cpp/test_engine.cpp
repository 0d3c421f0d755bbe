// Powers, conversions, layouts, and finding a tensor in the work list.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "engine/dtype.h"
#include "engine/host_device.h"
#include "engine/layout.h"
#include "engine/table.h"

namespace {

using namespace fusedopt;

using Half = Storage<Dtype::kFloat16>;
using BFloat = Storage<Dtype::kBFloat16>;

// Exact to about one unit in the last place of 1 - base^n, wherever long double can tell.
void test_powers() {
  for (const double base : {0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.9999999, 1.0}) {
    for (const double n : {0., 1., 2., 3., 7., 100., 12345., 1e6, 16777216., 4294967296.}) {
      const long double exact = n == 0 ? 0.0L : 1.0L - std::pow(static_cast<long double>(base), n);
      const double error = std::abs(static_cast<double>(one_minus_power(base, n) - exact));
      CHECK(error <= 4e-16 * std::abs(static_cast<double>(exact)) + n * 1e-19);
    }
  }
}

// Exponents that nobody's step count has: broken, negative, huge, none.
void test_odd_powers() {
  for (const double base : {0.5, 0.9, 0.999, 0.9999999}) {
    for (const double n : {0.5, 1.5, 0.125, 1e-3, 1e-9, 12345.678, -1.0, -0.25, -77.5}) {
      const long double exact = 1.0L - std::pow(static_cast<long double>(base), n);
      const double size = std::abs(static_cast<double>(exact));
      const double error = std::abs(static_cast<double>(one_minus_power(base, n) - exact));
      CHECK(error <= 1e-15 * size + (n < 0 ? 1e-15 : 2e-18));
    }
    for (const double n : {0x1p62, 0x1p64, 1e300, HUGE_VAL}) CHECK(one_minus_power(base, n) == 1);
    CHECK(std::isnan(one_minus_power(base, NAN)));
  }
  CHECK(one_minus_power(1, HUGE_VAL) == 0);
  CHECK(one_minus_power(1, -3.5) == 0);
  CHECK(one_minus_power(0, 0.5) == 1);
  CHECK(one_minus_power(0, -2) == -HUGE_VAL);
  CHECK(one_minus_power(-0.5, 3) == 1.125);
}

void test_differences_from_squares() {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform;
  for (int i = 0; i < 100000; ++i) {
    const double a = std::ldexp(1 + uniform(random), i % 400 - 200);
    const double v = a * a * (1 + std::ldexp(uniform(random), -(i % 60)));
    const double square = a * a;
    const long double exact = static_cast<long double>(v - square) - std::fma(a, a, -square);
    const double error = static_cast<double>(minus_square(v, a) - exact);
    CHECK(std::abs(error) <= std::ldexp(std::abs(static_cast<double>(exact)), -53) * 1.001);
    const auto b = static_cast<float>(1 + uniform(random));
    const auto w = static_cast<float>(b * b * (1 + std::ldexp(uniform(random), -(i % 30))));
    const double precise = static_cast<double>(w) - static_cast<double>(b) * b;
    CHECK(minus_square(w, b) == static_cast<float>(precise));
  }
  CHECK(minus_square(HUGE_VAL, 1e200) == HUGE_VAL);
  CHECK(minus_square(HUGE_VALF, 3e38f) == HUGE_VALF);
  CHECK(std::isnan(minus_square(HUGE_VAL, HUGE_VAL)));
  CHECK(std::isnan(minus_square(1.0, std::nan(""))));
  CHECK(minus_square(1.0, 1e300) < 0);
  CHECK(minus_square(0.0, 0.0) == 0);
}

double half_value(unsigned bits) {
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31;
  const double fraction = bits & 1023;
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

void test_half_loads_and_stores_every_value() {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float value = Half::load(static_cast<uint16_t>(bits));
    const bool is_nan = (bits & 0x7fff) > 0x7c00;
    CHECK(std::isnan(value) == is_nan);
    if ((bits & 0x7fff) == 0x7c00) CHECK(std::isinf(value));
    if ((bits & 0x7c00) != 0x7c00) CHECK(value == half_value(bits));
    CHECK(Half::store(value) == (is_nan ? (bits | 0x200) : bits));
  }
}

// Between each two neighbours: below, at and above the middle; ties go to even.
void test_half_rounds_to_nearest_even() {
  for (unsigned bits = 0; bits < 0x7bff; ++bits) {
    const float low = static_cast<float>(half_value(bits));
    const float high = static_cast<float>(half_value(bits + 1));
    const float middle = low + (high - low) / 2;
    CHECK(Half::store(std::nextafterf(middle, low)) == bits);
    CHECK(Half::store(std::nextafterf(middle, high)) == bits + 1);
    CHECK(Half::store(middle) == (bits % 2 == 0 ? bits : bits + 1));
    CHECK(Half::store(-middle) == (0x8000 | Half::store(middle)));
  }
  CHECK(Half::store(65519.996f) == 0x7bff);
  CHECK(Half::store(65520.0f) == 0x7c00);
  CHECK(Half::store(3e38f) == 0x7c00);
  CHECK(Half::store(1e-30f) == 0);
}

void test_bfloat() {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float value = BFloat::load(static_cast<uint16_t>(bits));
    CHECK(BFloat::store(value) == ((bits & 0x7fff) > 0x7f80 ? 0x7fc0u : bits));
    if ((bits & 0x7f80) == 0x7f80) continue;
    CHECK(BFloat::store(float_of(bits << 16 | 0x7fff)) == bits);
    CHECK(BFloat::store(float_of(bits << 16 | 0x8001)) == bits + 1);
    CHECK(BFloat::store(float_of(bits << 16 | 0x8000)) == bits + bits % 2);
  }
}

int64_t offset_in(const Layout& layout, int operand, int64_t index) {
  int64_t offset = 0;
  for (int d = layout.ndim - 1; d >= 0; --d) {
    offset += index % layout.sizes[d] * layout.strides[operand * layout.ndim + d];
    index /= layout.sizes[d];
  }
  return offset;
}

// Whatever make_layout merges, each operand's element meets the same elements of the others.
void test_layouts_pair_the_same_elements() {
  std::mt19937 random(0);
  for (int trial = 0; trial < 300; ++trial) {
    const int ndim = static_cast<int>(random() % 5);
    std::vector<int64_t> sizes, orders[2], strides[2];
    for (int d = 0; d < ndim; ++d) sizes.push_back(1 + random() % 4);
    for (auto& s : strides) {
      std::vector<int> order(ndim);
      for (int d = 0; d < ndim; ++d) order[d] = d;
      std::shuffle(order.begin(), order.end(), random);
      s.assign(ndim, 0);
      int64_t next = 1 + random() % 2;
      for (const int d : order) {
        s[d] = next;
        next *= sizes[d] + random() % 2;
      }
    }
    const LayoutBuffer buffer =
        make_layout(ndim, sizes.data(), {strides[0].data(), strides[1].data()});
    const Layout layout = buffer.view();
    int64_t numel = 1;
    for (const int64_t size : sizes) numel *= size;
    int64_t of_layout = 1;
    for (int d = 0; d < layout.ndim; ++d) of_layout *= layout.sizes[d];
    CHECK(of_layout == numel);
    std::vector<std::pair<int64_t, int64_t>> expected, found;
    for (int64_t i = 0; i < numel; ++i) {
      found.emplace_back(offset_in(layout, 0, i), offset_in(layout, 1, i));
      int64_t rest = i, a = 0, b = 0;
      for (int d = ndim - 1; d >= 0; --d) {
        a += rest % sizes[d] * strides[0][d];
        b += rest % sizes[d] * strides[1][d];
        rest /= sizes[d];
      }
      expected.emplace_back(a, b);
    }
    for (int d = 0; d < layout.ndim; ++d) {  // the first operand is walked along its memory
      CHECK(layout.strides[layout.ndim - 1] <= layout.strides[d]);
    }
    std::sort(found.begin(), found.end());
    std::sort(expected.begin(), expected.end());
    CHECK(found == expected);
    CHECK(is_injective(ndim, sizes.data(), strides[0].data()));
  }
}

void test_layouts_merge() {
  const int64_t sizes[] = {2, 3, 4};
  const int64_t dense[] = {12, 4, 1};
  CHECK(make_layout(3, sizes, {dense, dense}).ndim == 1);
  const int64_t padded[] = {24, 8, 1};
  CHECK(make_layout(3, sizes, {dense, padded}).ndim == 2);
  const int64_t expanded[] = {0, 0, 0};
  CHECK(make_layout(3, sizes, {dense, expanded}).ndim == 1);
  CHECK(make_layout(0, nullptr, {nullptr, nullptr}).ndim == 1);
}

// Blocks are of the dimensions along which an operand lies side by side, and a short one.
void test_layouts_put_the_dimensions_of_blocks_last() {
  const int64_t rows[] = {960, 48, 3, 2};
  for (const int64_t columns : {2, 9}) {
    const int64_t sizes[] = {10, 20, 16, columns};
    const int64_t across[] = {1, 10, 200, 3200};
    const LayoutBuffer buffer = make_layout(4, sizes, {rows, across});
    const std::vector<int64_t> expected =
        columns == 2 ? std::vector<int64_t>{20, 10, 16, 2} : std::vector<int64_t>{20, 16, 10, 9};
    CHECK(std::vector<int64_t>(buffer.numbers.begin(), buffer.numbers.begin() + 4) == expected);
  }
}

// Where the second operand lies side by side comes last but one.
void test_layouts_of_transposed_operands() {
  const int64_t sizes[] = {2, 3, 4, 5};
  const int64_t dense[] = {60, 20, 5, 1};
  const int64_t other[] = {12, 1, 3, 24};
  const LayoutBuffer buffer = make_layout(4, sizes, {dense, other});
  const Layout layout = buffer.view();
  CHECK(layout.ndim == 4);
  CHECK(layout.strides[3] == 1 && layout.strides[4 + 3] == 24);
  CHECK(layout.strides[2] == 20 && layout.strides[4 + 2] == 1);
  CHECK(layout.sizes[2] == 3 && layout.sizes[3] == 5);
  const int64_t expanded[] = {0, 0, 0, 0};
  CHECK(make_layout(4, sizes, {dense, expanded}).ndim == 1);
}

void test_injective() {
  const int64_t sizes[] = {3, 2};
  const int64_t window[] = {1, 1};
  const int64_t expanded[] = {0, 1};
  const int64_t sliced[] = {4, 2};
  CHECK(!is_injective(2, sizes, window));
  CHECK(!is_injective(2, sizes, expanded));
  CHECK(is_injective(2, sizes, sliced));
  CHECK(is_injective(0, nullptr, nullptr));
}

void test_find_tensor() {
  std::vector<TensorEntry> tensors(100);
  int64_t start = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].start = start;
    tensors[i].numel = 1 + static_cast<int64_t>(i * 7 % 13);
    start += tensors[i].numel;
  }
  Table table{};
  table.tensors = tensors.data();
  table.count = static_cast<int64_t>(tensors.size());
  for (int64_t index = 0, expected = 0; index < start; ++index) {
    if (index == tensors[expected].start + tensors[expected].numel) ++expected;
    CHECK(find_tensor(table, index) == expected);
  }
}

}  // namespace

int main() {
  test_powers();
  test_odd_powers();
  test_differences_from_squares();
  test_half_loads_and_stores_every_value();
  test_half_rounds_to_nearest_even();
  test_bfloat();
  test_layouts_pair_the_same_elements();
  test_layouts_merge();
  test_layouts_put_the_dimensions_of_blocks_last();
  test_layouts_of_transposed_operands();
  test_injective();
  test_find_tensor();
}
