#include <cohort/core/random.h>

#include <cohort/core/status.h>
#include <cmath>
#include <numbers>

namespace cohort {

Philox::Philox(std::uint64_t seed, std::string_view name) : key_(Hash64(name, seed)) {}

Philox::Block Philox::At(std::uint64_t low, std::uint64_t high) const {
  auto c0 = static_cast<std::uint32_t>(low);
  auto c1 = static_cast<std::uint32_t>(low >> 32);
  auto c2 = static_cast<std::uint32_t>(high);
  auto c3 = static_cast<std::uint32_t>(high >> 32);
  auto k0 = static_cast<std::uint32_t>(key_);
  auto k1 = static_cast<std::uint32_t>(key_ >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c2;
    const auto n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const auto n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {c0, c1, c2, c3};
}

float Philox::Uniform(std::uint64_t index, std::uint64_t high) const {
  return static_cast<float>(At(index / 4, high)[index % 4] >> 8) * 0x1p-24F;
}

float Philox::Normal(std::uint64_t index, std::uint64_t high) const {
  const Block b = At(index / 2, high);
  const std::size_t half = (index % 2) * 2;
  // (0, 1], so that the logarithm is finite.
  const double u = (static_cast<double>(b[half]) + 1.0) * 0x1p-32;
  const double angle = static_cast<double>(b[half + 1]) * 0x1p-32 * 2.0 * std::numbers::pi;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(angle));
}

std::uint64_t Philox::Below(std::uint64_t bound, std::uint64_t index, std::uint64_t high) const {
  const Block b = At(index, high);
  const std::uint64_t word = (std::uint64_t{b[1]} << 32) | b[0];
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(word) * bound) >> 64);
}

Permutation::Permutation(std::uint64_t size, std::uint64_t key)
    : size_(size), key_(key), half_bits_(1) {
  while (half_bits_ < 32 && (std::uint64_t{1} << (2 * half_bits_)) < size) {
    ++half_bits_;
  }
}

std::uint64_t Permutation::operator()(std::uint64_t position) const {
  Require(position < size_, "position below the permutation's size");
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t value = position;
  do {
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & mask;
    for (std::uint64_t round = 0; round < 6; ++round) {
      // splitmix64's finaliser as the round function.
      std::uint64_t f = right + key_ + (round + 1) * 0x9E3779B97F4A7C15ULL;
      f = (f ^ (f >> 30)) * 0xBF58476D1CE4E5B9ULL;
      f = (f ^ (f >> 27)) * 0x94D049BB133111EBULL;
      f ^= f >> 31;
      const std::uint64_t next = left ^ (f & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits_) | right;
  } while (value >= size_);
  return value;
}

std::uint64_t Hash64(std::string_view bytes, std::uint64_t seed) {
  std::uint64_t h = 0xCBF29CE484222325ULL ^ (seed * 0x9E3779B97F4A7C15ULL);
  for (const char c : bytes) {
    h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  }
  h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCDULL;
  h = (h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53ULL;
  return h ^ (h >> 33);
}

}  // namespace cohort
