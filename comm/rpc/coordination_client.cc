// One task's connection to the coordination service.
//
// Calls of the user block on the user's thread. One thread of the client's own (the heart) beats,
// keeps a Watch call open through which the service tells of a failure at once, and decides when
// the service itself is gone.

#include <cohort/coordination.grpc.pb.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/rpc/coordination.h>

#include "grpc_util.h"
#include "key_value_table.h"
#include "process_identity.h"
#include "wire.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kAnswerSlack{5'000};  // the service answers a wait this much late at worst
constexpr milliseconds kWatchSlice{30'000};
constexpr milliseconds kWatchPause{50};
constexpr milliseconds kProbeTimeout{300};
constexpr milliseconds kGoodbyeTimeout{500};

// The connection is gone, or the service is just going (it cancels what it has not begun).
bool IsBroken(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::CANCELLED;
}

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

// Pauses between attempts: from 100 ms, growing to 2 s, each shortened by up to a third at random
// so that many clients do not come at once.
class Backoff {
 public:
  explicit Backoff(std::uint64_t seed) : random_(seed) {}
  milliseconds Next() {
    const milliseconds pause = pause_;
    pause_ = std::min(pause_ * 8 / 5, milliseconds(2'000));
    const float keep = 1.0F - random_.Uniform(attempt_++) / 3.0F;
    return milliseconds(static_cast<int>(static_cast<float>(pause.count()) * keep));
  }

 private:
  milliseconds pause_{100};
  std::uint64_t attempt_ = 0;
  Philox random_;
};

// One call of the heart: it is started, and later found done.
template <typename Request, typename Reply>
struct HeartCall {
  std::shared_ptr<grpc::ClientContext> context;  // owners: this, and whoever cancels it
  Request request;
  Reply reply;
  grpc::Status status;
  bool in_flight = false;
  bool done = false;
  Deadline next;  // when to start it again
};

class Client final : public CoordinationClient {
 public:
  Client(std::string address, const ClusterSpec& cluster, const TaskId& task,
         const CoordinationOptions& options)
      : address_(std::move(address)),
        cluster_(cluster),
        task_(task),
        options_(options),
        clock_(*options_.clock),
        interval_(options.heartbeat_interval),
        timeout_(options.heartbeat_timeout),
        incarnation_(NewIncarnation()),
        stub_(wire::Coordination::NewStub(NewChannel(address_))) {
    caller_.set_task(task_.ToString());
    caller_.set_incarnation(incarnation_);
  }

  ~Client() override {
    SayGoodbye();
    StopHeart();
  }

  Status JoinJob(bool wait_for_all) {
    const Deadline begun = clock_.Now();
    COHORT_RETURN_IF_ERROR(Register(begun));
    heart_ = std::thread([this] { Heart(); });
    return wait_for_all ? AwaitAll(begun) : OkStatus();
  }

  std::uint64_t incarnation() const override { return incarnation_; }

  Status Insert(const std::string& key, const std::string& value) override {
    COHORT_RETURN_IF_ERROR(CheckValueSize(key, value.size()));
    wire::InsertRequest request;
    request.set_key(key);
    request.set_value(value);
    request.set_sequence(++insertions_);
    wire::InsertReply reply;
    return Call(&Stub::Insert, request, &reply, milliseconds(0), "inserting key \"" + key + "\"");
  }

  Result<std::string> Get(const std::string& key) override {
    wire::GetRequest request;
    request.set_key(key);
    return GetValue(request, milliseconds(0), "reading key \"" + key + "\"");
  }

  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    wire::GetRequest request;
    request.set_key(key);
    return GetValue(request, Remaining(deadline), "waiting for key \"" + key + "\"");
  }

  Status Barrier(const std::string& name, Deadline deadline,
                 const std::vector<TaskId>& participants) override {
    wire::BarrierRequest request;
    request.set_name(name);
    for (const TaskId& participant : participants) {
      request.add_participants(participant.ToString());
    }
    wire::BarrierReply reply;
    return Call(&Stub::Barrier, request, &reply, Remaining(deadline), "barrier \"" + name + "\"");
  }

  Status ReportError(const Status& error) override {
    Require(!error.ok(), "ReportError needs an error");
    wire::ReportErrorRequest request;
    ToWire(error, request.mutable_error());
    wire::ReportErrorReply reply;
    const Status told =
        Call(&Stub::ReportError, request, &reply, milliseconds(0), "reporting an error");
    const std::lock_guard lock(mutex_);
    SetFailure(FromWire(reply.failure()));
    return failure_.ok() ? told : OkStatus();  // a job that has failed already needs no telling
  }

  Status failure() const override {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  void OnFailure(std::function<void(const Status&)> callback) override {
    {
      const std::lock_guard lock(mutex_);
      on_failure_.push_back(std::move(callback));
    }
    changed_.notify_all();
  }

  Status Shutdown() override {
    wire::LeaveRequest request;
    wire::LeaveReply reply;
    COHORT_RETURN_IF_ERROR(
        Call(&Stub::Leave, request, &reply, options_.shutdown_timeout, "shutdown"));
    {
      const std::lock_guard lock(mutex_);
      left_ = true;
    }
    StopHeart();
    return OkStatus();
  }

 private:
  using Stub = wire::Coordination::Stub;

  milliseconds Remaining(Deadline deadline) const {
    // At least 1 ms: 0 means "answer at once" on the wire.
    return std::max(std::chrono::ceil<milliseconds>(deadline - clock_.Now()), milliseconds(1));
  }

  // Joining.

  Status Register(Deadline begun);
  Status AwaitAll(Deadline begun);
  std::string WhyUnreachable(const grpc::Status& status) const;
  bool PauseUntil(Deadline deadline);

  // One call, repeated while the connection is broken, until the service answers, the job fails, or
  // `wait` and some slack have passed. The request's `wait_ms`, where it has one, is set.
  template <typename Request, typename Reply>
  Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
              Request request, Reply* reply, milliseconds wait, const std::string& what);
  Result<std::string> GetValue(const wire::GetRequest& request, milliseconds wait,
                               const std::string& what);
  // nullptr, and the reason, if nothing can be asked any more.
  std::shared_ptr<grpc::ClientContext> BeginCall(Deadline deadline, Status* why);
  void EndCall(const std::shared_ptr<grpc::ClientContext>& context);

  // The heart. All but Heart, StartBeat, StartWatch and StopHeart run with mutex_ held.
  void Heart();
  void StartBeat(Deadline now);
  void StartWatch();
  void TakeBeat(std::unique_lock<std::mutex>& lock);
  void TakeWatch();
  void JudgeService(std::unique_lock<std::mutex>& lock);
  void SetFailure(const Status& failure);
  void TellFailure(std::unique_lock<std::mutex>& lock);
  void StopHeart();
  void SayGoodbye();

  const std::string address_;
  const ClusterSpec cluster_;
  const TaskId task_;
  const CoordinationOptions options_;
  Clock& clock_;
  milliseconds interval_;  // of the heartbeat; the smaller of ours and the service's
  milliseconds timeout_;
  const std::uint64_t incarnation_;
  wire::Caller caller_;
  const std::unique_ptr<Stub> stub_;
  std::atomic<std::uint64_t> insertions_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool registered_ = false;
  bool left_ = false;
  bool stop_ = false;
  Status failure_;
  bool service_gone_ = false;  // the failure is our own finding
  std::vector<std::function<void(const Status&)>> on_failure_;
  std::set<std::shared_ptr<grpc::ClientContext>> calls_;  // of the user, in flight
  HeartCall<wire::HeartbeatRequest, wire::HeartbeatReply> beat_;
  HeartCall<wire::WatchRequest, wire::WatchReply> watch_;
  Deadline last_answer_;
  std::optional<Deadline> broken_since_;
  std::thread heart_;
};

// Joining.

Status Client::Register(Deadline begun) {
  const ProcessIdentity self = ProcessIdentity::OfThis();
  wire::RegisterRequest request;
  *request.mutable_caller() = caller_;
  request.set_host(self.host);
  request.set_pid(self.pid);
  request.set_uptime_ms(self.uptime.count());
  request.set_fingerprint(cluster_.Fingerprint());
  request.set_cluster_json(cluster_.ToJson());
  const Deadline deadline = begun + options_.join_timeout;
  const std::string service =
      fmt::format("the coordination service of {} at {}", cluster_.Chief().ToString(), address_);
  Backoff backoff(incarnation_);
  Deadline next_line = begun + options_.roll_call_interval;
  while (true) {
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(std::min(Remaining(deadline), kAnswerSlack)));
    wire::RegisterReply reply;
    const grpc::Status status = stub_->Register(&context, request, &reply);
    if (status.ok()) {
      COHORT_RETURN_IF_ERROR(FromWire(reply.outcome()));
      const std::lock_guard lock(mutex_);
      registered_ = true;
      interval_ = std::min(interval_, milliseconds(reply.heartbeat_interval_ms()));
      timeout_ = std::min(timeout_, milliseconds(reply.heartbeat_timeout_ms()));
      return OkStatus();
    }
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
      return FailedPrecondition(fmt::format(
          "{} could not join: at {} answers another service ({}) [compare the address "
          "of {} with the ports in use]",
          task_.ToString(), address_, status.error_message(), cluster_.Chief().ToString()));
    }
    const Deadline now = clock_.Now();
    const bool late = now >= deadline;
    if (late || now >= next_line) {
      const std::string why = WhyUnreachable(status);
      if (late) {
        return DeadlineExceeded(fmt::format(
            "{} could not reach {} within {:.1f} s: {} [start {}, and compare the address with "
            "where it runs]",
            task_.ToString(), service, Seconds(now - begun), why, cluster_.Chief().ToString()));
      }
      options_.log.Info(
          fmt::format("waiting for {}: {} ({:.0f} s)", service, why, Seconds(now - begun)));
      next_line += options_.roll_call_interval;
    }
    PauseUntil(std::min(deadline, now + backoff.Next()));
  }
}

