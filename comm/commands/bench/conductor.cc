#include "conductor.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace cohort::bench {
namespace {

constexpr auto kEnd = std::chrono::seconds(20);  // for processes that have nothing left to do

// What `mpirun --allow-run-as-root --oversubscribe --bind-to none` says, and what the subject
// wants.
std::vector<std::string> VariablesOf(const SubjectSpec& spec) {
  std::vector<std::string> variables = {
      "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
      "OMPI_MCA_rmaps_base_oversubscribe=1", "OMPI_MCA_hwloc_base_binding_policy=none"};
  variables.insert(variables.end(), spec.environment.begin(), spec.environment.end());
  return variables;
}

}  // namespace

Conductor::Conductor(const Options& options, std::vector<SubjectSpec> specs, ScratchFolder folder)
    : options_(options),
      specs_(std::move(specs)),
      folder_(std::move(folder)),
      channels_(specs_.size()),
      processes_(stderr) {}

Conductor::~Conductor() {
  channels_.clear();
  processes_.Kill();
}

std::string Conductor::Name(std::size_t group) const {
  const SubjectSpec& spec = specs_[group];
  return spec.implementation + (spec.configuration.empty() ? "" : " (" + spec.configuration + ")");
}

Result<std::unique_ptr<Conductor>> Conductor::Start(const Options& options,
                                                    const std::vector<std::string>& arguments,
                                                    std::vector<SubjectSpec> specs) {
  COHORT_ASSIGN_OR_RETURN(ScratchFolder folder, ScratchFolder::Make());
  std::unique_ptr<Conductor> conductor(new Conductor(options, std::move(specs), std::move(folder)));
  COHORT_ASSIGN_OR_RETURN(conductor->listener_, ListenIn(conductor->folder_.path()));
  for (std::size_t group = 0; group < conductor->specs_.size(); ++group) {
    COHORT_RETURN_IF_ERROR(
        conductor->StartGroup(group, arguments).Annotate(conductor->Name(group)));
  }
  COHORT_RETURN_IF_ERROR(conductor->MeetAll());
  return conductor;
}

Status Conductor::StartGroup(std::size_t group, const std::vector<std::string>& arguments) {
  const SubjectSpec& spec = specs_[group];
  channels_[group].resize(static_cast<std::size_t>(options_.ranks));
  std::vector<std::string> command = {ThisProgram(), "bench",
                                      std::string(OperationName(options_.operation))};
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.insert(command.end(), {"--join", folder_.path(), "--group", std::to_string(group)});
  const int processes = spec.mpirun || spec.transport == "local" ? 1 : options_.ranks;
  for (int rank = 0; rank < processes; ++rank) {
    std::vector<std::string> argv;
    if (spec.mpirun) {
      argv = {"mpirun", "-n", std::to_string(options_.ranks)};
    } else {
      for (std::string word : options_.exec_prefix) {
        for (const auto& [name, number] :
             {std::pair{"{rank}", rank}, std::pair{"{host}", rank / options_.ranks_per_host}}) {
          if (const std::size_t at = word.find(name); at != std::string::npos) {
            word.replace(at, 6, std::to_string(number));
          }
        }
        argv.push_back(std::move(word));
      }
    }
    argv.insert(argv.end(), command.begin(), command.end());
    argv.insert(argv.end(), {"--rank", std::to_string(rank)});
    COHORT_RETURN_IF_ERROR(processes_.Start(Name(group), argv, VariablesOf(spec)));
  }
  return {};
}

bool Conductor::AllHere() const {
  return std::all_of(channels_.begin(), channels_.end(), [](const auto& group) {
    return std::all_of(group.begin(), group.end(),
                       [](const auto& channel) { return channel != nullptr; });
  });
}

Status Conductor::MeetAll() {
  const Deadline deadline = DeadlineAfter(options_.timeout);
  while (!AllHere()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      std::string missing;
      for (std::size_t g = 0; g < channels_.size(); ++g) {
        for (std::size_t rank = 0; rank < channels_[g].size(); ++rank) {
          if (!channels_[g][rank]) {
            missing += (missing.empty() ? "" : ", ") + Name(g) + " rank " + std::to_string(rank);
          }
        }
      }
      return DeadlineExceeded("not ready in time: " + missing + " [--timeout]");
    }
    if (!processes_.Pump({listener_.fd()})) {
      COHORT_RETURN_IF_ERROR(processes_.CheckNoneEnded());
      continue;
    }
    Socket socket(::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.open()) {
      continue;
    }
    auto channel = std::make_unique<Channel>(std::move(socket));
    COHORT_ASSIGN_OR_RETURN(const nlohmann::json hello, channel->Receive(deadline));
    channels_.at(hello.at("group").get<std::size_t>()).at(hello.at("rank").get<std::size_t>()) =
        std::move(channel);
  }
  return {};
}

Result<std::vector<nlohmann::json>> Conductor::Order(std::size_t group,
                                                     const nlohmann::json& order) {
  const Deadline deadline = DeadlineAfter(options_.timeout);
  auto& channels = channels_[group];
  for (const auto& channel : channels) {
    COHORT_RETURN_IF_ERROR(channel->Send(order, deadline).Annotate(Name(group)));
  }
  std::vector<nlohmann::json> answers;
  for (std::size_t rank = 0; rank < channels.size(); ++rank) {
    while (!processes_.Pump({channels[rank]->fd()})) {
      COHORT_RETURN_IF_ERROR(processes_.CheckNoneEnded());
      if (std::chrono::steady_clock::now() >= deadline) {
        return DeadlineExceeded(Name(group) + " rank " + std::to_string(rank) +
                                " did not end its turn in time [--timeout]");
      }
    }
    Result<nlohmann::json> answer = channels[rank]->Receive(deadline);
    if (!answer.ok()) {  // its process ends, and has said why
      const Deadline end = DeadlineAfter(std::chrono::seconds(2));
      while (std::chrono::steady_clock::now() < end && processes_.CheckNoneEnded().ok()) {
        processes_.Pump({});
      }
      COHORT_RETURN_IF_ERROR(processes_.CheckNoneEnded());
      return answer.status().Annotate(Name(group) + " rank " + std::to_string(rank));
    }
    answers.push_back(std::move(answer).value());
  }
  return answers;
}

Status Conductor::Finish() {
  for (auto& group : channels_) {
    group.clear();
  }
  return processes_.Finish(DeadlineAfter(kEnd));
}

}  // namespace cohort::bench
