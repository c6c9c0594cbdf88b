// A table in a process of its own, through one client, beside such a table in this process.

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "contenders.h"
#include "modes.h"
#include "parameter_server/rows/row_table.h"
#include "remote_tables.h"

namespace cohort::embedding {

Status RunRemote(const Options& options) {
  const auto dim = static_cast<std::size_t>(options.dim);
  COHORT_ASSIGN_OR_RETURN(const ps::TableSpec spec, SpecOf(options));
  COHORT_ASSIGN_OR_RETURN(const auto remote, RemoteTables::Start({spec}));
  COHORT_ASSIGN_OR_RETURN(const auto client, remote->Client(1, options.transport));
  COHORT_ASSIGN_OR_RETURN(const auto table, ps::RowTable::Create(spec, {0, spec.buckets}));
  constexpr auto kTraining = ps::RowTable::Purpose::kTraining;

  const Batches batches = Draw(options);
  std::vector<float> out(std::max<std::size_t>(options.ids, 1 << 16) * dim);
  std::vector<float> expected = out;
  const std::vector<float> gradients = Gradients(options.ids * dim);
  const Status filled = ForAllRows(options, [&](std::span<const std::uint64_t> ids) -> Status {
    const auto rows = std::span(out).first(ids.size() * dim);
    COHORT_RETURN_IF_ERROR(table->Pull(ids, 1, kTraining, rows));
    return client->Pull(0, ids, 1, /*training=*/true, rows);
  });
  COHORT_RETURN_IF_ERROR(filled);

  const auto pull = [&] {
    for (const Batch& batch : batches.drawn) {
      OrThrow(
          table->Pull(batch.ids, 1, kTraining, std::span(expected).first(batch.ids.size() * dim)));
    }
  };
  const auto push = [&] {
    for (const Batch& batch : batches.drawn) {
      OrThrow(table->Apply(
          {.ids = batch.ids, .values = std::span(gradients).first(batch.ids.size() * dim)}));
    }
  };
  const auto pull_remote = [&] {
    for (const Batch& batch : batches.drawn) {
      OrThrow(client->Pull(0, batch.ids, 1, true, std::span(out).first(batch.ids.size() * dim)));
    }
  };
  const auto push_remote = [&] {
    for (const Batch& batch : batches.drawn) {
      const ps::RowClient::Gradients of_batch{
          .table = 0,
          .ids = batch.ids,
          .values = std::span(gradients).first(batch.ids.size() * dim)};
      OrThrow(client->Push(std::span(&of_batch, 1), 1, 1));
    }
  };

  const double drawn = CountOf(batches.drawn);
  std::vector<Contender> contenders;
  contenders.push_back({"pull", "ids/s", pull_remote, pull, drawn});
  contenders.push_back({"push, " + options.optimizer, "ids/s", push_remote, push, drawn});
  TakeTurns(options, contenders);

  // Both have had the same calls, and hold the same numbers, but for what is rounded on the way.
  std::uint64_t wrong = 0;
  const Status compared = ForAllRows(options, [&](std::span<const std::uint64_t> ids) -> Status {
    const auto rows = std::span(out).first(ids.size() * dim);
    const auto same = std::span(expected).first(ids.size() * dim);
    COHORT_RETURN_IF_ERROR(table->Pull(ids, 1, kTraining, same));
    COHORT_RETURN_IF_ERROR(client->Pull(0, ids, 1, /*training=*/true, rows));
    wrong += CountWrong(options, rows, same);
    return {};
  });
  COHORT_RETURN_IF_ERROR(compared);
  COHORT_RETURN_IF_ERROR(remote->End());

  nlohmann::ordered_json report = {{"rows", options.rows},
                                   {"dim", options.dim},
                                   {"ids_per_call", options.ids},
                                   {"zipf", options.zipf},
                                   {"optimizer", options.optimizer},
                                   {"wire", static_cast<int>(options.wire)},
                                   {"wire_feedback", options.wire_feedback},
                                   {"residual_bytes", client->residuals().bytes},
                                   {"transport", options.transport},
                                   {"distinct_ids_of_drawn", CountOf(batches.unique) / drawn},
                                   {"wrong", wrong},
                                   {"remote", nlohmann::ordered_json::array()}};
  if (!options.json) {
    std::printf(
        "%.1f M rows of dim %lld, %zu ids a call, Zipf %.2f (%.0f%% distinct), one client, one "
        "server; %llu numbers wrong\n%-24s %-12s %12s %12s %12s\n",
        static_cast<double>(options.rows) / 1e6, static_cast<long long>(options.dim), options.ids,
        options.zipf, 100 * CountOf(batches.unique) / drawn, static_cast<unsigned long long>(wrong),
        "", "", "remote M/s", "table M/s", "of table");
  }
  return Conclude(options, std::move(report), "remote", contenders,
                  {.rate = "table_per_second", .ratio = "ratio_to_table"}, wrong, "numbers");
}

}  // namespace cohort::embedding
