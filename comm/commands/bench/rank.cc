#include "rank.h"

#include <sys/prctl.h>

#include <chrono>
#include <csignal>
#include <optional>
#include <thread>

#include "block.h"
#include "channel.h"
#include "core/commands/processes.h"

namespace cohort::bench {
namespace {

constexpr auto kNextOrder = std::chrono::hours(1);  // others may have long turns in between

// Carries out one order: {"bytes": n, "iterations": n}.
Result<nlohmann::json> Obey(const nlohmann::json& order, Subject& subject, StartLine& start,
                            std::optional<Workload>& workload, std::uint64_t& k,
                            const Options& options) {
  const auto bytes = order.at("bytes").get<std::int64_t>();
  if (order.at("prepare").get<bool>()) {
    workload.reset();
    if (bytes > 0) {
      COHORT_ASSIGN_OR_RETURN(workload,
                              Workload::Make(subject, options.operation, options.dtype, bytes));
    }
    return nlohmann::json{{"bytes", workload ? workload->bytes() : 0}};
  }
  Require(workload.has_value(), "buffers are prepared before they are used");
  COHORT_ASSIGN_OR_RETURN(
      const Block block,
      RunBlock(subject, start, *workload, order.at("iterations").get<int>(), k, options));
  return nlohmann::json{{"seconds", block.seconds},
                        {"wrong", block.wrong},
                        {"waited", block.waited},
                        {"cpu", block.cpu}};
}

Status Serve(Subject& subject, const Options& options) {
  if (options.pin) {
    PinToCore(subject.rank(), subject.size());
  }
  const std::string page = options.folder + "/start." + std::to_string(options.group);
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<StartLine> start,
                          MakeSharedStartLine(page, subject.size(), options.timeout));
  COHORT_ASSIGN_OR_RETURN(Channel orders, Channel::Connect(options.folder));
  COHORT_RETURN_IF_ERROR(orders.Send({{"group", options.group}, {"rank", subject.rank()}},
                                     DeadlineAfter(options.timeout)));
  std::optional<Workload> workload;
  std::uint64_t k = 0;
  for (;;) {
    const Result<nlohmann::json> order = orders.Receive(DeadlineAfter(kNextOrder));
    if (order.status().code() == StatusCode::kUnavailable) {
      return {};  // that was the last one
    }
    COHORT_RETURN_IF_ERROR(order.status());
    COHORT_ASSIGN_OR_RETURN(const nlohmann::json answer,
                            Obey(order.value(), subject, *start, workload, k, options));
    COHORT_RETURN_IF_ERROR(orders.Send(answer, DeadlineAfter(options.timeout)));
  }
}

}  // namespace

Status RunRankProcess(const SubjectSpec& spec, const Options& options) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (options.pin && spec.transport != "local" && !spec.mpirun) {
    PinToCore(options.rank, options.ranks);  // with the threads that the library starts
  }
  COHORT_ASSIGN_OR_RETURN(const auto subjects, MakeSubjects(spec, options));
  std::vector<Status> statuses(subjects.size());
  std::vector<std::thread> threads;  // ranks that are threads
  for (std::size_t i = 1; i < subjects.size(); ++i) {
    threads.emplace_back([&, i] { statuses[i] = Serve(*subjects[i], options); });
  }
  statuses[0] = Serve(*subjects[0], options);
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Status& status : statuses) {
    COHORT_RETURN_IF_ERROR(status);
  }
  return {};
}

}  // namespace cohort::bench
