// The gRPC end of CoordinationState: every call is one of its methods. A call that waits is parked
// there as a closure and holds no thread.

#include <cohort/coordination.grpc.pb.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include <cohort/core/thread_pool.h>
#include <cohort/rpc/coordination.h>

#include "coordination_state.h"
#include "grpc_util.h"
#include "guarded.h"
#include "process_identity.h"
#include "wire.h"

namespace cohort {
namespace {

// How long the service of a job that has failed waits for who has just joined to ask.
constexpr std::chrono::milliseconds kFarewell{1000};

// One call that waits. Whoever takes the claim first, the answer or the cancellation, finishes it;
// the object lives until gRPC says OnDone, the claim as long as either side may ask.
class ParkedCall final : public grpc::ServerUnaryReactor {
 public:
  // Owners: this call, and the closure that is to answer it.
  using Claim = std::shared_ptr<std::atomic<bool>>;

  const Claim& claim() const { return claim_; }
  void OnBroken(std::function<void()> broken) {
    const std::lock_guard lock(mutex_);
    broken_ = std::move(broken);
  }

  void OnCancel() override {
    if (claim_->exchange(true)) {
      return;
    }
    std::function<void()> broken;
    {
      const std::lock_guard lock(mutex_);
      broken = broken_;
    }
    if (broken) {
      broken();
    }
    Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }
  // Unless it has been answered.
  void Fail(const Status& why) {
    if (!claim_->exchange(true)) {
      Finish(ToGrpc(why));
    }
  }

 private:
  const Claim claim_ = std::make_shared<std::atomic<bool>>(false);
  std::mutex mutex_;
  std::function<void()> broken_;
};

// Answers a parked call unless it has been cancelled.
template <typename Reply>
class Answerer {
 public:
  Answerer(ParkedCall* call, Reply* reply) : call_(call), claim_(call->claim()), reply_(reply) {}

  void operator()(const Status& status) const {
    Answer(status, [](Reply*) {});
  }
  template <typename Fill>
  void Answer(const Status& status, const Fill& fill) const {
    if (claim_->exchange(true)) {
      return;
    }
    grpc::Status sent = grpc::Status::OK;
    try {
      ToWire(status, reply_->mutable_outcome());
      fill(reply_);
    } catch (const std::exception& error) {  // nobody else may finish it any more
      sent = ToGrpc(StatusOf(error, "the coordination service in an answer"));
    }
    call_->Finish(sent);
  }

 private:
  ParkedCall* call_;  // alive while the claim is not taken
  ParkedCall::Claim claim_;
  Reply* reply_;
};

class Server final : public CoordinationServer, private wire::Coordination::CallbackService {
 public:
  Server(const ClusterSpec& cluster, const CoordinationOptions& options)
      : chief_(cluster.Chief()), options_(options), state_(cluster, options) {}

  ~Server() override {
    // A task that joined just before the failure finds the service gone otherwise, and not why.
    const auto latest = std::chrono::steady_clock::now() + kFarewell;
    while (state_.unheard() && std::chrono::steady_clock::now() < latest) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread* thread : {&ticker_, &roll_caller_}) {
      if (thread->joinable()) {
        thread->join();
      }
    }
    if (server_ != nullptr) {
      state_.Stop(Unavailable(chief_.ToString() + " (the chief) stopped the coordination service"));
      server_->Shutdown(GrpcTimeout(std::chrono::seconds(1)));
    }
  }

  Status Listen(const std::string& address) {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    COHORT_ASSIGN_OR_RETURN(server_, StartServer(builder, address, &port_));
    ticker_ = std::thread([this] { TickUntilStopped(); });
    roll_caller_ = std::thread([this] { CallTheRoll(); });
    return OkStatus();
  }

  int port() const override { return port_; }
  std::vector<TaskId> Alive() const override { return state_.Alive(); }
  std::optional<std::uint64_t> Incarnation(const TaskId& task) const override {
    return state_.Incarnation(task);
  }
  Status Fail(const Status& why) override {
    Status failure = state_.Fail(why);
    Poke();
    return failure;
  }
  void OnTaskLost(std::function<void(const TaskId&, const Status&)> callback) override {
    const std::lock_guard lock(mutex_);
    on_lost_.push_back(std::move(callback));
  }

 private:
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  static std::string Doing(const char* call) {
    return std::string("the coordination service in ") + call;
  }

  // Answers at once with what `body` returns for the caller.
  template <typename Request, typename Reply, typename Body>
  Reactor* Answer(const char* name, Context* context, const Request& request, Reply* reply,
                  const Body& body) {
    Reactor* const answered = Guarded(context, Doing(name), [&]() -> Reactor* {
      const Result<Caller> caller = FromWire(request.caller());
      ToWire(caller.ok() ? body(*caller) : caller.status(), reply->mutable_outcome());
      Reactor* const reactor = context->DefaultReactor();
      reactor->Finish(grpc::Status::OK);
      return reactor;
    });
    Poke();  // what the call changed may concern a parked one, or tell of a lost task
    return answered;
  }

