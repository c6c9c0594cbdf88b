#include "parameter_server/variables/client.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include <cohort/optim/gradients.h>

#include "grpc_util.h"
#include "parameter_server/frames/call_retry.h"
#include "parameter_server/frames/dense_codec.h"
#include "parameter_server/frames/frame_address.h"
#include "parameter_server/frames/frame_memory.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/model/table_spec.h"
#include "parameter_server/variables/frame_client.h"

namespace cohort::ps {
namespace {

constexpr std::chrono::milliseconds kControlTimeout{5'000};  // one try of a control call
// For which a server finds memory, slots included, on a machine that is busy: 128 MB/s.
constexpr std::int64_t kFloatsInAMillisecond = 32'000;
constexpr std::chrono::milliseconds kLocateTimeout{1'000};
constexpr std::chrono::milliseconds kAskAgain{5};

// Does its value not travel as float32?
bool IsEncoded(const Chunk& chunk, DType wire) {
  return chunk.trainable && wire != DType::kFloat32;
}

bool Fits(const Chunk& chunk, std::span<const float> arena) {
  return static_cast<std::size_t>(chunk.offset + chunk.elements) <= arena.size();
}

template <typename Float>
std::span<Float> Of(const Chunk& chunk, std::span<Float> arena) {
  return arena.subspan(static_cast<std::size_t>(chunk.offset),
                       static_cast<std::size_t>(chunk.elements));
}

}  // namespace

FrameClient::FrameClient(ModelSpec spec, std::vector<std::string> addresses, ClientOptions options)
    : spec_(std::move(spec)),
      options_(std::move(options)),
      fingerprint_(spec_.Fingerprint()),
      chunks_(MakeChunks(spec_)),
      names_(LineNames(spec_, addresses)),
      addresses_(std::move(addresses)),
      carries_(CarriesBase(spec_)),
      versions_(chunks_.size(), 0),
      sequences_(options_.pushes),
      arrivals_(names_.size()),
      link_(FrameLink::Make(
          names_, [this](int server, bool may_share) { return Locate(server, may_share); },
          options_.peer_timeout, options_.read_timeout, options_.memory)) {
  sequences_.resize(addresses_.size(), 0);
  for (const std::string& address : addresses_) {
    control_.push_back(std::make_unique<RenewableStub<Servers>>(
        address, ChannelOptions{.max_message_bytes = kMaxMessageBytes}));
  }
}

Status FrameClient::Control(std::size_t server, const ControlCall& rpc,
                            std::chrono::milliseconds work) {
  CallRetry retry(options_.peer_timeout + work);
  for (;;) {
    COHORT_RETURN_IF_ERROR(link_->aborted());
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(std::min(kControlTimeout + work, retry.try_timeout())));
    const std::shared_ptr<Servers::Stub> stub = control_[server]->get();
    const grpc::Status status = rpc(*stub, &context);
    const bool lost = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    if (!lost) {
      return FromGrpc(status).Annotate(names_[server]);
    }
    const bool silent = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    if (silent) {
      control_[server]->Renew(stub);
    }
    const std::optional<std::chrono::milliseconds> pause = retry.Next(silent);
    if (!pause.has_value()) {
      return Unavailable(names_[server] + " does not answer: " + status.error_message());
    }
    std::this_thread::sleep_for(*pause);
  }
}

Status FrameClient::Declare() {
  DeclareRequest request;
  for (const ParameterSpec& parameter : spec_.parameters) {
    auto* to = request.add_parameters();
    to->set_name(parameter.name);
    for (const std::int64_t dim : parameter.shape.dims()) {
      to->add_dims(dim);
    }
    to->set_trainable(parameter.trainable);
  }
  request.set_optimizer(spec_.optimizer);
  const Consistency& consistency = spec_.consistency;
  request.set_synchronous(consistency.synchronous());
  request.set_staleness(consistency.bounded() ? consistency.staleness : -1);
  request.set_backup_workers(static_cast<std::uint32_t>(consistency.backup_workers));
  request.set_partitioner(spec_.partitioner.ToString());
  request.set_protocol(kProtocol);
  request.set_copies(spec_.copies);
  request.set_counts_steps(spec_.counts_steps);
  request.set_servers(static_cast<std::uint32_t>(spec_.servers));
  request.set_sender(options_.task);
  request.set_epoch(options_.epoch);
  for (const TableSpec& table : spec_.tables) {
    if (!request.add_tables()->ParseFromString(ToMessage(table))) {
      return InvalidArgument("table \"" + table.name + "\": its name is not UTF-8");
    }
  }
  std::vector<std::int64_t> floats(control_.size());
  for (const Chunk& chunk : chunks_) {
    floats[static_cast<std::size_t>(chunk.server)] += chunk.elements;
  }
  for (std::size_t s = 0; s < control_.size(); ++s) {
    request.set_server(static_cast<std::uint32_t>(s));
    DeclareReply reply;
    const auto declare = [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Declare(context, request, &reply);
    };
    COHORT_RETURN_IF_ERROR(
        Control(s, declare, std::chrono::milliseconds(floats[s] / kFloatsInAMillisecond)));
    COHORT_RETURN_IF_ERROR(Taken(reply, s));
  }
  return {};
}

Result<std::uint64_t> FrameClient::Begin(std::span<const std::uint64_t> retired) {
  BeginRequest request;
  request.set_epoch(options_.epoch);
  request.mutable_retired()->Assign(retired.begin(), retired.end());
  std::uint64_t version = 0;
  for (std::size_t s = 0; s < control_.size(); ++s) {
    BeginReply reply;
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Begin(context, request, &reply);
    }));
    COHORT_RETURN_IF_ERROR(Taken(reply, s));
    version = std::max<std::uint64_t>(version, reply.version());
  }
  return version;
}

