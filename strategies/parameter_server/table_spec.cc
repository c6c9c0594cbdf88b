#include "parameter_server/table_spec.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include <cohort/core/random.h>
#include <cohort/optim/row_optimizer.h>

#include <cohort/parameter_server.pb.h>

namespace cohort::ps {
namespace {

constexpr std::int64_t kMaxDim = std::int64_t{1} << 24;
constexpr std::uint32_t kMaxBuckets = 1U << 20;

}  // namespace

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

TableMessage TableSpec::ToMessage() const {
  TableMessage message;
  message.set_name(name);
  message.set_dim(dim);
  message.set_seed(seed);
  message.set_optimizer(optimizer);
  message.set_initializer(static_cast<std::uint32_t>(initializer.kind));
  message.set_initializer_scale(initializer.scale);
  message.set_missing(static_cast<std::uint32_t>(missing));
  message.set_bias_scope(static_cast<std::uint32_t>(bias_scope));
  message.set_not_finite(static_cast<std::uint32_t>(not_finite));
  message.set_mean_of_occurrences(mean_of_occurrences);
  message.set_admit_after(admit_after);
  message.set_admit_probability(admit_probability);
  message.set_time_to_live(time_to_live);
  message.set_capacity(capacity);
  message.set_eviction(static_cast<std::uint32_t>(eviction));
  message.set_buckets(buckets);
  return message;
}

Result<TableSpec> TableSpec::FromMessage(const TableMessage& message) {
  if (message.initializer() > 2 || message.missing() > 2 || message.bias_scope() > 1 ||
      message.not_finite() > 1 || message.eviction() > 1) {
    return Unimplemented("table \"" + message.name() +
                         "\": a setting of a newer version [update this program]");
  }
  TableSpec spec;
  spec.name = message.name();
  spec.dim = message.dim();
  spec.seed = message.seed();
  spec.optimizer = message.optimizer();
  spec.initializer = {static_cast<RowInitializer::Kind>(message.initializer()),
                      message.initializer_scale()};
  spec.missing = static_cast<Missing>(message.missing());
  spec.bias_scope = static_cast<BiasScope>(message.bias_scope());
  spec.not_finite = static_cast<NotFinite>(message.not_finite());
  spec.mean_of_occurrences = message.mean_of_occurrences();
  spec.admit_after = message.admit_after();
  spec.admit_probability = message.admit_probability();
  spec.time_to_live = message.time_to_live();
  spec.capacity = message.capacity();
  spec.eviction = static_cast<Eviction>(message.eviction());
  spec.buckets = message.buckets();
  COHORT_RETURN_IF_ERROR(spec.Check());
  return spec;
}

std::uint32_t BucketOf(std::uint64_t id, std::uint32_t buckets) {
  const int bits = std::countr_zero(buckets);
  return bits == 0 ? 0 : static_cast<std::uint32_t>(HashId(id) >> (64 - bits));
}

BucketRange BucketsOf(int server, int servers, std::uint32_t buckets) {
  Require(server >= 0 && server < servers, "0 <= server < servers");
  const auto edge = [&](int s) {
    return static_cast<std::uint32_t>(std::uint64_t{buckets} * static_cast<std::uint64_t>(s) /
                                      static_cast<std::uint64_t>(servers));
  };
  return {edge(server), edge(server + 1)};
}

int ServerOf(std::uint32_t bucket, int servers, std::uint32_t buckets) {
  Require(servers >= 1 && bucket < buckets, "a bucket of the table, and a server");
  // The greatest s with buckets * s / servers <= bucket.
  return static_cast<int>(((std::uint64_t{bucket} + 1) * static_cast<std::uint64_t>(servers) - 1) /
                          buckets);
}

void InitialRow(const TableSpec& spec, std::uint64_t id, std::span<float> row) {
  if (spec.initializer.kind == RowInitializer::Kind::kZeros) {
    std::ranges::fill(row, 0.0F);
    return;
  }
  const Philox random(spec.seed, spec.name);
  const auto scale = static_cast<float>(spec.initializer.scale);
  if (spec.initializer.kind == RowInitializer::Kind::kNormal) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = scale * random.Normal(i, id);
    }
    return;
  }
  for (std::size_t i = 0; i < row.size(); i += 4) {
    const Philox::Block block = random.At(i / 4, id);
    for (std::size_t k = 0; k < std::min<std::size_t>(4, row.size() - i); ++k) {
      const float uniform = static_cast<float>(block[k] >> 8) * 0x1p-24F;  // Philox::Uniform
      row[i + k] = scale * (2 * uniform - 1);
    }
  }
}

}  // namespace cohort::ps
