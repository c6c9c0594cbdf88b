#include "workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/core/zipf.h>
#include <cohort/optim/row_optimizer.h>

namespace cohort::embedding {
namespace {

std::uint64_t IdOf(std::uint64_t position) { return ps::HashId(position ^ 0x5EED); }

}  // namespace

Batches Draw(const Options& options) {
  const Zipf zipf(options.rows, options.zipf);
  const Permutation place(options.rows, 1);  // popular rows lie anywhere
  const Philox random(2);
  Batches batches;
  for (int call = 0; call < options.calls; ++call) {
    Batch drawn;
    std::uint64_t draws = 0;
    const auto uniform = [&] {
      const Philox::Block block = random.At(draws++, static_cast<std::uint64_t>(call));
      return (static_cast<double>(block[0]) * 0x1p32 + static_cast<double>(block[1])) * 0x1p-64;
    };
    for (std::size_t i = 0; i < options.ids; ++i) {
      drawn.positions.push_back(static_cast<std::uint32_t>(place(zipf(uniform) - 1)));
      drawn.ids.push_back(IdOf(drawn.positions.back()));
    }
    Batch unique;
    unique.positions = drawn.positions;
    std::ranges::sort(unique.positions);
    unique.positions.erase(std::unique(unique.positions.begin(), unique.positions.end()),
                           unique.positions.end());
    // Not in the order of the flat array, which would be no random access.
    const Permutation order(unique.positions.size(), static_cast<std::uint64_t>(call));
    std::vector<std::uint32_t> shuffled(unique.positions.size());
    for (std::size_t i = 0; i < shuffled.size(); ++i) {
      shuffled[i] = unique.positions[order(i)];
      unique.ids.push_back(IdOf(shuffled[i]));
    }
    unique.positions = std::move(shuffled);
    batches.drawn.push_back(std::move(drawn));
    batches.unique.push_back(std::move(unique));
  }
  return batches;
}

double CountOf(const std::vector<Batch>& batches) {
  double count = 0;
  for (const Batch& batch : batches) {
    count += static_cast<double>(batch.ids.size());
  }
  return count;
}

Result<ps::TableSpec> SpecOf(const Options& options) {
  ps::TableSpec spec;
  spec.name = "bench";
  spec.dim = options.dim;
  spec.bias_scope = ps::TableSpec::BiasScope::kTable;
  spec.wire = options.wire;
  spec.wire_feedback = options.wire_feedback;
  COHORT_ASSIGN_OR_RETURN(const auto rule,
                          RowOptimizer::Make("{\"name\":\"" + options.optimizer + "\"}"));
  spec.optimizer = rule->config();
  return spec;
}

std::vector<float> Gradients(std::size_t count) {
  std::vector<float> gradients(count);
  const Philox random(3);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    gradients[i] = random.Uniform(i) - 0.5F;
  }
  return gradients;
}

Status ForAllRows(const Options& options,
                  const std::function<Status(std::span<const std::uint64_t> ids)>& fn) {
  for (std::uint64_t begin = 0; begin < options.rows; begin += 1 << 16) {
    std::vector<std::uint64_t> ids(std::min<std::uint64_t>(1 << 16, options.rows - begin));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = IdOf(begin + i);
    }
    COHORT_RETURN_IF_ERROR(fn(ids));
  }
  return {};
}

std::uint64_t CountWrong(const Options& options, std::span<const float> got,
                         std::span<const float> expected) {
  const float most = options.wire == ps::TableSpec::Wire::kFloat32 ? 0.0F : 0.05F;
  std::uint64_t wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    wrong += std::abs(got[i] - expected[i]) <= most * (1 + std::abs(expected[i])) ? 0U : 1U;
  }
  return wrong;
}

}  // namespace cohort::embedding
