// Faults at random points of running jobs: every run must end on every process that is left within
// 1.5 times the deadline, with a message that names the culprit and nobody else; or, where a
// process was only slow, go on. Every result until then is right.
//
// Runs go through a table of all transports, algorithms, faults and kinds of memory, in one order:
// so many runs as it has rows, wherever they begin, have each once. The moment and the rest are
// drawn from the seed. By default a run of each kind. COHORT_FAULT_RUNS and COHORT_FAULT_SEED ask
// for more (scripts/fault_runs).
#include <gtest/gtest.h>
#include <signal.h>

#include <cohort/core/random.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "testing/process_cluster.h"
#include "testing/tcp_proxy.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kTimeout{2000};
constexpr auto kMost = kTimeout * 3 / 2;

// For how long a process is stopped that goes on before the others' deadline.
constexpr milliseconds kStoppedFor{300};

// kOneWay: nothing reaches the victim; kMute: nothing of the victim's reaches others.
enum class Fault { kKill, kStop, kPause, kReset, kHalfOpen, kOneWay, kMute };

std::string NameOf(Fault fault) {
  switch (fault) {
    case Fault::kKill:
      return "SIGKILL";
    case Fault::kStop:
      return "SIGSTOP";
    case Fault::kPause:
      return "pause";
    case Fault::kReset:
      return "reset";
    case Fault::kHalfOpen:
      return "half_open";
    case Fault::kOneWay:
      return "one_way";
    case Fault::kMute:
      return "mute";
  }
  return {};
}

bool IsSignal(Fault fault) {
  return fault == Fault::kKill || fault == Fault::kStop || fault == Fault::kPause;
}

// Where buffers lie, if they may lie in memory that ranks reach of each other; kMixed: some lend
// theirs, and some do not.
enum class Lies { kAnywhere, kLent, kPrivate, kMixed };

enum class Size { kAny, kSmall, kLarge };  // up to 16 KB; several segments for each rank

// What is not left to chance.
struct Row {
  std::string transport;
  std::string algorithm;
  Fault fault = Fault::kKill;
  Lies memory = Lies::kAnywhere;
  Size size = Size::kAny;

  // Between processes that share memory, how bytes move.
  std::string Way() const {
    if (transport != "shm") {
      return "";
    }
    if (algorithm == "auto" || algorithm == "one_shot") {
      return algorithm;
    }
    if (algorithm != "shared") {
      return "messages";
    }
    return memory == Lies::kLent ? "in place" : size == Size::kSmall ? "shown" : "staged";
  }
  std::string Kind() const { return transport + " " + NameOf(fault) + " " + Way(); }
};

struct Plan : Row {
  std::uint64_t seed = 0;
  int ranks = 2;
  int count = 1;
  int victim = 0;
  int other = -1;         // of a network fault: the one link; -1: all of the victim's
  int step = 1;           // of a signal: after this one of the victim's,
  microseconds delay{0};  // and this
  int bytes = 0;          // of a network fault: after so many on the victim's links

  bool signal() const { return IsSignal(fault); }
  // Other operations in turn with the all-reduces: not where only these have the algorithm.
  bool mixed() const {
    return algorithm != "one_shot" && algorithm != "shared" && algorithm != "hierarchical";
  }
  bool Lends(int rank) const {
    return memory == Lies::kAnywhere || memory == Lies::kLent ||
           (memory == Lies::kMixed && rank % 2 == 0);
  }
  std::string Text() const {
    std::ostringstream text;
    text << "seed " << seed << ": " << NameOf(fault) << " " << transport << " " << algorithm
         << ", ranks " << ranks << ", count " << count << ", victim " << victim << ", other "
         << other << ", step " << step << ", delay " << delay.count() << " us, bytes " << bytes
         << (memory == Lies::kPrivate ? ", private memory"
             : memory == Lies::kMixed ? ", even ranks lend memory"
                                      : "");
    return text.str();
  }
};