Status FrameClient::Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                           std::uint64_t version) {
  std::vector<int> all(static_cast<std::size_t>(spec_.servers));
  std::iota(all.begin(), all.end(), 0);
  return AssignTo(all, values, slots, version);
}

Status FrameClient::AssignTo(std::span<const int> servers, std::span<const float> values,
                             std::span<const std::span<float>> slots, std::uint64_t version) {
  const int copies = 1 + static_cast<int>(slots.size());
  std::vector<FrameRequest> requests;
  for (const int s : servers) {
    for (const std::vector<int>& frame : PackFrames(chunks_, s, kFrameBytes, copies)) {
      FrameRequest& request =
          requests.emplace_back(FrameRequest{s, FrameMethod::kAssign, Header(), {}});
      request.header.set_slots(!slots.empty());
      for (const int c : frame) {
        const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
        request.header.add_chunks(static_cast<std::uint32_t>(c));
        request.header.add_versions(version);
        versions_[static_cast<std::size_t>(c)] = version;
        request.payload.push_back(Of(chunk, values));
        for (std::size_t i = 0; chunk.trainable && i < slots.size(); ++i) {
          request.payload.push_back(Of(chunk, std::span<const float>(slots[i])));
        }
      }
    }
  }
  if (spec_.copies) {
    AddCopies(spec_.servers, &requests);
  }
  return link_->Run(requests, Into({}, {}));
}

