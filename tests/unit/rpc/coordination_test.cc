// The coordination service over real sockets, server and clients in one process.
#include <cohort/rpc/coordination.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "grpc_util.h"
#include "sockets.h"
#include "testing/lossy_proxy.h"
#include "testing/process_cluster.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::HasSubstr;

using Client = std::unique_ptr<CoordinationClient>;
using Server = std::unique_ptr<CoordinationServer>;

TaskId Worker(int index) { return {TaskType::kWorker, index}; }

ClusterSpec Workers(int count) {
  std::map<TaskId, std::string> addresses;
  for (int i = 0; i < count; ++i) {
    addresses[Worker(i)] = "127.0.0.1:0";
  }
  return ClusterSpec(addresses);
}

CoordinationOptions Quick() {
  CoordinationOptions options;
  options.join_timeout = seconds(30);
  options.heartbeat_interval = milliseconds(100);
  options.heartbeat_timeout = milliseconds(3'000);
  options.reconnect_grace = milliseconds(500);
  options.shutdown_timeout = seconds(30);
  return options;
}

std::string Local(int port) { return "127.0.0.1:" + std::to_string(port); }

// A port that nobody listens on now.
int FreePort() { return testing::UnusedPorts(1)[0]; }

class Lines {
 public:
  Log log() {
    return Log([this](LogLevel, std::string_view line) {
      const std::lock_guard lock(mutex_);
      lines_.emplace_back(line);
    });
  }
  std::vector<std::string> all() const {
    const std::lock_guard lock(mutex_);
    return lines_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> lines_;
};

// The failure that `client` comes to know, or OK after 20 s.
Status AwaitFailure(CoordinationClient& client) {
  // Owners: this frame and the callback, which may outlive it.
  auto told = std::make_shared<std::promise<Status>>();
  std::future<Status> failure = told->get_future();
  client.OnFailure([told](const Status& status) { told->set_value(status); });
  return failure.wait_for(seconds(20)) == std::future_status::ready ? failure.get() : OkStatus();
}

// A server and one client for each of its tasks, all joined.
struct JoinedJob {
  explicit JoinedJob(int tasks, const CoordinationOptions& options = Quick())
      : cluster(Workers(tasks)),
        server(OrThrow(CoordinationServer::Start("127.0.0.1:0", cluster, options))) {
    std::vector<std::future<Result<Client>>> joining;
    for (int i = 0; i < tasks; ++i) {
      joining.push_back(std::async(std::launch::async, [this, i, &options] {
        return CoordinationClient::Join(address(), cluster, Worker(i), true, options);
      }));
    }
    for (auto& joined : joining) {
      clients.push_back(OrThrow(joined.get()));
    }
  }
  std::string address() const { return Local(server->port()); }

  // body(client, index) on a thread for each client.
  std::vector<Status> OnEach(const std::function<Status(CoordinationClient&, int)>& body) {
    std::vector<std::future<Status>> running;
    for (std::size_t i = 0; i < clients.size(); ++i) {
      running.push_back(std::async(
          std::launch::async, [this, i, &body] { return body(*clients[i], static_cast<int>(i)); }));
    }
    std::vector<Status> results;
    for (auto& result : running) {
      results.push_back(result.get());
    }
    return results;
  }

  ClusterSpec cluster;
  Server server;
  std::vector<Client> clients;
};

TEST(Coordination, JoinMeetPublishAndLeave) {
  JoinedJob job(3);
  EXPECT_EQ(job.server->Alive().size(), 3u);
  EXPECT_NE(job.clients[0]->incarnation(), job.clients[1]->incarnation());
  const auto results = job.OnEach([](CoordinationClient& client, int index) -> Status {
    const Deadline soon = DeadlineAfter(seconds(20));
    const std::string mine = std::to_string(index);
    COHORT_RETURN_IF_ERROR(client.Insert("address//worker/" + mine + "/", "port " + mine));
    COHORT_ASSIGN_OR_RETURN(const std::string next,
                            client.Wait("address/worker/" + std::to_string((index + 1) % 3), soon));
    EXPECT_EQ(next, "port " + std::to_string((index + 1) % 3));
    COHORT_RETURN_IF_ERROR(client.Barrier("published", soon));
    EXPECT_EQ(client.Get("address/worker/0").value(), "port 0");
    EXPECT_EQ(client.Get("nothing").status().code(), StatusCode::kNotFound);
    EXPECT_EQ(client.Insert("address/worker/0", "x").code(), StatusCode::kAlreadyExists);
    COHORT_RETURN_IF_ERROR(client.Shutdown());
    return client.failure();
  });
  for (const Status& status : results) {
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
  EXPECT_TRUE(job.server->Alive().empty());
  EXPECT_EQ(job.clients[0]->Insert("late", "x").code(), StatusCode::kFailedPrecondition);
}

TEST(Coordination, ValuesAreBytesOfAtMostAMebibyte) {
  JoinedJob job(1);
  const std::string bytes("\0\xff\n", 3);
  ASSERT_TRUE(job.clients[0]->Insert("bytes", bytes).ok());
  EXPECT_EQ(*job.clients[0]->Get("bytes"), bytes);
  EXPECT_TRUE(job.clients[0]->Insert("largest", std::string(1 << 20, 'x')).ok());
  EXPECT_EQ(job.clients[0]->Get("largest")->size(), 1u << 20);
  EXPECT_EQ(job.clients[0]->Insert("larger", std::string((1 << 20) + 1, 'x')).code(),
            StatusCode::kInvalidArgument);
  const Status late = job.clients[0]->Wait("never", DeadlineAfter(milliseconds(50))).status();
  EXPECT_EQ(late.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(late.message(), HasSubstr("never"));
}

TEST(Coordination, TheChiefMayComeLast) {
  const int port = FreePort();
  const ClusterSpec cluster = Workers(2);
  Lines lines;
  CoordinationOptions options = Quick();
  options.roll_call_interval = milliseconds(200);
  options.log = lines.log();
  auto joining = std::async(std::launch::async, [&] {
    return CoordinationClient::Join(Local(port), cluster, Worker(1), true, options);
  });
  while (lines.all().empty()) {  // it has knocked, and said so
    std::this_thread::yield();
  }
  EXPECT_THAT(lines.all()[0], AllOf(HasSubstr("worker:0"), HasSubstr(Local(port)),
                                    HasSubstr("connection refused")));
  const Server server = OrThrow(CoordinationServer::Start(Local(port), cluster, options));
  const Client chief =
      OrThrow(CoordinationClient::Join(Local(port), cluster, Worker(0), true, options));
  const Result<Client> worker = joining.get();
  EXPECT_TRUE(worker.ok()) << worker.status().ToString();
}

TEST(Coordination, WithoutAServiceTheDeadlineTellsWhereAndWhy) {
  CoordinationOptions options = Quick();
  options.join_timeout = milliseconds(300);
  const std::string address = Local(FreePort());
  const Status status =
      CoordinationClient::Join(address, Workers(2), Worker(1), true, options).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr(address), HasSubstr("connection refused"), HasSubstr("worker:0"),
                    ::testing::ContainsRegex("[ (]0\\.[3-9] s")));
  const Status unknown =
      CoordinationClient::Join("no-such-host.invalid:1", Workers(2), Worker(1), true, options)
          .status();
  EXPECT_THAT(unknown.message(), HasSubstr("host name not known"));
}

TEST(Coordination, TheRollCallNamesTheMissingToAllWhoWait) {
  Lines at_chief, at_worker;
  std::map<TaskId, std::string> addresses;
  for (int i = 0; i < 3; ++i) {
    addresses[Worker(i)] = Local(FreePort());
  }
  const std::string absent = addresses[Worker(2)];
  const ClusterSpec cluster(addresses);
  CoordinationOptions options = Quick();
  options.join_timeout = milliseconds(1'000);
  options.roll_call_interval = milliseconds(200);
  options.log = at_chief.log();
  const Server server = OrThrow(CoordinationServer::Start("127.0.0.1:0", cluster, options));
  options.log = Log();
  auto chief = std::async(std::launch::async, [&] {
    return CoordinationClient::Join(Local(server->port()), cluster, Worker(0), true, options);
  });
  CoordinationOptions logged = options;
  logged.log = at_worker.log();
  const Status worker =
      CoordinationClient::Join(Local(server->port()), cluster, Worker(1), true, logged).status();
  for (const Status& status : {chief.get().status(), worker}) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("1/3: worker:2 (" + absent + ", connection refused)"),
                      HasSubstr("joining gave up after 1.")));
  }
  const std::string line = "waiting for 1/3: worker:2 (" + absent + ", connection refused)";
  EXPECT_THAT(at_chief.all(), Contains(line));
  EXPECT_THAT(at_worker.all(), Contains(line));
}