// Every combination that there is.
std::vector<Row> AllRows() {
  const std::vector<std::string> everywhere = {
      "auto", "ring", "direct", "recursive_doubling", "halving_doubling", "tree"};
  const std::vector<Lies> memories = {Lies::kLent, Lies::kPrivate, Lies::kMixed};
  std::vector<Row> rows;
  for (const Fault fault : {Fault::kKill, Fault::kStop, Fault::kPause, Fault::kReset,
                            Fault::kHalfOpen, Fault::kOneWay, Fault::kMute}) {
    for (const std::string& algorithm : everywhere) {
      rows.push_back({"tcp", algorithm, fault});
      if (IsSignal(fault)) {
        for (const Lies memory : memories) {
          rows.push_back({"shm", algorithm, fault, memory});
        }
      }
    }
    if (IsSignal(fault)) {
      rows.push_back({"shm", "one_shot", fault, Lies::kAnywhere, Size::kSmall});
      rows.push_back({"shm", "shared", fault, Lies::kPrivate, Size::kSmall});
      for (const Lies memory : memories) {
        rows.push_back({"shm", "shared", fault, memory, Size::kLarge});
      }
    }
    if (fault != Fault::kMute) {  // of one link the same as kOneWay
      for (const Lies memory : memories) {
        rows.push_back({"hierarchical", "hierarchical", fault, memory});
        if (IsSignal(fault)) {  // else see DrawLinkBetweenHosts
          rows.push_back({"hierarchical", "auto", fault, memory});
        }
      }
    }
  }
  if (!std::string(TEST_MPIEXEC).empty()) {
    for (const Fault fault : {Fault::kStop, Fault::kPause}) {  // a death is mpirun's to notice
      for (const std::string& algorithm : everywhere) {
        rows.push_back({"mpi", algorithm, fault});
      }
      rows.push_back({"mpi", "mpi", fault});
    }
  }
  return rows;
}

struct Table {
  std::vector<Row> rows;  // one of each kind, then the others
  std::size_t kinds = 0;
};

const Table& Rows() {
  static const Table table = [] {
    std::vector<Row> shuffled = AllRows();
    Philox random(0);
    for (std::size_t i = shuffled.size(); i > 1; --i) {
      const auto at = static_cast<std::size_t>(random.Uniform(i) * static_cast<float>(i));
      std::swap(shuffled[i - 1], shuffled[std::min(at, i - 1)]);
    }
    Table result;
    std::vector<Row> others;
    std::set<std::string> kinds;
    for (const Row& row : shuffled) {
      (kinds.insert(row.Kind()).second ? result.rows : others).push_back(row);
    }
    result.kinds = result.rows.size();
    result.rows.insert(result.rows.end(), others.begin(), others.end());
    return result;
  }();
  return table;
}

// Of a network fault, one link between hosts: by memory, a host's ranks hear of a victim that is
// cut off from all. A link that is used at all events: the barrier before each all-reduce, and the
// hosts' leaders, go over it.
void DrawLinkBetweenHosts(Plan& plan) {
  if (plan.ranks == 3) {
    plan.victim = plan.victim == 1 ? 0 : plan.victim;
    plan.other = 2 - plan.victim;
  } else {
    plan.other = (plan.victim + 2) % plan.ranks;
  }
}

