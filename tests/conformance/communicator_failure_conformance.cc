// Failures: what differs, who is absent, who has left.

#include <gmock/gmock.h>

#include <atomic>
#include <functional>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "conformance/communicator_checks.h"
#include "conformance/communicator_conformance.h"
#include "testing/run_ranks.h"

namespace cohort::testing {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::chrono::milliseconds kPatience{30'000};  // for what comes before that under test

TEST_P(CommunicatorFailureConformance, WhatAJoinedRankCannotTakePartInIsRefusedToTheCallers) {
  Run([](Communicator& comm) -> Status {
    if (comm.rank() > 0) {
      std::vector<float> values(100);
      std::vector<float> all(100 * static_cast<std::size_t>(comm.size()));
      const auto refused = [&](const Status& status) {
        return Check(status.code() == StatusCode::kInvalidArgument &&
                         status.message().find("rank 0 (worker:0) has joined") != std::string::npos,
                     status.ToString());
      };
      COHORT_RETURN_IF_ERROR(refused(WaitFor(comm.AllReduce(std::span(values), ReduceOp::kMax))));
      COHORT_RETURN_IF_ERROR(refused(WaitFor(comm.AllGather(std::span(values), std::span(all)))));
      COHORT_RETURN_IF_ERROR(refused(WaitFor(comm.Broadcast(std::span(values), 0))));
      COHORT_RETURN_IF_ERROR(refused(comm.Explain(OperationKind::kAllReduce, 1 << 20).status()));
      COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum)));
    }
    COHORT_ASSIGN_OR_RETURN(const int last, comm.Join());
    COHORT_RETURN_IF_ERROR(Check(last == comm.size() - 1, "all others joined at once"));
    return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 1000, "auto");
  });
}

TEST_P(CommunicatorFailureConformance, AJoinThatSomeNeverReachNamesThem) {
  CommunicatorOptions options = this->options();
  options.timeout = std::chrono::milliseconds(300);
  RunAndExpect(options, StatusCode::kDeadlineExceeded, {"has joined", "not joined: ", "rank 1"},
               [](Communicator& comm) -> Status {
                 return comm.rank() == 1 ? Failure(comm) : comm.Join().status();
               });
}

// Whichever comes first, the message or the join of the rank it is for; and its sender joins, too.
TEST_P(CommunicatorFailureConformance, AMessageToARankThatHasJoinedIsAnError) {
  RunAndExpect(options(), StatusCode::kInvalidArgument,
               {"Send 'x' float32[5] #1 (generation 1) by rank 0 (worker:0) to rank 1 (worker:1), "
                "which has joined"},
               [](Communicator& comm) -> Status {
                 std::vector<float> values(5);
                 if (comm.rank() == 0) {
                   COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(values), 1, {.name = "x"})));
                 }
                 COHORT_RETURN_IF_ERROR(comm.Join().status());
                 return WaitFor(comm.Barrier());
               });
}

TEST_P(CommunicatorFailureConformance, DifferentCountsNameBothSides) {
  RunAndExpect(options(), StatusCode::kInvalidArgument,
               {"rank 0 (worker:0) is in AllReduce 'fc1' float32[10]", "float32[12]"},
               [](Communicator& comm) {
                 std::vector<float> values(comm.rank() == 0 ? 10 : 12);
                 const Status status =
                     WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = "fc1"}));
                 EXPECT_THAT(status.message(),
                             ContainsRegex("rank [1-9] .worker:[1-9]. is in AllReduce 'fc1' "
                                           "float32.12."));
                 return status;
               });
}

TEST_P(CommunicatorFailureConformance, DifferentOperationsNameBothSides) {
  for (const bool broadcaster_is_root : {false, true}) {
    RunAndExpect(
        options(), StatusCode::kInvalidArgument,
        {"is in AllReduce 'fc1' float32[10]", "rank " + std::to_string(size() - 1) +
                                                  " (worker:" + std::to_string(size() - 1) +
                                                  ") is in Broadcast 'fc1' float32[12]"},
        [&](Communicator& comm) {
          std::vector<float> values(12);
          if (comm.rank() == size() - 1) {
            return WaitFor(comm.Broadcast(std::span(values), broadcaster_is_root ? comm.rank() : 0,
                                          {.name = "fc1"}));
          }
          return WaitFor(
              comm.AllReduce(std::span(values).first(10), ReduceOp::kSum, {.name = "fc1"}));
        });
  }
}