ReplyHandler FrameClient::Into(std::span<float> values, std::span<const std::span<float>> slots) {
  const auto place = [this, values, slots](int server,
                                           const FrameHeader& header) -> Result<Places> {
    const std::optional<DType> wire = WireOf(header.pull_wire());
    if (!wire.has_value()) {
      return Internal(names_[static_cast<std::size_t>(server)] + ": a reply of format " +
                      std::to_string(header.pull_wire()));
    }
    if (header.epoch() != options_.epoch) {
      return StaleReply(names_[static_cast<std::size_t>(server)], header.epoch(), options_.epoch);
    }
    if (static_cast<std::size_t>(header.chunks_size()) > chunks_.size()) {
      return Internal(names_[static_cast<std::size_t>(server)] + ": a reply with " +
                      std::to_string(header.chunks_size()) + " chunks of " +
                      std::to_string(chunks_.size()));
    }
    std::size_t encoded = 0;
    for (const std::uint32_t c : header.chunks()) {
      encoded += c < chunks_.size() && IsEncoded(chunks_[c], *wire)
                     ? EncodedFloats(*wire, static_cast<std::size_t>(chunks_[c].elements))
                     : 0;
    }
    std::span<float> arrival = arrivals_[static_cast<std::size_t>(server)].Resize(encoded);
    Places places;
    for (int i = 0; i < header.chunks_size(); ++i) {
      const std::size_t c = header.chunks(i);
      if (c >= chunks_.size() || i >= header.versions_size() || !Fits(chunks_[c], values)) {
        return Internal(names_[static_cast<std::size_t>(server)] + ": a reply with chunk " +
                        std::to_string(c) + " of " + std::to_string(chunks_.size()));
      }
      if (IsEncoded(chunks_[c], *wire)) {
        const std::size_t floats =
            EncodedFloats(*wire, static_cast<std::size_t>(chunks_[c].elements));
        places.push_back(arrival.first(floats));
        arrival = arrival.subspan(floats);
        continue;
      }
      places.push_back(Of(chunks_[c], values));
      for (std::size_t s = 0; chunks_[c].trainable && s < slots.size(); ++s) {
        places.push_back(Of(chunks_[c], slots[s]));
      }
    }
    return places;
  };
  const auto done = [this, values](int server, const FrameHeader& header) {
    const DType wire = WireOf(header.pull_wire()).value_or(DType::kFloat32);
    std::span<const float> arrival = arrivals_[static_cast<std::size_t>(server)].values();
    for (const std::uint32_t c : header.chunks()) {
      if (IsEncoded(chunks_[c], wire)) {
        const std::span<float> to = Of(chunks_[c], values);
        DecodeValues(wire, arrival, to);
        arrival = arrival.subspan(EncodedFloats(wire, to.size()));
      }
    }
    if (server < spec_.servers) {  // a copy's updates come in another order
      staleness_ = std::max<std::uint64_t>(staleness_, header.staleness());
      late_ = late_ || header.late();
    }
    for (int i = 0; i < header.chunks_size(); ++i) {
      versions_[header.chunks(i)] = header.versions(i);
    }
    return Status();
  };
  return {.place = place, .done = done};
}

Result<std::string> FrameClient::Locate(int line, bool may_share) {
  const auto s = static_cast<std::size_t>(ServerOfLine(line, spec_.servers));
  const std::shared_ptr<Servers::Stub> stub = control_[s]->get();
  Result<std::string> address = LocateFrames(*stub, addresses_[s], options_.transport, may_share,
                                             std::min(kLocateTimeout, options_.peer_timeout / 2));
  if (address.status().code() == StatusCode::kDeadlineExceeded) {
    control_[s]->Renew(stub);
  }
  return address;
}

void FrameClient::AddPulls(int server, bool everything, const FrameHeader& header,
                           std::vector<FrameRequest>* requests) {
  for (const std::vector<int>& frame : PackFrames(chunks_, server, kFrameBytes)) {
    FrameRequest& request =
        requests->emplace_back(FrameRequest{server, FrameMethod::kPull, header, {}});
    for (const int c : frame) {
      request.header.add_chunks(static_cast<std::uint32_t>(c));
      request.header.add_versions(everything ? 0 : versions_[static_cast<std::size_t>(c)] + 1);
      request.header.set_pull_wire(WireNumber(options_.wire.pull));
    }
  }
}

Status FrameClient::Pull(std::span<float> values, bool everything) {
  std::vector<FrameRequest> requests;
  for (int s = 0; s < spec_.servers; ++s) {
    AddPulls(s, everything, Header(), &requests);
  }
  return link_->Run(requests, Into(values, {}));
}

// Once for each piece of work.
Status FrameClient::EnterClock() {
  if (!spec_.consistency.bounded()) {
    return {};
  }
  if (entered_) {
    return TellClock();
  }
  FrameRequest request{0, FrameMethod::kEnter, Header(), {}};
  request.header.set_sequence(++turn_);
  request.header.set_clock(clock_);
  request.header.set_sender(options_.task);
  const auto nothing = [](int, const FrameHeader&) -> Result<Places> { return Places(); };
  COHORT_RETURN_IF_ERROR(
      link_->Run({&request, 1}, {.place = nothing, .done = [this](int, const FrameHeader& reply) {
                                   clock_ = reply.clock();
                                   return OkStatus();
                                 }}));
  entered_ = true;
  told_ = false;
  return TellClock();
}

