// Servers that come and go, over real connections, as threads of one process: who is refused, who
// waits, and what ends a wait; and a whole job.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <future>
#include <limits>

#include <cohort/strategies/parameter_server.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/chief/journal.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "servers_test.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TEST_F(ServersTest, AServerThatWasStartedAgainServesNothingUntilTheChiefHasBegun) {
  Start(1);
  const auto worker = ClientOf(3, 1);
  OrThrow(worker->Declare());
  OrThrow(ClientOf(0, 1000)->Assign(std::vector<float>(elements_, 8), {}, 0));
  std::vector<float> values(elements_, -1);
  const Status status = worker->Pull(values, true);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("has just been started"));
  ExpectAll(values, -1);
}

TEST_F(ServersTest, AnotherModelIsRefusedByName) {
  Start(2);
  Initialise();
  spec_.parameters[1].shape = Shape{14};
  const auto client = NewClient(1);
  const Status status = client->Declare();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("declared bias [13], worker:1 has bias [14]"));
  std::vector<float> values(elements_ + 16);
  EXPECT_EQ(client->Pull(values, true).code(), StatusCode::kFailedPrecondition);
}

// F27: a process of an earlier version said nothing of a protocol, one of a later says more.
TEST_F(ServersTest, AnotherVersionIsRefusedAndTheServerGoesOn) {
  Start(1);
  const auto stub = Servers::NewStub(NewChannel(addresses_[0]));
  for (const std::uint32_t protocol : {0U, kProtocol + 1}) {
    DeclareRequest request;
    request.set_sender("worker:1");
    request.set_servers(1);
    request.set_protocol(protocol);
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(std::chrono::seconds(10)));
    DeclareReply reply;
    const Status status = FromGrpc(stub->Declare(&context, request, &reply));
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("worker:1 speaks protocol " + std::to_string(protocol) +
                                            ", ps:0 protocol"));
  }
  Initialise();
  std::vector<float> values(elements_);
  EXPECT_TRUE(NewClient(1)->Pull(values, true).ok());
}

TEST_F(ServersTest, SwappedAddressesAreNoticed) {
  Start(2);
  std::swap(addresses_[0], addresses_[1]);
  const Status status = NewClient(1)->Declare();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("takes this process for ps:0, it is ps:1"));
}

TEST_F(ServersTest, AGradientThatIsNotFiniteIsRefusedAndTheServerLives) {
  Start(1);
  Initialise();
  const auto client = NewClient(1);
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
  (*gradient)[3000 * 701 + 10] = std::numeric_limits<float>::quiet_NaN();
  const Status status = client->Push(GradientOf(gradient), values);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("gradient of bias"));
  (*gradient)[3000 * 701 + 10] = 1;
  EXPECT_TRUE(client->Push(GradientOf(gradient), values).ok());
}

TEST_F(ServersTest, AWorkerThatWasGivenUpIsToldAndChangesNothing) {
  Start(2);
  Initialise();
  const auto zombie = NewClient(1);
  std::vector<float> values(elements_);
  OrThrow(zombie->Pull(values, true));
  OrThrow(NewClient(1000)->Retire(1));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
  const Status status = zombie->Push(GradientOf(gradient), values);
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(status.message(), HasSubstr("was given up"));
  OrThrow(NewClient(3)->Pull(values, true));
  ExpectAll(values, 0);
}

TEST_F(ServersTest, ABoundedReadWaitsForAWorkerThatIsBehindButNotForEver) {
  Start(2);
  spec_.consistency = OrThrow(Consistency::Parse("ssp:1"));
  Initialise();
  const auto fast = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .read_timeout = milliseconds(1)});
  const auto slow = Client::Make(spec_, addresses_, {.client = 2, .task = "worker:7"});
  std::vector<float> values(elements_);
  OrThrow(fast->PullForStep(values, {}));
  OrThrow(slow->PullForStep(values, {}));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
  OrThrow(fast->Push(GradientOf(gradient), values));
  const Status status = fast->Push(GradientOf(gradient), values);
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(),
              HasSubstr("worker:7 is 2 steps behind this one, in the middle of its "
                        "work; ssp:1 allows 1"));
  OrThrow(slow->Push(GradientOf(gradient), values));
  ExpectAll(values, -3);
  OrThrow(fast->PullForStep(values, {}));
  EXPECT_EQ(OrThrow(slow->Stats()).max_lead, 1U);
  // Between two pieces of work nobody is waited for.
  OrThrow(slow->Pause());
  OrThrow(fast->Push(GradientOf(gradient), values));
  OrThrow(fast->Push(GradientOf(gradient), values));
  ExpectAll(values, -5);
}

// The end of a step is still being applied for another connection, whose place this one took: the
// read that is behind it on the way is not served before it, nor does it tell of the step.
TEST_F(ServersTest, ABoundedReadDoesNotOvertakeAPushThatIsAskedForAgain) {
  Start(1);
  spec_.consistency = OrThrow(Consistency::Parse("ssp:1"));
  Initialise();
  ParameterStore& store = servers_[0]->store();
  const auto clock = [&] {
    ClockTable::Clocks clocks;
    store.TellClocks(&clocks);
    return clocks.empty() ? 0 : clocks[0].clock();
  };
  for (const std::uint64_t number : {1, 2}) {  // through memory, and over TCP
    Initialise();
    const auto worker = NewClient(number);
    std::vector<float> values(elements_);
    const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
    OrThrow(worker->Push(GradientOf(gradient), values));
    ExpectAll(values, -1);
    const std::uint64_t before = clock();
    const std::uint64_t end_of_step = 2 * worker->pushes()[0];
    ASSERT_EQ(store.pushes().Claim(number, end_of_step), PushLedger::Claimed::kNew);
    auto pushed =
        std::async(std::launch::async, [&] { return worker->Push(GradientOf(gradient), values); });
    EXPECT_EQ(pushed.wait_for(milliseconds(700)), std::future_status::timeout);
    EXPECT_EQ(clock(), before) << "others would take the step for made";
    store.pushes().Finish(number, end_of_step, /*applied=*/false);
    OrThrow(pushed.get());
    ExpectAll(values, -2);
    EXPECT_EQ(clock(), before + 1);
    store.Retire(number);
  }
}