Plan Draw(std::uint64_t seed) {
  Philox random(seed);
  std::uint64_t draws = 0;
  const auto below = [&](int n) {
    return std::min(static_cast<int>(random.Uniform(draws++) * static_cast<float>(n)), n - 1);
  };
  Plan plan;
  static_cast<Row&>(plan) = Rows().rows[seed % Rows().rows.size()];
  plan.seed = seed;
  plan.ranks = plan.transport == "hierarchical" ? 3 + below(2) : 2 + below(3);
  const std::vector<int> counts = plan.size == Size::kSmall ? std::vector{1, 100, 4'000}
                                  : plan.size == Size::kLarge
                                      ? std::vector{200'000, 400'000}
                                      : std::vector{1, 100, 5'000, 100'000, 400'000};
  plan.count = counts[static_cast<std::size_t>(below(static_cast<int>(counts.size())))];
  plan.victim = below(plan.ranks);
  // One link alone, silent, may be one that nothing passes; direct uses all.
  const bool heard = plan.fault == Fault::kReset || plan.algorithm == "direct";
  if (!plan.signal() && plan.transport == "hierarchical") {
    DrawLinkBetweenHosts(plan);
  } else if (!plan.signal() && heard && below(2) == 0) {
    plan.other = (plan.victim + 1 + below(plan.ranks - 1)) % plan.ranks;
  }
  plan.step = 1 + below(12);
  plan.delay = microseconds(below(4000));
  plan.bytes = 1 + below(std::max(2000, 12 * plan.count));
  return plan;
}

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

class FaultRun {
 public:
  explicit FaultRun(const Plan& plan) : plan_(plan) {}

  // The waits that were too long, and the messages that do not name the culprit.
  const std::string& wrong() const { return wrong_; }

  // The longest wait of all that are left.
  milliseconds Run() {
    Start();
    for (int rank = 0; rank < plan_.ranks; ++rank) {
      const std::string step =
          rank == plan_.victim ? "step " + std::to_string(plan_.step) : "step 1";
      const auto begun = [&] { return Said(rank, step + "\n"); };
      if (!Await([&] { return begun() || !Contents(FailureOf(rank)).empty(); }) || !begun()) {
        ADD_FAILURE() << "no start: " << plan_.Text() << "\n"
                      << Contents(FailureOf(rank)) << cluster_.Logs();
        return {};
      }
    }
    std::this_thread::sleep_for(plan_.delay);  // part of the random point
    milliseconds longest{0};
    if (plan_.fault == Fault::kPause) {
      CheckThatAllGoOn();
    } else {
      Strike();
      for (int rank = 0; rank < plan_.ranks; ++rank) {
        if (!plan_.signal() || rank != plan_.victim) {
          longest = std::max(longest, Check(rank));
        }
      }
    }
    for (int rank = 0; rank < plan_.ranks; ++rank) {
      if (const pid_t pid = Pid(rank); pid > 0) {
        ::kill(pid, SIGKILL);
      }
    }
    if (::testing::Test::HasFailure()) {
      ADD_FAILURE() << plan_.Text();
    }
    return longest;
  }

 private:
  static std::string Name(int rank) { return "worker:" + std::to_string(rank); }

  void Strike() {
    if (plan_.signal()) {
      EXPECT_EQ(::kill(Pid(plan_.victim), plan_.fault == Fault::kKill ? SIGKILL : SIGSTOP), 0);
    } else {
      const std::string other = plan_.other < 0 ? "*" : Name(plan_.other);
      if (plan_.fault == Fault::kMute) {
        proxy_->After(plan_.bytes, "one_way", Name(plan_.victim), other);
      } else {
        proxy_->After(plan_.bytes, NameOf(plan_.fault), other, Name(plan_.victim));
      }
    }
  }

  // The victim is stopped, and goes on before the deadline. So do all, and nothing fails.
  void CheckThatAllGoOn() {
    const pid_t victim = Pid(plan_.victim);
    EXPECT_EQ(::kill(victim, SIGSTOP), 0);
    EXPECT_TRUE(Await([&] { return Stopped(victim); }));
    const std::int64_t before = Done(plan_.victim);
    std::this_thread::sleep_for(kStoppedFor);  // the fault
    EXPECT_EQ(Done(plan_.victim), before) << "it was not stopped";
    EXPECT_EQ(::kill(victim, SIGCONT), 0);
    for (int rank = 0; rank < plan_.ranks; ++rank) {
      const auto failed = [&] { return Contents(FailureOf(rank)); };
      EXPECT_TRUE(Await([&] { return Done(rank) >= before + 20 || !failed().empty(); }))
          << Name(rank) << " waits on\n"
          << cluster_.Logs();
      EXPECT_EQ(failed(), "") << Name(rank);
    }
  }
  static bool Stopped(pid_t pid) {
    const std::string stat = Contents("/proc/" + std::to_string(pid) + "/stat");
    const std::size_t name_end = stat.rfind(") ");
    return name_end != std::string::npos && stat.compare(name_end, 3, ") T") == 0;
  }
  // The last step that a rank has done.
  std::int64_t Done(int rank) const {
    const std::string bytes = Contents(folder_.path() + "/done." + std::to_string(rank));
    std::int64_t step = 0;
    if (bytes.size() == sizeof(step)) {
      std::memcpy(&step, bytes.data(), sizeof(step));
    }
    return step;
  }
  std::string FailureOf(int rank) const {
    return folder_.path() + "/failed." + std::to_string(rank);
  }

  // What all go on from has no bound to show, and a busy machine may be slow as well.
  milliseconds Timeout() const { return (plan_.fault == Fault::kPause ? 5 : 1) * kTimeout; }

  void Start() {
    const std::string task = COHORT_BIN_DIR "/../tests/collective_task";
    const auto arguments = [&](int rank) {
      std::vector<std::string> result = {task,
                                         plan_.transport,
                                         std::to_string(rank),
                                         std::to_string(plan_.ranks),
                                         folder_.path(),
                                         std::to_string(Timeout().count()),
                                         "20000",
                                         "1000000000",
                                         "algorithm=" + plan_.algorithm,
                                         "count=" + std::to_string(plan_.count),
                                         "mixed=" + std::to_string(plan_.mixed() ? 1 : 0),
                                         "private=" + std::to_string(plan_.Lends(rank) ? 0 : 1),
                                         "linger=1"};
      return result;
    };
    if (!plan_.signal()) {
      proxy_.emplace(cluster_);
    }
    if (plan_.transport == "mpi") {
      std::vector<std::string> command = {TEST_MPIEXEC, "--allow-run-as-root", "--oversubscribe",
                                          "-n", std::to_string(plan_.ranks)};
      const std::vector<std::string> tail = arguments(0);
      command.insert(command.end(), tail.begin(), tail.end());
      command.emplace_back("log=1");
      cluster_.Start("mpirun", command);
      return;
    }
    for (int rank = 0; rank < plan_.ranks; ++rank) {
      std::vector<std::string> command = arguments(rank);
      command.emplace_back("log=1");
      cluster_.Start(Name(rank), command,
                     proxy_.has_value() ? proxy_->Environment(Name(rank)) : Variables());
    }
  }

  template <typename F>
  static bool Await(const F& done) {
    const auto deadline = std::chrono::steady_clock::now() + seconds(30);
    while (!done()) {
      if (std::chrono::steady_clock::now() >= deadline) {
        return false;
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
    return true;
  }
  // What a rank says it writes to a file too, whoever started it.
  bool Said(int rank, const std::string& line) const {
    return Contents(folder_.path() + "/log." + std::to_string(rank)).find(line) !=
           std::string::npos;
  }
  pid_t Pid(int rank) const {
    return std::atoi(Contents(folder_.path() + "/pid." + std::to_string(rank)).c_str());
  }

  milliseconds Check(int rank) {
    const std::string path = FailureOf(rank);
    const bool failed = Await([&] { return !Contents(path).empty(); });
    EXPECT_TRUE(failed) << Name(rank) << " waits on\n" << cluster_.Logs();
    const std::string text = Contents(path);
    const milliseconds waited(std::atoi(text.c_str()));
    const bool alone = rank == plan_.victim && HearsOfNobody();
    if (waited > kMost || !NamesTheCulprit(rank, text) || (alone && !SaysSo(rank, text))) {
      wrong_ += Name(rank) + ": " + text + "\n";
    }
    return waited;
  }

  // Nothing comes to the victim any more, by which the others could tell it anything: of two or
  // more, which cannot all be the culprit, it says so.
  bool HearsOfNobody() const {
    const bool silence = plan_.fault == Fault::kHalfOpen || plan_.fault == Fault::kOneWay;
    return silence && plan_.other < 0 && plan_.ranks > 2 && plan_.transport == "tcp";
  }
  static bool SaysSo(int rank, const std::string& text) {
    return text.find("on " + Described(rank) + " not done after ") != std::string::npos &&
           text.find(Described(rank) + " hears of no other rank") != std::string::npos;
  }
  static std::string Described(int rank) {
    return "rank " + std::to_string(rank) + " (" + Name(rank) + ")";
  }

  // Of a signal, nobody else besides.
  bool NamesTheCulprit(int rank, std::string text) const {
    for (const std::string found : {"aborted the communicator: ", "not done after "}) {
      const std::size_t by = text.find(found);  // who found it is named before
      text = by == std::string::npos ? text : text.substr(by);
    }
    const auto names = [&](int culprit) {
      return text.find("(worker:" + std::to_string(culprit) + ")") != std::string::npos;
    };
    if (plan_.signal()) {
      for (int other = 0; other < plan_.ranks; ++other) {
        if (names(other) != (other == plan_.victim)) {
          return false;
        }
      }
      return true;
    }
    if (names(plan_.victim) || (plan_.other >= 0 && names(plan_.other))) {
      return true;
    }
    // Cut off from all, it cannot tell whose fault that is; and between two, neither can.
    const bool cannot_tell = rank == plan_.victim || plan_.ranks == 2;
    return cannot_tell && plan_.other < 0 && text.find("(worker:") != std::string::npos;
  }

  const Plan plan_;
  TempDir folder_;
  ProcessCluster cluster_;
  std::optional<TcpProxy> proxy_;
  std::string wrong_;
};

int repeated = 0;

// What is wrong once is done again where the machine may have been: ranks judge at a deadline by
// who speaks within 200 ms, and one that is well may be off its core for so long; and a victim of
// MPI's that stops as it puts something into a queue lets nothing pass there, so that the rank
// which reads it hears of nobody.
milliseconds RunUntilRight(const Plan& plan) {
  constexpr int kTries = 3;
  const bool may = plan.fault != Fault::kKill && plan.fault != Fault::kReset;
  milliseconds longest{0};
  for (int tries = 1;; ++tries) {
    FaultRun run(plan);
    longest = std::max(longest, run.Run());
    if (run.wrong().empty() || ::testing::Test::HasFailure()) {
      return longest;
    }
    std::printf("wrong, try %d: %s\n%s", tries, plan.Text().c_str(), run.wrong().c_str());
    if (!may || tries == kTries) {
      ADD_FAILURE() << "waits too long, or does not name the culprit: " << plan.Text() << "\n"
                    << run.wrong();
      return longest;
    }
    ++repeated;
  }
}

// The leader of a host gives up, at the deadline of all ranks, what it waits for inside its host.
TEST(FaultRun, WhatIsGivenUpInsideAHostEnds) {
  Plan plan;
  plan.transport = "hierarchical";
  plan.algorithm = "hierarchical";
  plan.fault = Fault::kStop;
  plan.ranks = 3;
  plan.count = 100;
  plan.victim = 1;
  plan.step = 10;
  RunUntilRight(plan);
}

TEST(FaultRun, EveryWaitEndsInTimeAndNamesTheCulprit) {
  const auto number = [](const char* name, int otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoi(value);
  };
  const int runs = number("COHORT_FAULT_RUNS", static_cast<int>(Rows().kinds));
  const int first = number("COHORT_FAULT_SEED", 0);
  std::map<std::string, std::pair<int, milliseconds>> longest;
  std::set<std::size_t> rows;
  for (int run = 0; run < runs; ++run) {
    const Plan plan = Draw(static_cast<std::uint64_t>(first + run));
    const milliseconds waited = RunUntilRight(plan);
    auto& [count, most] = longest[plan.Kind()];
    ++count;
    rows.insert(plan.seed % Rows().rows.size());
    most = std::max(most, waited);
    if (HasFailure()) {
      break;
    }
  }
  for (const auto& [kind, result] : longest) {
    std::printf("%-24s %3d runs, longest wait %lld ms of %lld\n", kind.c_str(), result.first,
                static_cast<long long>(result.second.count()),
                static_cast<long long>(kMost.count()));
  }
  std::printf("%zu of %zu combinations; %d runs repeated\n", rows.size(), Rows().rows.size(),
              repeated);
  EXPECT_LE(repeated, 1 + runs / 20);
}

}  // namespace
}  // namespace cohort::testing