std::string Client::WhyUnreachable(const grpc::Status& status) const {
  const std::string reason = ProbeAddress(address_, kProbeTimeout);
  return reason == kAcceptsConnections
             ? fmt::format("{} but does not answer ({})", reason, status.error_message())
             : reason;
}

// False if the client stops or the job fails before `deadline`.
bool Client::PauseUntil(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return !clock_.WaitUntil(lock, changed_, deadline,
                           [this] { return stop_ || left_ || !failure_.ok(); });
}

Status Client::AwaitAll(Deadline begun) {
  const Deadline deadline = begun + options_.join_timeout;
  while (true) {
    wire::RollCallReply reply;
    COHORT_RETURN_IF_ERROR(Call(&Stub::RollCall, wire::RollCallRequest(), &reply,
                                std::min(Remaining(deadline), options_.roll_call_interval),
                                "joining"));
    if (reply.complete()) {
      return OkStatus();
    }
    const Deadline now = clock_.Now();
    if (now >= deadline) {
      const Status late = DeadlineExceeded(
          fmt::format("joining gave up after {:.1f} s, waiting for {} [start the missing tasks, or "
                      "compare their addresses with where they run]",
                      Seconds(now - begun), reply.missing()));
      // The others wait for the same tasks; that this one goes must not be all they hear.
      (void)ReportError(late);
      return late;
    }
    options_.log.Info("waiting for " + reply.missing());
  }
}

