#include "multi_worker/crew.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <cohort/comm/hierarchical.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>

namespace cohort {
namespace {

// Every process gives its word under `key`; those of all, by rank.
Result<std::vector<std::string>> WordsOfAll(const Crew& crew, KeyValueStore& store,
                                            const std::string& key, const std::string& mine,
                                            Deadline deadline) {
  const auto of = [&](int rank) { return key + "/" + std::to_string(rank); };
  COHORT_RETURN_IF_ERROR(store.Insert(of(crew.rank), mine));
  std::vector<std::string> words;
  for (int rank = 0; rank < crew.size(); ++rank) {
    COHORT_ASSIGN_OR_RETURN(std::string word, store.Wait(of(rank), deadline));
    words.push_back(std::move(word));
  }
  return words;
}

// A communicator that all processes get, or none: nullptr where a process cannot make it, and
// `obstacle` says which and why.
Result<std::unique_ptr<Communicator>> MadeByAll(const Crew& crew, KeyValueStore& store,
                                                const std::string& key, Deadline deadline,
                                                Result<std::unique_ptr<Communicator>> made,
                                                std::string& obstacle) {
  COHORT_ASSIGN_OR_RETURN(
      const std::vector<std::string> words,
      WordsOfAll(crew, store, key, made.ok() ? "yes" : made.status().ToString(), deadline));
  for (std::size_t rank = 0; rank < words.size(); ++rank) {
    if (words[rank] != "yes") {
      obstacle = crew.tasks[rank].ToString() + ": " + words[rank];
      return std::unique_ptr<Communicator>();
    }
  }
  return made;
}

// Any port of `host`; of the interface that routes to the rendezvous, if it is empty.
std::string AnyPortOf(const std::string& host) {
  const bool bare_v6 = host.find(':') != std::string::npos && host.front() != '[';
  return (bare_v6 ? "[" + host + "]" : host) + ":0";
}

}  // namespace

Result<Crew> Crew::Of(std::vector<TaskId> tasks, const TaskId& self) {
  const auto at = std::ranges::find(tasks, self);
  if (at == tasks.end()) {
    return FailedPrecondition("the job goes on without " + self.ToString() +
                              ", which it has given up as lost [start it again]");
  }
  const auto rank = static_cast<int>(at - tasks.begin());
  return Crew{.tasks = std::move(tasks), .rank = rank};
}

std::string Crew::Text(const std::vector<TaskId>& tasks) {
  std::string text;
  for (const TaskId& task : tasks) {
    text += (text.empty() ? "" : "\n") + task.ToString();
  }
  return text;
}

Result<std::vector<TaskId>> Crew::Parse(std::string_view text) {
  std::vector<TaskId> tasks;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    COHORT_ASSIGN_OR_RETURN(const TaskId task, TaskId::Parse(line));
    tasks.push_back(task);
    text.remove_prefix(std::min(line.size() + 1, text.size()));
  }
  return tasks;
}

CommunicatorOptions CommunicatorOf(const Crew& crew, const StrategyOptions& options,
                                   std::uint64_t generation) {
  CommunicatorOptions result;
  result.generation = generation;
  result.timeout = options.communication.timeout;
  result.deterministic = options.deterministic || options.virtual_shards > 0;
  result.log = options.log;
  result.flight_folder = options.flight_folder;
  result.metrics = options.metrics;
  result.peer_name = [tasks = crew.tasks](int rank) {
    return tasks.at(static_cast<std::size_t>(rank)).ToString();
  };
  return result;
}

Result<std::unique_ptr<Communicator>> ConnectCrew(const Crew& crew, const StrategyOptions& options,
                                                  KeyValueStore& store, const std::string& host,
                                                  std::uint64_t generation) {
  // Whoever does not come within this, after a loss, has been lost since.
  constexpr std::chrono::milliseconds kConnectAgain{30'000};
  TcpOptions tcp;
  tcp.bind_address = AnyPortOf(options.communication.bind_host);
  tcp.rendezvous_host = host;
  tcp.connect_timeout =
      generation > 1 ? std::min(kConnectAgain, options.join_timeout) : options.join_timeout;
  tcp.rails = options.rails;
  return ConnectCrew(crew, options.communication.transport, store, "collectives", tcp,
                     CommunicatorOf(crew, options, generation));
}

Result<std::unique_ptr<Communicator>> ConnectCrew(const Crew& crew, const std::string& transport,
                                                  KeyValueStore& store, const std::string& prefix,
                                                  const TcpOptions& tcp,
                                                  const CommunicatorOptions& communicator) {
  constexpr std::chrono::milliseconds kConnect{10'000};  // all have joined already
  const std::string key = prefix + "/" + std::to_string(communicator.generation);
  const int rank = crew.rank;
  const int size = crew.size();
  if (transport == "tcp") {
    return MakeTcpCommunicator(rank, size, store, prefix, tcp, communicator);
  }
  std::string obstacle;
  if (transport == "shm") {
    COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> hosts,
                            WordsOfAll(crew, store, key + "/host_of_all", HostIdentity(),
                                       DeadlineAfter(tcp.connect_timeout)));
    for (std::size_t r = 0; r < hosts.size() && obstacle.empty(); ++r) {
      if (hosts[r] != hosts.front()) {
        obstacle = crew.tasks[r].ToString() + " is on another host";
      }
    }
  }
  const bool one_host = obstacle.empty();
  if (one_host) {
    HierarchicalOptions hierarchical;
    hierarchical.tcp = tcp;
    hierarchical.tcp.connect_timeout = std::min(kConnect, tcp.connect_timeout);
    auto mine = MakeHierarchicalCommunicator(rank, size, store, prefix, hierarchical, communicator);
    COHORT_ASSIGN_OR_RETURN(
        auto made, MadeByAll(crew, store, key + "/made", DeadlineAfter(tcp.connect_timeout),
                             std::move(mine), obstacle));
    if (made != nullptr) {
      return made;
    }
  }
  if (transport == "shm") {
    const std::string failed = "the processes cannot share memory: " + obstacle +
                               " [choose communication.transport auto or tcp]";
    // After a loss they could before, and may again.
    return one_host && communicator.generation > 1 ? Unavailable(failed)
                                                   : FailedPrecondition(failed);
  }
  communicator.log.Warning(
      "TCP between all processes, since not all that are on one host can share "
      "memory: " +
      obstacle);
  return MakeTcpCommunicator(rank, size, store, prefix + "/tcp", tcp, communicator);
}

}  // namespace cohort
