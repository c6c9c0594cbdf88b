#include "parameter_server/frames/exchange.h"

#include <algorithm>
#include <optional>

#include "grpc_util.h"
#include "parameter_server/frames/call_retry.h"
#include "parameter_server/frames/renewable_channel.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kWindow = 4;  // frames under way per server

}  // namespace

struct Exchange::Flight {
  FrameCall call;
  std::shared_ptr<grpc::Channel> channel;        // that it goes by, as
  std::unique_ptr<grpc::ClientContext> context;  // set while under way
  grpc::ByteBuffer reply;
  grpc::Status status;
  std::optional<CallRetry> retry;  // from the first try on
  Deadline start_at;               // of the next one
};

Exchange::Exchange(std::vector<std::shared_ptr<RenewableChannel>> channels,
                   std::vector<std::string> names, std::chrono::milliseconds peer_timeout,
                   std::string service, std::uint64_t epoch)
    : names_(std::move(names)),
      peer_timeout_(peer_timeout),
      service_(std::move(service)),
      epoch_(epoch),
      channels_(std::move(channels)) {}

void Exchange::Start(const std::string& method, Flight& flight) {
  flight.reply.Clear();
  flight.channel = channels_[static_cast<std::size_t>(flight.call.server)]->get();
  // What may throw comes before the flight is in flying_, from where the call's end takes it.
  const std::string path = "/cohort.ps." + service_ + "/" + method;
  std::function<void(grpc::Status)> landed = [this, &flight](const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    flight.status = status;
    std::erase(flying_, &flight);
    landed_.push_back(&flight);
    landed_condition_.notify_all();
  };
  grpc::GenericStub stub(flight.channel);
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(GrpcTimeout(flight.retry->try_timeout()));
  {
    const std::lock_guard lock(mutex_);
    flying_.push_back(&flight);
    flight.context = std::move(context);
    if (!aborted_.ok()) {
      flight.context->TryCancel();
    }
  }
  stub.UnaryCall(flight.context.get(), path, grpc::StubOptions(), &flight.call.request,
                 &flight.reply, std::move(landed));
}

// True if the call is answered; false if it is to be repeated, at flight.start_at.
Result<bool> Exchange::Land(Flight& flight, const OnReply& on_reply) {
  const std::string& name = names_[static_cast<std::size_t>(flight.call.server)];
  if (flight.status.ok()) {
    COHORT_ASSIGN_OR_RETURN(ReceivedFrame reply, Receive(flight.reply));
    if (reply.frame.header.has_error()) {
      return ToStatus(reply.frame.header.error(), name);
    }
    if (reply.frame.header.epoch() != epoch_) {
      return StaleReply(name, reply.frame.header.epoch(), epoch_);
    }
    COHORT_RETURN_IF_ERROR(on_reply(flight.call.server, reply));
    return true;
  }
  const grpc::StatusCode code = flight.status.error_code();
  const bool silent = code == grpc::StatusCode::DEADLINE_EXCEEDED;
  if (!silent && code != grpc::StatusCode::UNAVAILABLE &&
      code != grpc::StatusCode::RESOURCE_EXHAUSTED) {
    return FromGrpc(flight.status).Annotate(name);
  }
  if (silent) {
    channels_[static_cast<std::size_t>(flight.call.server)]->Renew(flight.channel);
  }
  const std::optional<std::chrono::milliseconds> pause = flight.retry->Next(silent);
  if (!pause.has_value()) {
    return Unavailable(name + " does not answer: " + flight.status.error_message() +
                       " [its variables are lost if it has ended: restart the job from its last "
                       "checkpoint]");
  }
  flight.start_at = DeadlineAfter(*pause);
  return false;
}

Status Exchange::Run(const std::string& method, std::vector<FrameCall> calls,
                     const OnReply& on_reply) {
  std::vector<std::unique_ptr<Flight>> flights;
  for (FrameCall& call : calls) {
    flights.push_back(std::make_unique<Flight>());
    flights.back()->call = std::move(call);
  }
  Status status;
  try {
    status = RunAll(method, flights, on_reply);
  } catch (...) {  // no memory, or what takes the replies: calls still write to `flights`
    EndFlights();
    throw;
  }
  EndFlights();
  const std::lock_guard lock(mutex_);
  return !status.ok() && !aborted_.ok() ? aborted_ : status;
}

// gRPC answers a cancelled call at once, whatever the peer does.
void Exchange::EndFlights() {
  std::unique_lock lock(mutex_);
  for (Flight* flight : flying_) {
    flight->context->TryCancel();
  }
  landed_condition_.wait(lock, [&] { return flying_.empty(); });
  landed_.clear();
}

Status Exchange::RunAll(const std::string& method, std::vector<std::unique_ptr<Flight>>& flights,
                        const OnReply& on_reply) {
  const Deadline now = std::chrono::steady_clock::now();
  std::vector<std::deque<Flight*>> waiting(channels_.size());
  std::vector<std::size_t> under_way(channels_.size(), 0);
  for (const auto& flight : flights) {
    flight->start_at = now;
    waiting[static_cast<std::size_t>(flight->call.server)].push_back(flight.get());
  }
  std::size_t unanswered = flights.size();
  while (unanswered > 0) {
    Deadline wake = Deadline::max();
    for (std::size_t s = 0; s < channels_.size(); ++s) {
      while (!waiting[s].empty() && under_way[s] < kWindow) {
        Flight& next = *waiting[s].front();
        if (next.start_at > std::chrono::steady_clock::now()) {
          wake = std::min(wake, next.start_at);
          break;
        }
        waiting[s].pop_front();
        if (!next.retry.has_value()) {
          next.retry.emplace(peer_timeout_);
        }
        ++under_way[s];
        Start(method, next);
      }
    }
    Flight* landed = nullptr;
    {
      std::unique_lock lock(mutex_);
      const auto ready = [&] { return !landed_.empty() || !aborted_.ok(); };
      if (wake == Deadline::max()) {
        landed_condition_.wait(lock, ready);  // calls under way have deadlines
      } else {
        landed_condition_.wait_until(lock, wake, ready);
      }
      if (!aborted_.ok()) {
        return aborted_;
      }
      if (landed_.empty()) {
        continue;
      }
      landed = landed_.front();
      landed_.pop_front();
    }
    const auto server = static_cast<std::size_t>(landed->call.server);
    --under_way[server];
    COHORT_ASSIGN_OR_RETURN(const bool answered, Land(*landed, on_reply));
    if (answered) {
      --unanswered;
      landed->reply.Clear();
      landed->call.request.Clear();
    } else {
      waiting[server].push_front(landed);
    }
  }
  return {};
}

void Exchange::Abort(const Status& why) {
  const std::lock_guard lock(mutex_);
  if (aborted_.ok()) {
    aborted_ = why;
  }
  for (Flight* flight : flying_) {
    flight->context->TryCancel();
  }
  landed_condition_.notify_all();
}

Status Exchange::aborted() const {
  const std::lock_guard lock(mutex_);
  return aborted_;
}

}  // namespace cohort::ps