TEST_F(ServersTest, AServerThatIsGoneIsNamed) {
  Start(2);
  Initialise();
  const auto client = NewClient(1, milliseconds(2000));
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  servers_[1].reset();
  const Status status =
      client->Push(GradientOf(std::make_shared<std::vector<float>>(elements_, 1.0F)), values);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("ps:1 (" + addresses_[1] + ")"));
}

TEST_F(ServersTest, ARestartedServerIsNotTakenForTheOldOne) {
  Start(1);
  Initialise();
  const auto client = NewClient(1);
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  servers_[0].reset();
  servers_[0] = OrThrow(Server::Start(addresses_[0], 0, Log()));
  const Status status =
      client->Push(GradientOf(std::make_shared<std::vector<float>>(elements_, 1.0F)), values);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("has lost its variables"));
}

TEST_F(ServersTest, AbortEndsACallThatWaits) {
  Start(1);
  Initialise();
  servers_[0].reset();
  const auto client = NewClient(1, milliseconds(60'000));
  std::vector<float> values(elements_);
  std::future<Status> pull =
      std::async(std::launch::async, [&] { return client->Pull(values, true); });
  client->Abort(Unavailable("worker:3 is gone"));
  ASSERT_EQ(pull.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(pull.get(), Unavailable("worker:3 is gone"));
  EXPECT_EQ(client->Drain(), Unavailable("worker:3 is gone"));
}

TEST_F(ServersTest, DrainEndsTheWait) {
  Start(2);
  EXPECT_FALSE(servers_[0]->WaitDrained(DeadlineAfter(milliseconds(1))));
  OrThrow(NewClient(1)->Drain());
  EXPECT_TRUE(servers_[0]->WaitDrained(DeadlineAfter(milliseconds(1))));
  EXPECT_TRUE(servers_[1]->WaitDrained(DeadlineAfter(milliseconds(1))));
}

// A server that was told ends, and may be gone when those that were not are told again.
TEST_F(ServersTest, ADrainThatFailedTellsTheRest) {
  Start(2);
  const auto client = NewClient(1, milliseconds(3'000));
  servers_[1].reset();
  const Status failed = client->Drain();
  EXPECT_EQ(failed.code(), StatusCode::kUnavailable);
  EXPECT_THAT(failed.message(), HasSubstr("ps:1 (" + addresses_[1] + ")"));
  EXPECT_TRUE(servers_[0]->WaitDrained(DeadlineAfter(milliseconds(1))));
  servers_[0].reset();
  servers_[1] = OrThrow(Server::Start(addresses_[1], 1, Log()));
  EXPECT_EQ(client->Drain(), OkStatus());
  EXPECT_TRUE(servers_[1]->WaitDrained(DeadlineAfter(milliseconds(1))));
}

TEST_F(ServersTest, APortThatIsTakenIsAnError) {
  Start(1);
  EXPECT_EQ(Server::Start(addresses_[0], 1, Log()).status().code(), StatusCode::kAlreadyExists);
}

// Who had ended in the job that the journal is of is no less missing in one that begins.
TEST(JobTest, AJournalOfAnotherJobSkipsNobodyInTheRollCall) {
  const testing::TempDir folder;
  {
    const auto journal = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
    OrThrow(journal->Begin(false, 7));
    OrThrow(journal->Await(journal->Worker({TaskType::kWorker, 1}, JournalState::End::kDone)));
  }
  const TaskId chief = {TaskType::kChief, 0};
  ClusterConfig config;
  config.cluster = ClusterSpec({{chief, "127.0.0.1:" + std::to_string(testing::UnusedPorts(1)[0])},
                                {{TaskType::kWorker, 0}, "127.0.0.1:0"},
                                {{TaskType::kWorker, 1}, "127.0.0.1:0"},
                                {{TaskType::kPs, 0}, "127.0.0.1:0"}});
  std::map<TaskId, std::future<Status>> tasks;
  for (const TaskId& task : config.cluster.Tasks()) {
    if (task == TaskId{TaskType::kWorker, 1}) {
      continue;
    }
    config.task = task;
    tasks[task] = std::async(std::launch::async, [config, folder = folder.path()]() -> Status {
      COHORT_ASSIGN_OR_RETURN(const auto strategy, ParameterServerStrategy::Make(
                                                       config, {.join_timeout = milliseconds(3'000),
                                                                .rejoin_grace = milliseconds(3'000),
                                                                .journal_folder = folder}));
      return strategy->Serve();  // of the server
    });
  }
  for (auto& [task, running] : tasks) {
    const Status status = running.get();
    EXPECT_FALSE(status.ok()) << task.ToString();
    if (task == chief) {
      EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
      EXPECT_THAT(status.message(),
                  HasSubstr("waiting for worker:1 (127.0.0.1:0, not registered)"));
    }
  }
}

}  // namespace
}  // namespace cohort::ps
