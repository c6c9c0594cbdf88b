// Servers and trainers of the data service in one process, over real connections.

#include <cohort/data_service/data_service.h>

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <numeric>
#include <thread>

#include <cohort/core/clock.h>
#include <cohort/data/combine.h>
#include <cohort/data/memory.h>

namespace cohort::data {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::Not;

constexpr std::int64_t kExamples = 103;
constexpr auto kSoon = 30s;  // for what must happen, and takes milliseconds

// Example i is {"i": i}.
Dataset Numbers(std::int64_t size = kExamples) {
  Tensor i(DType::kInt64, {size});
  std::iota(i.data<std::int64_t>().begin(), i.data<std::int64_t>().end(), 0);
  return OrThrow(FromTensors({{"i", i}}));
}

std::int64_t NumberOf(const Example& example) { return example.at("i").data<std::int64_t>()[0]; }

// With a vector, and a list of i % 4 values.
Dataset Features() {
  return Numbers().Lists({"list"}).Map([](Example& example) {
    const std::int64_t i = NumberOf(example);
    example["x"] = Tensor(DType::kFloat32, {3});
    example.at("x").data<float>()[1] = static_cast<float>(i) / 2;
    example["list"] = Tensor(DType::kInt32, {i % 4});
    for (std::int32_t& value : example.at("list").data<std::int32_t>()) {
      value = static_cast<std::int32_t>(i);
    }
    return OkStatus();
  });
}

std::unique_ptr<DataServer> Start(const Dataset& dataset, ServeOptions options = {},
                                  const std::string& version = "") {
  options.listen = "127.0.0.1:0";
  options.threads = options.threads == 0 ? 2 : options.threads;
  options.heartbeat_interval = 20ms;
  return OrThrow(Serve({{"p", dataset, version}}, options));
}
std::string AddressOf(const DataServer& server) {
  return "127.0.0.1:" + std::to_string(server.port());
}

std::string Bytes(const Batch& batch) {
  std::string bytes = std::to_string(batch.size);
  const auto add = [&](const std::string& name, const Tensor& tensor) {
    bytes += "|" + name + std::string(DTypeName(tensor.dtype())) + tensor.shape().ToString();
    bytes.append(reinterpret_cast<const char*>(tensor.raw()), tensor.bytes());
  };
  for (const auto& [name, tensor] : batch.features) {
    add(name, tensor);
  }
  for (const auto& [name, lists] : batch.ragged) {
    add(name, lists.values);
    add(name, lists.splits);
  }
  return bytes;
}

std::vector<std::string> Batches(const Dataset& dataset, const IterateOptions& options = {}) {
  const auto batches = OrThrow(dataset.Iterate(options));
  std::vector<std::string> all;
  while (const auto batch = OrThrow(batches->Next())) {
    all.push_back(Bytes(*batch));
  }
  return all;
}

// Appends the numbers of up to `most` batches; false at the end of the epoch.
bool Collect(BatchIterator& batches, std::vector<std::int64_t>& numbers, int most = 1 << 20) {
  for (int b = 0; b < most; ++b) {
    const auto batch = OrThrow(batches.Next());
    if (!batch.has_value()) {
      return false;
    }
    const auto i = (*batch)["i"].data<std::int64_t>();
    numbers.insert(numbers.end(), i.begin(), i.end());
  }
  return true;
}

std::vector<std::int64_t> Sorted(std::vector<std::int64_t> numbers) {
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}
std::vector<std::int64_t> Everything(std::int64_t size = kExamples) {
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(size));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

// What a log says, to be waited for.
class Heard {
 public:
  Log log() {
    return Log([this](LogLevel, std::string_view message) {
      const std::lock_guard lock(mutex_);
      text_ += std::string(message) + "\n";
      changed_.notify_all();
    });
  }
  bool Wait(const std::string& what) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kSoon, [&] { return text_.find(what) != std::string::npos; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
};

// A map that stands still until it is let go, but for the first example, which is read when a
// pipeline is made. An Opener behind the servers lets it go when a test is left early.
class Gate {
 public:
  class Opener {
   public:
    explicit Opener(Gate& gate) : gate_(gate) {}
    ~Opener() { gate_.Open(); }
    Opener(const Opener&) = delete;
    Opener& operator=(const Opener&) = delete;

