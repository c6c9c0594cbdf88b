#include "parameter_server/server.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include <grpcpp/grpcpp.h>

#include <cohort/comm/shm.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "guarded.h"
#include "parameter_server/frames/dense_codec.h"
#include "parameter_server/frames/frame_listener.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/model/table_spec.h"
#include "parameter_server/request_counts.h"
#include "parameter_server/rows/row_service.h"
#include "parameter_server/variables/epoch_gate.h"

namespace cohort::ps {
namespace {

using Context = grpc::CallbackServerContext;

// How long a read waits until it is fresh, before it is asked for again.
constexpr std::chrono::milliseconds kPark{200};
// How long what a worker that was given up had sent last is waited for, on a thread of gRPC's.
constexpr std::chrono::milliseconds kLastPush{20};

grpc::ServerUnaryReactor* Reply(Context* context, const grpc::Status& status = grpc::Status::OK) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

// One server's part of the model.
struct Part {
  explicit Part(int server, const Log& log = Log()) : store(server), rows(server, log) {}

  Status Declare(const ModelSpec& spec, const std::string& who) {
    COHORT_RETURN_IF_ERROR(store.Declare(spec, who));
    return rows.Declare(spec.tables, spec.servers, spec.Fingerprint(),
                        spec.consistency.backup_workers > 0);
  }
  bool Retire(std::uint64_t first, std::uint64_t last, Deadline deadline) {
    const bool dense = store.Retire(first, last, deadline);
    return rows.Retire(first, last, deadline) && dense;
  }

