// The backends whose ranks can be threads of one process.
#include <cohort/comm/hierarchical.h>
#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>

#include "conformance/communicator_conformance.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort::testing {
namespace {

std::vector<Status> RunLocal(int size, const CommunicatorOptions& options,
                             const std::function<Status(Communicator&)>& fn) {
  std::vector<std::vector<std::unique_ptr<Communicator>>> generations;
  CommunicatorOptions each = options;
  for (each.generation = 1; each.generation <= options.generation; ++each.generation) {
    generations.push_back(MakeLocalCommunicators(size, each));
  }
  return RunRanks(size, [&](int rank) {
    const auto make = [&](const CommunicatorOptions& o) -> Result<std::unique_ptr<Communicator>> {
      return std::move(generations[o.generation - 1][static_cast<std::size_t>(rank)]);
    };
    return RunGenerations(options, make, fn);
  });
}

// Ranks that meet in a store.
using MakeRank = std::function<Result<std::unique_ptr<Communicator>>(
    int rank, int size, KeyValueStore& store, const CommunicatorOptions& options)>;

RunGroup RunIn(const MakeRank& make_rank) {
  return [make_rank](int size, const CommunicatorOptions& options,
                     const std::function<Status(Communicator&)>& fn) {
    MemoryStore store;
    return RunRanks(size, [&](int rank) {
      const auto make = [&](const CommunicatorOptions& o) {
        return make_rank(rank, size, store, o);
      };
      return RunGenerations(options, make, fn);
    });
  };
}

// Every rank maps the others' memory, as processes do.
RunGroup RunShm() {
  return RunIn([](int rank, int size, KeyValueStore& store, const CommunicatorOptions& options) {
    return MakeShmCommunicator(rank, size, store, "job",
                               {.connect_timeout = std::chrono::seconds(20)}, options);
  });
}

const TcpOptions kTcp = {.connect_timeout = std::chrono::seconds(20)};

RunGroup RunTcp(const TcpOptions& tcp) {
  return RunIn([tcp](int rank, int size, KeyValueStore& store, const CommunicatorOptions& options) {
    return MakeTcpCommunicator(rank, size, store, "job", tcp, options);
  });
}

// Frames cut anywhere, over several connections.
RunGroup RunRails(int rails, std::int64_t stripe_bytes) {
  return RunTcp(
      {.connect_timeout = std::chrono::seconds(20), .rails = rails, .stripe_bytes = stripe_bytes});
}

std::vector<CommunicatorCase> RailsCases() {
  return {{"tcp_by_rails", RunRails(3, 100), 2, 64},
          {"tcp_by_rails", RunRails(2, 100'000), 2, 0},
          {"tcp_by_rails", RunRails(4, 29), 3, 64}};
}

// Which host a rank is on, of how many ranks.
using Layout = std::function<int(int rank, int size)>;

RunGroup RunHierarchical(const Layout& layout, const std::string& across = "auto") {
  return RunIn([layout, across](int rank, int size, KeyValueStore& store,
                                const CommunicatorOptions& options) {
    HierarchicalOptions hierarchical;
    hierarchical.tcp.connect_timeout = std::chrono::seconds(20);
    hierarchical.host = "host " + std::to_string(layout(rank, size));
    hierarchical.across = across;
    return MakeHierarchicalCommunicator(rank, size, store, "job", hierarchical, options);
  });
}

// Two consecutive ranks on each host, which keeps the canonical order; ranks dealt to two hosts in
// turn, which does not; one host of one rank beside a larger one.
std::vector<CommunicatorCase> HierarchicalCases() {
  const Layout pairs = [](int rank, int /*size*/) { return rank / 2; };
  const Layout dealt = [](int rank, int /*size*/) { return rank % 2; };
  const Layout uneven = [](int rank, int /*size*/) { return rank == 0 ? 0 : 1; };
  std::vector<CommunicatorCase> cases;
  for (const int size : {2, 4, 5, 6, 7, 8, 9}) {
    cases.push_back({"pairs", RunHierarchical(pairs), size, 64});
  }
  for (const int size : {3, 6}) {
    cases.push_back({"dealt", RunHierarchical(dealt), size, 64});
    cases.push_back({"uneven", RunHierarchical(uneven), size, 64});
  }
  cases.push_back({"pairs_halving", RunHierarchical(pairs, "halving_doubling"), 6, 64});
  cases.push_back({"pairs_ring", RunHierarchical(pairs, "ring"), 6, 64, /*deterministic=*/false});
  cases.push_back({"pairs", RunHierarchical(pairs), 4, 0});
  cases.push_back({"uneven", RunHierarchical(uneven), 3, 0});
  return cases;
}

std::vector<CommunicatorCase> Cases(const std::string& name, const RunGroup& run, int least) {
  std::vector<CommunicatorCase> cases;
  for (int size = least; size <= 9; ++size) {
    cases.push_back({name, run, size, 64});
  }
  for (const int size : {2, 3, 4}) {
    cases.push_back({name, run, size, 0});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Local, CommunicatorConformance,
                         ::testing::ValuesIn(Cases("local", RunLocal, 1)), CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Local, CommunicatorFailureConformance,
                         ::testing::ValuesIn(Cases("local", RunLocal, 2)), CommunicatorCaseName);

INSTANTIATE_TEST_SUITE_P(Shm, CommunicatorConformance,
                         ::testing::ValuesIn(Cases("shm", RunShm(), 1)), CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Shm, CommunicatorFailureConformance,
                         ::testing::ValuesIn(Cases("shm", RunShm(), 2)), CommunicatorCaseName);

INSTANTIATE_TEST_SUITE_P(Tcp, CommunicatorConformance,
                         ::testing::ValuesIn(Cases("tcp", RunTcp(kTcp), 1)), CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Tcp, CommunicatorFailureConformance,
                         ::testing::ValuesIn(Cases("tcp", RunTcp(kTcp), 2)), CommunicatorCaseName);

INSTANTIATE_TEST_SUITE_P(Rails, CommunicatorConformance, ::testing::ValuesIn(RailsCases()),
                         CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Rails, CommunicatorFailureConformance, ::testing::ValuesIn(RailsCases()),
                         CommunicatorCaseName);

INSTANTIATE_TEST_SUITE_P(Hierarchical, CommunicatorConformance,
                         ::testing::ValuesIn(HierarchicalCases()), CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Hierarchical, CommunicatorFailureConformance,
                         ::testing::ValuesIn(HierarchicalCases()), CommunicatorCaseName);

}  // namespace
}  // namespace cohort::testing