   private:
    Gate& gate_;
  };
  void Open() {
    {
      const std::lock_guard lock(mutex_);
      open_ = true;
    }
    changed_.notify_all();
  }
  std::function<Status(Example&)> Map() {
    return [this](Example& example) {
      if (NumberOf(example) == 0) {
        return OkStatus();
      }
      std::unique_lock lock(mutex_);
      ++arrived_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return open_; });
      return OkStatus();
    };
  }
  bool WaitForArrival(Duration timeout = kSoon) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [this] { return arrived_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int arrived_ = 0;
};

TEST(DataService, GivesTheBatchesThatTheDataSetItselfGives) {
  const Dataset local = Features();
  const auto dispatcher = Start(local);
  const auto worker = Start(local, {.dispatcher = AddressOf(*dispatcher)});
  const Dataset remote = OrThrow(FromService(AddressOf(*dispatcher), "p", {.piece_bytes = 100}));
  const auto finish = [](const Dataset& data) {
    return data.Shuffle(3).Skip(2).Batch(10).Pad("list", {.value = -1}).Prefetch(3, 2);
  };
  for (const std::int64_t epoch : {0, 1}) {
    EXPECT_EQ(Batches(remote.Shuffle(3).Batch(10), {.epoch = epoch}),
              Batches(local.Shuffle(3).Batch(10), {.epoch = epoch}));
    for (int w = 0; w < 3; ++w) {
      const IterateOptions options{.num_workers = 3, .worker = w, .epoch = epoch};
      EXPECT_EQ(Batches(finish(remote), options), Batches(finish(local), options));
    }
  }
  EXPECT_EQ(Batches(remote.Batch(1), {.begin = 5, .end = 7}),
            Batches(local.Batch(1), {.begin = 5, .end = 7}));
}

TEST(DataService, APipelineMayHaveAnOrderOfItsOwnInEachEpoch) {
  const Dataset local = Features().Shuffle(5).Take(50);
  const auto server = Start(local);
  const Dataset remote = OrThrow(FromService(AddressOf(*server), "p"));
  EXPECT_EQ(remote.size(), 50);
  for (const std::int64_t epoch : {0, 1, 2, 3, 4, 5, 6, 1}) {
    EXPECT_EQ(Batches(remote.Batch(7), {.epoch = epoch}),
              Batches(local.Batch(7), {.epoch = epoch}));
  }
  EXPECT_NE(Batches(remote.Batch(7), {.epoch = 0}), Batches(remote.Batch(7), {.epoch = 1}));
}

TEST(DataService, AllInputWorkersShareTheWork) {
  const auto dispatcher = Start(Numbers());
  const auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const Dataset remote = OrThrow(FromService(AddressOf(*dispatcher), "p", {.piece_bytes = 8}));
  EXPECT_EQ(Batches(remote.Batch(kExamples)).size(), 1U);
  EXPECT_GT(dispatcher->stats().examples, 0);
  EXPECT_GT(worker->stats().examples, 0);
  EXPECT_EQ(dispatcher->stats().examples + worker->stats().examples, kExamples);
  EXPECT_EQ(dispatcher->stats().bytes + worker->stats().bytes, kExamples * 8);
}

TEST(DataService, WorkersThatHaveNothingToDoTakeTurns) {
  const auto dispatcher = Start(Numbers());
  const auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const Dataset remote = OrThrow(FromService(AddressOf(*dispatcher), "p"));
  EXPECT_EQ(Batches(remote.Take(20).Batch(1)).size(), 20U);  // one call each, one after another
  EXPECT_EQ(dispatcher->stats().reads, 10);
  EXPECT_EQ(worker->stats().reads, 10);
}

TEST(DataService, ABatchOfFewBytesIsDividedAmongAllThreads) {
  const auto dispatcher = Start(Numbers());
  const auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher), .threads = 3});
  const Dataset remote = OrThrow(FromService(AddressOf(*dispatcher), "p"));
  EXPECT_EQ(Batches(remote.Take(40).Batch(40)).size(), 1U);
  EXPECT_EQ(dispatcher->stats().reads + worker->stats().reads, 5);
}