// Calls of the user.

std::shared_ptr<grpc::ClientContext> Client::BeginCall(Deadline deadline, Status* why) {
  auto context = std::make_shared<grpc::ClientContext>();
  context->set_deadline(GrpcDeadline(deadline));
  const std::lock_guard lock(mutex_);
  *why = left_ ? FailedPrecondition(task_.ToString() + " has left the job") : failure_;
  if (!why->ok()) {
    return nullptr;
  }
  calls_.insert(context);
  return context;
}

void Client::EndCall(const std::shared_ptr<grpc::ClientContext>& context) {
  const std::lock_guard lock(mutex_);
  calls_.erase(context);
}

template <typename Request, typename Reply>
Status Client::Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
                    Request request, Reply* reply, milliseconds wait, const std::string& what) {
  *request.mutable_caller() = caller_;
  const Deadline answer_by = clock_.Now() + wait;
  const Deadline last = std::chrono::steady_clock::now() + wait + kAnswerSlack;
  Backoff backoff(incarnation_);
  while (true) {
    if constexpr (requires { request.set_wait_ms(0); }) {
      request.set_wait_ms(wait.count() == 0 ? 0 : Remaining(answer_by).count());
    }
    Status why;
    const std::shared_ptr<grpc::ClientContext> context = BeginCall(last, &why);
    if (context == nullptr) {
      return why.Annotate(what);
    }
    const grpc::Status status = (stub_.get()->*method)(context.get(), request, reply);
    EndCall(context);
    if (status.ok()) {
      return FromWire(reply->outcome());
    }
    if (const Status failed = failure(); !failed.ok()) {
      return failed.Annotate(what);
    }
    if (!IsBroken(status) || std::chrono::steady_clock::now() >= last) {
      return FromGrpc(status).Annotate(
          fmt::format("{}: no answer of the coordination service at {}", what, address_));
    }
    PauseUntil(clock_.Now() + backoff.Next());
  }
}