TEST_P(CommunicatorFailureConformance, DifferentTypesNamesReductionsOrRootsNameBothSides) {
  const auto differ = [&](std::vector<std::string> parts, auto call) {
    parts.emplace_back("rank 1 (worker:1) is in ");
    RunAndExpect(options(), StatusCode::kInvalidArgument, parts, [&](Communicator& comm) {
      std::vector<float> values(32, 1.0F);
      const Status status = WaitFor(call(comm, values, comm.rank() == 1));
      EXPECT_THAT(status.message(), ContainsRegex("rank [02-9] .worker:[02-9]. is in "));
      if (size() == 2) {  // nothing of the other side's was used
        EXPECT_THAT(values, ::testing::Each(1.0F));
      }
      return status;
    });
  };
  differ({"'w' float32[16]", "'w' float64[16]"}, [](Communicator& comm, std::vector<float>& values,
                                                    bool other) {
    return comm.AllReduce(Buffer(values.data(), 16, other ? DType::kFloat64 : DType::kFloat32),
                          ReduceOp::kSum, {.name = "w"});
  });
  differ({"AllReduce 'weight'", "AllReduce 'bias'"}, [](Communicator& comm,
                                                        std::vector<float>& values, bool other) {
    return comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = other ? "bias" : "weight"});
  });
  differ({"float32[32] sum", "float32[32] mean"},
         [](Communicator& comm, std::vector<float>& values, bool other) {
           return comm.AllReduce(std::span(values), other ? ReduceOp::kMean : ReduceOp::kSum);
         });
  differ({"root 0", "root 1"}, [](Communicator& comm, std::vector<float>& values, bool other) {
    return comm.Broadcast(std::span(values), other ? 1 : 0);
  });
  differ({"by ring", "by direct"}, [](Communicator& comm, std::vector<float>& values, bool other) {
    return comm.AllReduce(std::span(values), ReduceOp::kSum,
                          {.algorithm = other ? "ring" : "direct"});
  });
}

// What follows a mismatch works as if it had not been: for small operations and for those whose
// data are under way when it is found, in every algorithm, by whichever rank, many times over.
TEST_P(CommunicatorFailureConformance, AfterAMismatchTheCommunicatorGoesOn) {
  const std::vector<std::pair<std::string, std::int64_t>> cases = {
      {"ring", 100},     {"direct", 100},     {"recursive_doubling", 100},
      {"ring", 300'000}, {"direct", 300'000}, {"recursive_doubling", 200'000},
      {"auto", 1}};
  Run([&](Communicator& comm) -> Status {
    for (int round = 0; round < 9; ++round) {
      const auto& [algorithm, most] = cases[static_cast<std::size_t>(round) % cases.size()];
      const std::int64_t count = GetParam().segment_bytes > 0 ? most % 299'999 : most;
      const bool other = comm.rank() == round % comm.size();
      std::vector<float> values(static_cast<std::size_t>(count + (other ? 1 : 0)), 1.0F);
      const Status status = WaitFor(
          comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = "w", .algorithm = algorithm}));
      COHORT_RETURN_IF_ERROR(
          Check(status.code() == StatusCode::kInvalidArgument, status.ToString()));
      for (const std::string& part :
           {"float32[" + std::to_string(count) + "]", "float32[" + std::to_string(count + 1) + "]",
            std::string("the communicator goes on")}) {
        COHORT_RETURN_IF_ERROR(
            Check(status.message().find(part) != std::string::npos, status.message()));
      }
      if (status.message().find("nothing of others was taken in") != std::string::npos) {
        EXPECT_THAT(values, ::testing::Each(1.0F));
      }
      COHORT_RETURN_IF_ERROR(Check(comm.status().ok(), "the communicator is well"));
      COHORT_RETURN_IF_ERROR(
          CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, count, algorithm));
    }
    return {};
  });
}