TEST(DataService, APieceThatTakesTooLongIsHalved) {
  const auto server = Start(Numbers(40).Map([](Example& example) {
    std::this_thread::sleep_for(NumberOf(example) == 0 ? 0ms : 10ms);
    return OkStatus();
  }),
                            {.threads = 1});
  const Dataset remote =
      OrThrow(FromService(AddressOf(*server), "p", {.timeout = kSoon, .read_timeout = 150ms}));
  std::vector<std::int64_t> numbers;
  EXPECT_FALSE(Collect(*OrThrow(remote.Batch(40).Iterate()), numbers));
  EXPECT_EQ(numbers, Everything(40));
}

TEST(DataService, PiecesOfListsAreSmallUntilTheirSizeIsKnown) {
  const auto server = Start(Features(), {.threads = 1});
  const Dataset remote = OrThrow(FromService(AddressOf(*server), "p", {.piece_bytes = 800}));
  const auto batches = OrThrow(remote.Batch(32).Iterate());
  EXPECT_TRUE(OrThrow(batches->Next()).has_value());
  EXPECT_EQ(server->stats().reads, 6) << "20 bytes and a list of 100 are reckoned with";
  EXPECT_TRUE(OrThrow(batches->Next()).has_value());
  EXPECT_EQ(server->stats().reads, 6 + 2);
}

TEST(DataService, EveryExampleReachesATrainerOnceWhenAnInputWorkerEnds) {
  auto dispatcher = Start(Numbers());
  auto doomed = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const auto other = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const Dataset remote =
      OrThrow(FromService(AddressOf(*dispatcher), "p", {.piece_bytes = 8})).Shuffle(1).Batch(6);
  std::vector<std::unique_ptr<BatchIterator>> trainers;
  for (int w = 0; w < 2; ++w) {
    trainers.push_back(OrThrow(remote.Prefetch(4, 2).Iterate({.num_workers = 2, .worker = w})));
  }
  std::vector<std::int64_t> numbers;
  EXPECT_TRUE(Collect(*trainers[0], numbers, 3));
  EXPECT_TRUE(Collect(*trainers[1], numbers, 5));
  doomed.reset();
  EXPECT_TRUE(Collect(*trainers[0], numbers, 5));
  dispatcher.reset();  // it may go, too: those that are known are enough
  for (const auto& trainer : trainers) {
    EXPECT_FALSE(Collect(*trainer, numbers));
  }
  EXPECT_EQ(Sorted(numbers), Everything());
}

TEST(DataService, AWorkerThatFallsSilentIsPassedOver) {
  Gate gate;
  const auto open = [](Example&) { return OkStatus(); };
  const auto dispatcher = Start(Numbers(30).Map(open));
  const auto silent =
      Start(Numbers(30).Map(gate.Map()), {.dispatcher = AddressOf(*dispatcher), .threads = 1});
  const Gate::Opener opener(gate);
  const Dataset remote =
      OrThrow(FromService(AddressOf(*dispatcher), "p", {.read_timeout = 100ms, .piece_bytes = 8}));
  const Deadline deadline = DeadlineAfter(kSoon);
  bool silence = false;
  do {
    std::vector<std::int64_t> numbers;
    EXPECT_FALSE(Collect(*OrThrow(remote.Batch(10).Prefetch(4, 2).Iterate()), numbers));
    ASSERT_EQ(numbers, Everything(30));
    silence = gate.WaitForArrival(0ms);
  } while (!silence && std::chrono::steady_clock::now() < deadline);
  EXPECT_TRUE(silence);
}

