// Where gradients lie while they travel: in memory of the communicator, so that nothing is staged.
// Processes are threads here, which share memory as processes do.
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <cohort/comm/hierarchical.h>
#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/memory_store.h"
#include "testing/passing_communicator.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using testing::ExpectAllOk;
using ::testing::HasSubstr;
using testing::RunRanks;

constexpr int kProcesses = 2;

// Memory that was lent and has not been given back.
struct Lent {
  std::mutex mutex;
  std::vector<std::span<std::byte>> pieces;

  bool Holds(const void* data, std::size_t bytes) {
    const auto* const first = static_cast<const std::byte*>(data);
    const std::lock_guard lock(mutex);
    return std::ranges::any_of(pieces, [&](std::span<std::byte> piece) {
      return first >= piece.data() && first + bytes <= piece.data() + piece.size();
    });
  }
};

class LentMemory final : public Memory {
 public:
  LentMemory(std::unique_ptr<Memory> inner, Lent& lent) : inner_(std::move(inner)), lent_(lent) {
    const std::lock_guard lock(lent_.mutex);
    lent_.pieces.push_back(inner_->bytes());
  }
  ~LentMemory() override {
    const std::lock_guard lock(lent_.mutex);
    std::erase_if(lent_.pieces, [this](std::span<std::byte> piece) {
      return piece.data() == inner_->bytes().data();
    });
  }
  std::span<std::byte> bytes() const override { return inner_->bytes(); }

 private:
  const std::unique_ptr<Memory> inner_;
  Lent& lent_;
};

// What a communicator saw of gradients' all-reduces.
struct Seen {
  Lent lent;
  int gradients = 0;
  std::int64_t elements = 0;
  std::vector<std::string> elsewhere;  // names of those that were not in lent memory
  std::vector<const void*> places;
};

class Lender final : public testing::PassingCommunicator {
 public:
  Lender(std::unique_ptr<Communicator> inner, Seen& seen)
      : PassingCommunicator(std::move(inner)), seen_(seen) {}

  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) override {
    COHORT_ASSIGN_OR_RETURN(auto memory, inner().Allocate(bytes));
    return std::make_unique<LentMemory>(std::move(memory), seen_.lent);
  }
  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    if (options.name.starts_with("gradients, bucket")) {
      ++seen_.gradients;
      seen_.elements += output.count;
      seen_.places.push_back(output.data);
      if (!seen_.lent.Holds(input.data, input.bytes()) ||
          !seen_.lent.Holds(output.data, output.bytes())) {
        seen_.elsewhere.push_back(options.name);
      }
    }
    return inner().AllReduce(input, output, op, options);
  }

 private:
  Seen& seen_;
};

// What is mapped there, as the kernel calls it.
std::string MappingOf(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    char dash = 0;
    words >> std::hex >> begin >> dash >> end;
    if (begin <= at && at < end) {
      return line;
    }
  }
  return "nothing";
}

