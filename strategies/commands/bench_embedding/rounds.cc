// Workers in rounds. Each pushes its share of a call as a part of one update, and goes on when that
// is applied. Beside the same shares as pushes of their own. What is pulled in the end is what a
// table in this process holds after the same rounds.

#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "contenders.h"
#include "modes.h"
#include "parameter_server/rows/row_table.h"
#include "remote_tables.h"

namespace cohort::embedding {
namespace {

// A worker adds up what repeats in its share; the server adds up the shares.
Status ApplyRound(ps::RowTable& table, std::span<const ps::RowClient::Gradients> parts,
                  std::size_t dim) {
  std::vector<std::uint64_t> ids;
  std::vector<std::uint32_t> counts;
  std::vector<float> sums;
  for (const ps::RowClient::Gradients& part : parts) {
    std::unordered_map<std::uint64_t, std::size_t> at;
    for (std::size_t i = 0; i < part.ids.size(); ++i) {
      const auto values = part.values.subspan(i * dim, dim);
      const auto [found, is_new] = at.try_emplace(part.ids[i], ids.size());
      if (is_new) {
        ids.push_back(part.ids[i]);
        counts.push_back(1);
        sums.insert(sums.end(), values.begin(), values.end());
        continue;
      }
      ++counts[found->second];
      for (std::size_t k = 0; k < dim; ++k) {
        sums[found->second * dim + k] += values[k];
      }
    }
  }
  return table.Apply({.ids = ids,
                      .values = sums,
                      .counts = counts,
                      .scale = static_cast<float>(1.0 / static_cast<double>(parts.size()))});
}

// Every worker in a thread, which ends at its first error.
void Together(std::size_t workers, const std::function<Status(std::size_t w)>& work) {
  std::vector<std::thread> threads;
  std::vector<Status> ends(workers);
  for (std::size_t w = 0; w < workers; ++w) {
    threads.emplace_back([&, w] { ends[w] = work(w); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Status& end : ends) {
    OrThrow(end);
  }
}

}  // namespace

Status RunRounds(const Options& options) {
  const auto dim = static_cast<std::size_t>(options.dim);
  const auto workers = static_cast<std::size_t>(options.rounds_of);
  COHORT_ASSIGN_OR_RETURN(const ps::TableSpec spec, SpecOf(options));
  ps::TableSpec of_pushes = spec;
  of_pushes.name = "pushes";
  COHORT_ASSIGN_OR_RETURN(const auto remote, RemoteTables::Start({spec, of_pushes}));
  std::vector<std::unique_ptr<ps::RowClient>> clients(workers);
  for (std::size_t w = 0; w < workers; ++w) {
    COHORT_ASSIGN_OR_RETURN(clients[w], remote->Client(w + 1, options.transport));
  }

  const Batches batches = Draw(options);
  const std::vector<float> gradients = Gradients(options.ids * dim);
  const auto share = [&](const Batch& batch, std::size_t w, int table) {
    const std::size_t begin = batch.ids.size() * w / workers;
    const std::size_t end = batch.ids.size() * (w + 1) / workers;
    return ps::RowClient::Gradients{
        .table = table,
        .ids = std::span(batch.ids).subspan(begin, end - begin),
        .values = std::span(gradients).subspan(begin * dim, (end - begin) * dim)};
  };
  std::uint64_t rounds = 0;  // before
  const auto push_rounds = [&] {
    Together(workers, [&](std::size_t w) -> Status {
      std::uint64_t round = rounds;
      for (const Batch& batch : batches.drawn) {
        const ps::RowClient::Gradients part = share(batch, w, 0);
        COHORT_RETURN_IF_ERROR(clients[w]->PushPart(
            std::span(&part, 1), 1, 1,
            {.round = ++round, .part = static_cast<int>(w), .parts = options.rounds_of}));
        clients[w]->ReadAfter(round);
        COHORT_RETURN_IF_ERROR(clients[w]->AwaitRounds());
      }
      return {};
    });
    rounds += batches.drawn.size();
  };
  const auto push_each = [&] {
    Together(workers, [&](std::size_t w) -> Status {
      for (const Batch& batch : batches.drawn) {
        const ps::RowClient::Gradients part = share(batch, w, 1);
        COHORT_RETURN_IF_ERROR(clients[w]->Push(std::span(&part, 1), 1, options.rounds_of));
      }
      return {};
    });
  };
  std::vector<Contender> contenders;
  contenders.push_back(
      {"push, " + options.optimizer, "ids/s", push_rounds, push_each, CountOf(batches.drawn)});
  TakeTurns(options, contenders);

  COHORT_ASSIGN_OR_RETURN(const auto local, ps::RowTable::Create(spec, {0, spec.buckets}));
  for (int round = -1; round < options.rounds; ++round) {
    for (const Batch& batch : batches.drawn) {
      std::vector<ps::RowClient::Gradients> parts;
      for (std::size_t w = 0; w < workers; ++w) {
        parts.push_back(share(batch, w, 0));
      }
      COHORT_RETURN_IF_ERROR(ApplyRound(*local, parts, dim));
    }
  }
  std::uint64_t wrong = 0;
  std::vector<float> rows(options.ids * dim);
  std::vector<float> expected(options.ids * dim);
  for (const Batch& batch : batches.drawn) {
    COHORT_RETURN_IF_ERROR(clients[0]->Pull(0, batch.ids, 1, /*training=*/false, rows));
    COHORT_RETURN_IF_ERROR(local->Pull(batch.ids, 1, ps::RowTable::Purpose::kReading, expected));
    wrong += CountWrong(options, rows, expected);
  }
  COHORT_RETURN_IF_ERROR(remote->End());

  nlohmann::ordered_json report = {{"rounds_of", workers},
                                   {"rows", options.rows},
                                   {"dim", options.dim},
                                   {"ids_per_call", options.ids},
                                   {"zipf", options.zipf},
                                   {"optimizer", options.optimizer},
                                   {"wire", static_cast<int>(options.wire)},
                                   {"transport", options.transport},
                                   {"wrong", wrong},
                                   {"remote", nlohmann::ordered_json::array()}};
  if (!options.json) {
    std::printf(
        "%.1f M rows of dim %lld, %zu ids a round in %zu parts, Zipf %.2f, one server; %llu "
        "numbers wrong\n%-24s %-12s %12s %12s %12s\n",
        static_cast<double>(options.rows) / 1e6, static_cast<long long>(options.dim), options.ids,
        workers, options.zipf, static_cast<unsigned long long>(wrong), "", "", "rounds M/s",
        "pushes M/s", "of pushes");
  }
  return Conclude(options, std::move(report), "remote", contenders,
                  {.rate = "per_second_of_pushes", .ratio = "ratio_to_pushes"}, wrong, "numbers");
}

}  // namespace cohort::embedding