// In every collective, by every algorithm, what one rank calls otherwise fails that operation, and
// no other, on all of them: none has it done before it hears of the difference.
TEST_P(CommunicatorFailureConformance, AMismatchInAnyCollectiveIsEverybodys) {
  const std::int64_t count = GetParam().segment_bytes > 0 ? 300 : 100'000;
  Run([&](Communicator& comm) -> Status {
    const auto n = static_cast<std::size_t>(comm.size());
    const std::vector<std::int64_t> counts(n, count);
    std::vector<float> one(static_cast<std::size_t>(count));
    std::vector<float> all(n * one.size());
    std::vector<float> more(all.size());
    using Call = std::function<Communicator::Pending(const CollectiveOptions&)>;
    const std::vector<std::pair<OperationKind, Call>> calls = {
        {OperationKind::kAllReduce,
         [&](const auto& o) { return comm.AllReduce(std::span(one), ReduceOp::kSum, o); }},
        {OperationKind::kReduce,
         [&](const auto& o) { return comm.Reduce(std::span(one), ReduceOp::kSum, 1, o); }},
        {OperationKind::kReduceScatter,
         [&](const auto& o) {
           return comm.ReduceScatter(std::span(all), std::span(one), ReduceOp::kSum, o);
         }},
        {OperationKind::kAllGather,
         [&](const auto& o) { return comm.AllGather(std::span(one), std::span(all), o); }},
        {OperationKind::kAllGatherV,
         [&](const auto& o) { return comm.AllGatherV(std::span(one), std::span(all), counts, o); }},
        {OperationKind::kBroadcast,
         [&](const auto& o) { return comm.Broadcast(std::span(one), 0, o); }},
        {OperationKind::kAllToAll,
         [&](const auto& o) { return comm.AllToAll(std::span(all), std::span(more), o); }},
        {OperationKind::kAllToAllV,
         [&](const auto& o) {
           return comm.AllToAllV(std::span(all), counts, std::span(more), counts, o);
         }},
        {OperationKind::kBarrier, [&](const auto& o) { return comm.Barrier(o); }}};
    int round = 0;
    for (const auto& [kind, call] : calls) {
      for (const std::string& algorithm : Algorithms(comm, kind)) {
        const bool other = comm.rank() == round++ % comm.size();
        const Status status = WaitFor(call({.name = other ? "b" : "a", .algorithm = algorithm}));
        const std::string what = std::string(OperationKindName(kind)) + " by " + algorithm + ": ";
        COHORT_RETURN_IF_ERROR(Check(status.code() == StatusCode::kInvalidArgument &&
                                         status.message().find("'a'") != std::string::npos &&
                                         status.message().find("'b'") != std::string::npos,
                                     what + status.ToString()));
        COHORT_RETURN_IF_ERROR(comm.status().Annotate(what));
        COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 100, "auto")
                                   .Annotate("after " + what));
      }
    }
    return {};
  });
}

// Operations queued behind one another: those that agree succeed, the others fail everywhere.
TEST_P(CommunicatorFailureConformance, OnlyTheOperationsThatDifferFail) {
  Run([&](Communicator& comm) -> Status {
    constexpr int kOperations = 30;
    const int n = comm.size();
    std::vector<std::vector<std::int64_t>> buffers;
    std::vector<std::unique_ptr<Work>> works;
    const auto differs = [](int i) { return i % 3 == 1 || i % 7 == 0; };
    for (int i = 0; i < kOperations; ++i) {
      const bool other = differs(i) && comm.rank() == (i * 5) % n;
      std::vector<std::int64_t>& buffer =
          buffers.emplace_back(static_cast<std::size_t>(1 + i * 997), comm.rank() + i);
      Result<std::unique_ptr<Work>> work =
          other && i % 2 == 0
              ? comm.Broadcast(std::span(buffer), 0)
              : comm.AllReduce(std::span(buffer), ReduceOp::kSum, {.name = other ? "b" : "a"});
      COHORT_RETURN_IF_ERROR(work.status());
      works.push_back(std::move(work).value());
    }
    for (int i = 0; i < kOperations; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const Status status = works[at]->Wait();
      COHORT_RETURN_IF_ERROR(
          Check(status.code() == (differs(i) ? StatusCode::kInvalidArgument : StatusCode::kOk),
                std::to_string(i) + ": " + status.ToString()));
      for (const std::int64_t value : buffers[at]) {
        COHORT_RETURN_IF_ERROR(
            Check(differs(i) || value == n * (n - 1) / 2 + n * i, "operation in flight"));
      }
    }
    return WaitFor(comm.Barrier());
  });
}

