// Heart: the thread of a client that beats, keeps a Watch call open through which the service tells
// of a failure at once, and decides when the service itself is gone. Where nothing is heard for a
// third of the time after which it counts as gone, another connection takes the place of the
// present one, once in a silence.
//
// Thread rules: all methods from any thread, Start and Stop from one. Callbacks run on the heart's
// thread, with no lock held.

#pragma once

#include <cohort/coordination.grpc.pb.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <cohort/rpc/coordination.h>

#include "service_stub.h"

namespace cohort {

// The connection is gone, or the service is just going (it cancels what it has not begun).
bool IsBroken(const grpc::Status& status);

class Heart {
 public:
  // `stub` must outlive the heart. `chief` and `address` are for messages and probes.
  Heart(ServiceStub& stub, wire::Caller caller, TaskId chief, std::string address,
        const CoordinationOptions& options);
  ~Heart() { Stop(); }
  Heart(const Heart&) = delete;
  Heart& operator=(const Heart&) = delete;

  // `service`: the number of the service that let this task join.
  void Start(std::chrono::milliseconds interval, std::chrono::milliseconds timeout,
             std::uint64_t service);
  // Returns when no callback runs or will run, and nothing is under way. failure() stays.
  void Stop();

  Status failure() const;
  bool service_gone() const;  // the failure is that; or that another one is in its place
  // The first error stays; OK changes nothing.
  void Fail(const Status& failure);
  // Runs once: when there is a failure, or at once if there is.
  void OnFailure(std::function<void(const Status&)> callback);
  // Called when `stub` has been renewed: what is under way elsewhere may wait for nothing. Before
  // Start.
  void OnRenewed(std::function<void()> callback) { on_renewed_ = std::move(callback); }
  // Asked before each beat. Returns when the one before is not running.
  void SetProgress(std::function<TaskProgress()> progress);
  // What the last answer said: why this task should regroup, or OK.
  Status regroup_asked() const;
  void RegroupDone();  // what was said is settled

 private:
  // A call that is started, and later found done.
  template <typename Request, typename Reply>
  struct Exchange {
    std::unique_ptr<grpc::ClientContext> context;
    std::shared_ptr<wire::Coordination::Stub> stub;  // by which it goes
    Request request;
    Reply reply;
    grpc::Status status;
    bool in_flight = false;
    bool done = false;
    Deadline next;  // when to start it again
  };
  using WatchExchange = Exchange<wire::WatchRequest, wire::WatchReply>;

  void Run();
  void StartBeat(Deadline now);
  void StartWatch();
  void RenewConnection();
  // The rest with mutex_ held.
  void TakeBeat(std::unique_lock<std::mutex>& lock);
  void TakeWatch();
  void JudgeService(std::unique_lock<std::mutex>& lock);
  void FailLocked(const Status& failure);
  void CheckService(std::uint64_t answered);
  void TellFailure(std::unique_lock<std::mutex>& lock);

  ServiceStub& stub_;
  std::function<void()> on_renewed_;
  const wire::Caller caller_;
  const TaskId chief_;
  const std::string address_;
  Clock& clock_;
  const std::chrono::milliseconds reconnect_grace_;
  std::chrono::milliseconds interval_{0};
  std::chrono::milliseconds timeout_{0};
  std::uint64_t service_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  Status failure_;
  bool service_gone_ = false;
  std::vector<std::function<void(const Status&)>> on_failure_;
  Status regroup_asked_;
  bool regroup_news_is_old_ = false;        // of the beat in flight: asked before RegroupDone
  std::mutex progress_mutex_;               // held while it is asked; taken before mutex_
  std::function<TaskProgress()> progress_;  // guarded by progress_mutex_
  Exchange<wire::HeartbeatRequest, wire::HeartbeatReply> beat_;
  std::unique_ptr<WatchExchange> watch_ = std::make_unique<WatchExchange>();
  std::unique_ptr<WatchExchange> old_watch_;  // that went by the connection before, until it ends
  Deadline last_answer_;
  bool renewed_ = false;  // the connection, since
  bool renew_ = false;    // it is to be
  std::optional<Deadline> broken_since_;
  std::thread thread_;
};

}  // namespace cohort
