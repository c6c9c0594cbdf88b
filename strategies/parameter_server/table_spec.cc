#include "parameter_server/table_spec.h"

#include <algorithm>
#include <bit>

#include <cohort/core/random.h>

#include <cohort/parameter_server.pb.h>

namespace cohort::ps {
TableMessage ToMessage(const TableSpec& spec) {
  TableMessage message;
  message.set_name(spec.name);
  message.set_dim(spec.dim);
  message.set_seed(spec.seed);
  message.set_optimizer(spec.optimizer);
  message.set_initializer(static_cast<std::uint32_t>(spec.initializer.kind));
  message.set_initializer_scale(spec.initializer.scale);
  message.set_missing(static_cast<std::uint32_t>(spec.missing));
  message.set_bias_scope(static_cast<std::uint32_t>(spec.bias_scope));
  message.set_not_finite(static_cast<std::uint32_t>(spec.not_finite));
  message.set_mean_of_occurrences(spec.mean_of_occurrences);
  message.set_admit_after(spec.admit_after);
  message.set_admit_probability(spec.admit_probability);
  message.set_time_to_live(spec.time_to_live);
  message.set_capacity(spec.capacity);
  message.set_eviction(static_cast<std::uint32_t>(spec.eviction));
  message.set_buckets(spec.buckets);
  message.set_wire(static_cast<std::uint32_t>(spec.wire));
  return message;
}

Result<TableSpec> SpecOf(const TableMessage& message) {
  if (message.initializer() > 2 || message.missing() > 2 || message.bias_scope() > 1 ||
      message.not_finite() > 1 || message.eviction() > 1 || message.wire() > 2) {
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
  spec.missing = static_cast<TableSpec::Missing>(message.missing());
  spec.bias_scope = static_cast<TableSpec::BiasScope>(message.bias_scope());
  spec.not_finite = static_cast<TableSpec::NotFinite>(message.not_finite());
  spec.mean_of_occurrences = message.mean_of_occurrences();
  spec.admit_after = message.admit_after();
  spec.admit_probability = message.admit_probability();
  spec.time_to_live = message.time_to_live();
  spec.capacity = message.capacity();
  spec.eviction = static_cast<TableSpec::Eviction>(message.eviction());
  spec.buckets = message.buckets();
  spec.wire = static_cast<TableSpec::Wire>(message.wire());
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
