// Jobs of several processes that cannot begin. Those that can:
// tests/process/strategy_process_test.cc.
#include <cohort/strategies/strategy.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "multi_worker/crew.h"
#include "testing/far_device.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

TEST(JoinJob, AChiefWithoutAPortCannotBeFound) {
  StrategyOptions options;
  options.cluster = ClusterConfig{
      .cluster = ClusterSpec({{{TaskType::kWorker, 0}, "a:0"}, {{TaskType::kWorker, 1}, "b:0"}}),
      .task = {TaskType::kWorker, 1},
      .source = "flags"};
  const auto strategy = Strategy::FromEnv("", options);
  ASSERT_FALSE(strategy.ok());
  EXPECT_THAT(strategy.status().message(), ::testing::HasSubstr("worker:0, a:0, has no port"));
}

StrategyOptions OfAParameterServersWorker() {
  StrategyOptions options;
  options.cluster = ClusterConfig{.cluster = ClusterSpec({{{TaskType::kChief, 0}, "a:1"},
                                                          {{TaskType::kPs, 0}, "b:1"},
                                                          {{TaskType::kWorker, 0}, "c:1"}}),
                                  .task = {TaskType::kWorker, 0},
                                  .source = "flags"};
  return options;
}

TEST(JoinJob, ServersThatGoOnFromDifferentStepsAreAsynchronous) {
  StrategyOptions options = OfAParameterServersWorker();
  options.server_loss = ServerLoss::kPartial;
  for (const char* consistency : {"ssp:2", "sync"}) {
    options.consistency = OrThrow(Consistency::Parse(consistency));
    const Status status = Strategy::FromEnv("parameter_server", options).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), ::testing::HasSubstr("server_loss kPartial with consistency s"));
  }
}

TEST(JoinJob, CopiesAreOfJobsWithTwoServers) {
  StrategyOptions options = OfAParameterServersWorker();
  options.server_loss = ServerLoss::kReplica;
  EXPECT_THAT(Strategy::FromEnv("parameter_server", options).status().message(),
              ::testing::HasSubstr("server_loss kReplica with one ps task"));
  options.consistency = OrThrow(Consistency::Parse("sync"));
  const Status one = Strategy::FromEnv("parameter_server", options).status();
  EXPECT_EQ(one.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(one.message(), ::testing::HasSubstr("server_loss kReplica with one ps task"));
}

// A lost server's part would be given back without the buckets that it got, or with those it gave.
TEST(JoinJob, BucketsMoveWhereAllServersGoBack) {
  StrategyOptions options = OfAParameterServersWorker();
  options.cluster->cluster = ClusterSpec({{{TaskType::kChief, 0}, "a:1"},
                                          {{TaskType::kPs, 0}, "b:1"},
                                          {{TaskType::kPs, 1}, "b:2"},
                                          {{TaskType::kWorker, 0}, "c:1"}});
  options.consistency = OrThrow(Consistency::Parse("async"));
  options.balance_interval = std::chrono::seconds(1);
  const auto refused = [&](const std::string& naming) {
    const Status status = Strategy::FromEnv("parameter_server", options).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(),
                ::testing::HasSubstr("balance_interval of 1000 ms with " + naming));
  };
  options.server_loss = ServerLoss::kPartial;
  refused("consistency async and server_loss kPartial");
  options.server_loss = ServerLoss::kReplica;
  refused("consistency async and server_loss kReplica");
  options.server_loss = ServerLoss::kRollBack;
  options.consistency = OrThrow(Consistency::Parse("sync"));
  refused("consistency sync");
}

