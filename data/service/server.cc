// One process of the data service: an input worker, the dispatcher, or both.
//
// Calls to the dispatcher are answered at once from the Directory. A read waits in a WorkQueue,
// holding no thread and no memory of its reply, until one of its threads makes it; its bytes are in
// use until gRPC has sent them. A reader that goes away cancels its read, which then ends at the
// next example.

#include <cohort/data_service.grpc.pb.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/data/stop_scope.h>
#include <cohort/data_service/data_service.h>

#include "directory.h"
#include "grpc_util.h"
#include "guarded.h"
#include "wire.h"
#include "work_queue.h"

namespace cohort::data {
namespace {

using std::chrono::milliseconds;
using Context = grpc::CallbackServerContext;

constexpr std::size_t kMostWaiting = 4096;
constexpr std::size_t kMostRequestBytes = std::size_t{16} << 20;  // kMostExamples, and a name
// Of the lists of an example, while none has been made.
constexpr std::int64_t kFirstListBytes = std::int64_t{1} << 17;
constexpr std::int64_t kMostReplyBytes = std::numeric_limits<std::int32_t>::max() - (1 << 20);
constexpr std::size_t kEpochsKept = 4;
constexpr milliseconds kRegisterTry{2'000};
constexpr milliseconds kLastPause{2'000};
constexpr milliseconds kProbeTimeout{300};

// A pipeline, with how it reads in the epochs that were asked for last.
class Served {
 public:
  Served(PipelineInfo info, std::shared_ptr<const Source> source)
      : info_(std::move(info)),
        contract_(Contract(info_)),
        source_(std::move(source)),
        list_bytes_(info_.ragged.empty() ? 0 : kUnknown) {}

  static Result<std::unique_ptr<Served>> Make(const ServedPipeline& pipeline) {
    const Result<std::shared_ptr<const Source>> source = pipeline.dataset.AsSource();
    if (!source.ok()) {
      return source.status().Annotate("pipeline '" + pipeline.name + "'" +
                                      (pipeline.dataset.batch_size() != 0
                                           ? " is served before Batch, trainers make batches"
                                           : ""));
    }
    const std::uint64_t content = (*source)->Fingerprint();
    PipelineInfo info{
        .name = pipeline.name,
        .examples = (*source)->size(),
        .fingerprint = pipeline.version.empty() ? content : Hash64(pipeline.version, content),
        .by_epoch = (*source)->AtEpoch(1) != nullptr,
        .features = (*source)->features(),
        .ragged = (*source)->ragged()};
    return std::make_unique<Served>(std::move(info), *source);
  }

  const PipelineInfo& info() const { return info_; }
  std::uint64_t contract() const { return contract_; }
  // Of an example in a reply, without the values of its lists.
  std::int64_t fixed_bytes() const {
    return info_.row_bytes() + 8 * static_cast<std::int64_t>(info_.ragged.size());
  }

  std::shared_ptr<const Source> At(std::int64_t epoch) {
    if (!info_.by_epoch) {
      return source_;
    }
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const Source>& source = epochs_[epoch];
    if (source == nullptr) {
      source = source_->AtEpoch(epoch);
    }
    std::shared_ptr<const Source> found = source;
    if (epochs_.size() > kEpochsKept) {
      epochs_.erase(epochs_.begin()->first == epoch ? std::prev(epochs_.end()) : epochs_.begin());
    }
    return found;
  }

  // What a read of so many examples takes, as far as it is known: of ragged features, the largest
  // average of a read so far.
  std::int64_t Bytes(std::int64_t examples) const {
    const std::int64_t lists = list_bytes_.load(std::memory_order_relaxed);
    return examples * (fixed_bytes() + (lists == kUnknown ? kFirstListBytes : lists));
  }
  void SawLists(std::int64_t bytes, std::int64_t examples) {
    const std::int64_t each = bytes / std::max<std::int64_t>(examples, 1);
    if (each > list_bytes_.load(std::memory_order_relaxed)) {
      list_bytes_.store(each, std::memory_order_relaxed);
    }
  }

 private:
  static constexpr std::int64_t kUnknown = -1;

  const PipelineInfo info_;
  const std::uint64_t contract_;
  const std::shared_ptr<const Source> source_;  // owners: this, and what is made of it
  std::atomic<std::int64_t> list_bytes_;        // of an example
  std::mutex mutex_;
  std::map<std::int64_t, std::shared_ptr<const Source>> epochs_;  // guarded by mutex_
};

// The payload: what is asked for, in memory of its own.
Status Make(Served& served, const wire::ReadRequest& request, std::vector<grpc::Slice>& payload) {
  const std::shared_ptr<const Source> source = served.At(request.epoch());
  const auto examples = static_cast<std::size_t>(request.indexes_size());
  const PipelineInfo& info = served.info();
  std::vector<std::byte*> rows;
  for (const FeatureSpec& feature : info.features) {
    payload.push_back(NewSlice(feature.bytes() * examples, &rows.emplace_back()));
  }
  std::vector<std::vector<std::byte>> values(info.ragged.size());
  std::vector<std::vector<std::int64_t>> ends(info.ragged.size());
  const std::int64_t room = kMostReplyBytes - served.fixed_bytes() * request.indexes_size();
  std::int64_t lists = 0;
  for (const std::int64_t index : request.indexes()) {
    const std::atomic<bool>* const stop = StopScope::Current();
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) {
      return Cancelled("the reader is gone");
    }
    COHORT_RETURN_IF_ERROR(source->ReadRagged(index, rows, values));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] += info.features[i].bytes();
    }
    lists = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      lists += ends[i].emplace_back(static_cast<std::int64_t>(values[i].size()));
    }
    if (lists > room) {
      return ResourceExhausted("the lists of " + std::to_string(examples) +
                               " examples do not fit in one message [a smaller "
                               "FromServiceOptions::piece_bytes asks for fewer]");
    }
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    payload.emplace_back(ends[i].data(), ends[i].size() * sizeof(std::int64_t));
    payload.push_back(AdoptSlice(std::move(values[i])));
  }
  served.SawLists(lists, request.indexes_size());
  return {};
}

