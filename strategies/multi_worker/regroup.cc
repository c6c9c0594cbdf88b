#include <cohort/strategies/regroup.h>

#include <algorithm>
#include <utility>
#include <vector>

#include <cohort/strategies/synchronous.h>

#include "multi_worker/crew.h"
#include "synchronous/agreement.h"

namespace cohort {
namespace {

// Whoever does not come within this has been lost since the agreement.
constexpr std::chrono::seconds kConnect{20};

// What a process brings into a generation.
enum class Brings : std::int64_t { kNothing = 0, kBrokenState = 1, kState = 2 };

// The rank whose state all take: of those that are whole, the one that came furthest.
Result<int> FindDonor(Communicator& comm, const Strategy* before) {
  const Brings brings = before == nullptr       ? Brings::kNothing
                        : before->intact().ok() ? Brings::kState
                                                : Brings::kBrokenState;
  const std::int64_t mine[] = {static_cast<std::int64_t>(brings),
                               before == nullptr ? 0 : before->step()};
  std::vector<std::int64_t> all(2 * static_cast<std::size_t>(comm.size()));
  COHORT_RETURN_IF_ERROR(
      Await(comm.AllGather(std::span(mine), std::span(all), {.name = "who has the state"})));
  int donor = -1;
  std::int64_t furthest = -1;
  bool any = false;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const auto at = 2 * static_cast<std::size_t>(rank);
    any |= all[at] != static_cast<std::int64_t>(Brings::kNothing);
    if (all[at] == static_cast<std::int64_t>(Brings::kState) && all[at + 1] > furthest) {
      donor = rank;
      furthest = all[at + 1];
    }
  }
  if (donor < 0 && any) {
    return DataLoss("no process has whole parameters: " +
                    (before == nullptr ? std::string("each survivor had applied a step in part")
                                       : before->intact().message()) +
                    " [restore the last checkpoint]");
  }
  return std::max(donor, 0);  // a beginning: rank 0's values, as ever
}

// Takes the donor's values, slots and step into a strategy over the group.
Result<std::unique_ptr<Strategy>> RecoverFrom(int donor, Regrouped& group, ParameterSet& parameters,
                                              std::unique_ptr<Optimizer> optimizer,
                                              Strategy* before, StrategyOptions options) {
  Communicator& comm = *group.communicator;
  if (comm.size() > 1) {
    COHORT_RETURN_IF_ERROR(
        Await(comm.Broadcast(parameters.all(), donor, {.name = "a survivor's parameters"})));
  }
  SynchronousParts parts;
  parts.kind = "multi_worker_mirrored";
  if (options.cluster) {
    parts.cluster = *options.cluster;
  }
  parts.communicator = std::move(group.communicator);
  parts.store = group.store;
  options.whole_updates = true;
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Strategy> strategy,
                          MakeSynchronousStrategy(std::move(parts), std::move(options)));
  COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, std::move(optimizer)));
  for (std::size_t slot = 0; slot < strategy->slots().size(); ++slot) {
    const std::span<float> to = strategy->slots()[slot];
    if (before != nullptr) {
      const std::span<float> from = before->slots()[slot];
      Require(from.size() == to.size(), "Recover with the optimizer of before");
      std::copy(from.begin(), from.end(), to.begin());
    }
    COHORT_RETURN_IF_ERROR(
        Await(comm.Broadcast(to, donor, {.name = "slot " + std::to_string(slot)})));
  }
  std::int64_t step = before == nullptr ? 0 : before->step();
  COHORT_RETURN_IF_ERROR(Await(comm.Broadcast(std::span(&step, 1), donor, {.name = "the step"})));
  COHORT_RETURN_IF_ERROR(strategy->SetStep(step));
  if (GradScaler* const scaler = strategy->grad_scaler(); scaler != nullptr) {
    // A donor that scaled nothing so far begins to.
    const GradScaler* const mine = before == nullptr ? nullptr : before->grad_scaler();
    GradScaler::State state = (mine == nullptr ? scaler : mine)->state();
    COHORT_RETURN_IF_ERROR(Await(comm.Broadcast(Buffer(&state, sizeof(state), DType::kUInt8), donor,
                                                {.name = "the scale of gradients"})));
    COHORT_RETURN_IF_ERROR(scaler->SetState(state));
  }
  COHORT_RETURN_IF_ERROR(strategy->PushState());
  return strategy;
}

}  // namespace

Result<Regrouped> Regroup(CoordinationClient& client, const RegroupOptions& options,
                          const RegroupTransport& transport) {
  using std::chrono::milliseconds;
  if (transport.backend == "mpi") {
    return Unimplemented(
        "Regroup over MPI: the ranks of an mpirun are fixed, and most end when one is lost [start "
        "the job by addresses: TF_CONFIG, torchrun's variables or cohort launch]");
  }
  if (transport.backend != "auto" && transport.backend != "shm" && transport.backend != "tcp") {
    return InvalidArgument("Regroup knows no backend '" + transport.backend +
                           "' [use auto, shm or tcp]");
  }
  const Deadline deadline = DeadlineAfter(options.timeout);
  const auto left = [&] {
    return std::max(
        std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now()),
        milliseconds(1));
  };
  for (;;) {
    RegroupOptions round = options;
    round.timeout = left();
    Regrouped result;
    COHORT_ASSIGN_OR_RETURN(result.generation, client.Regroup(round));
    const Generation& generation = result.generation;
    CommunicatorOptions communicator = transport.communicator;
    communicator.generation = generation.number;
    communicator.peer_name = [members = generation.members](int rank) {
      return members.at(static_cast<std::size_t>(rank)).ToString();
    };
    TcpOptions tcp = transport.tcp;
    const int steps = transport.backend == "tcp" ? 1 : 3;  // of ConnectCrew
    tcp.connect_timeout = std::min({tcp.connect_timeout, left() / steps, milliseconds(kConnect)});
    auto made = ConnectCrew({.tasks = generation.members, .rank = generation.rank},
                            transport.backend, client, "regroup", tcp, communicator);
    if (made.ok()) {
      result.communicator = std::move(made).value();
      result.store = &client;
      return result;
    }
    // Processes of several hosts never share memory.
    const bool never =
        transport.backend == "shm" && made.status().code() == StatusCode::kFailedPrecondition;
    if (never || std::chrono::steady_clock::now() >= deadline || !client.failure().ok()) {
      return made.status().Annotate("generation " + std::to_string(generation.number));
    }
    communicator.log.Warning("generation " + std::to_string(generation.number) +
                             " did not meet, once more: " + made.status().ToString());
  }
}

Result<std::unique_ptr<Strategy>> Recover(Regrouped& group, ParameterSet& parameters,
                                          std::unique_ptr<Optimizer> optimizer, Strategy* before,
                                          StrategyOptions options) {
  Require(group.communicator != nullptr, "Recover takes the communicator of a Regroup");
  Communicator& comm = *group.communicator;
  COHORT_ASSIGN_OR_RETURN(const int donor, FindDonor(comm, before));
  if (before != nullptr) {
    COHORT_RETURN_IF_ERROR(before->PullState());
  }
  // If this fails, the next attempt starts from what there was: values and slots of one step.
  const std::vector<float> values(parameters.all().begin(), parameters.all().end());
  auto recovered = RecoverFrom(donor, group, parameters, std::move(optimizer), before, options);
  if (!recovered.ok()) {
    std::ranges::copy(values, parameters.all().begin());
  }
  return recovered;
}

}  // namespace cohort