TEST(JoinJob, NoMoreWorkersGoOnThanThereAre) {
  StrategyOptions options;
  options.cluster = ClusterConfig{.cluster = ClusterSpec({{{TaskType::kWorker, 0}, "a:1"},
                                                          {{TaskType::kWorker, 1}, "b:1"},
                                                          {{TaskType::kPs, 0}, "c:1"}}),
                                  .task = {TaskType::kWorker, 1},
                                  .source = "flags"};
  options.consistency = OrThrow(Consistency::Parse("hybrid"));
  for (const int least : {0, 3}) {
    options.min_workers = least;
    const Status status = Strategy::FromEnv("", options).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), ::testing::HasSubstr("of 2 worker(s) [at least 1, at most all]"));
  }
  options.min_workers = 2;
  options.worker_patience = std::chrono::milliseconds(-1);
  EXPECT_THAT(Strategy::FromEnv("", options).status().message(),
              ::testing::HasSubstr("worker_patience is -1 ms"));
}

TEST(JoinJob, WhatIsOfServersIsOfNoOtherStrategy) {
  StrategyOptions options;
  options.server_loss = ServerLoss::kPartial;
  EXPECT_THAT(Strategy::FromEnv("one_device", options).status().message(),
              ::testing::HasSubstr("server_loss kPartial under one_device"));
  options = {};
  options.server_wire.pull = DType::kBFloat16;
  const Status status = Strategy::FromEnv("mirrored", options).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("server_wire under mirrored"));
  for (const std::string kind : {"one_device", "mirrored", "multi_worker_mirrored"}) {
    options = {};
    if (kind == "multi_worker_mirrored") {  // with rows on a server
      options.cluster = ClusterConfig{.cluster = ClusterSpec({{{TaskType::kPs, 0}, "a:1"},
                                                              {{TaskType::kWorker, 0}, "b:1"},
                                                              {{TaskType::kWorker, 1}, "c:1"}}),
                                      .task = {TaskType::kWorker, 1},
                                      .source = "flags"};
    }
    options.balance_interval = std::chrono::seconds(1);
    const Status balanced = Strategy::FromEnv(kind, options).status();
    EXPECT_EQ(balanced.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(balanced.message(),
                ::testing::HasSubstr("balance_interval of 1000 ms under " + kind));
  }
}

TEST(JoinJob, OptionsOfCollectivesAreRefusedWhereThereAreNone) {
  const auto with = [](const std::function<void(StrategyOptions&)>& set) {
    StrategyOptions options = OfAParameterServersWorker();
    set(options);
    return Strategy::FromEnv("parameter_server", options).status().message();
  };
  EXPECT_THAT(with([](auto& o) { o.communication.implementation = "ring"; }),
              ::testing::HasSubstr("communication.implementation 'ring' under a parameter server"));
  EXPECT_THAT(with([](auto& o) { o.communication.bind_host = "h"; }),
              ::testing::HasSubstr("communication.bind_host 'h'"));
  EXPECT_THAT(with([](auto& o) { o.rails = 2; }), ::testing::HasSubstr("rails 2"));
  EXPECT_THAT(with([](auto& o) { o.mpi_implementation = "mpi"; }),
              ::testing::HasSubstr("mpi_implementation 'mpi'"));
  EXPECT_THAT(with([](auto& o) { o.flight_folder = "f"; }),
              ::testing::HasSubstr("flight_folder 'f'"));
}

// Workers add to what the servers have as they come to it; in rounds without spares they do not.
TEST(JoinJob, OnlyRoundsOfAllWorkersAreDeterministic) {
  StrategyOptions options = OfAParameterServersWorker();
  options.deterministic = true;
  for (const char* consistency : {"async", "ssp:2", "sync:1"}) {
    options.consistency = OrThrow(Consistency::Parse(consistency));
    const Status status = Strategy::FromEnv("parameter_server", options).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(),
                ::testing::HasSubstr(std::string("deterministic with consistency ") + consistency));
  }
  options.consistency = OrThrow(Consistency::Parse("sync"));
  options.lookahead = -1;  // the next thing that is looked at
  EXPECT_THAT(Strategy::FromEnv("parameter_server", options).status().message(),
              ::testing::Not(::testing::HasSubstr("deterministic")));
}

bool HasV6Loopback() {
  std::ifstream interfaces("/proc/net/if_inet6");
  for (std::string line; std::getline(interfaces, line);) {
    if (line.ends_with(" lo")) {
      return true;
    }
  }
  return false;
}

