#include "parameter_server/server.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include <grpcpp/grpcpp.h>

#include <cohort/comm/shm.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/dense_codec.h"
#include "parameter_server/epoch_gate.h"
#include "parameter_server/frame_listener.h"
#include "parameter_server/row_service.h"
#include "parameter_server/table_spec.h"
#include "parameter_server/wire.h"

namespace cohort::ps {
namespace {

using Context = grpc::CallbackServerContext;

// How long a read waits until it is fresh, before it is asked for again.
constexpr std::chrono::milliseconds kPark{200};

grpc::ServerUnaryReactor* Reply(Context* context, const grpc::Status& status = grpc::Status::OK) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

Status DeclareBoth(ParameterStore& store, RowStore& rows, const ModelSpec& spec,
                   const std::string& who) {
  COHORT_RETURN_IF_ERROR(store.Declare(spec, who));
  return rows.Declare(spec.tables, spec.servers, spec.Fingerprint());
}

Result<ModelSpec> SpecOf(const DeclareRequest& request) {
  ModelSpec spec;
  spec.optimizer = request.optimizer();
  spec.consistency = {.mode = request.synchronous()      ? Consistency::Mode::kSynchronous
                              : request.staleness() >= 0 ? Consistency::Mode::kBoundedStaleness
                                                         : Consistency::Mode::kAsynchronous,
                      .staleness = static_cast<int>(std::max<std::int64_t>(request.staleness(), 0)),
                      .backup_workers = static_cast<int>(request.backup_workers())};
  spec.servers = static_cast<int>(request.servers());
  COHORT_ASSIGN_OR_RETURN(spec.partitioner, Partitioner::Parse(request.partitioner()));
  for (const auto& parameter : request.parameters()) {
    std::int64_t elements = 1;
    for (const std::int64_t dim : parameter.dims()) {
      if (dim < 0 || __builtin_mul_overflow(elements, dim, &elements) ||
          elements > (std::int64_t{1} << 48)) {
        return InvalidArgument("declaration of " + parameter.name() + ": impossible shape");
      }
    }
    spec.parameters.push_back({.name = parameter.name(),
                               .shape = Shape(std::vector<std::int64_t>(parameter.dims().begin(),
                                                                        parameter.dims().end())),
                               .trainable = parameter.trainable()});
  }
  for (const TableMessage& table : request.tables()) {
    COHORT_ASSIGN_OR_RETURN(TableSpec of_table, ps::SpecOf(table.SerializeAsString()));
    spec.tables.push_back(std::move(of_table));
  }
  return spec;
}

using Base = Servers::WithCallbackMethod_Declare<Servers::WithCallbackMethod_Stats<
    Servers::WithCallbackMethod_Drain<Servers::WithCallbackMethod_Norms<
        Servers::WithCallbackMethod_Settle<Servers::WithCallbackMethod_Endpoint<
            Servers::WithCallbackMethod_Retire<Servers::WithCallbackMethod_Freeze<
                Servers::WithCallbackMethod_Begin<Servers::Service>>>>>>>>>;

class Service final : public Base {
 public:
  Service(int index, Log log) : index_(index), log_(std::move(log)), store_(index), rows_(index) {}

  ParameterStore& store() { return store_; }
  RowStore& rows() { return rows_; }
  EpochGate& gate() { return gate_; }
  const EpochGate& gate() const { return gate_; }

  bool WaitDrained(Deadline deadline) {
    std::unique_lock lock(mutex_);
    return drained_condition_.wait_until(lock, deadline, [&] { return drained_; });
  }

  grpc::ServerUnaryReactor* Declare(Context* context, const DeclareRequest* request,
                                    DeclareReply* reply) override {
    if (static_cast<int>(request->server()) != index_) {
      return Reply(context, ToGrpc(FailedPrecondition(
                                request->sender() +
                                " takes this process for ps:" + std::to_string(request->server()) +
                                ", it is ps:" + std::to_string(index_) +
                                " [check the addresses in the cluster configuration]")));
    }
    if (request->protocol() != kProtocol) {
      return Reply(
          context,
          ToGrpc(FailedPrecondition(
              request->sender() + " speaks protocol " + std::to_string(request->protocol()) +
              ", ps:" + std::to_string(index_) + " protocol " + std::to_string(kProtocol) +
              " [start every process of the job from the same "
              "version of cohort]")));
    }
    const Result<ModelSpec> spec = SpecOf(*request);
    const Status status =
        spec.ok() ? DeclareBoth(store_, rows_, *spec, request->sender()) : spec.status();
    reply->set_ready(status.ok() && store_.ready());
    return Reply(context, ToGrpc(status));
  }