// Nobody reads from copies, by which they would know; nor, so far, from one that has been mended.
Status FrameClient::TellClock() {
  if (!spec_.copies || told_) {
    return {};
  }
  std::vector<FrameRequest> requests;
  ++turn_;
  for (int s = 0; s < spec_.servers; ++s) {
    FrameRequest& request =
        requests.emplace_back(FrameRequest{s, FrameMethod::kEnter, Header(), {}});
    request.header.set_sequence(turn_);
    request.header.set_advance(true);
    request.header.set_clock(clock_);
    request.header.set_sender(options_.task);
  }
  AddCopies(spec_.servers, &requests);
  COHORT_RETURN_IF_ERROR(link_->Run(requests, Into({}, {})));
  told_ = true;
  return {};
}

Status FrameClient::PullForStep(std::span<float> values, const Commit& commit) {
  COHORT_RETURN_IF_ERROR(EnterClock());
  LearnFate(commit);
  if (commit.round() != 0 && commit.round() == part_.round()) {
    part_.Clear();  // its residuals are kept, whatever comes
  }
  FrameHeader header = Header();
  header.set_bounded(spec_.consistency.bounded());
  if (header.bounded()) {
    header.set_sender(options_.task);
    header.set_clock(clock_);
  }
  if (commit.round() != 0) {
    *header.mutable_commit() = commit;
  }
  std::vector<FrameRequest> requests;
  for (int s = 0; s < spec_.servers; ++s) {
    AddPulls(s, /*everything=*/false, header, &requests);
  }
  return link_->Run(requests, Into(values, {}));
}

Status FrameClient::PullState(std::span<float> values, std::span<const std::span<float>> slots) {
  const int copies = 1 + static_cast<int>(slots.size());
  std::vector<FrameRequest> requests;
  for (int s = 0; s < spec_.servers; ++s) {
    for (const std::vector<int>& frame : PackFrames(chunks_, s, kFrameBytes, copies)) {
      FrameHeader& header =
          requests.emplace_back(FrameRequest{s, FrameMethod::kPull, Header(), {}}).header;
      header.set_slots(!slots.empty());
      header.set_snapshot(snapshot_);
      for (const int c : frame) {
        header.add_chunks(static_cast<std::uint32_t>(c));
        header.add_versions(0);
      }
    }
  }
  return link_->Run(requests, Into(values, slots));
}

Status FrameClient::Freeze(std::uint64_t snapshot,
                           const std::function<void(const FreezeReply&)>& take) {
  FreezeRequest request;
  request.set_epoch(options_.epoch);
  request.set_layout(fingerprint_);
  request.set_snapshot(snapshot);
  for (std::size_t s = 0; s < control_.size(); ++s) {
    FreezeReply reply;
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Freeze(context, request, &reply);
    }));
    COHORT_RETURN_IF_ERROR(Taken(reply, s));
    take(reply);
  }
  snapshot_ = snapshot;
  return {};
}

Result<std::uint64_t> FrameClient::Freeze(std::uint64_t snapshot) {
  std::uint64_t version = std::numeric_limits<std::uint64_t>::max();
  COHORT_RETURN_IF_ERROR(Freeze(snapshot, [&](const FreezeReply& reply) {
    version = std::min<std::uint64_t>(version, reply.version());
  }));
  return chunks_.empty() ? 0 : version;
}

Result<std::uint64_t> FrameClient::Thaw() {
  std::uint64_t kept = 0;
  snapshot_ = 0;
  COHORT_RETURN_IF_ERROR(Freeze(0, [&](const FreezeReply& reply) { kept += reply.kept_bytes(); }));
  return kept;
}