// 127.0.0.0/8 is all of loopback: processes with addresses of their own on one host.
TEST(JoinJob, ProcessesListenAtTheirBindHosts) {
  const std::vector<TaskId> tasks{{TaskType::kWorker, 0}, {TaskType::kWorker, 1}};
  std::vector<std::pair<std::string, std::string>> hosts{{"127.0.0.3", "127.0.0.3:"},
                                                         {"127.0.0.2", "127.0.0.2:"}};
  if (HasV6Loopback()) {
    hosts[0] = {"::1", "[::1]:"};
  }
  testing::MemoryStore store;
  testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
    const auto r = static_cast<std::size_t>(rank);
    StrategyOptions options;
    options.communication.transport = "tcp";
    options.communication.bind_host = hosts[r].first;
    COHORT_ASSIGN_OR_RETURN(const Crew crew, Crew::Of(tasks, tasks[r]));
    COHORT_ASSIGN_OR_RETURN(const auto communicator,
                            ConnectCrew(crew, options, store, "127.0.0.1", /*generation=*/1));
    COHORT_ASSIGN_OR_RETURN(const auto barrier, communicator->Barrier());
    return barrier->Wait();
  }));
  for (std::size_t r = 0; r < 2; ++r) {
    EXPECT_THAT(OrThrow(store.Get("collectives/1/rank/" + std::to_string(r))),
                ::testing::StartsWith(hosts[r].second));
  }
}

// What a program asks for comes to the communicator that all collectives are of.
TEST(JoinJob, ADeterministicJobsCommunicatorIsSo) {
  const std::vector<TaskId> tasks{{TaskType::kWorker, 0}, {TaskType::kWorker, 1}};
  for (const char* const transport : {"auto", "shm", "tcp"}) {
    for (const bool deterministic : {false, true}) {
      testing::MemoryStore store;
      testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
        StrategyOptions options;
        options.communication.transport = transport;
        options.deterministic = deterministic;
        COHORT_ASSIGN_OR_RETURN(const Crew crew,
                                Crew::Of(tasks, tasks[static_cast<std::size_t>(rank)]));
        COHORT_ASSIGN_OR_RETURN(const auto communicator,
                                ConnectCrew(crew, options, store, "127.0.0.1", /*generation=*/1));
        const auto names = communicator->algorithms(OperationKind::kAllReduce);
        EXPECT_EQ(std::ranges::find(names, "ring") == names.end(), deterministic) << transport;
        COHORT_ASSIGN_OR_RETURN(const auto barrier, communicator->Barrier());
        return barrier->Wait();
      }));
    }
  }
}

TEST(JoinJob, ABindHostOfAnotherMachineIsNamed) {
  const std::vector<TaskId> tasks{{TaskType::kWorker, 0}, {TaskType::kWorker, 1}};
  StrategyOptions options;
  options.communication.transport = "tcp";
  options.communication.bind_host = "192.0.2.1";  // of documentation: nobody's
  options.join_timeout = std::chrono::seconds(5);
  testing::MemoryStore store;
  const Crew crew = OrThrow(Crew::Of(tasks, tasks[0]));
  EXPECT_THAT(ConnectCrew(crew, options, store, "127.0.0.1", 1).status().message(),
              ::testing::HasSubstr("bind_address '192.0.2.1:0'"));
}

TEST(JoinJob, ParametersTravelAsFloats) {
  StrategyOptions options = OfAParameterServersWorker();
  options.server_wire.push = DType::kInt64;
  EXPECT_THAT(Strategy::FromEnv("parameter_server", options).status().message(),
              ::testing::HasSubstr("server_wire int64"));
}

TEST(JoinJob, AParameterServersWorkerIsOnOneDevice) {
  StrategyOptions options = OfAParameterServersWorker();
  options.devices = testing::MakeFarDevices(2);
  const Status status = Strategy::FromEnv("parameter_server", options).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              ::testing::HasSubstr("one replica per worker, there are 2 devices"));
}

}  // namespace
}  // namespace cohort
