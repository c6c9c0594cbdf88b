#include "parameter_server/chief/scheduler_service.h"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>

#include <grpcpp/grpcpp.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "guarded.h"
#include "renewable_stub.h"

namespace cohort::ps {
namespace {

constexpr std::chrono::milliseconds kPoll{1'000};         // how long a waiting call is parked
constexpr std::chrono::milliseconds kCallTimeout{5'000};  // beside that

Result<Sender> SenderOf(const SenderId& from) {
  COHORT_ASSIGN_OR_RETURN(const TaskId task, TaskId::Parse(from.task()));
  return Sender{.task = task, .incarnation = from.incarnation(), .epoch = from.epoch()};
}

RoundSums SumsOf(double loss_sum, double weight,
                 const google::protobuf::RepeatedField<double>& metric_sums) {
  return {.loss_sum = loss_sum,
          .weight = weight,
          .metric_sums = {metric_sums.begin(), metric_sums.end()}};
}

Commit ToMessage(const RoundCommit& commit) {
  Commit message;
  message.set_round(commit.round);
  message.set_attempt(static_cast<std::uint32_t>(commit.attempt));
  message.mutable_winners()->Assign(commit.winners.begin(), commit.winners.end());
  return message;
}

RoundCommit CommitOf(const Commit& from) {
  return {.round = from.round(),
          .attempt = static_cast<int>(from.attempt()),
          .winners = {from.winners().begin(), from.winners().end()}};
}

FinishedSplit FinishedOf(const NextSplitRequest& request) {
  return {.id = request.finished(),
          .epoch = request.finished_epoch(),
          .steps = request.steps(),
          .sums = SumsOf(request.loss_sum(), request.weight(), request.metric_sums())};
}

// Blocking handlers, on gRPC's synchronous threads: as many calls are parked as there are workers.
class Service final : public Coordination::Service {
 public:
  explicit Service(Scheduler& scheduler) : scheduler_(scheduler) {}

  grpc::Status Attach(grpc::ServerContext*, const AttachRequest* request,
                      AttachReply* reply) override {
    return Answer("Attach", request->sender(), [&](const Sender& sender) -> Status {
      COHORT_ASSIGN_OR_RETURN(const std::uint64_t client, scheduler_.Attach(sender));
      reply->set_client(client);
      return {};
    });
  }

  grpc::Status AwaitView(grpc::ServerContext*, const ViewRequest* request,
                         ViewReply* reply) override {
    return GuardedAnswer(Doing("AwaitView"), [&] {
      if (const Result<Sender> sender = SenderOf(request->sender()); sender.ok()) {
        scheduler_.Progressed(*sender, request->steps());
      }
      const ServerView view = scheduler_.AwaitView(request->epoch(), request->recovering(), kPoll);
      reply->set_epoch(view.epoch);
      reply->set_recovering(view.recovering);
      reply->mutable_servers()->Assign(view.addresses.begin(), view.addresses.end());
      reply->set_why(view.why);
      reply->set_rolled_back(view.rolled_back);
      return grpc::Status::OK;
    });
  }

  grpc::Status OpenDataset(grpc::ServerContext*, const OpenDatasetRequest* request,
                           OpenDatasetReply*) override {
    return GuardedAnswer(Doing("OpenDataset"), [&] {
      return ToGrpc(scheduler_.OpenDataset(request->sender().task(),
                                           static_cast<int>(request->dataset()),
                                           {.fingerprint = request->fingerprint(),
                                            .examples = request->examples(),
                                            .batch_size = request->batch_size()}));
    });
  }

  grpc::Status NextSplit(grpc::ServerContext*, const NextSplitRequest* request,
                         NextSplitReply* reply) override {
    return Answer("NextSplit", request->sender(), [&](const Sender& sender) -> Status {
      COHORT_ASSIGN_OR_RETURN(
          const SplitReply got,
          scheduler_.NextSplit(
              sender, {.dataset = static_cast<int>(request->dataset()), .epoch = request->epoch()},
              request->first_batch(), FinishedOf(*request), kPoll, request->leaves()));
      reply->set_kind(got.progress == Progress::kGo      ? NextSplitReply::SPLIT
                      : got.progress == Progress::kOver  ? NextSplitReply::EPOCH_OVER
                      : got.progress == Progress::kStale ? NextSplitReply::STALE
                                                         : NextSplitReply::WAIT);
      reply->set_epoch(got.epoch);
      reply->set_id(got.split.id);
      reply->set_begin(got.split.begin);
      reply->set_end(got.split.end);
      return {};
    });
  }

  grpc::Status JoinRound(grpc::ServerContext*, const JoinRoundRequest* request,
                         JoinRoundReply* reply) override {
    return Answer("JoinRound", request->sender(), [&](const Sender& sender) -> Status {
      COHORT_ASSIGN_OR_RETURN(
          const RoundReply got,
          scheduler_.JoinRound(
              sender, {.dataset = static_cast<int>(request->dataset()), .epoch = request->epoch()},
              request->first_batch(), kPoll));
      reply->set_kind(got.progress == Progress::kGo      ? JoinRoundReply::PART
                      : got.progress == Progress::kOver  ? JoinRoundReply::EPOCH_OVER
                      : got.progress == Progress::kStale ? JoinRoundReply::STALE
                                                         : JoinRoundReply::WAIT);
      reply->set_epoch(got.part.epoch.epoch);
      Round* round = reply->mutable_round();
      round->set_round(got.part.round);
      round->set_attempt(static_cast<std::uint32_t>(got.part.attempt));
      round->set_part(static_cast<std::uint32_t>(got.part.part));
      round->set_parts(static_cast<std::uint32_t>(got.part.parts));
      reply->set_batch(got.part.batch);
      *reply->mutable_previous() = ToMessage(got.part.previous);
      return {};
    });
  }

  grpc::Status FinishRound(grpc::ServerContext*, const FinishRoundRequest* request,
                           FinishRoundReply* reply) override {
    return Answer("FinishRound", request->sender(), [&](const Sender& sender) -> Status {
      COHORT_ASSIGN_OR_RETURN(
          const FinishReply got,
          scheduler_.FinishRound(
              sender, request->round(), static_cast<int>(request->attempt()),
              SumsOf(request->loss_sum(), request->weight(), request->metric_sums()), kPoll));
      reply->set_kind(got.progress == Progress::kGo      ? FinishRoundReply::APPLIED
                      : got.progress == Progress::kOver  ? FinishRoundReply::SUPERSEDED
                      : got.progress == Progress::kStale ? FinishRoundReply::STALE
                                                         : FinishRoundReply::WAIT);
      reply->set_loss_sum(got.total.loss_sum);
      reply->set_weight(got.total.weight);
      reply->mutable_metric_sums()->Assign(got.total.metric_sums.begin(),
                                           got.total.metric_sums.end());
      *reply->mutable_commit() = ToMessage(got.total.commit);
      return {};
    });
  }

  grpc::Status NextClosure(grpc::ServerContext*, const NextClosureRequest* request,
                           NextClosureReply* reply) override {
    return Answer("NextClosure", request->sender(), [&](const Sender& sender) -> Status {
      const std::span<const std::int64_t> has(request->has().data(),
                                              static_cast<std::size_t>(request->has_size()));
      COHORT_ASSIGN_OR_RETURN(ClosureReply got, scheduler_.NextClosure(sender, has, kPoll));
      reply->set_kind(got.progress == Progress::kGo     ? NextClosureReply::CALL
                      : got.progress == Progress::kOver ? NextClosureReply::NO_MORE
                                                        : NextClosureReply::WAIT);
      reply->set_id(got.closure.id);
      reply->set_epoch(got.closure.epoch);
      reply->set_function(std::move(got.closure.function));
      reply->set_argument(std::move(got.closure.argument));
      for (PerWorkerDataset& dataset : got.closure.data) {
        WorkerDataset* to = reply->add_data();
        to->set_id(dataset.id);
        to->set_name(std::move(dataset.name));
      }
      return {};
    });
  }

  grpc::Status FinishClosure(grpc::ServerContext*, const FinishClosureRequest* request,
                             FinishClosureReply*) override {
    return Answer("FinishClosure", request->sender(), [&](const Sender& sender) -> Status {
      if (request->code() == 0) {
        return scheduler_.FinishClosure(sender, request->id(), request->result());
      }
      const bool known = request->code() > 0 && request->code() <= 16;  // gRPC's codes
      const StatusCode code =
          known ? static_cast<StatusCode>(request->code()) : StatusCode::kUnknown;
      return scheduler_.FinishClosure(sender, request->id(), Status(code, request->error()));
    });
  }

  grpc::Status Done(grpc::ServerContext*, const DoneRequest* request, DoneReply*) override {
    return Answer("Done", request->sender(),
                  [&](const Sender& sender) -> Status { return scheduler_.Done(sender); });
  }

 private:
  template <typename Handle>
  static grpc::Status Answer(const char* call, const SenderId& from, const Handle& handle) {
    return GuardedAnswer(Doing(call), [&] {
      const Result<Sender> sender = SenderOf(from);
      return ToGrpc(sender.ok() ? handle(*sender) : sender.status());
    });
  }
  static std::string Doing(const char* call) {
    return std::string("the scheduler of the job in ") + call;
  }

  Scheduler& scheduler_;
};

class GrpcSchedulerServer final : public SchedulerServer {
 public:
  explicit GrpcSchedulerServer(Scheduler& scheduler) : scheduler_(scheduler), service_(scheduler) {}
  ~GrpcSchedulerServer() override {
    if (server_ != nullptr) {
      scheduler_.Stop();
      server_->Shutdown(GrpcTimeout(std::chrono::milliseconds(200)));
    }
  }
  Status Listen(const std::string& address) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    COHORT_ASSIGN_OR_RETURN(server_, StartServer(builder, address, &port_));
    return {};
  }
  int port() const override { return port_; }

 private:
  Scheduler& scheduler_;
  Service service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class GrpcSchedulerClient final : public SchedulerClient {
  using Stub = Coordination::Stub;

 public:
  GrpcSchedulerClient(const std::string& address, const std::string& name, const Sender& self,
                      std::chrono::milliseconds peer_timeout)
      : name_(name + " (" + address + ")"), peer_timeout_(peer_timeout), stub_(address) {
    self_.set_task(self.task.ToString());
    self_.set_incarnation(self.incarnation);
  }

  Result<std::uint64_t> Attach() override {
    AttachRequest request;
    *request.mutable_sender() = Self();
    AttachReply reply;
    COHORT_RETURN_IF_ERROR(
        Call([&](Stub& stub, grpc::ClientContext* c) { return stub.Attach(c, request, &reply); }));
    return reply.client();
  }

  void SetEpoch(std::uint64_t epoch) override {
    const std::lock_guard lock(mutex_);
    self_.set_epoch(epoch);
  }

  Result<ServerView> AwaitView(std::uint64_t epoch, bool recovering, std::uint64_t steps) override {
    ViewRequest request;
    *request.mutable_sender() = Self();
    request.set_steps(steps);
    request.set_epoch(epoch);
    request.set_recovering(recovering);
    ViewReply reply;
    COHORT_RETURN_IF_ERROR(Call(
        [&](Stub& stub, grpc::ClientContext* c) { return stub.AwaitView(c, request, &reply); }));
    return ServerView{.epoch = reply.epoch(),
                      .recovering = reply.recovering(),
                      .addresses = {reply.servers().begin(), reply.servers().end()},
                      .why = reply.why(),
                      .rolled_back = reply.rolled_back()};
  }

  Status OpenDataset(int dataset, const DatasetInfo& info) override {
    OpenDatasetRequest request;
    *request.mutable_sender() = Self();
    request.set_dataset(static_cast<std::uint32_t>(dataset));
    request.set_fingerprint(info.fingerprint);
    request.set_examples(info.examples);
    request.set_batch_size(info.batch_size);
    OpenDatasetReply reply;
    return Call(
        [&](Stub& stub, grpc::ClientContext* c) { return stub.OpenDataset(c, request, &reply); });
  }

  Result<std::optional<EpochSplit>> NextSplit(const EpochKey& epoch, std::int64_t first_batch,
                                              const FinishedSplit& finished, bool leaves) override {
    NextSplitRequest request;
    request.set_leaves(leaves);
    *request.mutable_sender() = Self();
    request.set_dataset(static_cast<std::uint32_t>(epoch.dataset));
    request.set_epoch(epoch.epoch);
    request.set_first_batch(first_batch);
    request.set_finished(finished.id);
    request.set_finished_epoch(finished.epoch);
    request.set_steps(finished.steps);
    request.set_loss_sum(finished.sums.loss_sum);
    request.set_weight(finished.sums.weight);
    request.mutable_metric_sums()->Assign(finished.sums.metric_sums.begin(),
                                          finished.sums.metric_sums.end());
    NextSplitReply reply;
    do {
      COHORT_RETURN_IF_ERROR(Call(
          [&](Stub& stub, grpc::ClientContext* c) { return stub.NextSplit(c, request, &reply); }));
    } while (reply.kind() == NextSplitReply::WAIT);
    if (reply.kind() == NextSplitReply::STALE) {
      return Stale();
    }
    if (reply.kind() == NextSplitReply::EPOCH_OVER) {
      return std::optional<EpochSplit>();
    }
    return std::optional<EpochSplit>(
        {{.id = reply.id(), .begin = reply.begin(), .end = reply.end()}, reply.epoch()});
  }

  Result<std::optional<RoundPart>> JoinRound(const EpochKey& epoch,
                                             std::int64_t first_batch) override {
    JoinRoundRequest request;
    *request.mutable_sender() = Self();
    request.set_dataset(static_cast<std::uint32_t>(epoch.dataset));
    request.set_epoch(epoch.epoch);
    request.set_first_batch(first_batch);
    JoinRoundReply reply;
    do {
      COHORT_RETURN_IF_ERROR(Call(
          [&](Stub& stub, grpc::ClientContext* c) { return stub.JoinRound(c, request, &reply); }));
    } while (reply.kind() == JoinRoundReply::WAIT);
    if (reply.kind() == JoinRoundReply::STALE) {
      return Stale();
    }
    if (reply.kind() == JoinRoundReply::EPOCH_OVER) {
      return std::optional<RoundPart>();
    }
    return std::optional<RoundPart>({.round = reply.round().round(),
                                     .attempt = static_cast<int>(reply.round().attempt()),
                                     .part = static_cast<int>(reply.round().part()),
                                     .parts = static_cast<int>(reply.round().parts()),
                                     .epoch = {epoch.dataset, reply.epoch()},
                                     .batch = reply.batch(),
                                     .previous = CommitOf(reply.previous())});
  }

  Result<std::optional<RoundTotal>> FinishRound(const RoundPart& part,
                                                const RoundSums& sums) override {
    FinishRoundRequest request;
    *request.mutable_sender() = Self();
    request.set_round(part.round);
    request.set_attempt(static_cast<std::uint32_t>(part.attempt));
    request.set_loss_sum(sums.loss_sum);
    request.set_weight(sums.weight);
    request.mutable_metric_sums()->Assign(sums.metric_sums.begin(), sums.metric_sums.end());
    FinishRoundReply reply;
    do {
      COHORT_RETURN_IF_ERROR(Call([&](Stub& stub, grpc::ClientContext* c) {
        return stub.FinishRound(c, request, &reply);
      }));
    } while (reply.kind() == FinishRoundReply::WAIT);
    if (reply.kind() == FinishRoundReply::STALE) {
      return Stale();
    }
    if (reply.kind() == FinishRoundReply::SUPERSEDED) {
      return std::optional<RoundTotal>();
    }
    return std::optional<RoundTotal>(
        {SumsOf(reply.loss_sum(), reply.weight(), reply.metric_sums()), CommitOf(reply.commit())});
  }

  Result<ClosureReply> NextClosure(std::span<const std::int64_t> has) override {
    NextClosureRequest request;
    *request.mutable_sender() = Self();
    request.mutable_has()->Assign(has.begin(), has.end());
    NextClosureReply reply;
    COHORT_RETURN_IF_ERROR(Call(
        [&](Stub& stub, grpc::ClientContext* c) { return stub.NextClosure(c, request, &reply); }));
    ClosureReply closure = {.progress = reply.kind() == NextClosureReply::CALL ? Progress::kGo
                                        : reply.kind() == NextClosureReply::NO_MORE
                                            ? Progress::kOver
                                            : Progress::kWait,
                            .closure = {.id = reply.id(),
                                        .epoch = reply.epoch(),
                                        .function = reply.function(),
                                        .argument = reply.argument(),
                                        .data = {}}};
    for (const WorkerDataset& dataset : reply.data()) {
      closure.closure.data.push_back({.id = dataset.id(), .name = dataset.name()});
    }
    return closure;
  }

  Status FinishClosure(std::int64_t id, const Result<std::string>& outcome) override {
    FinishClosureRequest request;
    *request.mutable_sender() = Self();
    request.set_id(id);
    request.set_code(static_cast<std::int32_t>(outcome.status().code()));
    if (outcome.ok()) {
      request.set_result(*outcome);
    } else {
      request.set_error(outcome.status().message());
    }
    FinishClosureReply reply;
    return Call(
        [&](Stub& stub, grpc::ClientContext* c) { return stub.FinishClosure(c, request, &reply); });
  }

  Status Done() override {
    DoneRequest request;
    *request.mutable_sender() = Self();
    DoneReply reply;
    return Call([&](Stub& stub, grpc::ClientContext* c) { return stub.Done(c, request, &reply); });
  }

  void Abort(const Status& why) override {
    {
      const std::lock_guard lock(mutex_);
      if (aborted_.ok()) {
        aborted_ = why;
      }
      for (grpc::ClientContext* context : contexts_) {
        context->TryCancel();
      }
    }
    aborted_condition_.notify_all();
  }

 private:
  SenderId Self() const {
    const std::lock_guard lock(mutex_);
    return self_;
  }
  Status Stale() const {
    return Unavailable(name_ + " hands out nothing while the servers are rolled back");
  }

  // All requests may be repeated without harm. A connection on which no answer comes may be dead
  // and nobody say so: another one is tried in its place before the service is given up.
  Status Call(const std::function<grpc::Status(Stub& stub, grpc::ClientContext*)>& rpc) {
    const Deadline give_up = DeadlineAfter(peer_timeout_);
    std::chrono::milliseconds backoff{20};
    bool renewed = false;
    for (;;) {
      grpc::ClientContext context;
      context.set_deadline(GrpcTimeout(kPoll + std::min(kCallTimeout, peer_timeout_ / 2)));
      const std::shared_ptr<Stub> stub = stub_.get();
      {
        const std::lock_guard lock(mutex_);
        COHORT_RETURN_IF_ERROR(aborted_);
        contexts_.insert(&context);
      }
      const grpc::Status status = rpc(*stub, &context);
      std::unique_lock lock(mutex_);
      contexts_.erase(&context);
      if (!aborted_.ok() && !status.ok()) {
        return aborted_;
      }
      if (status.error_code() != grpc::StatusCode::UNAVAILABLE &&
          status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) {
        return FromGrpc(status);
      }
      if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && !renewed) {
        renewed = true;
        stub_.Renew(stub);
        continue;
      }
      if (std::chrono::steady_clock::now() >= give_up) {
        return Unavailable(
            name_ + ", which coordinates the job, does not answer: " + status.error_message());
      }
      aborted_condition_.wait_for(lock, backoff, [this] { return !aborted_.ok(); });
      backoff = std::min(backoff * 2, std::chrono::milliseconds(500));
    }
  }

  const std::string name_;
  const std::chrono::milliseconds peer_timeout_;
  RenewableStub<Coordination> stub_;
  mutable std::mutex mutex_;
  SenderId self_;  // under mutex_, as what follows
  std::condition_variable aborted_condition_;
  Status aborted_;
  std::set<grpc::ClientContext*> contexts_;  // of the calls under way
};

}  // namespace

Result<std::unique_ptr<SchedulerServer>> SchedulerServer::Start(const std::string& address,
                                                                Scheduler& scheduler) {
  auto server = std::make_unique<GrpcSchedulerServer>(scheduler);
  COHORT_RETURN_IF_ERROR(server->Listen(address));
  return server;
}

std::unique_ptr<SchedulerClient> SchedulerClient::Make(const std::string& address,
                                                       const std::string& name, const Sender& self,
                                                       std::chrono::milliseconds peer_timeout) {
  return std::make_unique<GrpcSchedulerClient>(address, name, self, peer_timeout);
}

}  // namespace cohort::ps