  // Parks the call: body(caller, answer, call) hands `answer` to the state.
  template <typename Request, typename Reply, typename Body>
  Reactor* Park(const char* name, Context* context, const Request& request, Reply* reply,
                const Body& body) {
    return Guarded(context, Doing(name), [&]() -> Reactor* {
      auto* const call = new ParkedCall;  // deletes itself in OnDone, after it has been returned
      try {
        const Answerer<Reply> answer(call, reply);
        const Result<Caller> caller = FromWire(request.caller());
        if (!caller.ok()) {
          answer(caller.status());
        } else {
          body(*caller, answer, call);
          Poke();
        }
      } catch (const std::exception& error) {
        call->Fail(StatusOf(error, Doing(name)));  // it may be parked already
      }
      return call;
    });
  }

  Deadline After(std::int64_t wait_ms) const {
    constexpr std::int64_t kLongest = std::int64_t{1000} * 3600 * 24 * 365;
    return options_.clock->Now() +
           std::chrono::milliseconds(std::clamp<std::int64_t>(wait_ms, 0, kLongest));
  }

  Reactor* Register(Context* context, const wire::RegisterRequest* request,
                    wire::RegisterReply* reply) override {
    reply->set_heartbeat_interval_ms(options_.heartbeat_interval.count());
    reply->set_heartbeat_timeout_ms(options_.heartbeat_timeout.count());
    reply->set_service(service_);
    return Answer("Register", context, *request, reply, [&](const Caller& caller) {
      return state_.Register({.caller = caller,
                              .host = request->host(),
                              .pid = request->pid(),
                              .uptime = std::chrono::milliseconds(request->uptime_ms()),
                              .fingerprint = request->fingerprint(),
                              .cluster_json = request->cluster_json()});
    });
  }

  Reactor* RollCall(Context* context, const wire::RollCallRequest* request,
                    wire::RollCallReply* reply) override {
    return Park("RollCall", context, *request, reply,
                [&](const Caller& caller, const auto& answer, ParkedCall*) {
                  if (request->watch_only()) {
                    return state_.AwaitWatch(caller, After(request->wait_ms()), answer);
                  }
                  state_.RollCall(caller, After(request->wait_ms()),
                                  [this, answer](const Status& status) {
                                    const std::string missing = state_.MissingText();
                                    answer.Answer(status, [&missing](wire::RollCallReply* r) {
                                      r->set_missing(missing);
                                      r->set_complete(missing.empty());
                                    });
                                  });
                });
  }

  Reactor* Heartbeat(Context* context, const wire::HeartbeatRequest* request,
                     wire::HeartbeatReply* reply) override {
    reply->set_service(service_);
    return Answer("Heartbeat", context, *request, reply, [&](const Caller& caller) {
      ToWire(state_.RegroupAsked(caller), reply->mutable_regroup());
      return state_.Heartbeat(caller, request->has_progress()
                                          ? std::optional(FromWire(request->progress()))
                                          : std::nullopt);
    });
  }

  Reactor* Watch(Context* context, const wire::WatchRequest* request,
                 wire::WatchReply* reply) override {
    reply->set_service(service_);
    return Park("Watch", context, *request, reply,
                [&](const Caller& caller, const auto& answer, ParkedCall* call) {
                  const std::uint64_t watch =
                      state_.Watch(caller, After(request->wait_ms()), answer);
                  call->OnBroken([this, caller, watch] {
                    state_.WatchBroken(caller, watch);
                    Poke();
                  });
                });
  }

  Reactor* Insert(Context* context, const wire::InsertRequest* request,
                  wire::InsertReply* reply) override {
    return Answer("Insert", context, *request, reply, [&](const Caller& caller) {
      return state_.Insert(caller, request->key(), request->value(), request->sequence());
    });
  }

  Reactor* Get(Context* context, const wire::GetRequest* request, wire::GetReply* reply) override {
    return Park("Get", context, *request, reply,
                [&](const Caller& caller, const auto& answer, ParkedCall*) {
                  const auto give = [answer](const Result<std::string>& value) {
                    answer.Answer(value.status(), [&value](wire::GetReply* r) {
                      if (value.ok()) {
                        r->set_value(*value);
                      }
                    });
                  };
                  if (request->wait_ms() == 0) {
                    give(state_.Get(caller, request->key()));
                  } else {
                    state_.Wait(caller, request->key(), After(request->wait_ms()), give);
                  }
                });
  }

  Reactor* Barrier(Context* context, const wire::BarrierRequest* request,
                   wire::BarrierReply* reply) override {
    return Park("Barrier", context, *request, reply,
                [&](const Caller& caller, const auto& answer, ParkedCall*) {
                  std::vector<TaskId> participants;
                  for (const std::string& name : request->participants()) {
                    const Result<TaskId> task = TaskId::Parse(name);
                    if (!task.ok()) {
                      return answer(task.status());
                    }
                    participants.push_back(*task);
                  }
                  state_.Barrier(caller, request->name(), After(request->wait_ms()), participants,
                                 answer);
                });
  }