void FrameClient::TakeOver(Client& before) {
  auto& from = static_cast<FrameClient&>(before);  // there is one kind
  if (from.options_.client != options_.client) {
    return;  // what was sent under another name counts no more
  }
  clock_ = from.clock_;
  entered_ = from.entered_;
  turn_ = from.turn_;
  if (spec_.consistency.synchronous()) {
    versions_ = std::move(from.versions_);
  }
  base_after_ = std::move(from.base_after_);
  base_versions_ = std::move(from.base_versions_);
  base_ = std::move(from.base_);
  residuals_ = std::move(from.residuals_);
  part_ = from.part_;
  unclipped_ = from.unclipped_;
  encoded_ = std::move(from.encoded_);
  encoded_under_ = std::move(from.encoded_under_);
}

void FrameClient::BeginPart(const Round& part, bool empty) {
  if (part_.round() == part.round() && part_.attempt() != part.attempt()) {
    ForgetResiduals();  // of the round before it was cut anew
  }
  part_ = empty ? Round() : part;  // what is empty leaves them as they are
  unclipped_ = !empty;
}

// Of a round since, this client has not heard whether its part was in the one before.
void FrameClient::LearnFate(const Commit& commit) {
  if (part_.round() == 0 || commit.round() < part_.round()) {
    return;
  }
  const bool applied = commit.round() == part_.round() && commit.attempt() == part_.attempt() &&
                       std::ranges::find(commit.winners(), part_.part()) != commit.winners().end();
  if (!applied) {
    ForgetResiduals();
  }
}

void FrameClient::ForgetResiduals() {
  std::ranges::fill(residuals_, 0.0F);
  part_.Clear();
  unclipped_ = false;
}

Result<std::span<const float>> FrameClient::Encode(const Gradient& gradient, std::size_t c,
                                                   std::uint64_t sequence) {
  const Chunk& chunk = chunks_[c];
  const std::span<const float> values = Of(chunk, gradient.arena);
  const DType wire = options_.wire.push;
  if (!IsEncoded(chunk, wire)) {
    return values;
  }
  residuals_.resize(gradient.arena.size(), 0);
  encoded_.resize(chunks_.size());
  encoded_under_.resize(chunks_.size(), 0);
  if (encoded_under_[c] == sequence) {  // some servers may have it: as they do
    return std::span<const float>(encoded_[c].values());
  }
  const std::span<float> to = encoded_[c].Resize(EncodedFloats(wire, values.size()));
  // As much as the server applies; of a round the clipping is found out by Settle.
  if (!EncodeWithFeedback(wire, values, static_cast<float>(gradient.clip / gradient.weight),
                          Of(chunk, std::span(residuals_)), to)) {
    return InvalidArgument(
        "the gradient of " + spec_.parameters[static_cast<std::size_t>(chunk.parameter)].name +
        " holds a value that " + std::string(DTypeName(wire)) +
        " cannot [let gradients travel as bfloat16 or float32; float16 ends at 65504, and "
        "gradients are sums over a worker's examples]");
  }
  encoded_under_[c] = sequence;
  return std::span<const float>(to);
}

void FrameClient::KeepBase(std::span<const float> values) {
  if (!keeps_base()) {
    return;
  }
  Require(!carries_ || !values.empty(),
          "with copies and delay_compensation a push needs the values it was computed from");
  base_after_ = sequences_;
  base_versions_ = versions_;
  if (carries_) {  // replies will be written to where they are
    base_.assign(values.begin(), values.end());
  }
}