TEST(DataService, AWorkerOnTheDispatchersHostIsFoundThere) {
  const auto dispatcher = OrThrow(Serve({}, {.listen = "127.0.0.1:0"}));
  const auto fails = [](Example& example) {
    return NumberOf(example) == 0 ? OkStatus() : DataLoss("bad bytes");
  };
  const auto worker = OrThrow(Serve({{"p", Numbers().Map(fails)}},
                                    {.listen = "0.0.0.0:0", .dispatcher = AddressOf(*dispatcher)}));
  const std::string host = "localhost:";  // another name than the worker joined by
  const Dataset remote =
      OrThrow(FromService(host + std::to_string(dispatcher->port()), "p", {.timeout = kSoon}));
  EXPECT_THAT(OrThrow(remote.Batch(10).Iterate())->Next().status().message(),
              HasSubstr("input worker " + host + std::to_string(worker->port()) + ":"));
}

TEST(DataService, ALogMayAskTheServer) {
  std::promise<DataServer*> known;
  const std::shared_future<DataServer*> server = known.get_future().share();
  std::atomic<int> lines{0};
  const auto dispatcher =
      OrThrow(Serve({}, {.listen = "127.0.0.1:0", .log = Log([&](LogLevel, std::string_view) {
                                                    lines +=
                                                        server.get()->stats().reads == 0 ? 1 : 100;
                                                  })}));
  known.set_value(dispatcher.get());
  Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});  // comes, and leaves if it is heard
  EXPECT_THAT(lines.load(), AllOf(Ge(1), Le(2)));
}

TEST(DataService, AWorkerThatComesLaterIsUsed) {
  const auto dispatcher = Start(Numbers());
  const Dataset remote =
      OrThrow(FromService(AddressOf(*dispatcher), "p", {.refresh_interval = 5ms, .piece_bytes = 8}))
          .Batch(kExamples);
  EXPECT_EQ(Batches(remote).size(), 1U);
  const auto late = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const Deadline deadline = DeadlineAfter(kSoon);
  while (late->stats().reads == 0 && std::chrono::steady_clock::now() < deadline) {
    EXPECT_EQ(Batches(remote).size(), 1U);
  }
  EXPECT_GT(late->stats().reads, 0);
}

TEST(DataService, ATrainerWaitsForThePipelineAndSaysSo) {
  const auto dispatcher = OrThrow(Serve({}, {.listen = "127.0.0.1:0"}));
  Heard heard;
  auto remote = std::async(std::launch::async, [&] {
    return FromService(AddressOf(*dispatcher), "p",
                       {.timeout = kSoon, .roll_call_interval = 1ms, .log = heard.log()});
  });
  ASSERT_TRUE(heard.Wait("waiting for pipeline 'p' of the data service at " +
                         AddressOf(*dispatcher) + ": no input worker serves pipeline 'p'"));
  const auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  EXPECT_EQ(Batches(OrThrow(remote.get()).Batch(100)).size(), 2U);
}

