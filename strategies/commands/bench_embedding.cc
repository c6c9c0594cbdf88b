// `cohort bench embedding`: rows looked up and updated per second by one thread in a sparse table
// that is larger than the caches, beside the same reads and writes in a flat array: no hashing, no
// locks, no index. With --remote: through one client of one server, which is a process of its own,
// beside such a table in this process; with --tables: of many tables in one call, beside a call for
// each; with --rounds-of: as parts of rounds, beside pushes by themselves.

#include <sys/mman.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/core/zipf.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_optimizer.h>

#include "bench_children.h"
#include "command.h"
#include "core/commands/processes.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/variables/client.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::uint64_t rows = 4'000'000;
  std::int64_t dim = 16;
  std::size_t ids = 4096 * 26;  // of a call
  int calls = 16;               // of a round
  double zipf = 1.05;
  std::string optimizer = "adagrad";
  int rounds = 5;
  bool remote = false;
  int tables = 1;
  int rounds_of = 0;  // parts; 0: no rounds
  std::string transport = "auto";
  ps::TableSpec::Wire wire = ps::TableSpec::Wire::kFloat32;
  std::uint64_t wire_feedback = 0;
  bool json = false;
};

// One call: positions of rows in the flat array, and the ids that the table knows them by.
struct Batch {
  std::vector<std::uint32_t> positions;
  std::vector<std::uint64_t> ids;
};

std::uint64_t IdOf(std::uint64_t position) { return ps::HashId(position ^ 0x5EED); }

// As drawn, and each id once.
struct Batches {
  std::vector<Batch> drawn;
  std::vector<Batch> unique;
};

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

struct Contender {
  std::string name;
  std::string unit;
  std::function<void()> table;
  std::function<void()> flat;
  double count;  // in a round
  std::vector<double> table_seconds{};
  std::vector<double> flat_seconds{};
};

// What a report calls the contender beside the measured one, and the ratio to it.
struct Beside {
  const char* rate;
  const char* ratio;
};

// The end of a report: each contender's rates under `key`, as a table or with all of it in JSON.
Status Conclude(const Options& options, nlohmann::ordered_json report, const char* key,
                std::span<const Contender> contenders, const Beside& beside, std::uint64_t wrong,
                const std::string& what) {
  for (const Contender& contender : contenders) {
    const double rate = contender.count / Median(contender.table_seconds);
    const double other = contender.count / Median(contender.flat_seconds);
    report[key].push_back({{"name", contender.name},
                           {"unit", contender.unit},
                           {"per_second", rate},
                           {beside.rate, other},
                           {beside.ratio, rate / other}});
    if (!options.json) {
      std::printf("%-24s %-12s %12.2f %12.2f %12.2f\n", contender.name.c_str(),
                  contender.unit.c_str(), rate / 1e6, other / 1e6, rate / other);
    }
  }
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
  }
  return wrong == 0 ? OkStatus() : Internal(std::to_string(wrong) + " " + what + " are wrong");
}

