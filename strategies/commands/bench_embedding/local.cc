// Lookups and updates of one thread in a table that is larger than the caches, beside the same
// reads and writes in a flat array: no hashing, no locks, no index.

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include <cohort/optim/row_optimizer.h>

#include "contenders.h"
#include "modes.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::embedding {
namespace {

// Rows of weights and slots one after the other, in huge pages where the system has them.
class FlatArray {
 public:
  FlatArray(std::uint64_t rows, std::size_t dim, const RowOptimizer& rule)
      : dim_(dim), slots_(rule.slot_floats(dim)), stride_(dim + slots_) {
    bytes_ = rows * stride_ * sizeof(float) + kHugePage;
    void* const memory =
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::bad_alloc();
    }
    memory_ = memory;
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    rows_ = reinterpret_cast<float*>((address + kHugePage - 1) / kHugePage * kHugePage);
    static_cast<void>(::madvise(rows_, bytes_ - kHugePage, MADV_HUGEPAGE));
    for (std::uint64_t row = 0; row < rows; ++row) {
      std::fill_n(at(row), dim_, 0.0F);
      rule.Initialize({at(row) + dim_, slots_});
    }
  }
  ~FlatArray() { ::munmap(memory_, bytes_); }
  FlatArray(const FlatArray&) = delete;
  FlatArray& operator=(const FlatArray&) = delete;

  float* at(std::uint64_t row) const { return rows_ + row * stride_; }

  void Lookup(const Batch& batch, std::span<float> out) const {
    for (std::size_t i = 0; i < batch.positions.size(); ++i) {
      Ahead(batch, i, dim_);
      std::memcpy(out.data() + i * dim_, at(batch.positions[i]), dim_ * sizeof(float));
    }
  }
  void Update(const Batch& batch, std::span<const float> gradients, const RowOptimizer& rule) {
    for (std::size_t i = 0; i < batch.positions.size(); ++i) {
      Ahead(batch, i, stride_);
      float* const row = at(batch.positions[i]);
      rule.Apply({.weights = {row, dim_},
                  .slots = {row + dim_, slots_},
                  .gradient = gradients.subspan(i * dim_, dim_)});
    }
  }

 private:
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;
  static constexpr std::size_t kAhead = 16;  // rows

  void Ahead(const Batch& batch, std::size_t i, std::size_t floats) const {
    if (i + kAhead < batch.positions.size()) {
      const float* const row = at(batch.positions[i + kAhead]);
      for (std::size_t k = 0; k < floats; k += 16) {
        __builtin_prefetch(row + k);
      }
    }
  }

  std::size_t dim_;
  std::size_t slots_;
  std::size_t stride_;
  std::size_t bytes_ = 0;
  void* memory_ = nullptr;
  float* rows_ = nullptr;
};

}  // namespace