TEST(DataService, APositionGoesOnWithOtherWorkersAndRefusesOtherData) {
  const auto half = [](std::int64_t first_batch, const Dataset& data, const IterateOptions& from) {
    std::vector<std::int64_t> numbers;
    const auto batches = OrThrow(data.Iterate(from));
    Collect(*batches, numbers, static_cast<int>(first_batch));
    return numbers;
  };
  DataPosition position;
  std::vector<std::int64_t> numbers;
  {
    const auto server = Start(Numbers());
    const Dataset remote =
        OrThrow(FromService(AddressOf(*server), "p")).Shuffle(9).Batch(10).Prefetch(2);
    numbers = half(4, remote, {.epoch = 2});
    position = remote.PositionAt({.epoch = 2}, 4);
  }
  const auto dispatcher = Start(Numbers());
  const auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const Dataset remote = OrThrow(FromService(AddressOf(*dispatcher), "p"));
  const Dataset bigger = remote.Shuffle(9).Batch(16);
  for (int w = 0; w < 2; ++w) {
    const auto rest =
        half(100, bigger, OrThrow(bigger.ResumeAt(position, {.num_workers = 2, .worker = w})));
    numbers.insert(numbers.end(), rest.begin(), rest.end());
  }
  EXPECT_EQ(Sorted(numbers), Everything());
  const auto changed = Start(Numbers(), {}, "another map");
  const Dataset other = OrThrow(FromService(AddressOf(*changed), "p")).Shuffle(9).Batch(10);
  EXPECT_EQ(other.ResumeAt(position).status().code(), StatusCode::kFailedPrecondition);
}

TEST(DataService, TheFirstFeatureThatDiffersIsNamed) {
  const auto server = Start(Features());
  const std::string address = AddressOf(*server);
  FromServiceOptions options{.features = {{"i", DType::kInt64, {}}, {"x", DType::kFloat32, {3}}},
                             .ragged = {{"list", DType::kInt32}}};
  EXPECT_TRUE(FromService(address, "p", options).ok());
  options.features[1].shape = {4};
  const Status status = FromService(address, "p", options).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("'p'"), HasSubstr(address),
                    HasSubstr("feature 'x' is float32[3], float32[4] is expected")));
}

TEST(DataService, AnErrorOfThePipelineIsTheTrainersErrorAndStays) {
  const auto server = Start(Numbers().Map([](Example& example) {
    return NumberOf(example) == 42 ? DataLoss("bad bytes") : OkStatus();
  }));
  const Dataset remote = OrThrow(FromService(AddressOf(*server), "p")).Batch(10);
  for (const Dataset& dataset : {remote, remote.Prefetch(2, 2)}) {
    const auto batches = OrThrow(dataset.Iterate());
    std::vector<std::int64_t> numbers;
    EXPECT_TRUE(Collect(*batches, numbers, 4));
    for (int i = 0; i < 2; ++i) {
      const Status status = batches->Next().status();
      EXPECT_EQ(status.code(), StatusCode::kDataLoss);
      EXPECT_THAT(status.message(), AllOf(HasSubstr(AddressOf(*server)), HasSubstr("map of"),
                                          HasSubstr("42"), HasSubstr("bad bytes")));
    }
  }
  const auto throws = Start(Numbers().Map([](Example& example) -> Status {
    if (NumberOf(example) > 0) {
      throw std::runtime_error("thrown");
    }
    return {};
  }));
  const auto batches = OrThrow(OrThrow(FromService(AddressOf(*throws), "p")).Batch(10).Iterate());
  EXPECT_THAT(batches->Next().status().message(), HasSubstr("exception: thrown"));
}

TEST(DataService, NothingAtTheAddressIsAnErrorThatNamesIt) {
  std::string address;
  {
    const auto gone = OrThrow(Serve({}, {.listen = "127.0.0.1:0"}));
    address = AddressOf(*gone);
  }
  const Status trainer = FromService(address, "p", {.timeout = 200ms}).status();
  EXPECT_EQ(trainer.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(trainer.message(), AllOf(HasSubstr(address), HasSubstr("connection refused")));
  const Status worker =
      Serve({{"p", Numbers()}},
            {.listen = "127.0.0.1:0", .dispatcher = address, .join_timeout = 200ms})
          .status();
  EXPECT_EQ(worker.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(worker.message(), AllOf(HasSubstr(address), HasSubstr("connection refused")));
  EXPECT_EQ(FromService("nowhere", "p").status().code(), StatusCode::kInvalidArgument);
}

TEST(DataService, WhatAcceptsConnectionsAndSaysNothingIsToldSo) {
  const int held = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(::bind(held, generic, size), 0);
  EXPECT_EQ(::listen(held, 64), 0);
  EXPECT_EQ(::getsockname(held, generic, &size), 0);
  const std::string there = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  const Status trainer = FromService(there, "p", {.timeout = 100ms}).status();
  const Status worker = Serve({{"p", Numbers()}},
                              {.listen = "127.0.0.1:0", .dispatcher = there, .join_timeout = 100ms})
                            .status();
  ::close(held);
  for (const Status& status : {trainer, worker}) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr(there + ": accepts connections, but does not answer as a data "
                                        "service ("),
                      HasSubstr("[start `cohort data serve` there")));
  }
}