Status MakeGuarded(Served& served, const wire::ReadRequest& request,
                   std::vector<grpc::Slice>& payload) {
  try {
    return Make(served, request, payload);
  } catch (const std::exception& error) {  // out of memory, or a source that throws
    return Internal(std::string("exception: ") + error.what());
  }
}

// "10.0.0.8" or "[::1]", of gRPC's "ipv4:10.0.0.8:4711" and "ipv6:%5B::1%5D:4711"; empty if it is
// neither.
std::string HostOfPeer(const std::string& peer) {
  const std::size_t scheme = peer.find(':');
  const std::size_t port = peer.rfind(':');
  if (!(peer.starts_with("ipv4:") || peer.starts_with("ipv6:")) || port <= scheme) {
    return "";
  }
  std::string host = peer.substr(scheme + 1, port - scheme - 1);
  for (const auto& [code, letter] : {std::pair("%5B", "["), std::pair("%5D", "]")}) {
    if (const std::size_t at = host.find(code); at != std::string::npos) {
      host.replace(at, 3, letter);
    }
  }
  return host;
}

bool IsLoopback(const std::string& host) { return host.starts_with("127.") || host == "[::1]"; }

class Server final
    : public DataServer,
      private wire::DataService::WithRawCallbackMethod_Read<
          wire::DataService::WithCallbackMethod_Register<
              wire::DataService::WithCallbackMethod_Find<wire::DataService::Service>>> {
 public:
  Server(std::vector<std::unique_ptr<Served>> served, const ServeOptions& options)
      : options_(options),
        incarnation_(std::random_device()() | std::uint64_t{std::random_device()()} << 32),
        served_(std::move(served)),
        queue_(options.threads > 0 ? options.threads : AvailableCores(), options.max_bytes,
               kMostWaiting),
        directory_(options.heartbeat_timeout) {}

  ~Server() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      for (ReadCall* read : reads_) {
        read->GiveUp();
      }
      if (register_ != nullptr) {
        register_->TryCancel();
      }
    }
    stopped_.notify_all();
    if (heart_.joinable()) {
      heart_.join();
    }
    queue_.Stop();
    if (server_ != nullptr) {
      server_->Shutdown(GrpcTimeout(std::chrono::seconds(1)));
    }
  }

  Status Start() {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    COHORT_ASSIGN_OR_RETURN(
        server_, StartServer(builder, options_.listen, &port_,
                             {.max_message_bytes = std::numeric_limits<std::int32_t>::max()}));
    if (options_.dispatcher.empty()) {
      return RegisterHere();
    }
    stub_ = wire::DataService::NewStub(NewChannel(options_.dispatcher));
    COHORT_RETURN_IF_ERROR(Join());
    heart_ = std::thread([this] {
      NameThisThread("serve/heart");
      Beat();
    });
    return {};
  }

  int port() const override { return port_; }
  Status failure() const override {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  DataServerStats stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  // ---- The dispatcher's calls -------------------------------------------------------------------

  grpc::ServerUnaryReactor* Register(Context* context, const wire::RegisterRequest* request,
                                     wire::RegisterReply* reply) override {
    return Guarded(context, "the dispatcher in Register", [&] {
      ToWire(Add(*request, context->peer()), reply->mutable_outcome());
      return Done(context);
    });
  }

  grpc::ServerUnaryReactor* Find(Context* context, const wire::FindRequest* request,
                                 wire::FindReply* reply) override {
    return Guarded(context, "the dispatcher in Find", [&] {
      if (const Status status = IsDispatcher(); !status.ok()) {
        ToWire(status, reply->mutable_outcome());
        return Done(context);
      }
      const std::lock_guard lock(mutex_);
      const auto found = directory_.Find(request->pipeline(), std::chrono::steady_clock::now());
      ToWire(found.status(), reply->mutable_outcome());
      if (found.ok()) {
        ToWire(found->pipeline, reply->mutable_pipeline());
        for (const InputWorker* worker : found->workers) {
          wire::FindReply::Worker* item = reply->add_workers();
          item->set_address(worker->address);
          item->set_threads(worker->threads);
        }
      }
      return Done(context);
    });
  }

  // ---- The input worker's -----------------------------------------------------------------------

  grpc::ServerUnaryReactor* Read(Context* context, const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* reply) override {
    return Guarded(context, "the input worker in Read", [&]() -> grpc::ServerUnaryReactor* {
      auto* const read = new ReadCall(*this, reply);
      try {
        read->Begin(*request);
      } catch (const std::exception& error) {  // before it is in the queue
        read->Finish(ToGrpc(StatusOf(error, "the input worker in Read")));
      }
      return read;
    });
  }

 private:
  // One read, until its reply has left.
  class ReadCall final : public grpc::ServerUnaryReactor {
   public:
    ReadCall(Server& server, grpc::ByteBuffer* reply) : server_(server), reply_(reply) {}

    void Begin(const grpc::ByteBuffer& request) {
      if (const Status status = Parse(request); !status.ok()) {
        return Answer(status);
      }
      bytes_ = served_->Bytes(request_.indexes_size());
      const std::lock_guard lock(server_.mutex_);
      server_.reads_.insert(this);
      listed_ = true;
      if (server_.stop_) {
        Finish({grpc::StatusCode::UNAVAILABLE, "the input worker is ending"});
      } else if (!server_.queue_.Submit(bytes_, [this] { Run(); })) {
        Finish({grpc::StatusCode::RESOURCE_EXHAUSTED, "too many reads wait at the input worker"});
      } else {
        queued_ = true;
      }
    }

    void GiveUp() { stop_ = true; }
    void OnCancel() override { stop_ = true; }
    void OnDone() override {
      if (listed_) {
        const std::lock_guard lock(server_.mutex_);
        server_.reads_.erase(this);
      }
      if (queued_) {
        server_.queue_.Release(bytes_);
      }
      delete this;
    }

   private:
    Status Parse(const grpc::ByteBuffer& bytes) {
      Received received;
      std::string message;
      if (bytes.Length() > kMostRequestBytes) {
        return InvalidArgument("a read of " + std::to_string(bytes.Length()) + " bytes");
      }
      if (received.Take(bytes)) {
        message.resize(received.remaining());
        received.Read(message.data(), message.size());
      }
      if (!request_.ParseFromString(message)) {
        return InvalidArgument("a read that is no message");
      }
      served_ = server_.FindServed(request_.pipeline());
      if (served_ == nullptr || served_->contract() != request_.contract()) {
        elsewhere_ = true;
        return FailedPrecondition("it serves " +
                                  std::string(served_ == nullptr ? "no" : "another") +
                                  " pipeline '" + request_.pipeline() + "'");
      }
      if (request_.indexes_size() > kMostExamples) {
        return InvalidArgument("pipeline '" + request_.pipeline() + "': a read of " +
                               std::to_string(request_.indexes_size()) + " examples, more than " +
                               std::to_string(kMostExamples));
      }
      for (const std::int64_t index : request_.indexes()) {
        if (index < 0 || index >= served_->info().examples) {
          return InvalidArgument("pipeline '" + request_.pipeline() + "' has no example " +
                                 std::to_string(index));
        }
      }
      const std::int64_t row = std::max<std::int64_t>(served_->fixed_bytes(), 1);
      if (request_.indexes_size() > kMostReplyBytes / row) {
        return InvalidArgument("pipeline '" + request_.pipeline() +
                               "': " + std::to_string(request_.indexes_size()) + " examples of " +
                               std::to_string(row) + " bytes do not fit in one message");
      }
      return {};
    }

    void Run() {
      std::vector<grpc::Slice> payload;
      const StopScope scope(stop_);
      const Status status =
          stop_ ? Cancelled("the reader is gone") : MakeGuarded(*served_, request_, payload);
      if (stop_) {
        return Finish({grpc::StatusCode::UNAVAILABLE, "the read was given up"});
      }
      if (!status.ok()) {
        return Answer(status);
      }
      server_.Count(request_.indexes_size(), payload);
      *reply_ = Assemble({}, std::move(payload));
      Finish(grpc::Status::OK);
    }

    void Answer(const Status& status) {
      wire::ReadReply header;
      ToWire(status, header.mutable_outcome());
      header.set_elsewhere(elsewhere_);
      *reply_ = Assemble(header, {});
      Finish(grpc::Status::OK);
    }

    Server& server_;
    grpc::ByteBuffer* const reply_;
    wire::ReadRequest request_;
    Served* served_ = nullptr;
    std::int64_t bytes_ = 0;
    bool listed_ = false;
    bool queued_ = false;
    bool elsewhere_ = false;
    std::atomic<bool> stop_{false};
  };

  static grpc::ServerUnaryReactor* Done(Context* context) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  Served* FindServed(const std::string& name) const {
    for (const std::unique_ptr<Served>& served : served_) {
      if (served->info().name == name) {
        return served.get();
      }
    }
    return nullptr;
  }

  void Count(std::int64_t examples, const std::vector<grpc::Slice>& payload) {
    std::int64_t bytes = 0;
    for (const grpc::Slice& slice : payload) {
      bytes += static_cast<std::int64_t>(slice.size());
    }
    const std::lock_guard lock(mutex_);
    ++stats_.reads;
    stats_.examples += examples;
    stats_.bytes += bytes;
  }

  // ---- Where input workers are known ------------------------------------------------------------

  Status IsDispatcher() const {
    return options_.dispatcher.empty()
               ? OkStatus()
               : FailedPrecondition("this is an input worker of the dispatcher at " +
                                    options_.dispatcher + " [ask that one]");
  }

  int threads() const { return options_.threads > 0 ? options_.threads : AvailableCores(); }

  // This process, at its own directory.
  Status RegisterHere() {
    InputWorker worker{.incarnation = incarnation_, .threads = threads()};
    for (const std::unique_ptr<Served>& served : served_) {
      worker.pipelines.push_back(served->info());
    }
    const std::lock_guard lock(mutex_);
    return worker.pipelines.empty()
               ? OkStatus()
               : directory_.Register(std::move(worker), std::chrono::steady_clock::now());
  }

  Status Add(const wire::RegisterRequest& request, const std::string& peer) {
    COHORT_RETURN_IF_ERROR(IsDispatcher());
    InputWorker worker{.incarnation = request.incarnation(),
                       .address = request.address(),
                       .threads = std::clamp(request.threads(), 1, 4096)};
    std::string address = worker.address;  // as it is seen from here
    if (address.starts_with(':')) {
      const std::string host = HostOfPeer(peer);
      if (host.empty()) {
        return InvalidArgument("the input worker's address cannot be told from '" + peer +
                               "' [ServeOptions::advertise says it]");
      }
      address = host + address;
      if (!IsLoopback(host)) {  // else trainers put the name by which they know this host before it
        worker.address = address;
      }
    }
    COHORT_RETURN_IF_ERROR(ParseHostPort(address).status());
    for (const wire::Pipeline& pipeline : request.pipelines()) {
      COHORT_ASSIGN_OR_RETURN(PipelineInfo info, FromWire(pipeline));
      worker.pipelines.push_back(std::move(info));
    }
    bool known = false;
    {
      const std::lock_guard lock(mutex_);
      const Deadline now = std::chrono::steady_clock::now();
      known = directory_.Knows(request.incarnation(), now);
      if (request.leaves()) {
        directory_.Leave(request.incarnation());
      } else {
        COHORT_RETURN_IF_ERROR(directory_.Register(std::move(worker), now));
      }
    }
    if (request.leaves()) {
      options_.log.Info("the input worker at " + address + " has left");
    } else if (!known) {
      options_.log.Info("input worker at " + address);
    }
    return {};
  }

  // ---- How this one is known at the dispatcher --------------------------------------------------

  // "host:port", or ":port" where the dispatcher is to tell the host.
  std::string Address() const {
    const std::string port = ":" + std::to_string(port_);
    if (!options_.advertise.empty()) {
      return ParseHostPort(options_.advertise).ok() ? options_.advertise
                                                    : options_.advertise + port;
    }
    const std::string host = options_.listen.substr(0, options_.listen.rfind(':'));
    return (host == "0.0.0.0" || host == "[::]" ? "" : host) + port;
  }

  // An OK with the dispatcher's outcome, or the transport's error.
  Status Say(bool leaves, milliseconds timeout, Status* outcome) {
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(timeout));
    {
      const std::lock_guard lock(mutex_);
      if (stop_ && !leaves) {
        return Cancelled("the input worker is ending");
      }
      register_ = leaves ? nullptr : &context;
    }
    wire::RegisterRequest request;
    request.set_incarnation(incarnation_);
    request.set_address(Address());
    request.set_threads(threads());
    request.set_leaves(leaves);
    for (const std::unique_ptr<Served>& served : served_) {
      ToWire(served->info(), request.add_pipelines());
    }
    wire::RegisterReply reply;
    const grpc::Status status = stub_->Register(&context, request, &reply);
    {
      const std::lock_guard lock(mutex_);
      register_ = nullptr;
    }
    *outcome = FromWire(reply.outcome());
    return FromGrpc(status);
  }

  Status Join() {
    const Deadline begun = std::chrono::steady_clock::now();
    Deadline next_call = begun + options_.roll_call_interval;
    milliseconds pause{100};
    for (;;) {
      Status outcome;
      const Status said = Say(false, kRegisterTry, &outcome);
      if (said.ok()) {
        return outcome.Annotate("the dispatcher at " + options_.dispatcher);
      }
      if (said.code() == StatusCode::kUnimplemented) {
        return FailedPrecondition("what answers at " + options_.dispatcher +
                                  " is no data service: " + said.message());
      }
      const Deadline now = std::chrono::steady_clock::now();
      const auto waited = [&] {
        return "the dispatcher at " + options_.dispatcher + ": " +
               WhyNoAnswer(ProbeAddress(options_.dispatcher, kProbeTimeout), said.message());
      };
      if (now - begun >= options_.join_timeout) {
        return DeadlineExceeded(waited() + ", after " +
                                std::to_string(options_.join_timeout.count()) +
                                " ms [start `cohort data serve` there, or check the address]");
      }
      if (now >= next_call) {
        options_.log.Info("waiting for " + waited());
        next_call = now + options_.roll_call_interval;
      }
      Pause(std::min<Duration>(pause, begun + options_.join_timeout - now));
      pause = std::min(pause * 2, kLastPause);
    }
  }

  bool Pause(Duration pause) {
    std::unique_lock lock(mutex_);
    return stopped_.wait_for(lock, pause, [this] { return stop_; });
  }

  void Beat() {
    bool silent = false;
    while (!Pause(options_.heartbeat_interval)) {
      Status outcome;
      const Status said = Say(false, kRegisterTry, &outcome);
      if (said.ok() == silent && said.code() != StatusCode::kCancelled) {
        options_.log.Warning("the dispatcher at " + options_.dispatcher +
                             (said.ok() ? " is there again" : ": " + said.message()));
        silent = !said.ok();
      }
      if (said.ok() && !outcome.ok()) {
        options_.log.Error(outcome.message());
        const std::lock_guard lock(mutex_);
        failure_ = outcome.Annotate("the dispatcher at " + options_.dispatcher);
        return;
      }
    }
    Status ignored;
    static_cast<void>(Say(true, milliseconds(500), &ignored));
  }

  const ServeOptions options_;
  const std::uint64_t incarnation_;
  const std::vector<std::unique_ptr<Served>> served_;
  WorkQueue queue_;
  int port_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;                        // guarded by mutex_, as all below
  std::set<ReadCall*> reads_;                // that are queued, or being made, or sent
  grpc::ClientContext* register_ = nullptr;  // while under way
  Directory directory_;
  Status failure_;
  DataServerStats stats_;

  std::unique_ptr<wire::DataService::Stub> stub_;
  std::thread heart_;
  std::unique_ptr<grpc::Server> server_;  // last: its calls use the rest
};

}  // namespace

Result<std::unique_ptr<DataServer>> Serve(const std::vector<ServedPipeline>& pipelines,
                                          const ServeOptions& options) {
  if (options.max_bytes < 1 || options.threads < 0) {
    return InvalidArgument("a data server of at least 1 byte and 0 threads");
  }
  for (const std::string& address : {options.listen, options.dispatcher}) {
    if (!address.empty()) {
      COHORT_RETURN_IF_ERROR(ParseHostPort(address).status());
    }
  }
  std::set<std::string> names;
  std::vector<std::unique_ptr<Served>> served;
  for (const ServedPipeline& pipeline : pipelines) {
    if (pipeline.name.empty() || !names.insert(pipeline.name).second) {
      return InvalidArgument("pipeline '" + pipeline.name + "' has no name, or one of another");
    }
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Served> made, Served::Make(pipeline));
    served.push_back(std::move(made));
  }
  try {
    auto server = std::make_unique<Server>(std::move(served), options);
    COHORT_RETURN_IF_ERROR(server->Start());
    return server;
  } catch (const std::system_error& error) {
    return ResourceExhausted(std::string("start of the server's threads: ") + error.what());
  }
}

}  // namespace cohort::data