Status RunLocal(const Options& options) {
  const auto dim = static_cast<std::size_t>(options.dim);
  COHORT_ASSIGN_OR_RETURN(const ps::TableSpec spec, SpecOf(options));
  COHORT_ASSIGN_OR_RETURN(const auto rule, RowOptimizer::Make(spec.optimizer));
  COHORT_ASSIGN_OR_RETURN(const auto table, ps::RowTable::Create(spec, {0, spec.buckets}));
  constexpr auto kTraining = ps::RowTable::Purpose::kTraining;

  const Batches batches = Draw(options);
  std::vector<float> out(std::max<std::size_t>(options.ids, 1 << 16) * dim);
  const std::vector<float> gradients = Gradients(options.ids * dim);

  // All rows, so that what is measured finds what it looks for.
  double created_seconds = 0;
  const Status created = ForAllRows(options, [&](std::span<const std::uint64_t> ids) {
    Status status;
    created_seconds += Seconds(
        [&] { status = table->Pull(ids, 1, kTraining, std::span(out).first(ids.size() * dim)); });
    return status;
  });
  COHORT_RETURN_IF_ERROR(created);
  FlatArray flat(options.rows, dim, *rule);

  const auto pull = [&](const std::vector<Batch>& calls) {
    for (const Batch& batch : calls) {
      OrThrow(table->Pull(batch.ids, 1, kTraining, std::span(out).first(batch.ids.size() * dim)));
    }
  };
  const auto push = [&](const std::vector<Batch>& calls) {
    for (const Batch& batch : calls) {
      OrThrow(table->Apply(
          {.ids = batch.ids, .values = std::span(gradients).first(batch.ids.size() * dim)}));
    }
  };
  const auto look_up = [&](const std::vector<Batch>& calls) {
    for (const Batch& batch : calls) {
      flat.Lookup(batch, out);
    }
  };
  const auto update = [&](const std::vector<Batch>& calls) {
    for (const Batch& batch : calls) {
      flat.Update(batch, gradients, *rule);
    }
  };

  // Both hold the same numbers, bit by bit.
  push(batches.unique);
  update(batches.unique);
  std::uint64_t wrong = 0;
  for (const Batch& batch : batches.unique) {
    const auto rows = std::span(out).first(batch.ids.size() * dim);
    COHORT_RETURN_IF_ERROR(table->Pull(batch.ids, 1, kTraining, rows));
    for (std::size_t i = 0; i < batch.ids.size(); ++i) {
      wrong +=
          std::memcmp(rows.data() + i * dim, flat.at(batch.positions[i]), dim * sizeof(float)) == 0
              ? 0U
              : 1U;
    }
  }

  const double drawn = CountOf(batches.drawn);
  const double unique = CountOf(batches.unique);
  std::vector<Contender> contenders;
  contenders.push_back(
      {"lookup", "rows/s", [&] { pull(batches.drawn); }, [&] { look_up(batches.drawn); }, drawn});
  contenders.push_back({"lookup, ids once", "rows/s", [&] { pull(batches.unique); },
                        [&] { look_up(batches.unique); }, unique});
  contenders.push_back({options.optimizer, "gradients/s", [&] { push(batches.drawn); },
                        [&] { update(batches.drawn); }, drawn});
  contenders.push_back({options.optimizer + ", ids once", "updates/s",
                        [&] { push(batches.unique); }, [&] { update(batches.unique); }, unique});
  TakeTurns(options, contenders);

  const ps::TableStats stats = table->stats();
  const double rows = static_cast<double>(stats.rows);
  const double row_bytes = static_cast<double>(dim + rule->slot_floats(dim)) * sizeof(float);
  const double bytes_per_row = static_cast<double>(stats.row_bytes + stats.overhead_bytes) / rows;
  nlohmann::ordered_json report = {{"rows", stats.rows},
                                   {"dim", options.dim},
                                   {"ids_per_call", options.ids},
                                   {"zipf", options.zipf},
                                   {"optimizer", options.optimizer},
                                   {"distinct_ids_of_drawn", unique / drawn},
                                   {"bytes_per_row", bytes_per_row},
                                   {"bytes_per_row_of_weights_and_slots", row_bytes},
                                   {"created_rows_per_second", rows / created_seconds},
                                   {"wrong", wrong},
                                   {"cases", nlohmann::ordered_json::array()}};
  if (!options.json) {
    std::printf(
        "%.1f M rows of dim %lld, %s, %zu ids a call, Zipf %.2f (%.0f%% distinct), 1 thread\n",
        rows / 1e6, static_cast<long long>(options.dim), options.optimizer.c_str(), options.ids,
        options.zipf, 100 * unique / drawn);
    std::printf(
        "%.1f bytes a row, %.0f of them weights and slots; %.2f M rows created/s; %llu wrong\n",
        bytes_per_row, row_bytes, rows / created_seconds / 1e6,
        static_cast<unsigned long long>(wrong));
    std::printf("%-24s %-12s %12s %12s %12s\n", "", "", "table M/s", "flat M/s", "of flat");
  }
  return Conclude(options, std::move(report), "cases", contenders,
                  {.rate = "flat_per_second", .ratio = "ratio_to_flat"}, wrong, "rows");
}

}  // namespace cohort::embedding
