#include "parameter_server/client.h"

#include <algorithm>
#include <numeric>
#include <thread>

#include <grpcpp/grpcpp.h>

#include <cohort/optim/gradients.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/exchange.h"
#include "parameter_server/table_spec.h"
#include "parameter_server/wire.h"

namespace cohort::ps {
namespace {

constexpr std::chrono::milliseconds kControlTimeout{5'000};  // one try of a control call

class GrpcClient final : public Client {
 public:
  GrpcClient(ModelSpec spec, std::vector<std::string> addresses, ClientOptions options)
      : spec_(std::move(spec)),
        options_(std::move(options)),
        fingerprint_(spec_.Fingerprint()),
        chunks_(MakeChunks(spec_)),
        names_(ServerNames(addresses)),
        versions_(chunks_.size(), 0),
        sequences_(addresses.size(), 0),
        exchange_(DataChannels(addresses), names_, options_.peer_timeout) {
    // Control has connections of its own, so that it never queues behind payloads.
    for (const std::shared_ptr<grpc::Channel>& channel : DataChannels(addresses)) {
      control_.push_back(Servers::NewStub(channel));
    }
  }

  const std::vector<Chunk>& chunks() const override { return chunks_; }

  Status Declare() override;
  Status Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                std::uint64_t version) override;
  Status Pull(std::span<float> values, bool everything) override;
  Status PullState(std::span<float> values, std::span<const std::span<float>> slots) override;
  Status Push(const Gradient& gradient, std::span<float> values) override;
  Status Settle(std::uint64_t round, double clip_norm) override;
  Result<StoreStats> Stats() override;
  Status Drain() override;

  std::uint64_t version() const override {
    const auto least = std::min_element(versions_.begin(), versions_.end());
    return least == versions_.end() ? 0 : *least;
  }
  void Abort(const Status& why) override { exchange_.Abort(why); }

 private:
  // Repeats a blocking control call until it is answered or the server counts as gone.
  template <typename Rpc>
  Status Control(std::size_t server, const Rpc& rpc);
  FrameHeader Header() const {
    FrameHeader header;
    header.set_client(options_.incarnation);
    header.set_layout(fingerprint_);
    return header;
  }
  // Values, and slots where given, out of a reply, into their places.
  Status Store(ReceivedFrame& reply, std::span<float> values,
               std::span<const std::span<float>> slots);

  const ModelSpec spec_;
  const ClientOptions options_;
  const std::uint64_t fingerprint_;
  const std::vector<Chunk> chunks_;
  const std::vector<std::string> names_;
  std::vector<std::uint64_t> versions_;  // of this client's copy
  std::vector<std::uint64_t> sequences_;
  std::vector<std::unique_ptr<Servers::Stub>> control_;
  Exchange exchange_;
};

template <typename Rpc>
Status GrpcClient::Control(std::size_t server, const Rpc& rpc) {
  const Deadline give_up = DeadlineAfter(options_.peer_timeout);
  std::chrono::milliseconds backoff{20};
  for (;;) {
    COHORT_RETURN_IF_ERROR(exchange_.aborted());
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(std::min(kControlTimeout, options_.peer_timeout)));
    const grpc::Status status = rpc(*control_[server], &context);
    const bool lost = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    if (!lost) {
      return FromGrpc(status).Annotate(names_[server]);
    }
    if (std::chrono::steady_clock::now() >= give_up) {
      return Unavailable(names_[server] + " does not answer: " + status.error_message());
    }
    std::this_thread::sleep_for(backoff);
    backoff = std::min(backoff * 2, std::chrono::milliseconds(500));
  }
}

Status GrpcClient::Declare() {
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
  request.set_synchronous(spec_.synchronous);
  request.set_servers(static_cast<std::uint32_t>(spec_.servers));
  request.set_sender(options_.task);
  for (const TableSpec& table : spec_.tables) {
    *request.add_tables() = ToMessage(table);
  }
  for (std::size_t s = 0; s < control_.size(); ++s) {
    request.set_server(static_cast<std::uint32_t>(s));
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      DeclareReply reply;
      return stub.Declare(context, request, &reply);
    }));
  }
  return {};
}