  grpc::ServerUnaryReactor* Begin(Context* context, const BeginRequest* request,
                                  BeginReply* reply) override {
    const bool may_keep = request->keep() && gate_.epoch() != 0;
    const Result<Error> begun = gate_.Begin(request->epoch(), [&] {
      kept_at_begin_ = may_keep && store_.ready();
      version_at_begin_ = kept_at_begin_ ? store_.ForgetClients() : store_.Reset();
      for (int i = 0; i + 1 < request->retired_size(); i += 2) {
        store_.Retire(request->retired(i), request->retired(i + 1));
        rows_.Retire(request->retired(i), request->retired(i + 1));
      }
      if (kept_at_begin_) {
        rows_.ForgetClients();
        return OkStatus();
      }
      return rows_.Reset();
    });
    if (begun.ok() && begun->kind() != Error::NONE) {
      *reply->mutable_error() = *begun;
    }
    reply->set_version(version_at_begin_);
    reply->set_kept(kept_at_begin_);
    return Reply(context, ToGrpc(begun.status()));
  }

  grpc::ServerUnaryReactor* Norms(Context* context, const NormsRequest* request,
                                  NormsReply* reply) override {
    const EpochGate::Pass pass = gate_.Enter(request->epoch());
    if (pass.error().kind() != Error::NONE) {
      *reply->mutable_error() = pass.error();
      return Reply(context);
    }
    const Result<ParameterStore::Norms> norms =
        store_.RoundNorms(request->layout(), request->round(), request->commit());
    if (norms.ok()) {
      reply->mutable_chunks()->Assign(norms->chunks.begin(), norms->chunks.end());
      reply->mutable_squares()->Assign(norms->squares.begin(), norms->squares.end());
      reply->set_weight(norms->weight);
    }
    return Reply(context, ToGrpc(norms.status()));
  }

  grpc::ServerUnaryReactor* Settle(Context* context, const SettleRequest* request,
                                   SettleReply* reply) override {
    const EpochGate::Pass pass = gate_.Enter(request->epoch());
    if (pass.error().kind() != Error::NONE) {
      *reply->mutable_error() = pass.error();
      return Reply(context);
    }
    return Reply(context,
                 ToGrpc(store_.Settle(request->layout(), request->round(), request->factor())));
  }

  grpc::ServerUnaryReactor* Freeze(Context* context, const FreezeRequest* request,
                                   FreezeReply* reply) override {
    const EpochGate::Pass pass = gate_.Enter(request->epoch());
    if (pass.error().kind() != Error::NONE) {
      *reply->mutable_error() = pass.error();
      return Reply(context);
    }
    reply->set_kept_bytes(store_.kept_bytes() + rows_.kept_bytes());
    Error error = rows_.Freeze(request->layout(), request->snapshot());
    if (error.kind() != Error::NONE) {
      *reply->mutable_error() = std::move(error);
      return Reply(context);
    }
    const Result<std::uint64_t> version = store_.Freeze(request->layout(), request->snapshot());
    reply->set_version(version.ok() ? *version : 0);
    return Reply(context, ToGrpc(version.status()));
  }

  grpc::ServerUnaryReactor* Stats(Context* context, const StatsRequest* /*request*/,
                                  StatsReply* reply) override {
    const StoreStats stats = store_.stats();
    reply->set_pushes(stats.pushes);
    reply->set_duplicates(stats.duplicates);
    reply->set_rejected(stats.rejected);
    reply->set_updates(stats.updates);
    reply->set_mean_staleness(stats.mean_staleness);
    reply->set_max_staleness(stats.max_staleness);
    reply->set_late(stats.late);
    reply->set_parked(stats.parked);
    reply->set_max_lead(stats.max_lead);
    return Reply(context);
  }

  grpc::ServerUnaryReactor* Retire(Context* context, const RetireRequest* request,
                                   RetireReply* /*reply*/) override {
    store_.Retire(request->client());
    rows_.Retire(request->client(), request->client());
    return Reply(context);
  }

  grpc::ServerUnaryReactor* Drain(Context* context, const DrainRequest* /*request*/,
                                  DrainReply* /*reply*/) override {
    {
      const std::lock_guard lock(mutex_);
      drained_ = true;
    }
    drained_condition_.notify_all();
    return Reply(context);
  }

  grpc::ServerUnaryReactor* Endpoint(Context* context, const EndpointRequest* /*request*/,
                                     EndpointReply* reply) override {
    reply->set_port(static_cast<std::uint32_t>(frames_->port()));
    reply->set_host(HostIdentity());
    reply->set_local(frames_->local_address());
    return Reply(context);
  }

  Status ListenForFrames(const std::string& address) {
    COHORT_ASSIGN_OR_RETURN(
        frames_, FrameListener::Start(
                     WithPort(address, 0),
                     [this](FrameMethod method, const FrameHeader& header,
                            const PayloadReader& payload, const std::string& peer,
                            FrameReply* reply) { Handle(method, header, payload, peer, reply); },
                     log_));
    return {};
  }