  ParameterStore store;
  RowStore rows;
};

Result<ModelSpec> SpecOf(const DeclareRequest& request) {
  ModelSpec spec;
  spec.optimizer = request.optimizer();
  spec.consistency = {.mode = request.synchronous()      ? Consistency::Mode::kSynchronous
                              : request.staleness() >= 0 ? Consistency::Mode::kBoundedStaleness
                                                         : Consistency::Mode::kAsynchronous,
                      .staleness = static_cast<int>(std::max<std::int64_t>(request.staleness(), 0)),
                      .backup_workers = static_cast<int>(request.backup_workers())};
  spec.servers = static_cast<int>(request.servers());
  spec.copies = request.copies();
  spec.counts_steps = request.counts_steps();
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
                Servers::WithCallbackMethod_Begin<Servers::WithCallbackMethod_ExchangePushes<
                    Servers::WithCallbackMethod_ExchangeRounds<Servers::Service>>>>>>>>>>>;

class Service final : public Base {
 public:
  Service(int index, Log log)
      : index_(index),
        name_("ps:" + std::to_string(index)),
        log_(std::move(log)),
        own_(index, log_) {}

  ParameterStore& store() { return own_.store; }
  RowStore& rows() { return own_.rows; }
  // Of the frame: this server's part, or the copy of its predecessor's; null where there is none.
  Part* PartOf(bool copy) { return copy ? copy_.load(std::memory_order_acquire) : &own_; }
  EpochGate& gate() { return gate_; }
  const EpochGate& gate() const { return gate_; }

  Status Declare(const ModelSpec& spec, const std::string& who) {
    COHORT_RETURN_IF_ERROR(own_.Declare(spec, who));
    if (!spec.copies) {
      return {};
    }
    if (spec.servers < 2) {
      return InvalidArgument(who + " wants copies of the parts of " + std::to_string(spec.servers) +
                             " servers [two servers, or another server_loss]");
    }
    const std::lock_guard lock(mutex_);
    if (made_copy_ == nullptr) {
      made_copy_ = std::make_unique<Part>(CopiedServer(index_, spec.servers));
    }
    COHORT_RETURN_IF_ERROR(made_copy_->Declare(spec, who));
    copy_.store(made_copy_.get(), std::memory_order_release);
    return {};
  }

  void CountIn(Metrics& metrics) {
    Require(made_counts_ == nullptr, "CountIn once");
    made_counts_ = std::make_unique<RequestCounts>(metrics);
    counts_.store(made_counts_.get(), std::memory_order_release);
  }

  bool WaitDrained(Deadline deadline) {
    std::unique_lock lock(mutex_);
    return drained_condition_.wait_until(lock, deadline, [&] { return drained_; });
  }

  grpc::ServerUnaryReactor* Declare(Context* context, const DeclareRequest* request,
                                    DeclareReply* reply) override {
    return Guarded(context, name_ + " in Declare", [&] {
      if (static_cast<int>(request->server()) != index_) {
        return Reply(
            context,
            ToGrpc(FailedPrecondition(request->sender() + " takes this process for ps:" +
                                      std::to_string(request->server()) +
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
      if (const Error over = gate_.CheckNotOver(request->epoch()); over.kind() != Error::NONE) {
        *reply->mutable_error() = over;
        return Reply(context);
      }
      const Result<ModelSpec> spec = SpecOf(*request);
      const Status status = spec.ok() ? Declare(*spec, request->sender()) : spec.status();
      reply->set_ready(status.ok() && own_.store.ready());
      return Reply(context, ToGrpc(status));
    });
  }

  grpc::ServerUnaryReactor* Begin(Context* context, const BeginRequest* request,
                                  BeginReply* reply) override {
    return Guarded(context, name_ + " in Begin", [&] {
      const bool may_keep = request->keep() && gate_.epoch() != 0;
      const Result<Error> begun = gate_.Begin(request->epoch(), [&]() -> Status {
        Part* const copy = PartOf(/*copy=*/true);
        kept_at_begin_ = may_keep && own_.store.ready();
        kept_copy_at_begin_ = may_keep && copy != nullptr && copy->store.ready();
        std::uint64_t version = 0;
        COHORT_RETURN_IF_ERROR(BeginPart(own_, *request, kept_at_begin_, &version));
        version_at_begin_ = version;
        return copy == nullptr ? OkStatus()
                               : BeginPart(*copy, *request, kept_copy_at_begin_, &version);
      });
      if (begun.ok() && begun->kind() != Error::NONE) {
        *reply->mutable_error() = *begun;
      }
      reply->set_version(version_at_begin_);
      reply->set_kept(kept_at_begin_);
      reply->set_kept_copy(kept_copy_at_begin_);
      return Reply(context, ToGrpc(begun.status()));
    });
  }

  grpc::ServerUnaryReactor* ExchangePushes(Context* context, const PushesRequest* request,
                                           PushesReply* reply) override {
    return Guarded(context, name_ + " in ExchangePushes", [&] {
      const EpochGate::Pass pass = gate_.Enter(request->epoch());
      if (pass.error().kind() != Error::NONE) {
        *reply->mutable_error() = pass.error();
        return Reply(context);
      }
      Part* const part = PartOf(request->copy());
      if (part == nullptr) {
        *reply->mutable_error() = NoCopy();
        return Reply(context);
      }
      if (context->IsCancelled()) {
        return Reply(context);  // it was sent again
      }
      if (request->has_install()) {
        Status learned = part->store.pushes().Learn(request->install().dense());
        if (learned.ok()) {
          learned = part->rows.pushes().Learn(request->install().rows());
        }
        part->store.LearnClocks(request->install().clocks());
        return Reply(context, ToGrpc(learned));
      }
      part->store.pushes().Tell(reply->mutable_pushes()->mutable_dense());
      part->rows.pushes().Tell(reply->mutable_pushes()->mutable_rows());
      part->store.TellClocks(reply->mutable_pushes()->mutable_clocks());
      return Reply(context);
    });
  }

  grpc::ServerUnaryReactor* ExchangeRounds(Context* context, const RoundsRequest* request,
                                           RoundsReply* reply) override {
    return Guarded(context, name_ + " in ExchangeRounds", [&] {
      const EpochGate::Pass pass = gate_.Enter(request->epoch());
      Part* const part = PartOf(request->copy());
      if (context->IsCancelled()) {
        return Reply(context);  // it was sent again
      }
      Error error = pass.error().kind() != Error::NONE ? pass.error()
                    : part == nullptr                  ? NoCopy()
                                                       : Exchange(*part, *request, reply);
      if (error.kind() != Error::NONE) {
        *reply->mutable_error() = std::move(error);
      }
      return Reply(context);
    });
  }

  grpc::ServerUnaryReactor* Norms(Context* context, const NormsRequest* request,
                                  NormsReply* reply) override {
    return Guarded(context, name_ + " in Norms", [&] {
      const EpochGate::Pass pass = gate_.Enter(request->epoch());
      if (pass.error().kind() != Error::NONE) {
        *reply->mutable_error() = pass.error();
        return Reply(context);
      }
      const Result<ParameterStore::Norms> norms =
          own_.store.RoundNorms(request->layout(), request->round(), request->commit());
      // The copy's sums wait as well, and get the same factor.
      Part* const copy = PartOf(/*copy=*/true);
      const Status of_copy =
          copy == nullptr || !norms.ok()
              ? OkStatus()
              : copy->store.RoundNorms(request->layout(), request->round(), request->commit())
                    .status();
      if (!of_copy.ok()) {
        return Reply(context, ToGrpc(of_copy));
      }
      if (norms.ok()) {
        reply->mutable_chunks()->Assign(norms->chunks.begin(), norms->chunks.end());
        reply->mutable_squares()->Assign(norms->squares.begin(), norms->squares.end());
        reply->set_weight(norms->weight);
      }
      return Reply(context, ToGrpc(norms.status()));
    });
  }

  grpc::ServerUnaryReactor* Settle(Context* context, const SettleRequest* request,
                                   SettleReply* reply) override {
    return Guarded(context, name_ + " in Settle", [&] {
      const EpochGate::Pass pass = gate_.Enter(request->epoch());
      if (pass.error().kind() != Error::NONE) {
        *reply->mutable_error() = pass.error();
        return Reply(context);
      }
      Status settled = own_.store.Settle(request->layout(), request->round(), request->factor());
      if (Part* const copy = PartOf(/*copy=*/true); copy != nullptr && settled.ok()) {
        settled = copy->store.Settle(request->layout(), request->round(), request->factor());
      }
      return Reply(context, ToGrpc(settled));
    });
  }

  grpc::ServerUnaryReactor* Freeze(Context* context, const FreezeRequest* request,
                                   FreezeReply* reply) override {
    return Guarded(context, name_ + " in Freeze", [&] {
      const EpochGate::Pass pass = gate_.Enter(request->epoch());
      if (pass.error().kind() != Error::NONE) {
        *reply->mutable_error() = pass.error();
        return Reply(context);
      }
      reply->set_kept_bytes(own_.store.kept_bytes() + own_.rows.kept_bytes());
      Error error =
          own_.rows.Freeze(request->layout(), request->snapshot(), own_.store.LeastVersion());
      if (error.kind() != Error::NONE) {
        *reply->mutable_error() = std::move(error);
        return Reply(context);
      }
      const Result<std::uint64_t> version =
          own_.store.Freeze(request->layout(), request->snapshot());
      reply->set_version(version.ok() ? *version : 0);
      return Reply(context, ToGrpc(version.status()));
    });
  }

  grpc::ServerUnaryReactor* Stats(Context* context, const StatsRequest* /*request*/,
                                  StatsReply* reply) override {
    return Guarded(context, name_ + " in Stats", [&] {
      const StoreStats stats = own_.store.stats();
      reply->set_pushes(stats.pushes);
      reply->set_duplicates(stats.duplicates);
      reply->set_rejected(stats.rejected);
      reply->set_updates(stats.updates);
      reply->set_mean_staleness(stats.mean_staleness);
      reply->set_max_staleness(stats.max_staleness);
      reply->set_late(stats.late);
      reply->set_parked(stats.parked);
      reply->set_max_lead(stats.max_lead);
      for (TableCounts& counts : own_.rows.counts()) {
        CountsOfTable* const of_table = reply->add_tables();
        of_table->set_name(std::move(counts.name));
        of_table->set_evicted(counts.evicted);
        of_table->set_dropped(counts.dropped);
        of_table->set_skipped(counts.skipped);
        of_table->set_refused(counts.refused);
      }
      return Reply(context);
    });
  }

  grpc::ServerUnaryReactor* Retire(Context* context, const RetireRequest* request,
                                   RetireReply* reply) override {
    return Guarded(context, name_ + " in Retire", [&] {
      if (const Error over = gate_.CheckNotOver(request->epoch()); over.kind() != Error::NONE) {
        *reply->mutable_error() = over;
        return Reply(context);
      }
      const Deadline deadline = DeadlineAfter(kLastPush);
      bool over = own_.Retire(request->client(), request->client(), deadline);
      if (Part* const copy = PartOf(/*copy=*/true); copy != nullptr) {
        over = copy->Retire(request->client(), request->client(), deadline) && over;
      }
      if (!over) {
        *reply->mutable_error() =
            MakeError(Error::NOT_YET, "a push of the worker that was given up is being applied");
      }
      return Reply(context);
    });
  }

  grpc::ServerUnaryReactor* Drain(Context* context, const DrainRequest* request,
                                  DrainReply* reply) override {
    return Guarded(context, name_ + " in Drain", [&] {
      if (const Error over = gate_.CheckNotOver(request->epoch()); over.kind() != Error::NONE) {
        *reply->mutable_error() = over;
        return Reply(context);
      }
      {
        const std::lock_guard lock(mutex_);
        drained_ = true;
      }
      drained_condition_.notify_all();
      return Reply(context);
    });
  }

  grpc::ServerUnaryReactor* Endpoint(Context* context, const EndpointRequest* /*request*/,
                                     EndpointReply* reply) override {
    return Guarded(context, name_ + " in Endpoint", [&] {
      reply->set_port(static_cast<std::uint32_t>(frames_->port()));
      reply->set_host(HostIdentity());
      reply->set_local(frames_->local_address());
      return Reply(context);
    });
  }

  Status ListenForFrames(const std::string& address) {
    COHORT_ASSIGN_OR_RETURN(
        frames_,
        FrameListener::Start(
            WithPort(address, 0),
            [this](FrameMethod method, const FrameHeader& header, const PayloadReader& payload,
                   const std::string& peer, FrameReply* reply) {
              Handle(method, header, payload, peer, reply);
              if (RequestCounts* const counts = counts_.load(std::memory_order_acquire);
                  counts != nullptr) {
                counts->Answered(method, reply->header);
                if (method == FrameMethod::kPullRows || method == FrameMethod::kPushRows) {
                  counts->Tables(own_.rows);
                }
              }
            },
            log_));
    return {};
  }

 private:
  Status BeginPart(Part& part, const BeginRequest& request, bool kept, std::uint64_t* version) {
    // A push that only some servers had comes again, by its number: what is kept knows that.
    *version = kept ? part.store.Stay() : part.store.Reset();
    for (int i = 0; i + 1 < request.retired_size(); i += 2) {
      if (!part.Retire(request.retired(i), request.retired(i + 1), DeadlineAfter(kLastPush))) {
        return Unavailable("a push of an earlier epoch is being applied");  // none is let in
      }
    }
    if (kept) {
      part.rows.Stay();
      return {};
    }
    return part.rows.Reset();
  }

  static Error Exchange(Part& part, const RoundsRequest& request, RoundsReply* reply) {
    if (request.has_install()) {
      Error error = part.store.LearnRounds(request.install());
      return error.kind() == Error::NONE ? ErrorOf(part.rows.rounds().Learn(request.install()))
                                         : error;
    }
    if (request.has_piece()) {
      return request.piece().round() == 0 ? part.store.LearnPiece(request.piece())
                                          : ErrorOf(part.rows.rounds().LearnPiece(request.piece()));
    }
    if (request.has_ask()) {
      return request.ask().round() == 0
                 ? part.store.TellPiece(request.ask(), reply->mutable_piece())
                 : ErrorOf(part.rows.rounds().TellPiece(request.ask(), reply->mutable_piece()));
    }
    part.store.TellRounds(reply->mutable_rounds());
    part.rows.rounds().Tell(reply->mutable_rounds());
    return {};
  }

  static Error ErrorOf(const Status& status) {
    return status.ok() ? Error() : MakeError(Error::BAD_FRAME, status.message());
  }

  Error NoCopy() const {
    Error error;
    error.set_kind(Error::NOT_READY);
    error.set_message("ps:" + std::to_string(index_) + " has not been told to keep a copy");
    return error;
  }

  void Handle(FrameMethod method, const FrameHeader& header, const PayloadReader& payload,
              const std::string& peer, FrameReply* reply) {
    const EpochGate::Pass pass = gate_.Enter(header.epoch());
    reply->header.set_epoch(header.epoch());
    std::vector<ParameterStore::Reading> readings;
    Part* const part = PartOf(header.copy());
    Error error = pass.error().kind() != Error::NONE ? pass.error()
                  : part == nullptr                  ? NoCopy()
                                    : Act(method, header, payload, *part, reply, &readings);
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
      if (!part->store.Copy(reading, slots, reply->payload->Append(reading.floats), wire,
                            slots ? 0 : header.client())) {
        reply->payload->Clear();
        reply->header.clear_chunks();
        reply->header.clear_versions();
        reply->header.mutable_error()->set_kind(Error::NOT_FINITE);
        reply->header.mutable_error()->set_message(
            part->store.NameOf(reading.chunk) + " holds a value that " +
            std::string(DTypeName(wire)) +
            " cannot [let values travel as bfloat16 or float32; float16 ends at 65504]");
        return;
      }
      reply->header.add_chunks(static_cast<std::uint32_t>(reading.chunk));
      reply->header.add_versions(reading.version);
    }
  }

  // What the method does, and which chunks are to be returned.
  Error Act(FrameMethod method, const FrameHeader& header, const PayloadReader& payload, Part& part,
            FrameReply* reply, std::vector<ParameterStore::Reading>* readings) {
    ParameterStore& store = part.store;
    Error error;
    switch (method) {
      case FrameMethod::kAssign:
        error = store.Assign(header, payload);
        break;
      case FrameMethod::kPush: {
        ParameterStore::Pushed pushed;
        error = store.Push(header, payload, &pushed);
        reply->header.set_staleness(pushed.staleness);
        reply->header.set_late(pushed.late);
        break;
      }
      case FrameMethod::kPull:
        error = store.Admit(header, DeadlineAfter(kPark));
        break;
      case FrameMethod::kEnter:
        reply->header.set_clock(store.Enter(header));
        break;
      case FrameMethod::kPause:
        store.Pause(header);
        break;
      case FrameMethod::kPullRows:
      case FrameMethod::kPushRows:
        error = AnswerRows(part.rows, store.ready(), method, header, payload, DeadlineAfter(kPark),
                           reply);
        break;
    }
    if (error.kind() == Error::NONE &&
        (method == FrameMethod::kPull || (method == FrameMethod::kPush && header.pull()))) {
      error = store.Plan(header, readings);
    }
    return error;
  }

  const int index_;
  const std::string name_;  // "ps:1"
  const Log log_;
  EpochGate gate_;
  std::atomic<std::uint64_t> version_at_begin_{0};  // of the values that the last Begin found
  std::atomic<bool> kept_at_begin_{false};          // and left as they were
  std::atomic<bool> kept_copy_at_begin_{false};
  Part own_;
  std::atomic<Part*> copy_{nullptr};  // made_copy_, once it is declared
  std::unique_ptr<RequestCounts> made_counts_;
  std::atomic<RequestCounts*> counts_{nullptr};  // made_counts_, once it is made
  std::mutex mutex_;
  std::unique_ptr<Part> made_copy_;  // under mutex_, as what follows
  std::condition_variable drained_condition_;
  bool drained_ = false;
  std::unique_ptr<FrameListener> frames_;  // last: its threads use the rest
};

class GrpcServer final : public Server {
 public:
  GrpcServer(int index, const Log& log)
      : service_(index, log),
        row_service_(MakeRowService(
            [this](bool copy) {
              Part* const part = service_.PartOf(copy);
              return part == nullptr ? nullptr : &part->rows;
            },
            service_.gate(), "ps:" + std::to_string(index), log)) {}

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
  Status Declare(const ModelSpec& spec, const std::string& who) override {
    return service_.Declare(spec, who);
  }
  bool WaitDrained(Deadline deadline) override { return service_.WaitDrained(deadline); }
  void CountIn(Metrics& metrics) override { service_.CountIn(metrics); }

 private:
  Service service_;
  const std::unique_ptr<grpc::Service> row_service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

Result<std::unique_ptr<Server>> Server::Start(const std::string& address, int index,
                                              const Log& log) {
  auto server = std::make_unique<GrpcServer>(index, log);
  COHORT_RETURN_IF_ERROR(server->Listen(address));
  return server;
}

}  // namespace cohort::ps