Status GrpcClient::Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                          std::uint64_t version) {
  const int copies = 1 + static_cast<int>(slots.size());
  std::vector<FrameCall> calls;
  for (int s = 0; s < spec_.servers; ++s) {
    for (const std::vector<int>& frame : PackFrames(chunks_, s, kMaxPayloadBytes, copies)) {
      FrameHeader header = Header();
      header.set_slots(!slots.empty());
      std::vector<grpc::Slice> payload;
      for (const int c : frame) {
        const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
        const auto offset = static_cast<std::size_t>(chunk.offset);
        const auto elements = static_cast<std::size_t>(chunk.elements);
        header.add_chunks(static_cast<std::uint32_t>(c));
        header.add_versions(version);
        payload.emplace_back(values.data() + offset, elements * sizeof(float));
        for (std::size_t i = 0; chunk.trainable && i < slots.size(); ++i) {
          payload.emplace_back(slots[i].data() + offset, elements * sizeof(float));
        }
      }
      calls.push_back({s, Assemble(header, std::move(payload))});
    }
  }
  std::fill(versions_.begin(), versions_.end(), version);
  return exchange_.Run("Assign", std::move(calls), [](int, ReceivedFrame&) { return Status(); });
}

Status GrpcClient::Store(ReceivedFrame& reply, std::span<float> values,
                         std::span<const std::span<float>> slots) {
  const FrameHeader& header = reply.frame.header;
  PayloadReader& payload = reply.frame.payload;
  for (int i = 0; i < header.chunks_size(); ++i) {
    const std::size_t c = header.chunks(i);
    if (c >= chunks_.size() || i >= header.versions_size()) {
      return Internal("a server's reply names chunk " + std::to_string(c) + " of " +
                      std::to_string(chunks_.size()));
    }
    const auto offset = static_cast<std::size_t>(chunks_[c].offset);
    const std::size_t bytes = static_cast<std::size_t>(chunks_[c].elements) * sizeof(float);
    bool complete = payload.Read(values.data() + offset, bytes);
    for (std::size_t s = 0; complete && chunks_[c].trainable && s < slots.size(); ++s) {
      complete = payload.Read(slots[s].data() + offset, bytes);
    }
    if (!complete) {
      return Internal("a server's reply ends within " +
                      spec_.parameters[static_cast<std::size_t>(chunks_[c].parameter)].name);
    }
    versions_[c] = header.versions(i);
  }
  return {};
}

Status GrpcClient::Pull(std::span<float> values, bool everything) {
  std::vector<FrameCall> calls;
  for (int s = 0; s < spec_.servers; ++s) {
    for (const std::vector<int>& frame : PackFrames(chunks_, s, kMaxPayloadBytes)) {
      FrameHeader header = Header();
      for (const int c : frame) {
        header.add_chunks(static_cast<std::uint32_t>(c));
        header.add_versions(everything ? 0 : versions_[static_cast<std::size_t>(c)] + 1);
      }
      calls.push_back({s, Assemble(header, {})});
    }
  }
  return exchange_.Run("Pull", std::move(calls),
                       [&](int, ReceivedFrame& reply) { return Store(reply, values, {}); });
}

Status GrpcClient::PullState(std::span<float> values, std::span<const std::span<float>> slots) {
  const int copies = 1 + static_cast<int>(slots.size());
  std::vector<FrameCall> calls;
  for (int s = 0; s < spec_.servers; ++s) {
    for (const std::vector<int>& frame : PackFrames(chunks_, s, kMaxPayloadBytes, copies)) {
      FrameHeader header = Header();
      header.set_slots(!slots.empty());
      for (const int c : frame) {
        header.add_chunks(static_cast<std::uint32_t>(c));
        header.add_versions(0);
      }
      calls.push_back({s, Assemble(header, {})});
    }
  }
  return exchange_.Run("Pull", std::move(calls),
                       [&](int, ReceivedFrame& reply) { return Store(reply, values, slots); });
}