double Seconds(const std::function<void()>& run) {
  const auto start = Clock::now();
  run();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Result<std::string> OptimizerConfig(const std::string& name) {
  COHORT_ASSIGN_OR_RETURN(const auto rule, RowOptimizer::Make("{\"name\":\"" + name + "\"}"));
  return rule->config();
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
  COHORT_ASSIGN_OR_RETURN(spec.optimizer, OptimizerConfig(options.optimizer));
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

// All rows, by 65,536 ids at a time.
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

// Ids of a step over many tables, as of a model with many sparse features: all of them in one call
// of the client, and a call for each table. What is pulled in the end is what tables in this
// process hold after the same updates.
Status RunTables(const Options& all) {
  Options options = all;  // of one table
  const auto count = static_cast<std::size_t>(all.tables);
  options.ids = std::max<std::size_t>(1, all.ids / count);
  options.rows = std::max<std::uint64_t>(1, all.rows / count);
  const auto dim = static_cast<std::size_t>(options.dim);
  ps::ModelSpec model;
  model.parameters = {{"none", {1}, true, 0}};
  model.optimizer = Sgd()->config();
  COHORT_ASSIGN_OR_RETURN(const ps::TableSpec spec, SpecOf(options));
  std::vector<std::unique_ptr<ps::RowTable>> local;
  for (std::size_t t = 0; t < count; ++t) {
    ps::TableSpec& of_table = model.tables.emplace_back(spec);
    of_table.name += std::to_string(t);
    COHORT_ASSIGN_OR_RETURN(local.emplace_back(),
                            ps::RowTable::Create(of_table, {0, of_table.buckets}));
  }
  Children children;
  COHORT_ASSIGN_OR_RETURN(const auto server, ServerProcess::Start(children));
  const std::vector<std::string> addresses = {server->address()};
  const auto control = ps::Client::Make(model, addresses, {});
  COHORT_RETURN_IF_ERROR(control->Declare());
  COHORT_RETURN_IF_ERROR(control->Assign(std::vector<float>(16), {}, 0));
  ps::ClientOptions identity;
  COHORT_ASSIGN_OR_RETURN(identity.transport,
                          ps::TransportOf({.implementation = options.transport}));
  const auto client = ps::RowClient::Make(model, addresses, identity);

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
  for (int round = -1; round < options.rounds; ++round) {
    for (Contender& contender : contenders) {
      const double together = Seconds(contender.table);
      const double each = Seconds(contender.flat);
      if (round >= 0) {
        contender.table_seconds.push_back(together);
        contender.flat_seconds.push_back(each);
      }
    }
    for (int times = 0; times < 2; ++times) {
      for (const Batch& batch : batches.drawn) {
        for (const auto& table : local) {
          COHORT_RETURN_IF_ERROR(table->Apply({.ids = batch.ids, .values = gradients}));
        }
      }
    }
  }
  const float most = options.wire == ps::TableSpec::Wire::kFloat32 ? 0.0F : 0.05F;
  std::uint64_t wrong = 0;
  std::vector<float> expected(options.ids * dim);
  for (const Batch& batch : batches.drawn) {
    COHORT_RETURN_IF_ERROR(client->Pull(lookups_of(batch), 1));
    for (std::size_t t = 0; t < count; ++t) {
      COHORT_RETURN_IF_ERROR(
          local[t]->Pull(batch.ids, 1, ps::RowTable::Purpose::kTraining, expected));
      for (std::size_t i = 0; i < expected.size(); ++i) {
        wrong += std::abs(rows[t][i] - expected[i]) <= most * (1 + std::abs(expected[i])) ? 0U : 1U;
      }
    }
  }
  server->End();
  COHORT_RETURN_IF_ERROR(children.Wait());

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

// Rounds: workers of which each has its share of a call push it as a part of one update, and go on
// when that is applied. Beside the same shares as pushes of their own. What is pulled in the end is
// what a table in this process holds after the same rounds.
Status RunRounds(const Options& options) {
  const auto dim = static_cast<std::size_t>(options.dim);
  const auto workers = static_cast<std::size_t>(options.rounds_of);
  ps::ModelSpec model;
  model.parameters = {{"none", {1}, true, 0}};
  model.optimizer = Sgd()->config();
  COHORT_ASSIGN_OR_RETURN(const ps::TableSpec spec, SpecOf(options));
  model.tables = {spec, spec};  // of rounds, and of pushes
  model.tables[1].name = "pushes";
  Children children;
  COHORT_ASSIGN_OR_RETURN(const auto server, ServerProcess::Start(children));
  const std::vector<std::string> addresses = {server->address()};
  const auto control = ps::Client::Make(model, addresses, {});
  COHORT_RETURN_IF_ERROR(control->Declare());
  COHORT_RETURN_IF_ERROR(control->Assign(std::vector<float>(16), {}, 0));
  std::vector<std::unique_ptr<ps::RowClient>> clients;
  for (std::size_t w = 0; w < workers; ++w) {
    ps::ClientOptions identity;
    identity.client = w + 1;
    COHORT_ASSIGN_OR_RETURN(identity.transport,
                            ps::TransportOf({.implementation = options.transport}));
    clients.push_back(ps::RowClient::Make(model, addresses, identity));
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
  // Every worker in a thread, which ends at its first error.
  const auto together = [&](const std::function<Status(std::size_t w)>& work) {
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
  };
  std::uint64_t rounds = 0;  // before
  const auto push_rounds = [&] {
    together([&](std::size_t w) -> Status {
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
    together([&](std::size_t w) -> Status {
      for (const Batch& batch : batches.drawn) {
        const ps::RowClient::Gradients part = share(batch, w, 1);
        COHORT_RETURN_IF_ERROR(clients[w]->Push(std::span(&part, 1), 1, options.rounds_of));
      }
      return {};
    });
  };
  Contender contender{"push, " + options.optimizer, "ids/s", push_rounds, push_each,
                      CountOf(batches.drawn)};
  for (int round = -1; round < options.rounds; ++round) {
    const double in_rounds = Seconds(contender.table);
    const double each = Seconds(contender.flat);
    if (round >= 0) {
      contender.table_seconds.push_back(in_rounds);
      contender.flat_seconds.push_back(each);
    }
  }

  // A worker adds up what repeats in its share; the server adds up the shares.
  COHORT_ASSIGN_OR_RETURN(const auto local, ps::RowTable::Create(spec, {0, spec.buckets}));
  const auto weight = static_cast<float>(1.0 / options.rounds_of);
  for (int round = -1; round < options.rounds; ++round) {
    for (const Batch& batch : batches.drawn) {
      std::vector<std::uint64_t> ids;
      std::vector<std::uint32_t> counts;
      std::vector<float> sums;
      for (std::size_t w = 0; w < workers; ++w) {
        const ps::RowClient::Gradients part = share(batch, w, 0);
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
      COHORT_RETURN_IF_ERROR(
          local->Apply({.ids = ids, .values = sums, .counts = counts, .scale = weight}));
    }
  }
  const float most = options.wire == ps::TableSpec::Wire::kFloat32 ? 0.0F : 0.05F;
  std::uint64_t wrong = 0;
  std::vector<float> rows(options.ids * dim);
  std::vector<float> expected(options.ids * dim);
  for (const Batch& batch : batches.drawn) {
    COHORT_RETURN_IF_ERROR(clients[0]->Pull(0, batch.ids, 1, /*training=*/false, rows));
    COHORT_RETURN_IF_ERROR(local->Pull(batch.ids, 1, ps::RowTable::Purpose::kReading, expected));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      wrong += std::abs(rows[i] - expected[i]) <= most * (1 + std::abs(expected[i])) ? 0U : 1U;
    }
  }
  server->End();
  COHORT_RETURN_IF_ERROR(children.Wait());

  const double rate = contender.count / Median(contender.table_seconds);
  const double each = contender.count / Median(contender.flat_seconds);
  if (options.json) {
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
    report["remote"].push_back({{"name", contender.name},
                                {"unit", contender.unit},
                                {"per_second", rate},
                                {"per_second_of_pushes", each},
                                {"ratio_to_pushes", rate / each}});
    std::printf("%s\n", report.dump().c_str());
  } else {
    std::printf(
        "%.1f M rows of dim %lld, %zu ids a round in %zu parts, Zipf %.2f, one server; %llu "
        "numbers "
        "wrong\n%-24s %-12s %12s %12s %12s\n%-24s %-12s %12.2f %12.2f %12.2f\n",
        static_cast<double>(options.rows) / 1e6, static_cast<long long>(options.dim), options.ids,
        workers, options.zipf, static_cast<unsigned long long>(wrong), "", "", "rounds M/s",
        "pushes M/s", "of pushes", contender.name.c_str(), contender.unit.c_str(), rate / 1e6,
        each / 1e6, rate / each);
  }
  return wrong == 0 ? OkStatus() : Internal(std::to_string(wrong) + " numbers are wrong");
}

Status RunRemote(const Options& options) {
  const auto dim = static_cast<std::size_t>(options.dim);
  ps::ModelSpec model;
  model.parameters = {{"none", {1}, true, 0}};
  COHORT_ASSIGN_OR_RETURN(const ps::TableSpec spec, SpecOf(options));
  model.optimizer = Sgd()->config();
  model.tables = {spec};
  Children children;
  COHORT_ASSIGN_OR_RETURN(const auto server, ServerProcess::Start(children));
  const std::vector<std::string> addresses = {server->address()};
  const auto control = ps::Client::Make(model, addresses, {});
  COHORT_RETURN_IF_ERROR(control->Declare());
  COHORT_RETURN_IF_ERROR(control->Assign(std::vector<float>(16), {}, 0));
  ps::ClientOptions identity;
  COHORT_ASSIGN_OR_RETURN(identity.transport,
                          ps::TransportOf({.implementation = options.transport}));
  const auto client = ps::RowClient::Make(model, addresses, identity);
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
  for (int round = -1; round < options.rounds; ++round) {
    for (Contender& contender : contenders) {
      const double remote = Seconds(contender.table);
      const double local = Seconds(contender.flat);
      if (round >= 0) {
        contender.table_seconds.push_back(remote);
        contender.flat_seconds.push_back(local);
      }
    }
  }
  // Both have had the same calls, and hold the same numbers, but for what is rounded on the way.
  const float most = options.wire == ps::TableSpec::Wire::kFloat32 ? 0.0F : 0.05F;
  std::uint64_t wrong = 0;
  const Status compared = ForAllRows(options, [&](std::span<const std::uint64_t> ids) -> Status {
    const auto rows = std::span(out).first(ids.size() * dim);
    const auto same = std::span(expected).first(ids.size() * dim);
    COHORT_RETURN_IF_ERROR(table->Pull(ids, 1, kTraining, same));
    COHORT_RETURN_IF_ERROR(client->Pull(0, ids, 1, /*training=*/true, rows));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      wrong += std::abs(rows[i] - same[i]) <= most * (1 + std::abs(same[i])) ? 0U : 1U;
    }
    return {};
  });
  COHORT_RETURN_IF_ERROR(compared);
  server->End();
  COHORT_RETURN_IF_ERROR(children.Wait());

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

Status Run(const Options& options) {
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
  for (int round = -1; round < options.rounds; ++round) {
    for (Contender& contender : contenders) {
      const double table_seconds = Seconds(contender.table);
      const double flat_seconds = Seconds(contender.flat);
      if (round >= 0) {
        contender.table_seconds.push_back(table_seconds);
        contender.flat_seconds.push_back(flat_seconds);
      }
    }
  }

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

}  // namespace

int BenchEmbeddingCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures lookups and updates of rows in a sparse table, beside the same reads and writes in "
      "a flat array without hashing and locks.",
      argv[0]);
  app.add_option("--rows", options.rows, "of the table")
      ->check(CLI::Range(1, 1'000'000'000))
      ->capture_default_str();
  app.add_option("--dim", options.dim, "floats of a row")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--ids", options.ids, "of one call")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--calls", options.calls, "of a round, each with other ids")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  app.add_option("--zipf", options.zipf, "exponent of the ids' popularity; 0: all alike")
      ->check(CLI::Range(0.0, 4.0))
      ->capture_default_str();
  app.add_option("--optimizer", options.optimizer,
                 "sgd, adagrad, row_wise_adagrad, rmsprop, adam, adamw or ftrl, with defaults")
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the median of so many, all taken in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--remote", options.remote,
               "through a client, and a server in another process, beside a table in this one");
  app.add_option("--tables", options.tables,
                 "with --remote: --rows and --ids in so many tables, all of a step in one call "
                 "beside a call for each")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option(
         "--rounds-of", options.rounds_of,
         "with --remote: so many workers, of which each pushes its share of a call as a part "
         "of one update, beside pushes of the same shares")
      ->check(CLI::Range(1, 256));
  const std::map<std::string, ps::TableSpec::Wire> wires = {
      {"float32", ps::TableSpec::Wire::kFloat32},
      {"float16", ps::TableSpec::Wire::kFloat16},
      {"bfloat16", ps::TableSpec::Wire::kBFloat16},
      {"int8", ps::TableSpec::Wire::kInt8}};
  app.add_option(
         "--transport", options.transport,
         "with --remote: auto (shared memory, since the server is on this host), shm or tcp")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str();
  app.add_option("--wire", options.wire,
                 "with --remote: how rows travel, float32, float16, bfloat16 or int8")
      ->transform(CLI::CheckedTransformer(wires));
  app.add_option("--wire-feedback", options.wire_feedback,
                 "with --remote: rows of which the client keeps what is rounded off gradients")
      ->check(CLI::Range(0LL, 1LL << 31))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if ((options.tables > 1 || options.rounds_of > 0) && !options.remote) {
    std::fprintf(stderr, "%s: --tables and --rounds-of need --remote\n", argv[0]);
    return 2;
  }
  if (options.tables > 1 && options.rounds_of > 0) {
    std::fprintf(stderr, "%s: --tables and --rounds-of are two measurements [give one of them]\n",
                 argv[0]);
    return 2;
  }
  const Status status = options.tables > 1      ? RunTables(options)
                        : options.rounds_of > 0 ? RunRounds(options)
                        : options.remote        ? RunRemote(options)
                                                : Run(options);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