TEST(DataService, WhenNoWorkerIsLeftReadingEndsAndSaysWhoIsMissing) {
  auto dispatcher = OrThrow(Serve({}, {.listen = "127.0.0.1:0"}));
  auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const std::string addresses[] = {AddressOf(*dispatcher), AddressOf(*worker)};
  Heard heard;
  const Dataset remote = OrThrow(FromService(
      addresses[0], "p", {.timeout = 3s, .roll_call_interval = 50ms, .log = heard.log()}));
  const auto batches = OrThrow(remote.Batch(10).Iterate());
  std::vector<std::int64_t> numbers;
  EXPECT_TRUE(Collect(*batches, numbers, 2));
  worker.reset();
  dispatcher.reset();
  const Status status = batches->Next().status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("'p'"), HasSubstr(addresses[0]), HasSubstr("no examples for")));
  EXPECT_TRUE(heard.Wait("waiting for examples of pipeline 'p'"));
  EXPECT_EQ(batches->Next().status(), status) << "the iterator stays at its error";
}

TEST(DataService, WhyAWorkerIsMissingIsFoundOut) {
  auto dispatcher = OrThrow(Serve({}, {.listen = "127.0.0.1:0"}));
  auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const std::string address = AddressOf(*worker);
  Heard heard;
  const Dataset remote = OrThrow(FromService(AddressOf(*dispatcher), "p",
                                             {.timeout = 2 * kSoon,
                                              .refresh_interval = 20ms,
                                              .roll_call_interval = 50ms,
                                              .log = heard.log()}));
  dispatcher.reset();  // so it cannot say that the worker has left
  worker.reset();
  const auto batches = OrThrow(remote.Batch(10).Prefetch(1, 1).Iterate());
  EXPECT_TRUE(
      heard.Wait(": input worker " + address +
                 " (connection refused); the dispatcher does not answer: connection refused"));
}