Status GrpcClient::Push(const Gradient& gradient, std::span<float> values) {
  const bool empty = gradient.round.has_value() && gradient.weight == 0;
  std::vector<FrameCall> calls;
  for (int s = 0; s < spec_.servers; ++s) {
    for (const std::vector<int>& frame : PackFrames(chunks_, s, kMaxPayloadBytes)) {
      FrameHeader header = Header();
      header.set_sequence(++sequences_[static_cast<std::size_t>(s)]);
      header.set_weight(gradient.weight);
      header.set_clip(gradient.clip == 1 ? 0 : gradient.clip);
      header.set_pull(!values.empty());
      if (gradient.round.has_value()) {
        *header.mutable_round() = *gradient.round;
      }
      std::vector<grpc::Slice> payload;
      for (const int c : frame) {
        const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
        header.add_chunks(static_cast<std::uint32_t>(c));
        header.add_versions(versions_[static_cast<std::size_t>(c)]);
        if (!empty) {
          payload.push_back(
              BorrowSlice(gradient.arena.subspan(static_cast<std::size_t>(chunk.offset),
                                                 static_cast<std::size_t>(chunk.elements)),
                          gradient.owner));
        }
      }
      calls.push_back({s, Assemble(header, std::move(payload))});
    }
  }
  return exchange_.Run("Push", std::move(calls), [&](int, ReceivedFrame& reply) {
    return values.empty() ? Status() : Store(reply, values, {});
  });
}

Status GrpcClient::Settle(std::uint64_t round, double clip_norm) {
  std::vector<double> squares(chunks_.size(), 0);
  double weight = 0;
  for (std::size_t s = 0; s < control_.size(); ++s) {
    NormsRequest request;
    request.set_layout(fingerprint_);
    request.set_round(round);
    NormsReply reply;
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Norms(context, request, &reply);
    }));
    weight = std::max(weight, reply.weight());
    for (int i = 0; i < std::min(reply.chunks_size(), reply.squares_size()); ++i) {
      squares.at(reply.chunks(i)) = reply.squares(i);
    }
  }
  // In the order of the chunks: every worker gets the same factor.
  const double squared_norm = std::accumulate(squares.begin(), squares.end(), 0.0);
  const double scale = weight > 0 ? static_cast<double>(static_cast<float>(1.0 / weight)) : 0;
  SettleRequest request;
  request.set_layout(fingerprint_);
  request.set_round(round);
  request.set_factor(ClipFactor(squared_norm * scale * scale, clip_norm));
  for (std::size_t s = 0; s < control_.size(); ++s) {
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      SettleReply reply;
      return stub.Settle(context, request, &reply);
    }));
  }
  return {};
}

Result<StoreStats> GrpcClient::Stats() {
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
    total.max_staleness = std::max<std::uint64_t>(total.max_staleness, reply.max_staleness());
  }
  return total;
}

Status GrpcClient::Drain() {
  Status first;
  for (std::size_t s = 0; s < control_.size(); ++s) {
    const Status status = Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      DrainReply reply;
      return stub.Drain(context, DrainRequest(), &reply);
    });
    if (first.ok()) {
      first = status;
    }
  }
  return first;
}

}  // namespace

std::unique_ptr<Client> Client::Make(ModelSpec spec, std::vector<std::string> addresses,
                                     ClientOptions options) {
  Require(static_cast<int>(addresses.size()) == spec.servers, "an address for every server");
  return std::make_unique<GrpcClient>(std::move(spec), std::move(addresses), std::move(options));
}

}  // namespace cohort::ps
