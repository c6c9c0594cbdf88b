#include "parameter_server/variables/parameter_store.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "parameter_server/frames/dense_codec.h"

namespace cohort::ps {
namespace {

// As in one process: the mean first, then the clipping.
float ScaleOf(double weight, double factor) {
  return static_cast<float>(static_cast<double>(static_cast<float>(1.0 / weight)) * factor);
}

// Reads exactly `to.size()` floats; the frame's length has been checked.
void ReadFloats(PayloadReader& payload, std::span<float> to) {
  payload.Read(to.data(), to.size_bytes());
}

// An entering or a pause.
ClockTurn TurnOf(const FrameHeader& header) {
  return {.epoch = header.epoch(), .number = header.sequence()};
}

}  // namespace

Status ParameterStore::Declare(const ModelSpec& spec, const std::string& who) {
  const std::lock_guard lock(declare_mutex_);
  if (declared_) {
    return spec_.Compare(spec, who);
  }
  if (spec.servers < 1 || server_ >= spec.servers) {
    return InvalidArgument(who + " declared " + std::to_string(spec.servers) +
                           " servers to server " + std::to_string(server_));
  }
  COHORT_ASSIGN_OR_RETURN(optimizer_, MakeOptimizer(spec.optimizer));
  COHORT_RETURN_IF_ERROR(CheckServerSide(*optimizer_, spec.consistency));
  server_side_ = ServerSideOptimizer::Of(*optimizer_);
  rounds_ = spec.consistency.synchronous();
  elects_ = spec.elects();
  carries_ = CarriesBase(spec);
  clips_ = rounds_ && optimizer_->global_clip_norm() > 0;
  if (spec.consistency.bounded()) {
    clocks_ = std::make_unique<ClockTable>(spec.consistency.staleness);
  }
  std::int64_t mine = 0;
  for (const Chunk& chunk : MakeChunks(spec)) {
    blocks_.emplace_back();
    if (chunk.server != server_) {
      continue;
    }
    auto block = std::make_unique<Block>();
    block->chunk = chunk;
    const auto elements = static_cast<std::size_t>(chunk.elements);
    block->value.resize(elements);
    if (chunk.trainable) {
      for (int s = 0; s < optimizer_->num_slots(); ++s) {
        block->slots.emplace_back(elements, optimizer_->slot_initial_value(s));
      }
    }
    blocks_.back() = std::move(block);
    ++mine;
  }
  spec_ = spec;
  fingerprint_ = spec.Fingerprint();
  unassigned_ = mine;
  declared_.store(true, std::memory_order_release);
  return {};
}

std::uint64_t ParameterStore::Stay() {
  Thaw();
  const std::uint64_t version = LeastVersion();
  return version == std::numeric_limits<std::uint64_t>::max() ? 0 : version;
}

std::uint64_t ParameterStore::Reset() {
  if (!declared_.load(std::memory_order_acquire)) {
    return 0;
  }
  snapshot_ = 0;
  std::uint64_t version = std::numeric_limits<std::uint64_t>::max();
  std::int64_t mine = 0;
  for (const auto& block : blocks_) {
    if (block == nullptr) {
      continue;
    }
    const std::lock_guard lock(block->mutex);
    Keep(*block);
    version = std::min(version, block->version);
    for (std::size_t s = 0; s < block->slots.size(); ++s) {
      std::fill(block->slots[s].begin(), block->slots[s].end(),
                optimizer_->slot_initial_value(static_cast<int>(s)));
    }
    block->version = 0;
    block->assigned = false;
    block->pulled.clear();
    block->round.Clear();
    ++mine;
  }
  unassigned_.store(mine, std::memory_order_release);
  ledger_.Reset();
  if (clocks_ != nullptr) {
    clocks_->Reset();
  }
  return mine == 0 ? 0 : version;
}

ParameterStore::Block* ParameterStore::Find(std::uint32_t chunk) const {
  return chunk < blocks_.size() ? blocks_[chunk].get() : nullptr;
}

std::string ParameterStore::NameOf(int chunk) const {
  const Block* block = Find(static_cast<std::uint32_t>(chunk));
  return block == nullptr ? "?" : NameOf(*block);
}

std::string ParameterStore::NameOf(const Block& block) const {
  const int parameter = block.chunk.parameter;
  return parameter == kNoParameter ? "the count of steps of ps:" + std::to_string(server_)
                                   : spec_.parameters[static_cast<std::size_t>(parameter)].name;
}

Error ParameterStore::Assign(const FrameHeader& header, PayloadReader payload) {
  if (Error error = Check(header); error.kind() != Error::NONE) {
    return error;
  }
  std::size_t floats = 0;
  for (const std::uint32_t chunk : header.chunks()) {
    const Block& block = *blocks_[chunk];
    floats += block.value.size() * (1 + (header.slots() ? block.slots.size() : 0));
  }
  if (payload.remaining() != floats * sizeof(float)) {
    return MakeError(Error::BAD_FRAME, "assignment of " + std::to_string(payload.remaining()) +
                                           " bytes, its chunks have " +
                                           std::to_string(floats * sizeof(float)));
  }
  for (int i = 0; i < header.chunks_size(); ++i) {
    Block& block = *blocks_[header.chunks(i)];
    const std::lock_guard lock(block.mutex);
    Keep(block);
    ReadFloats(payload, block.value);
    if (header.slots()) {
      for (std::vector<float>& slot : block.slots) {
        ReadFloats(payload, slot);
      }
    }
    block.version = header.versions(i);
    block.pulled.clear();
    if (!header.keep_round()) {
      block.round.Clear();
    }
    if (!block.assigned) {
      block.assigned = true;
      unassigned_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
  return {};
}

Error ParameterStore::Push(const FrameHeader& header, PayloadReader payload, Pushed* pushed) {
  Error error = Decode(header, &payload);
  if (error.kind() == Error::NONE && header.has_commit()) {
    error = Check(header);
    error = error.kind() == Error::NONE ? ApplyCommit(header) : error;
  }
  if (error.kind() == Error::NONE) {
    error = CheckPush(header, payload);
  }
  if (error.kind() != Error::NONE) {
    const std::lock_guard lock(stats_mutex_);
    ++stats_.rejected;
    return error;
  }
  // Who is told of an advance is to find all of the step.
  const PushLedger::Claimed claimed =
      ledger_.Claim(header.client(), header.sequence(), DeadlineAfter(PushLedger::kPatience),
                    /*behind_all=*/header.advance());
  if (claimed == PushLedger::Claimed::kBusy) {
    return RefusalOf(claimed);
  }
  if (claimed != PushLedger::Claimed::kNew) {
    const std::lock_guard lock(stats_mutex_);
    ++(claimed == PushLedger::Claimed::kRepeated ? stats_.duplicates : stats_.rejected);
    return RefusalOf(claimed);
  }
  PushLedger::Applying applying(ledger_, header.client(), header.sequence());
  // What takes much memory comes before the first change: where there is none nothing has changed,
  // and the push may be repeated.
  for (int i = 0; i < header.chunks_size() && !rounds_; ++i) {
    Block& block = *blocks_[header.chunks(i)];
    const std::lock_guard lock(block.mutex);
    Keep(block);
  }
  applying.applied = !rounds_;  // parts that are there are passed over when they are repeated
  std::uint64_t late = 0;
  for (int i = 0; i < header.chunks_size(); ++i) {
    Block& block = *blocks_[header.chunks(i)];
    const std::lock_guard lock(block.mutex);
    if (rounds_) {
      late += ApplyPart(block, header, payload) ? 0 : 1;
    } else {
      pushed->staleness = std::max(pushed->staleness,
                                   ApplyAsynchronous(block, header, header.versions(i), payload));
    }
  }
  pushed->late = late > 0;
  applying.applied = true;
  if (clocks_ != nullptr && header.advance()) {
    clocks_->Advance(header.client(), header.clock(), header.sender());
  }
  const std::lock_guard lock(stats_mutex_);
  ++stats_.pushes;
  stats_.late += late;
  return {};
}

Error ParameterStore::Admit(const FrameHeader& header, Deadline deadline) {
  if (Error error = Check(header); error.kind() != Error::NONE) {
    return error;
  }
  if (header.has_commit()) {
    if (Error error = ApplyCommit(header); error.kind() != Error::NONE) {
      return error;
    }
  }
  if (!header.bounded()) {
    return {};
  }
  if (clocks_ == nullptr) {
    return MakeError(Error::BAD_FRAME, "a bounded read where staleness is not bounded");
  }
  // A push that another connection had begun is asked for again, perhaps behind this read: until it
  // is applied, nobody may take its step for made, the worker itself least of all.
  if (header.sequence() != 0 &&
      !ledger_.AwaitApplied(header.client(), header.sequence(), deadline)) {
    return MakeError(Error::NOT_YET, "the push before this read is not applied yet");
  }
  if (ledger_.retired(header.client())) {
    return RefusalOf(PushLedger::Claimed::kFenced);
  }
  return clocks_->Await(header.client(), header.clock(), deadline, header.sender())
             ? Error()
             : MakeError(Error::NOT_YET, clocks_->Slowest(header.client()) +
                                             ", in the middle of its work; " +
                                             spec_.consistency.ToString() + " allows " +
                                             std::to_string(spec_.consistency.staleness));
}

Error ParameterStore::ApplyCommit(const FrameHeader& header) {
  if (!elects_) {
    return MakeError(Error::BAD_FRAME, "a commit where rounds need none");
  }
  if (!ready()) {
    return MakeError(Error::NOT_READY, "not all variables have been initialised");
  }
  for (const std::uint32_t chunk : header.chunks()) {
    Block& block = *blocks_[chunk];
    const std::lock_guard lock(block.mutex);
    if (const Status status = Apply(block, header.commit()); !status.ok()) {
      return MakeError(Error::OUT_OF_ORDER, status.message());
    }
  }
  return {};
}

std::uint64_t ParameterStore::Enter(const FrameHeader& header) {
  if (header.advance() && declared_.load(std::memory_order_acquire) && clocks_ != nullptr) {
    // As another one said.
    clocks_->Advance(header.client(), header.clock(), header.sender(), TurnOf(header));
    return header.clock();
  }
  return declared_.load(std::memory_order_acquire) && clocks_ != nullptr
             ? clocks_->Enter(header.client(), header.clock(), header.sender(), TurnOf(header))
             : header.clock();
}

void ParameterStore::Pause(const FrameHeader& header) {
  if (declared_.load(std::memory_order_acquire) && clocks_ != nullptr) {
    clocks_->Pause(header.client(), TurnOf(header));
  }
}

bool ParameterStore::Retire(std::uint64_t first, std::uint64_t last, Deadline deadline) {
  const bool over = ledger_.Retire(first, last, deadline);
  if (!declared_.load(std::memory_order_acquire)) {
    return over;
  }
  if (clocks_ != nullptr) {
    clocks_->Retire(first, last);
  }
  for (const auto& block : blocks_) {
    if (block != nullptr && compensates()) {
      const std::lock_guard lock(block->mutex);
      block->pulled.erase(block->pulled.lower_bound(first), block->pulled.upper_bound(last));
    }
  }
  return over;
}

std::uint64_t ParameterStore::ApplyAsynchronous(Block& block, const FrameHeader& header,
                                                std::uint64_t base, PayloadReader& payload) {
  Keep(block);
  const std::uint64_t staleness = block.version > base ? block.version - base : 0;
  if (block.chunk.trainable) {
    std::span<const float> values;
    if (const auto pulled = block.pulled.find(header.client());
        staleness > 0 && pulled != block.pulled.end() && pulled->second.version == base) {
      values = pulled->second.values;
    }
    if (carries_ && staleness > 0) {
      thread_local std::vector<float> carried;  // grows to the longest chunk
      carried.resize(block.value.size());
      PayloadReader behind = payload;
      behind.Skip(block.value.size() * sizeof(float));
      ReadFloats(behind, carried);
      values = carried;
    }
    Update(block, payload, ScaleOf(header.weight(), header.clip() == 0 ? 1 : header.clip()), values,
           staleness);
    payload.Skip(BaseFloats(block) * sizeof(float));
  } else {
    // What is not trained moves by the difference that the worker's step made.
    std::size_t done = 0;
    PayloadReader::Staging staging;
    while (done < block.value.size()) {
      for (const float delta : payload.NextFloats(block.value.size() - done, staging)) {
        block.value[done++] += delta;
      }
    }
  }
  ++block.version;
  const std::lock_guard lock(stats_mutex_);
  ++stats_.updates;
  staleness_sum_ += staleness;
  ++staleness_count_;
  stats_.max_staleness = std::max(stats_.max_staleness, staleness);
  return staleness;
}

bool ParameterStore::ApplyPart(Block& block, const FrameHeader& header, PayloadReader& payload) {
  const Round& round = header.round();
  const bool empty = payload.remaining() == 0 && header.weight() == 0;
  const std::size_t floats = empty ? 0 : block.value.size();
  // Where it waits for its factor the round's parts were elected, or all are there.
  const bool late = !block.round.Enter(round, block.version) ||
                    (block.round.waits() && !block.round.has(round.part()));
  if (late || block.round.has(round.part())) {
    payload.Skip(floats * sizeof(float));
    return !late;
  }
  const std::span<float> to = block.round.Room(round.part(), header.weight(), floats);
  const bool last = !elects_ && block.round.IsLastMissing(round.part());
  if (last && !clips_) {
    Keep(block);  // here, as in Room, there may be no memory: the part has not come then
  }
  ReadFloats(payload, to);
  block.round.Arrived(round.part());
  if (last) {
    Complete(block);
  }
  return true;
}

// The scheduler's word on which parts a round has. Every worker brings it; the first counts.
Status ParameterStore::Apply(Block& block, const Commit& commit) {
  if (block.round.Completed(commit.round(), block.version)) {
    return {};
  }
  const std::optional<std::uint64_t> late = block.round.Elect(commit, block.version);
  if (!late.has_value()) {
    return FailedPrecondition("the parts of round " + std::to_string(commit.round()) + " of " +
                              NameOf(block) + " are not there, it is at version " +
                              std::to_string(block.version));
  }
  Complete(block);
  const std::lock_guard lock(stats_mutex_);
  stats_.late += *late;
  return {};
}

// All parts are there.
void ParameterStore::Complete(Block& block) {
  block.round.Sum(block.chunk.trainable, clips_);
  if (!clips_) {
    Finish(block, 1);
  }
}

// Applies what Complete has left.
void ParameterStore::Finish(Block& block, double factor) {
  Keep(block);
  if (!block.chunk.trainable) {
    block.round.Mean(block.value);
  } else if (!block.round.gradient().empty()) {
    PayloadReader sum(Segments{std::as_bytes(block.round.gradient())});
    Update(block, sum, ScaleOf(block.round.weight(), factor));
  }
  ++block.version;
  block.round.Finish();
  const std::lock_guard lock(stats_mutex_);
  ++stats_.updates;
}

Result<ParameterStore::Norms> ParameterStore::RoundNorms(std::uint64_t layout, std::uint64_t round,
                                                         const Commit& commit) {
  if (!ready() || layout != fingerprint_ || !clips_) {
    return FailedPrecondition("norms of a model that is not clipped here");
  }
  Norms norms;
  for (const auto& block : blocks_) {
    if (block == nullptr) {
      continue;
    }
    const std::lock_guard lock(block->mutex);
    if (elects_ && commit.round() == round) {
      COHORT_RETURN_IF_ERROR(Apply(*block, commit));
    }
    COHORT_RETURN_IF_ERROR(CheckRound(*block, round));
    norms.weight = block->round.weight();
    if (block->chunk.trainable) {
      norms.chunks.push_back(static_cast<int>(&block - blocks_.data()));
      norms.squares.push_back(block->round.squares());
    }
  }
  return norms;
}

Status ParameterStore::Settle(std::uint64_t layout, std::uint64_t round, double factor) {
  if (!ready() || layout != fingerprint_ || !clips_ || !(factor >= 0 && factor <= 1)) {
    return FailedPrecondition("a factor for a model that is not clipped here");
  }
  for (const auto& block : blocks_) {
    if (block == nullptr) {
      continue;
    }
    const std::lock_guard lock(block->mutex);
    COHORT_RETURN_IF_ERROR(CheckRound(*block, round));
    if (block->round.waits() && block->version + 1 == round) {
      Finish(*block, factor);
    }
  }
  return {};
}

void ParameterStore::Update(Block& block, PayloadReader& gradient, float scale,
                            std::span<const float> pulled, std::uint64_t staleness) {
  PayloadReader::Staging staging;
  std::vector<std::span<float>> slots(block.slots.size());
  std::size_t done = 0;
  while (done < block.value.size()) {
    const std::span<const float> run = gradient.NextFloats(block.value.size() - done, staging);
    for (std::size_t s = 0; s < slots.size(); ++s) {
      slots[s] = std::span(block.slots[s]).subspan(done, run.size());
    }
    const OptimizerUpdate update = {.value = std::span(block.value).subspan(done, run.size()),
                                    .gradient = run,
                                    .slots = slots,
                                    .gradient_scale = scale,
                                    .step = static_cast<std::int64_t>(block.version) + 1};
    if (server_side_ != nullptr) {
      server_side_->ApplyLate(update, pulled.empty() ? pulled : pulled.subspan(done, run.size()),
                              staleness);
    } else {
      optimizer_->Apply(update);
    }
    done += run.size();
  }
}

Error ParameterStore::Plan(const FrameHeader& header, std::vector<Reading>* readings) const {
  if (Error error = Check(header); error.kind() != Error::NONE) {
    return error;
  }
  if (!ready()) {
    return MakeError(Error::NOT_READY, "not all variables have been initialised");
  }
  const std::optional<DType> wire = WireOf(header.pull_wire());
  if (!wire.has_value() || (header.slots() && *wire != DType::kFloat32)) {
    return MakeError(Error::BAD_FRAME, "values of format " + std::to_string(header.pull_wire()));
  }
  if (header.snapshot() != 0 && header.snapshot() != snapshot_) {
    return MakeError(Error::BAD_FRAME, "there is no snapshot " + std::to_string(header.snapshot()) +
                                           " of the values any more");
  }
  for (int i = 0; i < header.chunks_size(); ++i) {
    const Block& block = *blocks_[header.chunks(i)];
    const std::lock_guard lock(block.mutex);
    if (header.snapshot() != 0 || block.version >= header.versions(i)) {
      readings->push_back({.chunk = static_cast<int>(header.chunks(i)),
                           .version = block.version,
                           .snapshot = header.snapshot(),
                           .floats = EncodedFloats(block.chunk.trainable ? *wire : DType::kFloat32,
                                                   block.value.size()) *
                                     (1 + (header.slots() ? block.slots.size() : 0))});
    }
  }
  return {};
}

bool ParameterStore::Copy(Reading& reading, bool slots, std::span<float> to, DType wire,
                          std::uint64_t client) {
  Block& block = *blocks_[static_cast<std::size_t>(reading.chunk)];
  const std::lock_guard lock(block.mutex);
  const Block::Image* const image =
      reading.snapshot != 0 && block.snapshot == reading.snapshot ? block.image.get() : nullptr;
  const std::vector<float>& value = image == nullptr ? block.value : image->value;
  reading.version = image == nullptr ? block.version : image->version;
  const bool encoded = block.chunk.trainable && wire != DType::kFloat32;
  if (encoded && !EncodeValues(wire, value, to)) {
    return false;
  }
  if (client != 0 && reading.snapshot == 0 && compensates() && !carries_ && block.chunk.trainable &&
      !ledger_.retired(client)) {
    Pulled& pulled = block.pulled[client];
    pulled.version = reading.version;
    pulled.values = value;
    if (encoded) {
      DecodeValues(wire, to, pulled.values);  // what the gradients will be computed from
    }
  }
  if (encoded) {
    return true;
  }
  float* out = std::copy(value.begin(), value.end(), to.data());
  if (slots) {
    for (const std::vector<float>& slot : image == nullptr ? block.slots : image->slots) {
      out = std::copy(slot.begin(), slot.end(), out);
    }
  }
  return true;
}

std::uint64_t ParameterStore::version(int chunk) const {
  const Block& block = *blocks_[static_cast<std::size_t>(chunk)];
  const std::lock_guard lock(block.mutex);
  return block.version;
}

StoreStats ParameterStore::stats() const {
  const std::lock_guard lock(stats_mutex_);
  StoreStats stats = stats_;
  if (declared_.load(std::memory_order_acquire) && clocks_ != nullptr) {
    stats.parked = clocks_->stats().parked;
    stats.max_lead = clocks_->stats().max_lead;
  }
  stats.mean_staleness = staleness_count_ == 0 ? 0
                                               : static_cast<double>(staleness_sum_) /
                                                     static_cast<double>(staleness_count_);
  return stats;
}

}  // namespace cohort::ps
