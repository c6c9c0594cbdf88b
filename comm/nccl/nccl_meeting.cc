#include "nccl/nccl_meeting.h"

#include <map>
#include <thread>
#include <utility>

#include "transport.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kRollCall{10};     // how often the missing are listed in the log
constexpr milliseconds kSlice{200};  // of a wait at the store
constexpr seconds kSettle{5};        // for an aborted operation to let go of its buffer

Deadline Now() { return std::chrono::steady_clock::now(); }

class Meeting {
 public:
  Meeting(NcclLinkParts& parts, milliseconds timeout, const CommunicatorOptions& options)
      : parts_(parts), timeout_(timeout), options_(options), deadline_(DeadlineAfter(timeout)) {}

  Status Run() {
    COHORT_RETURN_IF_ERROR(CompareGpus());
    return ConnectThroughNccl(parts_, Me(), [this] { return InTime(); });
  }

 private:
  Status CompareGpus() {
    COHORT_ASSIGN_OR_RETURN(const std::string mine, parts_.api->Uuid(*parts_.stream));
    COHORT_RETURN_IF_ERROR(parts_.board->Tell("gpu", mine)
                               .Annotate(Me() + " of generation " +
                                         std::to_string(options_.generation) +
                                         " publishing its GPU"));
    std::map<std::string, int> owner;
    for (int r = 0; r < parts_.size; ++r) {
      COHORT_ASSIGN_OR_RETURN(const std::string gpu, Await("gpu", r));
      const auto [at, first] = owner.emplace(gpu, r);
      if (!first) {
        return FailedPrecondition(
            Name(at->second) + " and " + Name(r) + " both use " + gpu +
            ", and NCCL takes one rank for each GPU [set CUDA_VISIBLE_DEVICES "
            "or --devices]");
      }
    }
    return {};
  }

  Status InTime() {
    if (Now() < deadline_) {
      return {};
    }
    const std::string missing = Missing("init");
    return DeadlineExceeded(Me() + " did not connect to all " + std::to_string(parts_.size) +
                            " ranks through NCCL within " + Time() + ": " +
                            (missing.empty() ? "all have begun to [see what NCCL_DEBUG=INFO "
                                               "prints]"
                                             : "missing " + missing));
  }

  // Waits for what `rank` tells, and lists those who are awaited.
  Result<std::string> Await(const std::string& name, int rank) {
    for (;;) {
      Result<std::string> told =
          parts_.board->Hear(name, rank, std::min(deadline_, DeadlineAfter(kRollCall)));
      if (told.ok() || told.status().code() != StatusCode::kDeadlineExceeded) {
        return told.ok() ? std::move(told) : told.status().Annotate("looking for " + Name(rank));
      }
      if (Now() >= deadline_) {
        return DeadlineExceeded(Me() + " did not meet all " + std::to_string(parts_.size) +
                                " ranks within " + Time() + ": missing " + Missing("gpu") +
                                " [start the missing processes; check that they reach the store]");
      }
      options_.log.Info(Me() + " waits to connect through NCCL: missing " + Missing("gpu"));
    }
  }

  std::string Missing(const std::string& name) {
    std::string text;
    for (int r = 0; r < parts_.size; ++r) {
      if (!parts_.board->Look(name, r).ok()) {
        text += (text.empty() ? "" : ", ") + Name(r);
      }
    }
    return text;
  }

  std::string Name(int rank) const { return NameOf(options_, rank); }
  std::string Me() const { return Name(parts_.rank); }
  std::string Time() const { return std::to_string(timeout_.count()) + " ms"; }

  NcclLinkParts& parts_;
  const milliseconds timeout_;
  const CommunicatorOptions& options_;
  const Deadline deadline_;
};

class Connecting {
 public:
  Connecting(NcclLinkParts& parts, const std::function<Status()>& go_on)
      : parts_(parts), go_on_(go_on) {}

