// A server whose memory ends in the middle of a push, at every allocation in turn: a snapshot is
// what it was, and the push has its effect once, when it comes again.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <future>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_store.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/variables/parameter_store.h"
#include "store_state.h"
#include "testing/failing_new.h"

namespace {

// Of at least `large` bytes, until one fails; below 0: none does.
thread_local std::ptrdiff_t allocations_left = -1;
thread_local std::size_t large = 0;

}  // namespace

bool cohort::testing::AllocationFails(std::size_t bytes) {
  return allocations_left >= 0 && bytes >= large && allocations_left-- == 0;
}

namespace cohort::ps {
namespace {

// In this thread, the allocation after the first `count` fails.
class FailAfter {
 public:
  FailAfter(std::ptrdiff_t count, std::size_t of_bytes) {
    large = of_bytes;
    allocations_left = count;
  }
  ~FailAfter() { allocations_left = -1; }
  static bool failed() { return allocations_left < 0; }
};

constexpr std::int64_t kElements = 4096;
constexpr std::size_t kLarge = 4096;  // bytes: what grows with the model

// Of two variables, of which the second push of client 2 comes when there is a snapshot.
class Server {
 public:
  explicit Server(bool rounds) : rounds_(rounds) {
    spec_ = {.parameters = {{"a", {kElements}, true, 0}, {"b", {kElements}, true, kElements}},
             .optimizer = Adam()->config(),
             .consistency = OrThrow(Consistency::Parse(rounds ? "sync" : "async")),
             .servers = 1};
    OrThrow(store_.Declare(spec_, "chief:0"));
    EXPECT_EQ(store_.Assign(Header(1), Payload()).kind(), Error::NONE);
    EXPECT_EQ(Push(1, 1).kind(), Error::NONE);
    EXPECT_EQ(Push(2, 1).kind(), Error::NONE);
    before_ = Now(0);
    OrThrow(store_.Freeze(spec_.Fingerprint(), 1));
    if (rounds) {
      EXPECT_EQ(Push(1, 2).kind(), Error::NONE);
    }
  }

  Error Push(std::uint64_t client, std::uint64_t sequence) {
    FrameHeader header = Header(client);
    header.set_sequence(sequence);
    header.set_weight(1);
    if (rounds_) {
      header.mutable_round()->set_round(sequence);
      header.mutable_round()->set_part(static_cast<std::uint32_t>(client - 1));
      header.mutable_round()->set_parts(2);
    }
    ParameterStore::Pushed pushed;
    return store_.Push(header, Payload(), &pushed);
  }
  StoreState Now(std::uint64_t snapshot) { return StateOf(store_, Header(0), snapshot); }
  const StoreState& before() const { return before_; }
  ParameterStore& store() { return store_; }

 private:
  FrameHeader Header(std::uint64_t client) const {
    FrameHeader header;
    header.set_client(client);
    header.set_layout(spec_.Fingerprint());
    for (const std::uint32_t chunk : {0U, 1U}) {
      header.add_chunks(chunk);
      header.add_versions(0);
    }
    return header;
  }
  PayloadReader Payload() const {
    return PayloadReader(Segments{std::as_bytes(std::span(values_))});
  }

