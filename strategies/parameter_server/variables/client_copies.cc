// Client: servers that go on from what they have, and the parts of lost ones that the holders of
// their copies give back.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <cohort/optim/optimizer.h>

#include "parameter_server/variables/frame_client.h"

namespace cohort::ps {

Result<Client::Kept> FrameClient::BeginKeeping(std::span<const std::uint64_t> retired) {
  BeginRequest request;
  request.set_epoch(options_.epoch);
  request.mutable_retired()->Assign(retired.begin(), retired.end());
  request.set_keep(true);
  Kept kept;
  for (std::size_t s = 0; s < control_.size(); ++s) {
    BeginReply reply;
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.Begin(context, request, &reply);
    }));
    COHORT_RETURN_IF_ERROR(Taken(reply, s));
    if (reply.kept()) {
      kept.version = std::max<std::uint64_t>(kept.version, reply.version());
    } else {
      kept.without.push_back(static_cast<int>(s));
    }
    if (spec_.copies && !reply.kept_copy()) {
      kept.without_a_copy.push_back(CopiedServer(static_cast<int>(s), spec_.servers));
    }
  }
  return kept;
}

// Frame by frame, as they lie in memory: chunks with their slots, and their versions.
Status FrameClient::CopyPart(int server, Mend which) {
  Require(spec_.copies, "a model with copies");
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Optimizer> optimizer,
                          MakeOptimizer(spec_.optimizer));
  const int slots = optimizer->num_slots();
  const bool from_copy = which == Mend::kServer;
  std::vector<float> bytes;
  for (const std::vector<int>& frame : PackFrames(chunks_, server, kFrameBytes, 1 + slots)) {
    FrameRequest pull{LineOf(server, spec_.servers, from_copy), FrameMethod::kPull, Header(), {}};
    FrameRequest assign{
        LineOf(server, spec_.servers, !from_copy), FrameMethod::kAssign, Header(), {}};
    pull.header.set_copy(from_copy);
    assign.header.set_copy(!from_copy);
    pull.header.set_slots(true);
    assign.header.set_slots(true);
    assign.header.set_keep_round(true);
    std::size_t floats = 0;
    for (const int c : frame) {
      const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
      pull.header.add_chunks(static_cast<std::uint32_t>(c));
      pull.header.add_versions(0);
      assign.header.add_chunks(static_cast<std::uint32_t>(c));
      floats += static_cast<std::size_t>(chunk.elements) *
                static_cast<std::size_t>(chunk.trainable ? 1 + slots : 1);
    }
    bytes.resize(floats);
    const auto place = [&](int, const FrameHeader& header) -> Result<Places> {
      if (header.epoch() != options_.epoch) {
        return StaleReply(names_[static_cast<std::size_t>(pull.server)], header.epoch(),
                          options_.epoch);
      }
      return Places{std::span(bytes)};
    };
    const auto done = [&](int, const FrameHeader& header) -> Status {
      const bool all = std::ranges::equal(header.chunks(), assign.header.chunks()) &&
                       header.versions_size() == header.chunks_size();
      assign.header.mutable_versions()->CopyFrom(header.versions());
      return all ? OkStatus()
                 : Internal(names_[static_cast<std::size_t>(pull.server)] +
                            ": other chunks than were asked for");
    };
    COHORT_RETURN_IF_ERROR(link_->Run({&pull, 1}, {.place = place, .done = done}));
    assign.payload.emplace_back(bytes);
    COHORT_RETURN_IF_ERROR(link_->Run({&assign, 1}, Into({}, {})));
  }
  return {};
}

Status FrameClient::CopyPushes(int server, Mend which) {
  const bool from_copy = which == Mend::kServer;
  const auto holder = static_cast<std::size_t>(CopyHolder(server, spec_.servers));
  const auto own = static_cast<std::size_t>(server);
  PushesRequest request;
  request.set_epoch(options_.epoch);
  const auto call = [&](std::size_t s, bool copy, PushesReply* reply) -> Status {
    request.set_copy(copy);
    COHORT_RETURN_IF_ERROR(Control(s, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.ExchangePushes(context, request, reply);
    }));
    return Taken(*reply, s);
  };
  PushesReply told;
  COHORT_RETURN_IF_ERROR(call(from_copy ? holder : own, from_copy, &told));
  request.mutable_install()->Swap(told.mutable_pushes());
  PushesReply taken;
  COHORT_RETURN_IF_ERROR(call(from_copy ? own : holder, !from_copy, &taken));
  return spec_.consistency.synchronous() ? CopyRounds(server, which) : OkStatus();
}

// Parts are of any number and size: each piece of one travels alone.
Status FrameClient::CopyRounds(int server, Mend which) {
  const bool from_copy = which == Mend::kServer;
  const auto holder = static_cast<std::size_t>(CopyHolder(server, spec_.servers));
  const auto own = static_cast<std::size_t>(server);
  const auto call = [&](RoundsRequest request, bool copy, RoundsReply* reply) -> Status {
    const std::size_t at = copy ? holder : own;
    request.set_epoch(options_.epoch);
    request.set_copy(copy);
    reply->Clear();
    COHORT_RETURN_IF_ERROR(Control(at, [&](Servers::Stub& stub, grpc::ClientContext* context) {
      return stub.ExchangeRounds(context, request, reply);
    }));
    return Taken(*reply, at);
  };
  RoundsReply told;
  RoundsReply taken;
  COHORT_RETURN_IF_ERROR(call({}, from_copy, &told));
  RoundsRequest install;
  *install.mutable_install() = told.rounds();
  COHORT_RETURN_IF_ERROR(call(std::move(install), !from_copy, &taken));
  // `piece`: of which round, or chunk.
  const auto copy_pieces = [&](const auto& parts, RoundPiece piece) -> Status {
    for (int p = 0; p < parts.size(); ++p) {
      piece.set_part(static_cast<std::uint32_t>(p));
      for (std::uint32_t i = 0; i < parts[p].pieces(); ++i) {
        piece.set_piece(i);
        RoundsRequest ask;
        *ask.mutable_ask() = piece;
        RoundsReply answer;
        COHORT_RETURN_IF_ERROR(call(std::move(ask), from_copy, &answer));
        RoundsRequest give;
        give.mutable_piece()->Swap(answer.mutable_piece());
        COHORT_RETURN_IF_ERROR(call(std::move(give), !from_copy, &taken));
      }
    }
    return {};
  };
  for (const ChunkRound& round : told.rounds().chunks()) {
    RoundPiece of_chunk;
    of_chunk.set_chunk(round.chunk());
    COHORT_RETURN_IF_ERROR(copy_pieces(round.parts(), std::move(of_chunk)));
  }
  for (const OpenRound& round : told.rounds().rows()) {
    RoundPiece of_round;
    of_round.set_round(round.round());
    COHORT_RETURN_IF_ERROR(copy_pieces(round.parts(), std::move(of_round)));
  }
  // A request that was given up and came late may have undone the later ones.
  RoundsReply there;
  COHORT_RETURN_IF_ERROR(call({}, !from_copy, &there));
  return there.rounds().SerializeAsString() == told.rounds().SerializeAsString()
             ? OkStatus()
             : Unavailable(names_[from_copy ? own : holder] +
                           " has other rounds than it was given");
}

}  // namespace cohort::ps