TEST(DataService, OtherDataUnderTheSameNameIsRefused) {
  const auto dispatcher = Start(Numbers());
  const auto join = [&](const Dataset& dataset, const std::string& version = "") {
    return Serve({{"p", dataset, version}},
                 {.listen = "127.0.0.1:0", .dispatcher = AddressOf(*dispatcher)})
        .status();
  };
  EXPECT_EQ(join(Features()).code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(join(Features()).message(), HasSubstr("feature 'list'"));
  EXPECT_THAT(join(Numbers(7)).message(), HasSubstr("7 examples, 103 are expected"));
  EXPECT_THAT(join(Numbers(), "2").message(), HasSubstr("another version"));
  EXPECT_TRUE(join(Numbers()).ok());
}

// Of equal size in bytes for all of these shapes; a Map's parameters are not in a fingerprint.
Dataset Shaped(const Shape& shape) {
  return Numbers().Map([shape](Example& example) {
    example["x"] = Tensor(DType::kFloat32, shape);
    return OkStatus();
  });
}

TEST(DataService, AWorkerThatIsReplacedByOtherDataGivesNothing) {
  const Dataset data = Shaped({2, 3});
  const Dataset other_shape = Shaped({3, 2});
  ASSERT_EQ(OrThrow(data.AsSource())->Fingerprint(),
            OrThrow(other_shape.AsSource())->Fingerprint());
  for (int attempt = 0; attempt < 10; ++attempt) {
    auto server = Start(data);
    const std::string address = AddressOf(*server);
    const Dataset remote = OrThrow(FromService(address, "p", {.timeout = 3s})).Batch(10);
    Heard heard;
    const Dataset patient =
        OrThrow(FromService(address, "p",
                            {.timeout = 2 * kSoon, .roll_call_interval = 50ms, .log = heard.log()}))
            .Batch(10)
            .Prefetch(1, 1);
    EXPECT_EQ(Batches(remote).size(), 11U);
    server.reset();
    auto other = Serve({{"p", data, "another map"}}, {.listen = address});
    if (!other.ok()) {
      continue;  // somebody has taken the port meanwhile
    }
    const Status status = OrThrow(remote.Iterate())->Next().status();
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(), HasSubstr("it serves another pipeline 'p'"));
    other->reset();
    other = Serve({{"p", other_shape}}, {.listen = address});
    if (!other.ok()) {
      continue;
    }
    const auto batches = OrThrow(patient.Iterate());
    EXPECT_TRUE(heard.Wait("it serves another pipeline 'p'"));
    EXPECT_EQ((*other)->stats().examples, 0);
    return;
  }
  FAIL() << "the port was taken ten times";
}

TEST(DataService, OnlyTheDispatcherIsAsked) {
  const auto dispatcher = OrThrow(Serve({}, {.listen = "127.0.0.1:0"}));
  const auto worker = Start(Numbers(), {.dispatcher = AddressOf(*dispatcher)});
  const Status status = FromService(AddressOf(*worker), "p").status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("dispatcher at " + AddressOf(*dispatcher)));
}

TEST(DataService, WhatCannotBeServedIsRefused) {
  const auto refused = [](const std::vector<ServedPipeline>& pipelines) {
    return Serve(pipelines, {.listen = "127.0.0.1:0"}).status();
  };
  EXPECT_THAT(refused({{"p", Numbers().Batch(3)}}).message(),
              HasSubstr("'p' is served before Batch"));
  const auto fails = [](Example&) { return DataLoss("bad bytes"); };
  EXPECT_THAT(refused({{"p", Numbers().Map(fails)}}).message(),
              AllOf(HasSubstr("'p'"), HasSubstr("bad bytes"), Not(HasSubstr("Batch"))));
  EXPECT_EQ(refused({{"p", Numbers()}, {"p", Numbers()}}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused({{"", Numbers()}}).code(), StatusCode::kInvalidArgument);
}

// Were the iterator to wait for the examples, this would never end: they stand still until it is
// gone.
TEST(DataService, AnIteratorIsDestroyedWhileItsExamplesAreBeingMade) {
  Gate gate;
  const auto server = Start(Numbers().Map(gate.Map()));
  const Gate::Opener opener(gate);
  const Dataset remote = OrThrow(FromService(AddressOf(*server), "p", {.piece_bytes = 8}));
  auto batches = OrThrow(remote.Batch(10).Prefetch(4, 2).Iterate());
  EXPECT_TRUE(gate.WaitForArrival());
  batches.reset();
}

TEST(DataService, PartsThatArePutTogetherAreReadOneByOne) {
  const auto server = Start(Features());
  const Dataset remote = OrThrow(FromService(AddressOf(*server), "p"));
  const Dataset both = OrThrow(Concatenate({remote.Take(3), Features().Skip(100)}));
  const Dataset local = OrThrow(Concatenate({Features().Take(3), Features().Skip(100)}));
  EXPECT_EQ(Batches(both.Batch(4)), Batches(local.Batch(4)));
}

}  // namespace
}  // namespace cohort::data