  const bool rounds_;
  ModelSpec spec_;
  ParameterStore store_{0};
  StoreState before_;
  const std::vector<float> values_ = std::vector<float>(2 * kElements, 1);
};

// What hangs is an error, and nothing that this process could end.
template <typename Fn>
void InTime(const char* what, const Fn& fn) {
  auto done = std::async(std::launch::async, fn);
  if (done.wait_for(std::chrono::seconds(30)) != std::future_status::ready) {
    ADD_FAILURE() << what << " hangs";
    std::_Exit(1);
  }
  done.get();
}

// Rows that it got to have their update, and never a second one: of one table, and of two in one
// frame.
class PushOfRowsOutOfMemory : public ::testing::TestWithParam<std::size_t> {};

TEST_P(PushOfRowsOutOfMemory, ThatEndsHalfwayIsNotAppliedAgain) {
  constexpr std::uint32_t kIds = 1000;
  constexpr std::size_t kDim = 16;
  const std::size_t blocks = GetParam();
  std::vector<TableSpec> tables;
  for (std::size_t t = 0; t < blocks; ++t) {
    TableSpec& items = tables.emplace_back();
    items.name = "items" + std::to_string(t);
    items.dim = kDim;
    items.buckets = 1;
    items.optimizer = Sgd({.learning_rate = 1})->config();
  }
  std::vector<std::uint64_t> ids(kIds);
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<std::uint32_t> counts(kIds, 1);
  const std::vector<float> gradients(kIds * kDim, 1);
  FrameHeader header;
  header.set_client(1);
  header.set_layout(1);
  header.set_sequence(1);
  header.set_weight(1);
  Segments payload;
  Segments payload_of_pull;
  for (std::size_t t = 0; t < blocks; ++t) {
    RowBlock& block = t == 0 ? *header.mutable_rows() : *header.add_more_rows();
    block.set_table(static_cast<std::uint32_t>(t));
    block.set_count(kIds);
    block.set_dim(kDim);
    block.set_step(1);
    for (const auto& bytes : {std::as_bytes(std::span(ids)), std::as_bytes(std::span(counts)),
                              std::as_bytes(std::span(gradients))}) {
      payload.push_back(bytes);
    }
    payload_of_pull.push_back(std::as_bytes(std::span(ids)));
  }
  const auto floats = static_cast<std::ptrdiff_t>(blocks * kIds * kDim);
  int halfway = 0;
  int between = 0;  // one table's rows have it, and none of the other's
  for (std::ptrdiff_t count = 0;; ++count) {
    ASSERT_LT(count, 10'000);
    RowStore store(0);
    OrThrow(store.Declare(tables, 1, 1));
    const auto push = [&] {
      RowStore::Moved moved;
      return store.Push(header, PayloadReader(payload), &moved);
    };
    Error first;
    bool failed = false;
    try {
      const FailAfter fail(count, /*of_bytes=*/512);  // an index of rows that grows
      first = push();
      failed = FailAfter::failed();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    const Error again = push();
    RowStore::Reading reading;
    std::vector<float> rows(static_cast<std::size_t>(floats));
    RowStore::Moved moved;
    ASSERT_EQ(store.Plan(header, PayloadReader(payload_of_pull), &reading).kind(), Error::NONE);
    ASSERT_EQ(store.Pull(reading, rows, &moved).kind(), Error::NONE);
    const auto updated = std::ranges::count(rows, -1.0F);
    EXPECT_EQ(updated + std::ranges::count(rows, 0.0F), floats) << count;
    if (again.kind() == Error::NONE) {
      EXPECT_EQ(updated, floats) << count;
    } else {
      EXPECT_EQ(again.message(), first.message()) << count;
      halfway += updated > 0 ? 1 : 0;
      between += 2 * updated == floats ? 1 : 0;
    }
    if (!failed) {
      break;
    }
  }
  EXPECT_GT(halfway, 0);
  EXPECT_GE(between, blocks == 2 ? 1 : 0);
}

INSTANTIATE_TEST_SUITE_P(Tables, PushOfRowsOutOfMemory, ::testing::Values(1U, 2U));

// A round of two tables, at every allocation in turn: where memory ends before a row has changed,
// the round is applied when it is asked for again; where it ends later, no row gets a second
// update, and every answer from then on is the same error.
TEST(OutOfMemory, ARoundOfRowsIsAppliedOnceAndToAllTablesOrSaysWhyNot) {
  constexpr std::uint32_t kIds = 300;
  constexpr std::size_t kDim = 16;
  TableSpec items;
  items.name = "items";
  items.dim = kDim;
  items.buckets = 1;
  items.time_to_live = 1000;
  items.optimizer = Sgd({.learning_rate = 1})->config();
  TableSpec words = items;
  words.name = "words";
  std::vector<std::uint64_t> ids(kIds);
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<std::uint32_t> counts(kIds, 1);
  const std::vector<float> gradients(kIds * kDim, 1);
  const auto block = [](std::uint32_t table, RowBlock* rows) {
    rows->set_table(table);
    rows->set_count(kIds);
    rows->set_dim(kDim);
    rows->set_step(1);
  };
  int again_applied = 0;
  int never = 0;
  bool failed = true;
  for (std::ptrdiff_t count = 0; failed; ++count) {
    ASSERT_LT(count, 10'000);
    RowStore store(0);
    OrThrow(store.Declare({items, words}, 1, 1));
    const auto push = [&](std::uint64_t client) {
      FrameHeader header;
      header.set_client(client);
      header.set_layout(1);
      header.set_sequence(1);
      header.set_weight(1);
      header.set_advance(true);
      header.mutable_round()->set_round(1);
      header.mutable_round()->set_part(static_cast<std::uint32_t>(client - 1));
      header.mutable_round()->set_parts(2);
      block(0, header.mutable_rows());
      block(1, header.add_more_rows());
      Segments segments;
      for (int table = 0; table < 2; ++table) {
        segments.push_back(std::as_bytes(std::span(ids)));
        segments.push_back(std::as_bytes(std::span(counts)));
        segments.push_back(std::as_bytes(std::span(gradients)));
      }
      RowStore::Moved moved;
      return store.Push(header, PayloadReader(std::move(segments)), &moved);
    };
    const auto wait = [&] { return store.rounds().WaitApplied(1, DeadlineAfter({})); };
    EXPECT_EQ(push(1).kind(), Error::NONE);
    bool threw = false;
    Status first;
    {
      const FailAfter fail(count, /*of_bytes=*/512);
      try {
        EXPECT_EQ(push(2).kind(), Error::NONE);
        first = wait().status();
      } catch (const std::bad_alloc&) {
        threw = true;
      }
      failed = FailAfter::failed();
    }
    Status second;
    InTime("the round that is asked for again", [&] {
      EXPECT_EQ(push(2).kind(), Error::NONE);
      const Result<bool> applied = wait();
      second = applied.status();
      EXPECT_TRUE(!applied.ok() || *applied);
    });
    for (std::uint32_t t = 0; t < 2; ++t) {
      FrameHeader header;
      header.set_layout(1);
      block(t, header.mutable_rows());
      RowStore::Reading reading;
      std::vector<float> rows(kIds * kDim);
      RowStore::Moved moved;
      ASSERT_EQ(store.Plan(header, PayloadReader(Segments{std::as_bytes(std::span(ids))}), &reading)
                    .kind(),
                Error::NONE);
      ASSERT_EQ(store.Pull(reading, rows, &moved).kind(), Error::NONE);
      const auto once = std::ranges::count(rows, -1.0F);  // (1 + 1) / 2
      EXPECT_EQ(once + std::ranges::count(rows, 0.0F), kIds * kDim) << "allocation " << count;
      if (second.ok()) {
        EXPECT_EQ(once, kIds * kDim) << "allocation " << count << ", table " << t;
      }
    }
    if (!second.ok()) {
      EXPECT_EQ(second.code(), StatusCode::kResourceExhausted);
      EXPECT_FALSE(threw) << "nothing had changed";
      EXPECT_EQ(first.message(), second.message());
      ++never;
    } else if (threw) {
      ++again_applied;
    }
  }
  EXPECT_GE(again_applied, 8) << "copies of two tables' frames, and sums";
  EXPECT_GT(never, 0);
}

TEST(OutOfMemory, APushThatFindsNoneHasItsEffectWhenItComesAgain) {
  for (const bool rounds : {false, true}) {
    Server whole(rounds);
    EXPECT_EQ(whole.Push(2, 2).kind(), Error::NONE);
    bool failed = true;
    int failures = -1;
    for (std::ptrdiff_t k = 0; failed; ++k, ++failures) {
      Server server(rounds);
      {
        const FailAfter fail(k, kLarge);
        try {
          EXPECT_EQ(server.Push(2, 2).kind(), Error::NONE);
        } catch (const std::bad_alloc&) {
        }
        failed = FailAfter::failed();
      }
      EXPECT_EQ(server.Now(1), server.before()) << "allocation " << k;
      InTime("the push that comes again", [&] {
        EXPECT_EQ(server.Push(2, 2).kind(), Error::NONE);
        EXPECT_TRUE(server.store().Retire(2, DeadlineAfter(std::chrono::seconds(1))));
      });
      EXPECT_EQ(server.Now(0), whole.Now(0)) << "allocation " << k;
      EXPECT_EQ(server.Now(1), server.before()) << "allocation " << k;
    }
    EXPECT_GE(failures, rounds ? 6 : 4) << "copies of two chunks, with slots; parts";
  }
}

TEST(OutOfMemory, ASnapshotOfATableIsWholeWhateverAPushFinds) {
  TableSpec spec;
  spec.name = "items";
  spec.dim = 4;
  spec.optimizer = Adagrad()->config();
  spec.buckets = 4;
  std::vector<std::uint64_t> ids(200);
  std::iota(ids.begin(), ids.end(), std::uint64_t{1});
  const std::vector<float> values(ids.size() * 4, 1);
  bool failed = true;
  int failures = -1;
  for (std::ptrdiff_t k = 0; failed; ++k, ++failures) {
    const auto table = OrThrow(RowTable::Create(spec, {0, 4}));
    // Half of the ids have rows.
    OrThrow(table->Apply(
        {.ids = std::span(ids).first(100), .values = std::span(values).first(400), .step = 1}));
    std::vector<std::string> before;
    for (std::uint32_t b = 0; b < 4; ++b) {
      before.push_back(table->DumpBucket(b));
    }
    table->Freeze();
    {
      const FailAfter fail(k, 0);
      try {
        const Status status = table->Apply({.ids = ids, .values = values, .step = 2});
        EXPECT_EQ(status.ok(), !FailAfter::failed()) << status.ToString();
      } catch (const std::bad_alloc&) {  // before it has begun
      }
      failed = FailAfter::failed();
    }
    OrThrow(table->Apply({.ids = ids, .values = values, .step = 3}));
    for (std::uint32_t b = 0; b < 4; ++b) {
      EXPECT_EQ(OrThrow(table->DumpFrozen(b)), before[b]) << "allocation " << k;
    }
  }
  EXPECT_GE(failures, 12) << "three or more for each bucket";
}

}  // namespace
}  // namespace cohort::ps