Status FrameClient::Push(const Gradient& gradient, std::optional<std::span<float>> values) {
  const bool empty = gradient.round.has_value() && gradient.weight == 0;
  const bool bounded = spec_.consistency.bounded();
  if (base_after_ != sequences_) {
    KeepBase(values.value_or(std::span<float>()));
  }
  if (bounded) {
    COHORT_RETURN_IF_ERROR(EnterClock());
  }
  // This client's when the step is done: one that is sent again is the same step.
  const std::uint64_t clock = clock_ + 1;
  staleness_ = 0;
  late_ = false;
  if (gradient.round.has_value()) {
    BeginPart(*gradient.round, empty);
  }
  const std::vector<std::uint64_t>& base = keeps_base() ? base_versions_ : versions_;
  std::vector<FrameRequest> requests;
  for (int s = 0; s < spec_.servers; ++s) {
    const std::size_t before = requests.size();
    for (const std::vector<int>& frame : PackFrames(chunks_, s, kFrameBytes, carries_ ? 2 : 1)) {
      FrameRequest& request =
          requests.emplace_back(FrameRequest{s, FrameMethod::kPush, Header(), {}});
      FrameHeader& header = request.header;
      header.set_sequence(++sequences_[static_cast<std::size_t>(s)]);
      header.set_weight(gradient.weight);
      header.set_clip(gradient.clip == 1 ? 0 : gradient.clip);
      header.set_pull(values.has_value() && !bounded);
      header.set_wire(WireNumber(options_.wire.push));
      header.set_pull_wire(WireNumber(options_.wire.pull));
      if (spec_.copies && gradient.commit.round() != 0) {
        *header.mutable_commit() = gradient.commit;
      }
      if (gradient.round.has_value()) {
        *header.mutable_round() = *gradient.round;
      }
      for (const int c : frame) {
        header.add_chunks(static_cast<std::uint32_t>(c));
        header.add_versions(base[static_cast<std::size_t>(c)]);
        if (!empty) {
          COHORT_ASSIGN_OR_RETURN(const std::span<const float> bytes,
                                  Encode(gradient, static_cast<std::size_t>(c), header.sequence()));
          request.payload.push_back(bytes);
        }
        const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
        if (carries_ && chunk.trainable) {
          request.payload.push_back(Of(chunk, std::span<const float>(base_)));
        }
      }
    }
    if (bounded && requests.size() > before) {
      // All of the step is applied before any of it is read: who waits holds nobody up.
      requests.back().header.set_advance(true);
      requests.back().header.set_sender(options_.task);
      requests.back().header.set_clock(clock);
      if (values.has_value()) {
        FrameHeader header = Header();
        header.set_bounded(true);
        header.set_sender(options_.task);
        header.set_clock(clock);
        header.set_sequence(sequences_[static_cast<std::size_t>(s)]);
        AddPulls(s, /*everything=*/false, header, &requests);
      }
    }
  }
  if (spec_.copies) {
    AddCopies(spec_.servers, &requests);
  }
  COHORT_RETURN_IF_ERROR(link_->Run(requests, Into(values.value_or(std::span<float>()), {})));
  clock_ = bounded ? clock : clock_;
  return {};
}

Status FrameClient::Settle(std::uint64_t round, const Commit& commit, double clip_norm) {
  std::vector<double> squares(chunks_.size(), 0);
  double weight = 0;
  for (std::size_t s = 0; s < control_.size(); ++s) {
    NormsRequest request;
    request.set_layout(fingerprint_);
    request.set_round(round);
    request.set_epoch(options_.epoch);
    *request.mutable_commit() = commit;
    NormsReply reply;
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Norms(context, request, &reply);
    }));
    COHORT_RETURN_IF_ERROR(Taken(reply, s));
    weight = std::max(weight, reply.weight());
    for (int i = 0; i < std::min(reply.chunks_size(), reply.squares_size()); ++i) {
      if (reply.chunks(i) >= squares.size()) {
        return Internal(names_[s] + ": the norm of chunk " + std::to_string(reply.chunks(i)) +
                        " of " + std::to_string(squares.size()));
      }
      squares[reply.chunks(i)] = reply.squares(i);
    }
  }
  // In the order of the chunks: every worker gets the same factor.
  const double squared_norm = std::accumulate(squares.begin(), squares.end(), 0.0);
  const double scale = weight > 0 ? static_cast<double>(static_cast<float>(1.0 / weight)) : 0;
  SettleRequest request;
  request.set_layout(fingerprint_);
  request.set_round(round);
  const double factor = ClipFactor(squared_norm * scale * scale, clip_norm);
  LearnFate(commit);
  if (round == part_.round() && std::exchange(unclipped_, false) && factor < 1) {
    for (float& residual : residuals_) {
      residual *= static_cast<float>(factor);
    }
  }
  request.set_factor(factor);
  request.set_epoch(options_.epoch);
  for (std::size_t s = 0; s < control_.size(); ++s) {
    SettleReply reply;
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Settle(context, request, &reply);
    }));
    COHORT_RETURN_IF_ERROR(Taken(reply, s));
  }
  return {};
}

