// Fills the arguments of launches.
#include "cuda/pack.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "engine/tuning.h"

namespace fusedopt::cuda {

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ndim, sizes, each operand's strides.
int layout_words(const Layout& layout, int operands) { return 1 + layout.ndim * (1 + operands); }

// Writes a number in the form of PrepareArguments.
void write(const Number& number, uint64_t& bits, uint8_t& type) {
  if (number.address == nullptr) {
    std::memcpy(&bits, &number.value, sizeof bits);
    type = kGiven;
  } else {
    bits = reinterpret_cast<uint64_t>(number.address);
    type = static_cast<uint8_t>(number.dtype);
  }
}

}  // namespace

uint32_t choose_chunk(int64_t elements, int64_t count, Dtype dtype, int multiprocessors) {
  const int64_t row = kRowBytes / item_bytes(dtype);
  const int64_t wanted = elements / row / (kBlocksWanted * std::max(multiprocessors, 1));
  int64_t chunk = std::clamp<int64_t>(wanted, 1, kMaxChunkBytes / kRowBytes) * row;
  // A tensor has at most two chunks that aren't full.
  while (elements / chunk + 2 * count > kMaxBlocks && chunk < int64_t{1} << 30) chunk *= 2;
  return static_cast<uint32_t>(chunk);
}

bool is_aligned(const void* address, Format format) {
  return reinterpret_cast<uintptr_t>(address) % item_bytes(format) == 0;
}

SweepPacker::SweepPacker(const Kernel& kernel, Dtype dtype, const Table& table,
                         const Scalars& scalars, int multiprocessors)
    : table_(table),
      scalars_(scalars),
      operands_(kFirstState + kernel.states),
      dtype_(dtype),
      rule_bytes_(kernel.rule_bytes[Kernel::compute(dtype)]),
      rule_words_(static_cast<int>(divide_up(rule_bytes_, sizeof(uint64_t)))),
      mixed_(table.formats != nullptr) {
  if (table.count == 0) return;
  const TensorEntry& last = table.tensors[table.count - 1];
  chunk_ = choose_chunk(last.start + last.numel, table.count, dtype, multiprocessors);
}

// Does a tensor still fit into the launch, with its rule and layout?
bool SweepPacker::fits(const SweepArguments& args, const TensorEntry& tensor) const {
  int words = (args.count + 1) * tensor_words();
  if (scalars_.rules != nullptr) {
    const int64_t index = args.count == 0 ? 0 : int64_t{tensor.rule} - rule_;
    if (index < 0 || index >= kMaxWordIndex) return false;
  } else if (args.count == 0 || rule_ != tensor.rule) {
    words += rule_words_ + noisy();
  }
  if (tensor.layout >= 0) words += layout_words(table_.layouts[tensor.layout], laid_out());
  return words <= back_;
}

// The word where a rule begins, or its index among those that the device has made.
uint32_t SweepPacker::place_rule(SweepArguments& args, int32_t rule) {
  if (scalars_.rules != nullptr) {
    if (args.count == 0) {
      args.device_rules = static_cast<char*>(scalars_.rules->memory) + rule * rule_bytes_;
      if (noisy()) args.device_keys = scalars_.rules->keys + rule;
      rule_ = rule;
    }
    return static_cast<uint32_t>(rule - rule_);
  }
  if (args.count == 0 || rule_ != rule) {
    rule_ = rule;
    back_ -= rule_words_ + noisy();
    rule_place_ = back_;
    const char* from = static_cast<const char*>(table_.rules) + rule * rule_bytes_;
    std::memcpy(args.words + rule_place_, from, rule_bytes_);
    if (noisy()) args.words[rule_place_ + rule_words_] = table_.keys[rule];
  }
  return static_cast<uint32_t>(rule_place_);
}

// The word where a tensor's layout begins; 0: it has none.
uint32_t SweepPacker::place_layout(SweepArguments& args, const TensorEntry& tensor) {
  if (tensor.layout < 0) return 0;
  const Layout& layout = table_.layouts[tensor.layout];
  back_ -= layout_words(layout, laid_out());
  uint64_t* at = args.words + back_;
  *at = static_cast<uint64_t>(layout.ndim);
  at = std::copy_n(layout.sizes, layout.ndim, at + 1);
  std::copy_n(layout.strides, layout.ndim * laid_out(), at);
  return static_cast<uint32_t>(back_);
}