TEST(Coordination, ASecondProcessForATaskIsRefusedAndTheFirstGoesOn) {
  JoinedJob job(1);
  const Status second =
      CoordinationClient::Join(job.address(), job.cluster, Worker(0), false, Quick()).status();
  EXPECT_EQ(second.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(second.message(), AllOf(HasSubstr("worker:0"), HasSubstr("host "),
                                      HasSubstr("pid " + std::to_string(::getpid()))));
  EXPECT_TRUE(job.clients[0]->Insert("still", "here").ok());
  EXPECT_TRUE(job.clients[0]->failure().ok());
}

TEST(Coordination, AClusterThatDiffersIsRefused) {
  JoinedJob job(1);
  const ClusterSpec other({{Worker(0), "127.0.0.1:0"}, {Worker(1), "10.1.1.1:99"}});
  const Status status =
      CoordinationClient::Join(job.address(), other, Worker(1), true, Quick()).status();
  EXPECT_NE(status.code(), StatusCode::kDeadlineExceeded);
  const ClusterSpec moved({{Worker(0), "127.0.0.1:77"}});
  const Status differs =
      CoordinationClient::Join(job.address(), moved, Worker(0), true, Quick()).status();
  EXPECT_EQ(differs.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(differs.message(), AllOf(HasSubstr("cluster.worker[0]"), HasSubstr("127.0.0.1:77")));
  EXPECT_EQ(CoordinationClient::Join(job.address(), job.cluster, Worker(5), true, Quick())
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

TEST(Coordination, AnErrorReachesAll) {
  JoinedJob job(3);
  std::vector<std::future<Status>> failures;
  for (const Client& client : job.clients) {
    failures.push_back(std::async(std::launch::async, [&client] { return AwaitFailure(*client); }));
  }
  auto waits = std::async(std::launch::async, [&job] {
    return job.clients[0]->Wait("never", DeadlineAfter(seconds(60))).status();
  });
  ASSERT_TRUE(job.clients[1]->ReportError(DataLoss("record 17 is torn")).ok());
  const Status expected = DataLoss("worker:1: record 17 is torn");
  EXPECT_EQ(job.clients[1]->failure(), expected);
  for (auto& failure : failures) {
    EXPECT_EQ(failure.get(), expected);
  }
  const Status interrupted = waits.get();
  EXPECT_EQ(interrupted.code(), StatusCode::kDataLoss);
  EXPECT_THAT(interrupted.message(), HasSubstr(expected.message()));
  EXPECT_EQ(AwaitFailure(*job.clients[2]), expected);  // at once for one that asks later
}

TEST(Coordination, AnErrorOfAnyBytesAndLengthIsTold) {
  JoinedJob job(2);
  const std::string text = "cannot read \xff\xfe" + std::string(8 << 20, '.');
  ASSERT_TRUE(job.clients[1]->ReportError(NotFound(text)).ok());
  const Status failure = AwaitFailure(*job.clients[0]);
  EXPECT_EQ(failure.code(), StatusCode::kNotFound);
  EXPECT_TRUE(failure.message().starts_with("worker:1: cannot read \xff\xfe..."));
}

TEST(Coordination, TheChiefMayEndAsSoonAsItsShutdownReturns) {
  for (int round = 0; round < 10; ++round) {
    JoinedJob job(4);
    const auto results = job.OnEach([&job](CoordinationClient& client, int index) {
      const Status status = client.Shutdown();
      if (index == 0) {
        job.server.reset();
      }
      return status;
    });
    for (const Status& status : results) {
      EXPECT_TRUE(status.ok()) << status.ToString();
    }
    for (const Client& client : job.clients) {
      EXPECT_TRUE(client->failure().ok()) << client->failure().ToString();
    }
  }
}

TEST(Coordination, ABarrierNamesTheAbsent) {
  JoinedJob job(3);
  const Status status = job.clients[1]->Barrier("save", DeadlineAfter(milliseconds(200)));
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("\"save\""), HasSubstr("1/3"),
                                      HasSubstr("missing: worker:0, worker:2")));
  EXPECT_TRUE(job.clients[1]->Barrier("self", DeadlineAfter(seconds(20)), {Worker(1)}).ok());
  EXPECT_EQ(job.clients[1]->Barrier("bad", DeadlineAfter(seconds(20)), {Worker(0)}).code(),
            StatusCode::kInvalidArgument);
}

TEST(Coordination, WhenTheServiceEndsTheClientsSayWhoIsGone) {
  JoinedJob job(2);
  auto waits = std::async(std::launch::async, [&job] {
    return job.clients[1]->Barrier("x", DeadlineAfter(seconds(60)));
  });
  job.server.reset();
  for (const Client& client : job.clients) {
    const Status failure = AwaitFailure(*client);
    EXPECT_EQ(failure.code(), StatusCode::kUnavailable);
    EXPECT_THAT(failure.message(), HasSubstr("worker:0 (the chief"));
  }
  EXPECT_EQ(waits.get().code(), StatusCode::kUnavailable);
}

TEST(Coordination, AClientGoneWithoutShutdownIsTold) {
  JoinedJob job(2);
  const auto begun = std::chrono::steady_clock::now();
  job.clients[1].reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begun, seconds(3));
  const Status failure = AwaitFailure(*job.clients[0]);
  EXPECT_EQ(failure.code(), StatusCode::kCancelled);
  EXPECT_THAT(failure.message(), AllOf(HasSubstr("worker:1"), HasSubstr("left the job")));
}

TEST(Coordination, AClientOutlivingTheServiceEndsQuickly) {
  JoinedJob job(1);
  job.server.reset();
  const auto begun = std::chrono::steady_clock::now();
  job.clients.clear();
  EXPECT_LT(std::chrono::steady_clock::now() - begun, seconds(3));
}

// As behind a firewall that has forgotten the connection: nothing passes on it, and nobody says so.
// Another one takes its place before either end takes the other for dead.
TEST(Coordination, AConnectionThatFallsSilentIsReplaced) {
  CoordinationOptions options = Quick();
  options.heartbeat_timeout = seconds(6);
  const ClusterSpec cluster = Workers(2);
  const Server server = OrThrow(CoordinationServer::Start("127.0.0.1:0", cluster, options));
  testing::LossyProxy proxy({server->port()}, /*loss=*/0, /*seed=*/1);
  const std::string behind = testing::LossyProxy::AddressOf(server->port());
  auto joining = std::async(std::launch::async, [&] {
    return CoordinationClient::Join(behind, cluster, Worker(1), true, options);
  });
  const Client chief =
      OrThrow(CoordinationClient::Join(Local(server->port()), cluster, Worker(0), true, options));
  const Client far = OrThrow(joining.get());
  for (int silence = 0; silence < 2; ++silence) {
    const std::string key = "key " + std::to_string(silence);
    // A call that waits there is asked again, too.
    auto waiting =
        std::async(std::launch::async, [&] { return far->Wait(key, DeadlineAfter(seconds(60))); });
    std::this_thread::sleep_for(milliseconds(200));
    proxy.Silence();
    std::this_thread::sleep_for(milliseconds(200));
    OrThrow(chief->Insert(key, "here"));
    EXPECT_EQ(OrThrow(waiting.get()), "here");
    std::this_thread::sleep_for(options.heartbeat_timeout + seconds(2));
    EXPECT_EQ(far->failure(), OkStatus());
    EXPECT_EQ(chief->failure(), OkStatus());
    EXPECT_EQ(server->Alive().size(), 2U);
  }
  // The end of the job is told on the connection of now.
  OrThrow(chief->ReportError(Internal("a bug")));
  EXPECT_THAT(AwaitFailure(*far).message(), HasSubstr("a bug"));
}

TEST(Coordination, ATaskThatMayLeaveAndComesBack) {
  CoordinationOptions options = Quick();
  options.may_leave = [](const TaskId& task) { return task.index > 0; };
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::pair<TaskId, Status>> lost;
  JoinedJob job(2, options);
  job.server->OnTaskLost([&](const TaskId& task, const Status& why) {
    const std::lock_guard lock(mutex);
    lost.emplace_back(task, why);
    changed.notify_all();
  });
  job.clients[1].reset();
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, seconds(20), [&] { return !lost.empty(); }));
    EXPECT_EQ(lost[0].first, Worker(1));
    EXPECT_EQ(lost[0].second.code(), StatusCode::kCancelled);
  }
  job.clients[1] =
      OrThrow(CoordinationClient::Join(job.address(), job.cluster, Worker(1), true, options));
  EXPECT_TRUE(job.clients[0]->failure().ok());
  EXPECT_EQ(job.server->Alive().size(), 2u);
}

