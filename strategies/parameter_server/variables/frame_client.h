// FrameClient: the Client that there is. Values and gradients travel as frames, on a connection of
// their own to each line of a server (layout.h); what is said once an epoch, or to all servers, is
// gRPC.
//
// Private to client.cc and client_copies.cc, which holds what servers are mended with; everybody
// else has a Client.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/variables/client.h"
#include "renewable_stub.h"

namespace cohort::ps {

class FrameClient final : public Client {
 public:
  FrameClient(ModelSpec spec, std::vector<std::string> addresses, ClientOptions options);

  const std::vector<Chunk>& chunks() const override { return chunks_; }

  Status Declare() override;
  Result<std::uint64_t> Begin(std::span<const std::uint64_t> retired) override;
  Result<Kept> BeginKeeping(std::span<const std::uint64_t> retired) override;
  Status Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                std::uint64_t version) override;
  Status AssignTo(std::span<const int> servers, std::span<const float> values,
                  std::span<const std::span<float>> slots, std::uint64_t version) override;
  Status CopyPart(int server, Mend which) override;
  Status CopyPushes(int server, Mend which) override;
  Status Pull(std::span<float> values, bool everything) override;
  Status PullState(std::span<float> values, std::span<const std::span<float>> slots) override;
  Result<std::uint64_t> Freeze(std::uint64_t snapshot) override;
  Result<std::uint64_t> Thaw() override;
  Status Push(const Gradient& gradient, std::optional<std::span<float>> values) override;
  void KeepBase(std::span<const float> values) override;
  Status PullForStep(std::span<float> values, const Commit& commit) override;
  Status Settle(std::uint64_t round, const Commit& commit, double clip_norm) override;
  std::vector<std::uint64_t> pushes() const override { return sequences_; }
  void TakeOver(Client& before) override;
  std::uint64_t staleness() const override { return staleness_; }
  bool late() const override { return late_; }
  Status Pause() override;
  Status Retire(std::uint64_t client) override;
  Result<StoreStats> Stats() override;
  Status Drain() override;

  std::uint64_t version() const override {
    const auto least = std::min_element(versions_.begin(), versions_.end());
    return least == versions_.end() ? 0 : *least;
  }
  void Abort(const Status& why) override { link_->Abort(why); }

 private:
  // A push that comes again is of the copy that it was computed from at first.
  bool keeps_base() const {
    return (spec_.copies || options_.comes_again) && !spec_.consistency.synchronous();
  }
  using ControlCall = std::function<grpc::Status(Servers::Stub& stub, grpc::ClientContext*)>;
  // Repeats a blocking control call until it is answered or the server counts as gone; another
  // connection is tried before it does. `work`: what the server may take besides, for what it is
  // asked to do.
  Status Control(std::size_t server, const ControlCall& rpc, std::chrono::milliseconds work = {});
  FrameHeader Header() const {
    FrameHeader header;
    header.set_client(options_.client);
    header.set_layout(fingerprint_);
    header.set_epoch(options_.epoch);
    return header;
  }
  template <typename Reply>
  Status Taken(const Reply& reply, std::size_t server) const {
    return reply.has_error() ? ToStatus(reply.error(), names_[server]) : OkStatus();
  }
  Status EnterClock();
  Status TellClock();
  Status CopyRounds(int server, Mend which);
  Result<std::string> Locate(int line, bool may_share);
  // Where values, and slots where given, of a reply go; and what is known when they are there.
  ReplyHandler Into(std::span<float> values, std::span<const std::span<float>> slots);
  Status Freeze(std::uint64_t snapshot, const std::function<void(const FreezeReply&)>& take);
  // The gradient of a chunk as it travels, and what is lent for that.
  Result<std::span<const float>> Encode(const Gradient& gradient, std::size_t chunk,
                                        std::uint64_t sequence);
  // Residuals are of a part that was applied: of one that was dropped nothing is fed back.
  void BeginPart(const Round& part, bool empty);
  void LearnFate(const Commit& commit);
  void ForgetResiduals();
  void AddPulls(int server, bool everything, const FrameHeader& header,
                std::vector<FrameRequest>* requests);

  const ModelSpec spec_;
  const ClientOptions options_;
  const std::uint64_t fingerprint_;
  const std::vector<Chunk> chunks_;
  const std::vector<std::string> names_;
  const std::vector<std::string> addresses_;
  const bool carries_;                   // pushes carry the values that they were computed from
  std::vector<std::uint64_t> versions_;  // of this client's copy
  // Where there are copies: what the push after these numbers was computed from, so that it is the
  // same when it is sent again.
  std::vector<std::uint64_t> base_after_;
  std::vector<std::uint64_t> base_versions_;
  std::vector<float> base_;  // as the arena, where pushes carry it
  std::vector<std::uint64_t> sequences_;
  std::uint64_t staleness_ = 0;
  bool late_ = false;
  std::uint64_t clock_ = 0;       // under bounded staleness: of this worker
  std::uint64_t turn_ = 0;        // of its enterings and pauses the last
  bool entered_ = false;          // since Pause
  bool told_ = false;             // all servers and copies, where there are those
  std::uint64_t snapshot_ = 0;    // that PullState reads
  std::vector<float> residuals_;  // of gradients that are rounded, as the arena
  // The part that they are of, from its Push until it is known what became of it. Round 0: none.
  Round part_;
  bool unclipped_ = false;                    // they are not yet clipped as it was
  std::vector<FloatBuffer> encoded_;          // by chunk
  std::vector<std::uint64_t> encoded_under_;  // by chunk: the number of that push
  std::vector<FloatBuffer> arrivals_;         // by server: what is to be decoded
  std::vector<bool> drained_;                 // by server
  std::vector<std::unique_ptr<RenewableStub<Servers>>> control_;
  const std::unique_ptr<FrameLink> link_;
};

}  // namespace cohort::ps