  Reactor* Regroup(Context* context, const wire::RegroupRequest* request,
                   wire::RegroupReply* reply) override {
    return Park("Regroup", context, *request, reply,
                [&](const Caller& caller, const auto& answer, ParkedCall*) {
                  state_.Regroup(
                      caller, request->previous(), request->min_size(),
                      std::chrono::milliseconds(std::max<std::int64_t>(request->patience_ms(), 0)),
                      After(request->wait_ms()),
                      [answer](const Result<RegroupTable::Decision>& decision) {
                        answer.Answer(decision.status(), [&decision](wire::RegroupReply* r) {
                          if (!decision.ok()) {
                            return;
                          }
                          r->set_generation(decision->generation);
                          for (const RegroupTable::Member& member : decision->members) {
                            wire::Caller* const to = r->add_members();
                            to->set_task(member.task.ToString());
                            to->set_incarnation(member.incarnation);
                          }
                        });
                      });
                });
  }

  Reactor* ReportError(Context* context, const wire::ReportErrorRequest* request,
                       wire::ReportErrorReply* reply) override {
    return Answer("ReportError", context, *request, reply, [&](const Caller& caller) {
      Status status = state_.ReportError(caller, FromWire(request->error()));
      ToWire(state_.failure(), reply->mutable_failure());
      return status;
    });
  }

  Reactor* Leave(Context* context, const wire::LeaveRequest* request,
                 wire::LeaveReply* reply) override {
    return Park("Leave", context, *request, reply,
                [&](const Caller& caller, const auto& answer, ParkedCall*) {
                  if (request->wait_ms() == 0) {
                    answer(state_.Leave(caller));
                  } else {
                    state_.Shutdown(caller, After(request->wait_ms()), answer);
                  }
                });
  }

  // Time.

  void Poke() {
    {
      const std::lock_guard lock(mutex_);
      poked_ = true;
    }
    changed_.notify_all();
  }

  void TickUntilStopped() {
    NameThisThread("coord-tick");
    std::unique_lock lock(mutex_);
    while (!stop_) {
      poked_ = false;
      lock.unlock();
      const Deadline next = state_.Tick();
      TellLost();
      lock.lock();
      options_.clock->WaitUntil(lock, changed_, next, [this] { return stop_ || poked_; });
    }
  }

  void TellLost() {
    const auto lost = state_.TakeLost();
    if (lost.empty()) {
      return;
    }
    std::vector<std::function<void(const TaskId&, const Status&)>> callbacks;
    {
      const std::lock_guard lock(mutex_);
      callbacks = on_lost_;
    }
    for (const auto& [task, why] : lost) {
      for (const auto& callback : callbacks) {
        callback(task, why);
      }
    }
    state_.Told();
  }

  // While tasks are missing: looks why, and says so once an interval.
  void CallTheRoll() {
    NameThisThread("coord-roll-call");
    Deadline next = options_.clock->Now();
    while (!state_.complete() && state_.failure().ok()) {
      next += options_.roll_call_interval / 2;
      if (WaitForStop(next)) {
        return;
      }
      LookForMissing();
      next += options_.roll_call_interval / 2;
      if (WaitForStop(next)) {
        return;
      }
      if (const std::string missing = state_.MissingText(); !missing.empty()) {
        options_.log.Info("waiting for " + missing);
      }
    }
  }

  // True if the server stops; false at `deadline`, or when all have joined or the job has failed.
  bool WaitForStop(Deadline deadline) {
    std::unique_lock lock(mutex_);
    options_.clock->WaitUntil(lock, changed_, deadline, [this] {
      return stop_ || state_.complete() || !state_.failure().ok();
    });
    return stop_;
  }

  void LookForMissing() {
    std::map<TaskId, std::string> reasons;
    for (const auto& [task, address] : state_.Missing()) {
      const Result<HostPort> parsed = ParseHostPort(address);
      if (!parsed.ok() || parsed->port == 0) {
        continue;
      }
      {
        const std::lock_guard lock(mutex_);
        if (stop_) {
          return;
        }
      }
      const std::string reason = ProbeAddress(address, std::chrono::milliseconds(200));
      reasons[task] = reason == kAcceptsConnections ? reason + " but has not registered" : reason;
    }
    state_.SetReasons(std::move(reasons));
  }

  const TaskId chief_;
  const CoordinationOptions options_;
  const std::uint64_t service_ = NewIncarnation();
  CoordinationState state_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  bool poked_ = false;
  std::vector<std::function<void(const TaskId&, const Status&)>> on_lost_;

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::thread ticker_;
  std::thread roll_caller_;
};

}  // namespace

Result<std::unique_ptr<CoordinationServer>> CoordinationServer::Start(
    const std::string& address, const ClusterSpec& cluster, const CoordinationOptions& options) {
  if (cluster.empty()) {
    return InvalidArgument("a coordination service needs a cluster of at least one task");
  }
  auto server = std::make_unique<Server>(cluster, options);
  COHORT_RETURN_IF_ERROR(server->Listen(address));
  return server;
}

}  // namespace cohort