TEST(Coordination, ShutdownThatSomeMissTellsBothSides) {
  CoordinationOptions options = Quick();
  options.shutdown_timeout = milliseconds(300);
  JoinedJob job(2, options);
  const Status status = job.clients[0]->Shutdown();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("missing: worker:1"));
  const Status other = AwaitFailure(*job.clients[1]);
  EXPECT_EQ(other.code(), StatusCode::kInternal);
  EXPECT_THAT(other.message(), HasSubstr("shutdown was initiated without worker:1"));
}

TEST(Coordination, ManyClientsWaitWithoutThreadsOfTheService) {
  JoinedJob job(64);
  const auto results = job.OnEach([](CoordinationClient& client, int index) {
    const Deadline soon = DeadlineAfter(seconds(60));
    if (index == 63) {  // all others wait by now, or will
      COHORT_RETURN_IF_ERROR(client.Insert("go", "now"));
    } else {
      COHORT_RETURN_IF_ERROR(client.Wait("go", soon).status());
    }
    for (int step = 0; step < 5; ++step) {
      COHORT_RETURN_IF_ERROR(client.Barrier("step " + std::to_string(step), soon));
    }
    return client.Shutdown();
  });
  for (const Status& status : results) {
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
}

TEST(Coordination, ABusyPortIsAnErrorThatNamesItsHolder) {
  const Server first = OrThrow(CoordinationServer::Start("127.0.0.1:0", Workers(1), Quick()));
  const Status status =
      CoordinationServer::Start(Local(first->port()), Workers(1), Quick()).status();
  EXPECT_EQ(status.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(status.message(), HasSubstr("pid " + std::to_string(::getpid())));
  EXPECT_EQ(CoordinationServer::Start("127.0.0.1:0", ClusterSpec(), Quick()).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(Coordination, SpeaksIpv6) {
  if (!CheckCanBind("[::1]:0").ok()) {
    GTEST_SKIP() << "this machine has no ::1";
  }
  const Server server = OrThrow(CoordinationServer::Start("[::1]:0", Workers(1), Quick()));
  const Client client = OrThrow(CoordinationClient::Join("[::1]:" + std::to_string(server->port()),
                                                         Workers(1), Worker(0), true, Quick()));
  EXPECT_TRUE(client->Insert("a", "b").ok());
}

}  // namespace
}  // namespace cohort
