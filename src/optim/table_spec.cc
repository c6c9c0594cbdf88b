#include <cohort/optim/table_spec.h>

#include <array>
#include <bit>
#include <cmath>
#include <tuple>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/optim/row_optimizer.h>

namespace cohort {
namespace {

constexpr std::int64_t kMaxDim = std::int64_t{1} << 24;
constexpr std::uint32_t kMaxBuckets = 1U << 20;
constexpr std::uint64_t kMaxFeedback = std::uint64_t{1} << 31;

// What is compared: all but wire_feedback.
auto Agreed(const TableSpec& spec) {
  return std::tie(spec.name, spec.dim, spec.seed, spec.optimizer, spec.initializer, spec.missing,
                  spec.bias_scope, spec.not_finite, spec.mean_of_occurrences, spec.admit_after,
                  spec.admit_probability, spec.time_to_live, spec.capacity, spec.eviction,
                  spec.wire, spec.buckets);
}

template <typename Enum>
std::string Number(Enum value) {
  return std::to_string(static_cast<int>(value));
}

std::array<std::pair<std::string, std::string>, 17> Fields(const TableSpec& spec) {
  return {{{"name", "\"" + spec.name + "\""},
           {"dim", std::to_string(spec.dim)},
           {"seed", std::to_string(spec.seed)},
           {"optimizer", spec.optimizer},
           {"initializer.kind", Number(spec.initializer.kind)},
           {"initializer.scale", std::to_string(spec.initializer.scale)},
           {"missing", Number(spec.missing)},
           {"bias_scope", Number(spec.bias_scope)},
           {"not_finite", Number(spec.not_finite)},
           {"mean_of_occurrences", spec.mean_of_occurrences ? "true" : "false"},
           {"admit_after", std::to_string(spec.admit_after)},
           {"admit_probability", std::to_string(spec.admit_probability)},
           {"time_to_live", std::to_string(spec.time_to_live)},
           {"capacity", std::to_string(spec.capacity)},
           {"eviction", Number(spec.eviction)},
           {"wire", Number(spec.wire)},
           {"buckets", std::to_string(spec.buckets)}}};
}

}  // namespace

bool operator==(const TableSpec& a, const TableSpec& b) { return Agreed(a) == Agreed(b); }

Status TableSpec::Check() const {
  std::string errors;
  const auto blame = [&errors](bool good, const std::string& what) {
    if (!good) {
      errors += (errors.empty() ? "" : "; ") + what;
    }
  };
  blame(!name.empty(), "a table needs a name");
  blame(dim >= 1 && dim <= kMaxDim,
        "dim is " + std::to_string(dim) + " [1 to " + std::to_string(kMaxDim) + "]");
  blame(std::has_single_bit(buckets) && buckets <= kMaxBuckets,
        "buckets is " + std::to_string(buckets) + " [a power of two, at most " +
            std::to_string(kMaxBuckets) + "]");
  blame(std::isfinite(initializer.scale) && initializer.scale >= 0,
        "initializer.scale is " + std::to_string(initializer.scale) + " [at least 0]");
  blame(admit_after >= 1, "admit_after is 0 [the first occurrence is number 1]");
  blame(admit_probability > 0 && admit_probability <= 1,
        "admit_probability is " + std::to_string(admit_probability) + " [above 0, at most 1]");
  blame(admit_after <= 1 || admit_probability >= 1,
        "admit_after and admit_probability are both set [choose one]");
  blame(capacity == 0 || capacity >= buckets,
        "capacity is " + std::to_string(capacity) + " [at least one row in each of the " +
            std::to_string(buckets) + " buckets, or fewer buckets]");
  blame(wire_feedback <= kMaxFeedback, "wire_feedback is " + std::to_string(wire_feedback) +
                                           " rows [at most " + std::to_string(kMaxFeedback) + "]");
  if (missing == Missing::kZeros) {
    blame(initializer.kind == RowInitializer::Kind::kZeros,
          "missing rows read as zeros, the initializer makes others [initializer zeros]");
  }
  if (missing == Missing::kError) {
    blame(admits_at_once() && time_to_live == 0 && capacity == 0,
          "missing rows are errors, so there may be no admission and no eviction");
  }
  if (const auto rule = RowOptimizer::Make(optimizer); !rule.ok()) {
    blame(false, rule.status().message());
  }
  return errors.empty() ? OkStatus() : InvalidArgument("table \"" + name + "\": " + errors);
}

Status TableSpec::Compare(const TableSpec& other, const std::string& who) const {
  if (*this == other) {
    return {};
  }
  const auto mine = Fields(*this);
  const auto theirs = Fields(other);
  for (std::size_t i = 0; i < mine.size(); ++i) {
    if (mine[i] != theirs[i]) {
      return FailedPrecondition("table \"" + name + "\" differs: declared with " + mine[i].first +
                                " " + mine[i].second + ", " + who + " has " + theirs[i].second +
                                " [start every process with the same model and options]");
    }
  }
  // Two numbers that print alike.
  return FailedPrecondition("table \"" + name + "\" differs: a probability or scale of " + who +
                            " is not the declared one [start every process with the same model "
                            "and options]");
}

std::uint64_t TableSpec::Fingerprint() const {
  std::uint64_t digest = Hash64("table");
  for (const auto& [field, value] : Fields(*this)) {
    digest = Hash64(field + " " + value, digest);
  }
  digest = Hash64(std::to_string(std::bit_cast<std::uint64_t>(admit_probability)), digest);
  return Hash64(std::to_string(std::bit_cast<std::uint64_t>(initializer.scale)), digest);
}

}  // namespace cohort