// A rank that comes late to an operation that the others have given up gets what was sent to it
// before, and goes on with them.
TEST_P(CommunicatorFailureConformance, ALateRankHearsOfTheMismatch) {
  Run([&](Communicator& comm) -> Status {
    const int last = comm.size() - 1;
    std::vector<std::int32_t> sent = Numbers(3, 20'000);
    std::vector<float> values(50'000);
    if (comm.rank() == last) {
      std::vector<std::int32_t> got(sent.size());
      if (comm.size() > 2) {  // rank 0 has entered the collective when this comes
        std::vector<std::int32_t> word(1);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(word), 0)));
      }
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(got), 0, {.name = "before"})));
      COHORT_RETURN_IF_ERROR(Check(got == sent, "what was sent before"));
    } else if (comm.rank() == 0) {
      if (comm.size() > 2) {
        std::vector<std::int32_t> word(1);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(word), last)));
      }
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(sent), last, {.name = "before"})));
    }
    const Status status = WaitFor(
        comm.AllReduce(std::span(values), comm.rank() == 0 ? ReduceOp::kMax : ReduceOp::kMin));
    COHORT_RETURN_IF_ERROR(Check(status.code() == StatusCode::kInvalidArgument, status.ToString()));
    if (comm.rank() == 0) {
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(sent), last, {.name = "after"})));
    } else if (comm.rank() == last) {
      std::vector<std::int32_t> got(sent.size());
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(got), 0, {.name = "after"})));
      COHORT_RETURN_IF_ERROR(Check(got == sent, "what was sent after"));
    }
    return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 70'000, "auto");
  });
}

TEST_P(CommunicatorFailureConformance, AllToAllVCountsThatDisagreeNameBothSides) {
  RunAndExpect(
      options(), StatusCode::kInvalidArgument,
      {"rank 1 (worker:1) sends 4 elements to rank 0 (worker:0), which expects 3"},
      [](Communicator& comm) {
        const auto n = static_cast<std::size_t>(comm.size());
        std::vector<std::int64_t> sends(n, 3);
        const std::vector<std::int64_t> receives(n, 3);
        sends[0] = comm.rank() == 1 ? 4 : 3;
        std::vector<float> input(3 * n + (comm.rank() == 1 ? 1 : 0));
        std::vector<float> output(3 * n);
        const Status status =
            WaitFor(comm.AllToAllV(std::span(input), sends, std::span(output), receives));
        COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 1000, "auto"));
        return status;
      });
}

TEST_P(CommunicatorFailureConformance, ReceiveThatMeetsAnotherSendNamesBothSides) {
  RunAndExpect(options(), StatusCode::kInvalidArgument, {"Send", "'a'", "Receive", "'b'"},
               [](Communicator& comm) {
                 std::vector<float> values(5);
                 if (comm.rank() == 0) {
                   COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(values), 1, {.name = "a"})));
                 } else if (comm.rank() == 1) {
                   return WaitFor(comm.Receive(std::span(values), 0, {.name = "b"}));
                 }
                 return WaitFor(comm.Barrier());
               });
}

TEST_P(CommunicatorFailureConformance, AbsentRankIsNamedAtTheDeadline) {
  CommunicatorOptions options = this->options();
  options.timeout = std::chrono::milliseconds(300);
  const std::string absent = std::to_string(size() - 1);
  for (const std::string algorithm :
       {"auto", "ring", "recursive_doubling", "direct", "halving_doubling", "tree"}) {
    RunAndExpect(options, StatusCode::kDeadlineExceeded,
                 {"AllReduce 'fc1' float32[1000] #2 (generation 1)",
                  "rank " + absent + " (worker:" + absent + ")"},
                 [&](Communicator& comm) {
                   COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier({.timeout = kPatience})));
                   std::vector<float> values(1000);
                   if (comm.rank() == size() - 1) {
                     // Hears of it without calling anything.
                     return Failure(comm);
                   }
                   const Status status = WaitFor(comm.AllReduce(
                       std::span(values), ReduceOp::kSum, {.name = "fc1", .algorithm = algorithm}));
                   for (int r = 0; r < size() - 1; ++r) {
                     EXPECT_THAT(status.message(), ::testing::Not(::testing::HasSubstr(
                                                       "waiting for rank " + std::to_string(r))));
                   }
                   return status;
                 });
  }
}