Result<std::string> Client::GetValue(const wire::GetRequest& request, milliseconds wait,
                                     const std::string& what) {
  wire::GetReply reply;
  COHORT_RETURN_IF_ERROR(Call(&Stub::Get, request, &reply, wait, what));
  return std::move(*reply.mutable_value());
}

// The heart.

void Client::Heart() {
  NameThisThread("coord-heart");
  std::unique_lock lock(mutex_);
  last_answer_ = clock_.Now();
  beat_.next = watch_.next = last_answer_;
  while (!stop_) {
    if (beat_.done) {
      TakeBeat(lock);
    }
    if (watch_.done) {
      TakeWatch();
    }
    if (!failure_.ok()) {
      TellFailure(lock);
      clock_.WaitUntil(lock, changed_, clock_.Now() + std::chrono::hours(1),
                       [this] { return stop_ || !on_failure_.empty(); });
      continue;
    }
    const Deadline now = clock_.Now();
    const bool beat = !beat_.in_flight && beat_.next <= now;
    const bool watch = !watch_.in_flight && watch_.next <= now;
    if (beat || watch) {
      lock.unlock();  // gRPC may call back on this thread
      if (beat) {
        StartBeat(now);
      }
      if (watch) {
        StartWatch();
      }
      lock.lock();
      continue;
    }
    Deadline wake = now + timeout_;
    if (!beat_.in_flight) {
      wake = std::min(wake, beat_.next);
    }
    if (!watch_.in_flight) {
      wake = std::min(wake, watch_.next);
    }
    clock_.WaitUntil(lock, changed_, wake,
                     [this] { return stop_ || beat_.done || watch_.done || !failure_.ok(); });
  }
}

void Client::StartBeat(Deadline now) {
  // Several attempts fit into the time after which the service counts as gone, and the last of them
  // ends with it.
  const Duration left = last_answer_ + timeout_ - now;
  const Duration patience =
      std::clamp<Duration>(left, interval_ / 2, std::max(timeout_ / 5, interval_));
  auto context = std::make_shared<grpc::ClientContext>();
  context->set_deadline(GrpcTimeout(patience));
  *beat_.request.mutable_caller() = caller_;
  {
    const std::lock_guard lock(mutex_);
    beat_.context = context;
    beat_.in_flight = true;
    beat_.next = now + interval_;
  }
  stub_->async()->Heartbeat(context.get(), &beat_.request, &beat_.reply,
                            [this](grpc::Status status) {
                              const std::lock_guard lock(mutex_);
                              beat_.status = std::move(status);
                              beat_.done = true;
                              changed_.notify_all();
                            });
}

void Client::StartWatch() {
  auto context = std::make_shared<grpc::ClientContext>();
  context->set_deadline(GrpcTimeout(kWatchSlice + kAnswerSlack));
  *watch_.request.mutable_caller() = caller_;
  watch_.request.set_wait_ms(kWatchSlice.count());
  {
    const std::lock_guard lock(mutex_);
    watch_.context = context;
    watch_.in_flight = true;
  }
  stub_->async()->Watch(context.get(), &watch_.request, &watch_.reply, [this](grpc::Status status) {
    const std::lock_guard lock(mutex_);
    watch_.status = std::move(status);
    watch_.done = true;
    changed_.notify_all();
  });
}

void Client::TakeBeat(std::unique_lock<std::mutex>& lock) {
  beat_.done = beat_.in_flight = false;
  const Deadline now = clock_.Now();
  if (beat_.status.ok()) {
    last_answer_ = now;
    broken_since_.reset();
    SetFailure(FromWire(beat_.reply.outcome()));
    return;
  }
  if (IsBroken(beat_.status)) {
    broken_since_ = broken_since_.value_or(now);
  }
  beat_.next = now + std::min(interval_, milliseconds(200));
  JudgeService(lock);
}