Result<StoreStats> FrameClient::Stats() {
  StoreStats total;
  for (std::size_t s = 0; s < control_.size(); ++s) {
    StatsReply reply;
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Stats(context, StatsRequest(), &reply);
    }));
    total.pushes += reply.pushes();
    total.duplicates += reply.duplicates();
    total.rejected += reply.rejected();
    total.mean_staleness = total.updates + reply.updates() == 0
                               ? 0
                               : (total.mean_staleness * static_cast<double>(total.updates) +
                                  reply.mean_staleness() * static_cast<double>(reply.updates())) /
                                     static_cast<double>(total.updates + reply.updates());
    total.updates += reply.updates();
    total.late += reply.late();
    total.parked += reply.parked();
    total.max_lead = std::max<std::uint64_t>(total.max_lead, reply.max_lead());
    total.max_staleness = std::max<std::uint64_t>(total.max_staleness, reply.max_staleness());
    for (std::size_t t = 0; t < static_cast<std::size_t>(reply.tables_size()); ++t) {
      const CountsOfTable& counts = reply.tables(static_cast<int>(t));
      total.tables.resize(std::max(total.tables.size(), t + 1));
      total.tables[t].name = counts.name();
      total.tables[t].evicted += counts.evicted();
      total.tables[t].dropped += counts.dropped();
      total.tables[t].skipped += counts.skipped();
      total.tables[t].refused += counts.refused();
    }
  }
  return total;
}

Status FrameClient::Pause() {
  entered_ = false;
  std::vector<FrameRequest> requests;
  ++turn_;
  for (int s = 0; s < spec_.servers; ++s) {
    requests.push_back({s, FrameMethod::kPause, Header(), {}});
    requests.back().header.set_sequence(turn_);
  }
  if (spec_.copies) {
    AddCopies(spec_.servers, &requests);
  }
  return link_->Run(requests, Into({}, {}));
}

Status FrameClient::Retire(std::uint64_t client) {
  RetireRequest request;
  request.set_client(client);
  request.set_epoch(options_.epoch);
  Status first;
  std::vector<std::size_t> servers(control_.size());
  std::iota(servers.begin(), servers.end(), std::size_t{0});
  // What the worker had sent last is applied in a moment, as a rule: who is still at that is asked
  // again, when all have been told.
  const Deadline give_up = DeadlineAfter(options_.peer_timeout);
  while (!servers.empty()) {
    std::vector<std::size_t> at_work;
    for (const std::size_t s : servers) {
      RetireReply reply;
      const Status status = Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
        return stub.Retire(context, request, &reply);
      });
      if (status.ok() && reply.error().kind() == Error::NOT_YET &&
          std::chrono::steady_clock::now() < give_up) {
        at_work.push_back(s);
      } else if (first.ok()) {
        first = status.ok() ? Taken(reply, s) : status;
      }
    }
    if (!at_work.empty()) {
      std::this_thread::sleep_for(kAskAgain);
    }
    servers.swap(at_work);
  }
  return first;
}

Status FrameClient::Drain() {
  DrainRequest request;
  request.set_epoch(options_.epoch);
  Status first;
  drained_.resize(control_.size());
  for (std::size_t s = 0; s < control_.size(); ++s) {
    if (drained_[s]) {
      continue;  // it may have ended since
    }
    DrainReply reply;
    Status status = Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Drain(context, request, &reply);
    });
    status = status.ok() ? Taken(reply, s) : status;
    drained_[s] = status.ok();
    first = first.ok() ? status : first;
  }
  return first;
}

std::unique_ptr<Client> Client::Make(ModelSpec spec, std::vector<std::string> addresses,
                                     ClientOptions options) {
  Require(static_cast<int>(addresses.size()) == spec.servers, "an address for every server");
  return std::make_unique<FrameClient>(std::move(spec), std::move(addresses), std::move(options));
}

}  // namespace cohort::ps