void SweepPacker::add(SweepArguments& args, const TensorEntry& tensor) {
  const auto lead = reinterpret_cast<uintptr_t>(tensor.operands[kParam]) % kVectorBytes;
  bool alike = tensor.layout < 0 && !mixed_;
  uint64_t* words = args.words + args.count * tensor_words();
  for (int k = 0; k < operands_; ++k) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.operands[k]);
    if (!is_aligned(tensor.operands[k], mixed_ ? table_.formats[k] : format_of(dtype_))) {
      throw std::runtime_error("fusedopt: a tensor on a CUDA device isn't aligned to its elements");
    }
    alike = alike && address % kVectorBytes == lead;
    words[k] = address;
  }
  Place place{};
  place.first = static_cast<uint32_t>(blocks_);
  place.rule = place_rule(args, tensor.rule);
  place.layout = place_layout(args, tensor);
  place.lead = alike ? static_cast<uint32_t>(lead) / item_bytes(dtype_) : 0;
  place.vectors = alike;
  place.maximize = tensor.maximize;
  if (mixed_) {
    words[operands_] =
        is_split(table_) ? reinterpret_cast<uintptr_t>(tensor.operands[operands_]) : 0;
    words[operands_ + 1] = tensor.position;
    words[operands_ + 2] = static_cast<uint64_t>(tensor.origin);
  }
  words += tensor_words() - kTensorWords;
  words[0] = static_cast<uint64_t>(tensor.numel);
  std::memcpy(words + 1, &place, sizeof place);
  blocks_ += divide_up(place.lead + tensor.numel, chunk_);
  ++args.count;
}

uint32_t SweepPacker::next(SweepArguments& args) {
  args.device_rules = nullptr;
  args.device_keys = nullptr;
  args.noisy = noisy();
  if (mixed_) std::copy_n(table_.formats, kMaxOperands, args.formats);
  args.found_inf = scalars_.found_inf;
  args.scale_at = scalars_.grad_scale;
  args.scale = table_.grad_scale;
  args.scaled = table_.scaled;
  args.clip_at = scalars_.clip;
  args.clip = table_.clip;
  args.count = 0;
  args.chunk = chunk_;
  back_ = kWords;
  blocks_ = 0;
  while (done_ < table_.count && fits(args, table_.tensors[done_])) {
    add(args, table_.tensors[done_++]);
  }
  return static_cast<uint32_t>(blocks_);
}

PreparePacker::PreparePacker(const Kernel& kernel, Dtype dtype, const Scalars& scalars)
    : rules_(scalars.rules),
      found_inf_(scalars.found_inf),
      options_(static_cast<int>(kernel.options)),
      scalars_(kernel.scalars),
      counts_(1 + kernel.scalars + (rules_ != nullptr && rules_->roundings)),
      rule_bytes_(kernel.rule_bytes[Kernel::compute(dtype)]) {}

uint32_t PreparePacker::next(PrepareArguments& args) {
  if (rules_ == nullptr) return 0;
  args.rules = static_cast<char*>(rules_->memory) + done_ * rule_bytes_;
  args.keys = rules_->keys == nullptr ? nullptr : rules_->keys + done_;
  args.found_inf = found_inf_;
  args.count = 0;
  args.numbers = counts_;
  int groups = 0;
  for (; done_ < rules_->count && args.count < kPreparedRules / counts_; ++done_, ++args.count) {
    const RuleSource& source = rules_->sources[done_];
    if (args.count == 0 || source.group != rules_->sources[done_ - 1].group) {
      if (groups == kPreparedGroups) break;
      for (int i = 0; i < options_; ++i) {
        write(rules_->options[int64_t{source.group} * options_ + i], args.options[groups][i],
              args.option_types[groups][i]);
      }
      args.seeds[groups] = source.seed;
      ++groups;
    }
    args.groups[args.count] = static_cast<uint8_t>(groups - 1);
    for (int k = 0; k < counts_; ++k) {
      const int at = args.count * counts_ + k;
      const Number& number = k == 0          ? source.step
                             : k <= scalars_ ? source.scalars[k - 1]
                                             : source.roundings;
      write(number, args.counts[at], args.count_types[at]);
    }
  }
  return static_cast<uint32_t>(divide_up(args.count, kBlockThreads));
}

}  // namespace fusedopt::cuda
