// Many tables of one server, of which a step needs rows of each.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "contenders.h"
#include "modes.h"
#include "parameter_server/rows/row_table.h"
#include "remote_tables.h"

namespace cohort::embedding {

// Ids of a step over many tables, as of a model with many sparse features: all of them in one call
// of the client, and a call for each table. What is pulled in the end is what tables in this
// process hold after the same updates.
Status RunTables(const Options& all) {
  Options options = all;  // of one table
  const auto count = static_cast<std::size_t>(all.tables);
  options.ids = std::max<std::size_t>(1, all.ids / count);
  options.rows = std::max<std::uint64_t>(1, all.rows / count);
  const auto dim = static_cast<std::size_t>(options.dim);
  COHORT_ASSIGN_OR_RETURN(const ps::TableSpec spec, SpecOf(options));
  std::vector<ps::TableSpec> specs;
  std::vector<std::unique_ptr<ps::RowTable>> local;
  for (std::size_t t = 0; t < count; ++t) {
    ps::TableSpec& of_table = specs.emplace_back(spec);
    of_table.name += std::to_string(t);
    COHORT_ASSIGN_OR_RETURN(local.emplace_back(),
                            ps::RowTable::Create(of_table, {0, of_table.buckets}));
  }
  COHORT_ASSIGN_OR_RETURN(const auto remote, RemoteTables::Start(std::move(specs)));
  COHORT_ASSIGN_OR_RETURN(const auto client, remote->Client(1, options.transport));

  const Batches batches = Draw(options);
  std::vector<std::vector<float>> rows(count, std::vector<float>(options.ids * dim));
  const std::vector<float> gradients = Gradients(options.ids * dim);
  const auto lookups_of = [&](const Batch& batch) {
    std::vector<ps::RowClient::Lookup> lookups;
    for (std::size_t t = 0; t < count; ++t) {
      lookups.push_back({.table = static_cast<int>(t), .ids = batch.ids, .rows = rows[t]});
    }
    return lookups;
  };
  const auto pushes_of = [&](const Batch& batch) {
    std::vector<ps::RowClient::Gradients> pushes;
    for (std::size_t t = 0; t < count; ++t) {
      pushes.push_back({.table = static_cast<int>(t), .ids = batch.ids, .values = gradients});
    }
    return pushes;
  };
  const auto pull = [&] {
    for (const Batch& batch : batches.drawn) {
      OrThrow(client->Pull(lookups_of(batch), 1));
    }
  };
  const auto pull_each = [&] {
    for (const Batch& batch : batches.drawn) {
      for (const ps::RowClient::Lookup& lookup : lookups_of(batch)) {
        OrThrow(client->Pull(std::span(&lookup, 1), 1));
      }
    }
  };
  const auto push = [&] {
    for (const Batch& batch : batches.drawn) {
      OrThrow(client->Push(pushes_of(batch), 1, 1));
    }
  };
  const auto push_each = [&] {
    for (const Batch& batch : batches.drawn) {
      for (const ps::RowClient::Gradients& of_table : pushes_of(batch)) {
        OrThrow(client->Push(std::span(&of_table, 1), 1, 1));
      }
    }
  };
  const double drawn = CountOf(batches.drawn) * static_cast<double>(count);
  std::vector<Contender> contenders;
  contenders.push_back({"pull", "ids/s", pull, pull_each, drawn});
  contenders.push_back({"push, " + options.optimizer, "ids/s", push, push_each, drawn});
  TakeTurns(options, contenders);

  for (int times = 0; times < 2 * (options.rounds + 1); ++times) {
    for (const Batch& batch : batches.drawn) {
      for (const auto& table : local) {
        COHORT_RETURN_IF_ERROR(table->Apply({.ids = batch.ids, .values = gradients}));
      }
    }
  }
  std::uint64_t wrong = 0;
  std::vector<float> expected(options.ids * dim);
  for (const Batch& batch : batches.drawn) {
    COHORT_RETURN_IF_ERROR(client->Pull(lookups_of(batch), 1));
    for (std::size_t t = 0; t < count; ++t) {
      COHORT_RETURN_IF_ERROR(
          local[t]->Pull(batch.ids, 1, ps::RowTable::Purpose::kTraining, expected));
      wrong += CountWrong(options, rows[t], expected);
    }
  }
  COHORT_RETURN_IF_ERROR(remote->End());

  nlohmann::ordered_json report = {{"tables", count},
                                   {"rows_of_table", options.rows},
                                   {"dim", options.dim},
                                   {"ids_of_table", options.ids},
                                   {"zipf", options.zipf},
                                   {"optimizer", options.optimizer},
                                   {"wire", static_cast<int>(options.wire)},
                                   {"transport", options.transport},
                                   {"wrong", wrong},
                                   {"remote", nlohmann::ordered_json::array()}};
  if (!options.json) {
    std::printf(
        "%zu tables of %.2f M rows of dim %lld, %zu ids of each a step, Zipf %.2f, one client, one "
        "server; %llu numbers wrong\n%-24s %-12s %12s %12s %12s\n",
        count, static_cast<double>(options.rows) / 1e6, static_cast<long long>(options.dim),
        options.ids, options.zipf, static_cast<unsigned long long>(wrong), "", "", "one call M/s",
        "each M/s", "of each");
  }
  return Conclude(options, std::move(report), "remote", contenders,
                  {.rate = "per_second_with_a_call_for_each", .ratio = "ratio_to_a_call_for_each"},
                  wrong, "numbers");
}

}  // namespace cohort::embedding