constexpr std::int64_t kElements[] = {3000, 20, 70'000, 1};

Result<ReplicaResult> FillAll(ReplicaContext& context, const data::Batch& /*batch*/) {
  for (int p = 0; p < context.parameters.size(); ++p) {
    std::ranges::fill(context.gradients.Accumulator(p), context.gradients.loss_seed());
    context.gradients.Ready(p);
  }
  return ReplicaResult{.weight = 1};
}

using Connect = std::function<Result<std::unique_ptr<Communicator>>(int process)>;

// As many processes as there is to be `seen` of. Three steps, of which the second has two parts.
// `look`: while the strategy lives.
void Train(const StrategyOptions& options, const Connect& connect, std::vector<Seen>& seen,
           const std::function<void(const Seen&)>& look = {}) {
  ExpectAllOk(RunRanks(static_cast<int>(seen.size()), [&](int process) -> Status {
    Seen& mine = seen[static_cast<std::size_t>(process)];
    COHORT_ASSIGN_OR_RETURN(auto inner, connect(process));
    SynchronousParts parts;
    parts.communicator = std::make_unique<Lender>(std::move(inner), mine);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    ParameterSet parameters;
    for (const std::int64_t elements : kElements) {
      parameters.Add("p" + std::to_string(elements), {elements}, nullptr);
    }
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
    DistributedBatch batch;
    batch.replicas.assign(static_cast<std::size_t>(strategy->num_local_replicas()),
                          {.size = 1, .features = {}});
    for (int step = 0; step < 3; ++step) {
      if (step == 1 && options.virtual_shards == 0) {
        COHORT_RETURN_IF_ERROR(strategy->Accumulate(batch, FillAll).status());
      }
      COHORT_RETURN_IF_ERROR(strategy->Step(batch, FillAll).status());
    }
    EXPECT_EQ(parameters.value(2)[69'999], -1.5F);
    if (look) {
      look(mine);
    }
    return strategy->Shutdown();
  }));
}

void ExpectAllWereLent(const std::vector<Seen>& seen, int least) {
  for (const Seen& of_process : seen) {
    EXPECT_THAT(of_process.elsewhere, ::testing::IsEmpty());
    EXPECT_GE(of_process.gradients, least);
    EXPECT_GE(of_process.elements, 3 * (3000 + 20 + 70'000 + 1));
    EXPECT_TRUE(of_process.lent.pieces.empty());  // all was given back
  }
}

TEST(GradientMemory, IsTheCommunicatorsWhateverTheBucketsAndReplicas) {
  for (const int devices : {1, 2}) {
    for (const int shards : {0, 4}) {
      for (const std::int64_t bucket_bytes : {std::int64_t{1}, std::int64_t{1} << 20}) {
        SCOPED_TRACE(::testing::Message() << devices << " device(s), " << shards << " shards, "
                                          << bucket_bytes << " bytes");
        StrategyOptions options;
        options.num_devices = devices;
        options.virtual_shards = shards;
        options.first_bucket_bytes = bucket_bytes;
        options.communication.bytes_per_pack = bucket_bytes;
        auto communicators = MakeLocalCommunicators(kProcesses);
        std::vector<Seen> seen(kProcesses);
        Train(
            options,
            [&](int process) -> Result<std::unique_ptr<Communicator>> {
              return std::move(communicators[static_cast<std::size_t>(process)]);
            },
            seen);
        ExpectAllWereLent(seen, bucket_bytes == 1 ? 3 * 4 : 3);
      }
    }
  }
}

// Segments that the peers map, by the kernel's word; also where all gradients are one bucket that
// is launched behind the pass.
TEST(GradientMemory, OfProcessesOfOneHostIsShared) {
  for (const char* const implementation : {"shared", "one_bucket"}) {
    SCOPED_TRACE(implementation);
    StrategyOptions options;
    options.communication.implementation = implementation;
    testing::MemoryStore store;
    std::vector<Seen> seen(kProcesses);
    Train(
        options,
        [&](int process) { return MakeShmCommunicator(process, kProcesses, store, "job"); }, seen,
        [](const Seen& mine) {
          for (const void* const place : mine.places) {
            EXPECT_THAT(MappingOf(place), HasSubstr("memfd:cohort"));
          }
        });
    ExpectAllWereLent(seen, 3);
  }
}

// Two on each of two hosts, which reach the memory of their own host's.
TEST(GradientMemory, OfProcessesOfSeveralHostsIsSharedInsideEach) {
  const std::string hosts = "aabb";
  testing::MemoryStore store;
  std::vector<Seen> seen(hosts.size());
  Train(
      {},
      [&](int process) {
        HierarchicalOptions hierarchical;
        hierarchical.host = hosts.substr(static_cast<std::size_t>(process), 1);
        return MakeHierarchicalCommunicator(process, static_cast<int>(hosts.size()), store, "job",
                                            hierarchical);
      },
      seen,
      [](const Seen& mine) {
        for (const void* const place : mine.places) {
          EXPECT_THAT(MappingOf(place), HasSubstr("memfd:cohort"));
        }
      });
  ExpectAllWereLent(seen, 3);
}

}  // namespace
}  // namespace cohort