  Status Run() {
    COHORT_RETURN_IF_ERROR(parts_.board->Tell("init", ""));
    COHORT_ASSIGN_OR_RETURN(const std::string id, UniqueId());
    COHORT_RETURN_IF_ERROR(
        End(parts_.api->Init(*parts_.stream, parts_.rank, parts_.size, id, &parts_.handle)));
    // The first operation makes connections that Init leaves open.
    number_ = parts_.device->Allocate(sizeof(std::int32_t), "NCCL's first operation");
    const Buffer buffer(number_.get(), 1, DType::kInt32);
    NcclApi::Outcome outcome = parts_.api->GroupStart();
    if (outcome.status.ok()) {
      const NcclApi::Outcome called =
          parts_.api->AllReduce(parts_.handle, buffer, buffer, ReduceOp::kMax, *parts_.stream);
      outcome = parts_.api->GroupEnd();
      if (!called.status.ok()) {
        outcome = called;
      }
    }
    COHORT_RETURN_IF_ERROR(End(std::move(outcome)));
    const std::shared_ptr<Event> event = parts_.stream->Record();
    while (!event->done()) {
      COHORT_RETURN_IF_ERROR(End(parts_.api->Poll(parts_.handle)));
      COHORT_RETURN_IF_ERROR(Pause());
    }
    return event->Wait(Now());
  }

  // After a failure: until nothing writes to the element any more.
  void GiveUp() {
    if (parts_.handle != nullptr) {
      parts_.api->Abort(std::exchange(parts_.handle, nullptr));
      (void)parts_.stream->Synchronize(DeadlineAfter(kSettle));
    }
  }

  const Status& stopped() const { return stopped_; }  // what go_on said

 private:
  Result<std::string> UniqueId() {
    if (parts_.rank == 0) {
      COHORT_ASSIGN_OR_RETURN(std::string id, parts_.api->UniqueId());
      COHORT_RETURN_IF_ERROR(parts_.board->Tell("id", id));
      return id;
    }
    for (;;) {
      Result<std::string> id = parts_.board->Hear("id", 0, DeadlineAfter(kSlice));
      if (id.ok() || id.status().code() != StatusCode::kDeadlineExceeded) {
        return id;
      }
      COHORT_RETURN_IF_ERROR(GoOn());
    }
  }

  // Until what `outcome` is of has ended.
  Status End(NcclApi::Outcome outcome) {
    while (outcome.status.ok() && outcome.under_way) {
      COHORT_RETURN_IF_ERROR(Pause());
      outcome = parts_.api->Poll(parts_.handle);
    }
    return outcome.status;
  }

  Status Pause() {
    COHORT_RETURN_IF_ERROR(GoOn());
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    return {};
  }
  Status GoOn() { return stopped_ = go_on_(); }

  NcclLinkParts& parts_;
  const std::function<Status()>& go_on_;
  Status stopped_;
  std::shared_ptr<std::byte> number_;
};

}  // namespace

Status ConnectThroughNccl(NcclLinkParts& parts, const std::string& what,
                          const std::function<Status()>& go_on) {
  Connecting connecting(parts, go_on);
  Status status;
  try {
    status = connecting.Run();
  } catch (const StatusError& error) {
    status = error.status();
  }
  if (status.ok()) {
    return {};
  }
  connecting.GiveUp();
  return connecting.stopped().ok() ? status.Annotate(what + " connecting through NCCL") : status;
}

Result<NcclLinkParts> MeetForNccl(std::shared_ptr<NcclApi> api, std::shared_ptr<Device> device,
                                  Board board, int rank, int size, milliseconds connect_timeout,
                                  const CommunicatorOptions& options) {
  NcclLinkParts parts;
  parts.api = std::move(api);
  parts.device = std::move(device);
  parts.board = std::move(board);
  parts.rank = rank;
  parts.size = size;
  try {
    parts.stream = parts.device->MakeStream();
    COHORT_RETURN_IF_ERROR(Meeting(parts, connect_timeout, options).Run());
  } catch (const StatusError& error) {
    return error.status();
  }
  return parts;
}

}  // namespace cohort