 private:
  void Handle(FrameMethod method, const FrameHeader& header, const PayloadReader& payload,
              const std::string& peer, FrameReply* reply) {
    const EpochGate::Pass pass = gate_.Enter(header.epoch());
    reply->header.set_epoch(header.epoch());
    std::vector<ParameterStore::Reading> readings;
    Error error = pass.error().kind() == Error::NONE
                      ? Act(method, header, payload, reply, &readings)
                      : pass.error();
    if (error.kind() == Error::NOT_YET) {
      *reply->header.mutable_error() = std::move(error);
      return;
    }
    if (error.kind() != Error::NONE) {
      log_.Warning("ps:" + std::to_string(index_) + " rejected a frame of " + peer + ": " +
                   error.message());
      *reply->header.mutable_error() = std::move(error);
      return;
    }
    const bool slots = method == FrameMethod::kPull && header.slots();
    const DType wire = WireOf(header.pull_wire()).value_or(DType::kFloat32);
    reply->header.set_pull_wire(header.pull_wire());
    for (ParameterStore::Reading& reading : readings) {
      // What comes with slots is saved.
      if (!store_.Copy(reading, slots, reply->payload->Append(reading.floats), wire,
                       slots ? 0 : header.client())) {
        reply->payload->Clear();
        reply->header.clear_chunks();
        reply->header.clear_versions();
        reply->header.mutable_error()->set_kind(Error::NOT_FINITE);
        reply->header.mutable_error()->set_message(
            store_.NameOf(reading.chunk) + " holds a value that " + std::string(DTypeName(wire)) +
            " cannot [let values travel as bfloat16 or float32; float16 ends at 65504]");
        return;
      }
      reply->header.add_chunks(static_cast<std::uint32_t>(reading.chunk));
      reply->header.add_versions(reading.version);
    }
  }

  // What the method does, and which chunks are to be returned.
  Error Act(FrameMethod method, const FrameHeader& header, const PayloadReader& payload,
            FrameReply* reply, std::vector<ParameterStore::Reading>* readings) {
    Error error;
    switch (method) {
      case FrameMethod::kAssign:
        error = store_.Assign(header, payload);
        break;
      case FrameMethod::kPush: {
        ParameterStore::Pushed pushed;
        error = store_.Push(header, payload, &pushed);
        reply->header.set_staleness(pushed.staleness);
        reply->header.set_late(pushed.late);
        break;
      }
      case FrameMethod::kPull:
        error = store_.Admit(header, DeadlineAfter(kPark));
        break;
      case FrameMethod::kPause:
        store_.Pause(header.client());
        break;
      case FrameMethod::kPullRows:
      case FrameMethod::kPushRows:
        error =
            AnswerRows(rows_, store_.ready(), method, header, payload, DeadlineAfter(kPark), reply);
        break;
    }
    if (error.kind() == Error::NONE &&
        (method == FrameMethod::kPull || (method == FrameMethod::kPush && header.pull()))) {
      error = store_.Plan(header, readings);
    }
    return error;
  }

  const int index_;
  const Log log_;
  EpochGate gate_;
  std::atomic<std::uint64_t> version_at_begin_{0};  // of the values that the last Begin found
  std::atomic<bool> kept_at_begin_{false};          // and left as they were
  ParameterStore store_;
  RowStore rows_;
  std::mutex mutex_;
  std::condition_variable drained_condition_;
  bool drained_ = false;
  std::unique_ptr<FrameListener> frames_;  // last: its threads use the rest
};

class GrpcServer final : public Server {
 public:
  GrpcServer(int index, const Log& log)
      : service_(index, log),
        row_service_(
            MakeRowService(service_.rows(), service_.gate(), "ps:" + std::to_string(index), log)) {}

  ~GrpcServer() override {
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    }
  }

  Status Listen(const std::string& address) {
    COHORT_RETURN_IF_ERROR(service_.ListenForFrames(address));
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    builder.RegisterService(row_service_.get());
    COHORT_ASSIGN_OR_RETURN(
        server_, StartServer(builder, address, &port_, {.max_message_bytes = kMaxMessageBytes}));
    return {};
  }

  int port() const override { return port_; }
  ParameterStore& store() override { return service_.store(); }
  RowStore& rows() override { return service_.rows(); }
  std::uint64_t epoch() const override { return service_.gate().epoch(); }
  bool WaitDrained(Deadline deadline) override { return service_.WaitDrained(deadline); }

 private:
  Service service_;
  const std::unique_ptr<grpc::Service> row_service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

Status Server::Declare(const ModelSpec& spec, const std::string& who) {
  return DeclareBoth(store(), rows(), spec, who);
}

Result<std::unique_ptr<Server>> Server::Start(const std::string& address, int index,
                                              const Log& log) {
  auto server = std::make_unique<GrpcServer>(index, log);
  COHORT_RETURN_IF_ERROR(server->Listen(address));
  return server;
}

}  // namespace cohort::ps
