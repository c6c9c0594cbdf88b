// One task's connection to the coordination service.
//
// Calls block on the caller's thread; a failure, which the heart finds, ends them.

#include <cohort/coordination.grpc.pb.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/rpc/coordination.h>

#include "grpc_util.h"
#include "heart.h"
#include "key_value_table.h"
#include "process_identity.h"
#include "service_stub.h"
#include "wire.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kConnectTry{2'000};
constexpr milliseconds kAnswerSlack{5'000};  // the service answers a wait this much late at worst
constexpr milliseconds kProbeTimeout{300};
constexpr milliseconds kGoodbyeTimeout{500};
constexpr std::size_t kLongestError = 64 << 10;

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

class Client final : public CoordinationClient {
 public:
  Client(std::string address, const ClusterSpec& cluster, const TaskId& task,
         const CoordinationOptions& options)
      : address_(std::move(address)),
        cluster_(cluster),
        task_(task),
        options_(options),
        clock_(*options_.clock),
        incarnation_(NewIncarnation()),
        caller_(MakeCaller(task, incarnation_)),
        stub_(address_),
        heart_(stub_, caller_, cluster_.Chief(), address_, options_) {
    heart_.OnFailure([this](const Status&) { EndCalls(); });  // before any callback of the user's
    heart_.OnRenewed([this] { RepeatCalls(); });
  }

  ~Client() override {
    SayGoodbye();
    heart_.Stop();
  }

  Status JoinJob(bool wait_for_all) {
    const Deadline begun = clock_.Now();
    COHORT_RETURN_IF_ERROR(Register(begun));
    COHORT_RETURN_IF_ERROR(AwaitWatch(begun));
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

  Result<Generation> Regroup(const RegroupOptions& options) override {
    wire::RegroupRequest request;
    request.set_previous(generation_);
    request.set_min_size(options.min_size);
    request.set_patience_ms(options.patience.count());
    wire::RegroupReply reply;
    COHORT_RETURN_IF_ERROR(Call(&Stub::Regroup, request, &reply, options.timeout, "regroup"));
    Generation result = {.number = reply.generation(), .survivor = generation_ > 0};
    for (const wire::Caller& member : reply.members()) {
      COHORT_ASSIGN_OR_RETURN(const TaskId task, TaskId::Parse(member.task()));
      if (task == task_) {
        result.rank = static_cast<int>(result.members.size());
      }
      result.members.push_back(task);
    }
    generation_ = result.number;
    heart_.RegroupDone();
    return result;
  }

  Status RegroupAsked() const override { return heart_.regroup_asked(); }

  void SetProgress(std::function<TaskProgress()> progress) override {
    heart_.SetProgress(std::move(progress));
  }

  Status ReportError(const Status& error) override {
    Require(!error.ok(), "ReportError needs an error");
    wire::ReportErrorRequest request;
    // What does not fit into a message would reach nobody.
    ToWire(Status(error.code(), error.message().substr(0, kLongestError)), request.mutable_error());
    wire::ReportErrorReply reply;
    const Status told =
        Call(&Stub::ReportError, request, &reply, milliseconds(0), "reporting an error");
    heart_.Fail(FromWire(reply.failure()));
    return failure().ok() ? told : OkStatus();  // a job that has failed already needs no telling
  }

  Status failure() const override { return heart_.failure(); }
  bool service_lost() const override { return heart_.service_gone(); }

  void OnFailure(std::function<void(const Status&)> callback) override {
    heart_.OnFailure(std::move(callback));
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
    heart_.Stop();
    return OkStatus();
  }

 private:
  using Stub = wire::Coordination::Stub;

  static wire::Caller MakeCaller(const TaskId& task, std::uint64_t incarnation) {
    wire::Caller caller;
    caller.set_task(task.ToString());
    caller.set_incarnation(incarnation);
    return caller;
  }

  milliseconds Remaining(Deadline deadline) const {
    // At least 1 ms: 0 means "answer at once" on the wire.
    return std::max(std::chrono::ceil<milliseconds>(deadline - clock_.Now()), milliseconds(1));
  }

  // Joining.

  Status Register(Deadline begun);
  Status AwaitWatch(Deadline begun);
  Status AwaitAll(Deadline begun);
  std::string WhyUnreachable(const grpc::Status& status) const;
  void PauseUntil(Deadline deadline);

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

  void EndCalls();
  void RepeatCalls();
  void SayGoodbye();

  const std::string address_;
  const ClusterSpec cluster_;
  const TaskId task_;
  const CoordinationOptions options_;
  Clock& clock_;
  const std::uint64_t incarnation_;
  const wire::Caller caller_;
  ServiceStub stub_;
  std::atomic<std::uint64_t> insertions_{0};
  std::atomic<std::uint64_t> generation_{0};  // of the last Regroup

  std::mutex mutex_;
  std::condition_variable changed_;
  bool joined_ = false;
  bool left_ = false;
  bool failed_ = false;                                   // follows heart_.failure()
  std::set<std::shared_ptr<grpc::ClientContext>> calls_;  // in flight; owners: this and the call

  Heart heart_;
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
    context.set_deadline(GrpcTimeout(std::min(Remaining(deadline), kConnectTry)));
    // gRPC makes connections only while a call waits for one.
    context.set_wait_for_ready(true);
    wire::RegisterReply reply;
    const grpc::Status status = stub_.get()->Register(&context, request, &reply);
    if (status.ok()) {
      COHORT_RETURN_IF_ERROR(FromWire(reply.outcome()));
      {
        const std::lock_guard lock(mutex_);
        joined_ = true;
      }
      // Both ends must agree on what silence is: the stricter of the two settings holds.
      heart_.Start(
          std::min(options_.heartbeat_interval, milliseconds(reply.heartbeat_interval_ms())),
          std::min(options_.heartbeat_timeout, milliseconds(reply.heartbeat_timeout_ms())),
          reply.service());
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

// Returns at `deadline`, or when the job fails.
void Client::PauseUntil(Deadline deadline) {
  std::unique_lock lock(mutex_);
  clock_.WaitUntil(lock, changed_, deadline, [this] { return left_ || failed_; });
}

// From then on the service notices at once when this process ends.
Status Client::AwaitWatch(Deadline begun) {
  wire::RollCallRequest request;
  request.set_watch_only(true);
  wire::RollCallReply reply;
  return Call(&Stub::RollCall, request, &reply, Remaining(begun + options_.join_timeout),
              "joining");
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
      Status late = DeadlineExceeded(
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
  *why = left_ ? FailedPrecondition(task_.ToString() + " has left the job") : failure();
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

void Client::EndCalls() {
  std::set<std::shared_ptr<grpc::ClientContext>> calls;
  {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    calls = calls_;
  }
  changed_.notify_all();
  for (const auto& call : calls) {
    call->TryCancel();
  }
}

// What waits on a connection that was given up is asked again on the next one.
void Client::RepeatCalls() {
  std::set<std::shared_ptr<grpc::ClientContext>> calls;
  {
    const std::lock_guard lock(mutex_);
    calls = calls_;
  }
  for (const auto& call : calls) {
    call->TryCancel();
  }
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
    const grpc::Status status = (stub_.get().get()->*method)(context.get(), request, reply);
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

void Client::SayGoodbye() {
  {
    const std::lock_guard lock(mutex_);
    if (!joined_ || left_ || heart_.service_gone()) {
      return;
    }
  }
  grpc::ClientContext context;
  context.set_deadline(GrpcTimeout(kGoodbyeTimeout));
  wire::LeaveRequest request;
  *request.mutable_caller() = caller_;
  wire::LeaveReply reply;
  // Nobody is left to hear of an error; without a goodbye the service finds the connection closed.
  (void)stub_.get()->Leave(&context, request, &reply);
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