TEST_P(CommunicatorFailureConformance, AbsentRankIsNamedInOtherCollectives) {
  if (size() > 4) {
    return;  // each takes a deadline; more ranks make no difference that all-reduces do not show
  }
  CommunicatorOptions options = this->options();
  options.timeout = std::chrono::milliseconds(600);
  const std::string absent = std::to_string(size() - 1);
  const auto check = [&](const std::string& operation, const auto& call) {
    RunAndExpect(
        options, StatusCode::kDeadlineExceeded,
        {operation + " #2 (generation 1)", "rank " + absent + " (worker:" + absent + ")"},
        [&](Communicator& comm) {
          COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier({.timeout = kPatience})));
          if (comm.rank() == size() - 1) {
            return Failure(comm);  // hears of it without calling anything
          }
          const Status status = WaitFor(call(comm));
          for (int r = 0; r < size() - 1; ++r) {
            EXPECT_THAT(status.message(), Not(HasSubstr("rank " + std::to_string(r) + " (worker:" +
                                                        std::to_string(r) + ") has not entered")));
            EXPECT_THAT(status.message(), Not(HasSubstr("waiting for rank " + std::to_string(r))));
          }
          return status;
        });
  };
  const auto n = static_cast<std::size_t>(size());
  std::vector<std::vector<float>> rooms(n, std::vector<float>(20 * n));
  const auto room = [&](const Communicator& comm) {
    return std::span(rooms[static_cast<std::size_t>(comm.rank())]);
  };
  check("Barrier 'epoch'", [](Communicator& comm) { return comm.Barrier({.name = "epoch"}); });
  check("Broadcast 'fc1' float32[20]", [&](Communicator& comm) {
    return comm.Broadcast(room(comm).first(20), 0, {.name = "fc1"});
  });
  check("AllGather 'fc1' float32[20]", [&](Communicator& comm) {
    const auto mine = room(comm).subspan(20 * static_cast<std::size_t>(comm.rank()), 20);
    return comm.AllGather(mine, room(comm), {.name = "fc1"});
  });
  RunAndExpect(options, StatusCode::kDeadlineExceeded,
               {"Split #2 (generation 1)", "rank " + absent + " (worker:" + absent + ")"},
               [&](Communicator& comm) {
                 COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier({.timeout = kPatience})));
                 return comm.rank() == size() - 1 ? Failure(comm) : comm.Split(0, 0).status();
               });
}

TEST_P(CommunicatorFailureConformance, AbortReachesAllRanks) {
  RunAndExpect(options(), StatusCode::kAborted,
               {"rank 1 (worker:1) aborted the communicator: the loss is NaN"},
               [](Communicator& comm) {
                 std::vector<float> values(100000);
                 if (comm.rank() == 1) {
                   comm.Abort(Aborted("the loss is NaN"));
                 }
                 const Status status = WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum));
                 EXPECT_EQ(comm.Barrier().status(), status);  // and so does everything after
                 return status;
               });
}

TEST_P(CommunicatorFailureConformance, AbortWakesAnOperationUnderWay) {
  RunAndExpect(options(), StatusCode::kCancelled, {"stop"}, [](Communicator& comm) -> Status {
    std::vector<float> values(100000);
    if (comm.rank() == 0) {  // the others never come
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                              comm.AllReduce(std::span(values), ReduceOp::kSum));
      EXPECT_EQ(work->Wait(DeadlineAfter(std::chrono::milliseconds(20))).code(),
                StatusCode::kDeadlineExceeded);
      comm.Abort(Cancelled("stop"));
      return work->Wait();
    }
    return Failure(comm);
  });
}

TEST_P(CommunicatorFailureConformance, ARankThatLeftIsNamed) {
  RunAndExpect(options(), StatusCode::kUnavailable, {"rank 0 (worker:0) left the communicator"},
               [](Communicator& comm) {
                 if (comm.rank() == 0) {
                   return Unavailable("rank 0 (worker:0) left the communicator");
                 }
                 std::vector<float> values(1000);
                 return WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum));
               });
}

// In the same processes, which meet where they met before.
TEST_P(CommunicatorFailureConformance, ANewGenerationWorksAfterAFailure) {
  constexpr int kGenerations = 3;
  CommunicatorOptions options = this->options();
  options.generation = kGenerations;
  const std::int64_t count = GetParam().segment_bytes > 0 ? 1000 : 100'000;
  std::atomic<int> ended{0};
  const std::vector<Status> statuses =
      GetParam().run(size(), options, [&](Communicator& comm) -> Status {
        COHORT_RETURN_IF_ERROR(
            CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, count, "auto"));
        // When one has done this, all have done the former. The abort may come before its end.
        const Status met = WaitFor(comm.Barrier());
        const std::string why = "the end of generation " + std::to_string(comm.generation());
        if (comm.rank() == static_cast<int>(comm.generation()) % size()) {
          COHORT_RETURN_IF_ERROR(met);
          comm.Abort(Aborted(why));
        }
        std::vector<float> values(static_cast<std::size_t>(count));
        const Status status = WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum));
        COHORT_RETURN_IF_ERROR(Check(status.code() == StatusCode::kAborted &&
                                         status.message().find(why) != std::string::npos &&
                                         comm.status() == status,
                                     status.ToString()));
        ++ended;
        return {};
      });
  ExpectAllOk(statuses);
  EXPECT_EQ(ended, kGenerations * static_cast<int>(statuses.size()));
}

}  // namespace cohort::testing