void Client::TakeWatch() {
  watch_.done = watch_.in_flight = false;
  const Deadline now = clock_.Now();
  watch_.next = now + kWatchPause;
  if (watch_.status.ok()) {
    SetFailure(FromWire(watch_.reply.outcome()));
    return;
  }
  // The connection broke: a heartbeat finds out whether it can be made again.
  if (IsBroken(watch_.status)) {
    broken_since_ = broken_since_.value_or(now);
    beat_.next = now;
  }
}

// After a heartbeat without an answer: is the service gone?
void Client::JudgeService(std::unique_lock<std::mutex>& lock) {
  const Deadline now = clock_.Now();
  const bool broken = broken_since_ && now - *broken_since_ > options_.reconnect_grace;
  if (!broken && now - last_answer_ <= timeout_) {
    return;
  }
  lock.unlock();
  const std::string reason = ProbeAddress(address_, kProbeTimeout);
  lock.lock();
  service_gone_ = true;
  SetFailure(Unavailable(fmt::format(
      "{} (the chief, with the coordination service at {}) {}: {} [its own log tells why it ended]",
      cluster_.Chief().ToString(), address_,
      broken ? fmt::format("is gone, its connection broken for {:.1f} s",
                           Seconds(now - *broken_since_))
             : fmt::format("answered no heartbeat for {:.1f} s", Seconds(now - last_answer_)),
      reason)));
}

void Client::SetFailure(const Status& failure) {
  if (failure_.ok() && !failure.ok() && !left_) {
    failure_ = failure;
    changed_.notify_all();
  }
}

// Ends the calls that wait, and runs the callbacks.
void Client::TellFailure(std::unique_lock<std::mutex>& lock) {
  const auto calls = std::exchange(calls_, {});
  const auto callbacks = std::exchange(on_failure_, {});
  const Status failure = failure_;
  lock.unlock();
  for (const auto& call : calls) {
    call->TryCancel();
  }
  for (const auto& callback : callbacks) {
    callback(failure);
  }
  lock.lock();
}

void Client::StopHeart() {
  if (!heart_.joinable()) {
    return;
  }
  std::unique_lock lock(mutex_);
  stop_ = true;
  changed_.notify_all();
  lock.unlock();
  heart_.join();
  lock.lock();
  const auto beat = beat_.in_flight ? beat_.context : nullptr;
  const auto watch = watch_.in_flight ? watch_.context : nullptr;
  lock.unlock();
  for (const auto& context : {beat, watch}) {
    if (context != nullptr) {
      context->TryCancel();
    }
  }
  lock.lock();
  // A cancelled call always ends, and at once.
  changed_.wait(
      lock, [this] { return beat_.in_flight <= beat_.done && watch_.in_flight <= watch_.done; });
}

void Client::SayGoodbye() {
  {
    const std::lock_guard lock(mutex_);
    if (!registered_ || left_ || service_gone_) {
      return;
    }
  }
  grpc::ClientContext context;
  context.set_deadline(GrpcTimeout(kGoodbyeTimeout));
  wire::LeaveRequest request;
  *request.mutable_caller() = caller_;
  wire::LeaveReply reply;
  // Nobody is left to hear of an error; without a goodbye the service finds the connection closed.
  (void)stub_->Leave(&context, request, &reply);
}

}  // namespace

Result<std::unique_ptr<CoordinationClient>> CoordinationClient::Join(
    const std::string& server_address, const ClusterSpec& cluster, const TaskId& task,
    bool wait_for_all, const CoordinationOptions& options) {
  if (!cluster.Contains(task)) {
    return InvalidArgument(fmt::format("{} is no task of this cluster, which has {}",
                                       task.ToString(), TaskNames(cluster.Tasks())));
  }
  COHORT_RETURN_IF_ERROR(ParseHostPort(server_address).status());
  auto client = std::make_unique<Client>(server_address, cluster, task, options);
  COHORT_RETURN_IF_ERROR(client->JoinJob(wait_for_all));
  return client;
}

}  // namespace cohort
