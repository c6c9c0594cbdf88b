#include "parameter_server/rows/row_store.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <new>
#include <set>
#include <utility>

#include "parameter_server/frames/row_codec.h"
#include "parameter_server/frames/weight.h"
#include "parameter_server/rows/late_rows.h"
#include "parameter_server/rows/row_errors.h"
#include "parameter_server/rows/row_frames.h"

namespace cohort::ps {
namespace {

std::uint64_t IdBytes(const RowBlock& block) {
  return block.count() * std::uint64_t{block.narrow_ids() ? 4U : 8U};
}
std::uint64_t CountBytes(const RowBlock& block) {
  const std::uint64_t each = block.count_bytes() == 0 ? 4 : block.count_bytes();
  return (block.count() * each + 3) / 4 * 4;
}

// `to.size()` numbers of type From.
template <typename From, typename To>
void Widen(PayloadReader& payload, std::span<To> to) {
  std::array<From, 1024> some;
  for (std::size_t at = 0; at < to.size(); at += some.size()) {
    const std::size_t count = std::min(some.size(), to.size() - at);
    payload.Read(some.data(), count * sizeof(From));
    std::copy_n(some.begin(), count, to.begin() + static_cast<std::ptrdiff_t>(at));
  }
}
std::vector<std::uint64_t> ReadIds(const RowBlock& block, PayloadReader& payload) {
  std::vector<std::uint64_t> ids(block.count());
  if (block.narrow_ids()) {
    Widen<std::uint32_t>(payload, std::span(ids));
  } else {
    payload.Read(ids.data(), ids.size() * sizeof(std::uint64_t));
  }
  return ids;
}
std::vector<std::uint32_t> ReadCounts(const RowBlock& block, PayloadReader& payload) {
  std::vector<std::uint32_t> counts(block.count());
  const std::size_t before = payload.remaining();
  switch (block.count_bytes()) {
    case 1:
      Widen<std::uint8_t>(payload, std::span(counts));
      break;
    case 2:
      Widen<std::uint16_t>(payload, std::span(counts));
      break;
    default:
      payload.Read(counts.data(), counts.size() * sizeof(std::uint32_t));
  }
  payload.Skip(CountBytes(block) - (before - payload.remaining()));
  return counts;
}

// The next floats: in place where they lie in one piece, else in `copy`. The length was checked.
std::span<const float> Floats(PayloadReader& payload, std::size_t floats,
                              std::vector<float>& copy) {
  PayloadReader ahead = payload;
  PayloadReader::Staging staging;
  const std::span<const float> here = ahead.NextFloats(floats, staging);
  if (here.size() == floats && (here.empty() || here.data() != staging.data())) {
    payload = ahead;
    return here;
  }
  copy.resize(floats);
  payload.Read(copy.data(), floats * sizeof(float));
  return copy;
}

// The gradients of a push: in place where they are floats that lie in one piece, else in `copy`.
std::span<const float> ReadRows(const TableSpec& spec, std::size_t rows, PayloadReader& payload,
                                std::vector<float>& copy) {
  const auto dim = static_cast<std::size_t>(spec.dim);
  if (spec.wire == TableSpec::Wire::kFloat32) {
    return Floats(payload, rows * dim, copy);
  }
  std::vector<std::byte> bytes(EncodedBytes(spec.wire, dim, rows));
  payload.Read(bytes.data(), bytes.size());
  copy.resize(rows * dim);
  DecodeRows(spec.wire, dim, bytes, copy);
  return copy;
}

}  // namespace

Status RowStore::Declare(const std::vector<TableSpec>& tables, int servers,
                         std::uint64_t fingerprint, bool elects) {
  const std::lock_guard lock(declare_mutex_);
  if (declared_) {
    return {};
  }
  std::vector<std::unique_ptr<RowTable>> made;
  std::vector<std::unique_ptr<Tally>> tallies;
  for (const TableSpec& spec : tables) {
    if (const std::int64_t most = LateParts::Of(spec).LongestRow(kMaxRowFloats); spec.dim > most) {
      return InvalidArgument("table \"" + spec.name + "\": a row of " + std::to_string(spec.dim) +
                             " floats does not fit in a frame [at most " + std::to_string(most) +
                             "]");
    }
    COHORT_RETURN_IF_ERROR(spec.Check());
    tallies.push_back(std::make_unique<Tally>(spec.name));
    COHORT_ASSIGN_OR_RETURN(auto table, MakeTable(spec, *tallies.back()));
    made.push_back(std::move(table));
  }
  tallies_ = std::move(tallies);
  tables_ = std::move(made);
  servers_ = servers;
  MakePlaces();
  elects_ = elects;
  rounds_.Begin(tables_, elects_);
  fingerprint_ = fingerprint;
  declared_.store(true, std::memory_order_release);
  return {};
}

Result<std::unique_ptr<RowTable>> RowStore::MakeTable(const TableSpec& spec,
                                                      const Tally& tally) const {
  COHORT_ASSIGN_OR_RETURN(auto table, RowTable::Create(spec, {0, spec.buckets}));
  table->CountIn(tally.losses, [this, name = NameOf(*table)](std::uint64_t id) {
    try {
      log_.Warning("ps:" + std::to_string(server_) + ", " + name + ": the gradient of id " +
                   std::to_string(id) +
                   " holds NaN or infinity, or comes to it with those of other workers, and is "
                   "skipped; so are others of this table from now on, which are counted only");
    } catch (const std::bad_alloc&) {  // it is counted
    }
  });
  return table;
}

void RowStore::MakePlaces() {
  places_.clear();
  for (const std::unique_ptr<RowTable>& table : tables_) {
    places_.push_back(std::make_unique<BucketPlaces>(server_, servers_, table->spec().buckets));
  }
}

void RowStore::Stay() {
  Thaw();
  const std::lock_guard lock(carriers_mutex_);
  carriers_.clear();
}

void RowStore::Thaw() {
  snapshot_ = 0;
  for (const std::unique_ptr<RowTable>& table : tables_) {
    table->Thaw();
  }
}

Error RowStore::Freeze(std::uint64_t layout, std::uint64_t snapshot, std::uint64_t step) {
  if (!declared_.load(std::memory_order_acquire)) {
    return MakeError(Error::NOT_READY, "no model has been declared");
  }
  if (layout != fingerprint_) {
    return MakeError(Error::SPEC_MISMATCH, "the snapshot is of another model than was declared");
  }
  const std::lock_guard lock(declare_mutex_);
  if (snapshot_ == snapshot) {
    return {};
  }
  Thaw();
  if (snapshot == 0) {
    return {};
  }
  if (const Status status = rounds_.Settle(); !status.ok()) {
    return ToError(status);
  }
  const std::lock_guard moves(moves_mutex_);
  if (!leaving_.empty()) {
    return MakeError(Error::NOT_NOW, "a bucket is on its way to another server");
  }
  for (const std::unique_ptr<RowTable>& table : tables_) {
    if (step > 0 && step <= 0xFFFFFFFFU) {
      OrThrow(table->EvictWhenDue(static_cast<std::int64_t>(step)));
    }
  }
  // What may find no memory comes before the first table is frozen.
  const std::lock_guard numbers(snapshots_mutex_);
  auto* const number = tables_.empty() ? nullptr : &snapshots_[snapshot];
  for (const std::unique_ptr<RowTable>& table : tables_) {
    table->Freeze();
  }
  if (number != nullptr) {
    *number = tables_.front()->snapshots();
  }
  if (snapshots_.size() > RowTable::kRemembered) {
    snapshots_.erase(snapshots_.begin());
  }
  snapshot_ = snapshot;
  return {};
}

std::uint64_t RowStore::kept_bytes() const {
  std::uint64_t bytes = 0;
  if (declared_.load(std::memory_order_acquire)) {
    for (const std::unique_ptr<RowTable>& table : tables_) {
      bytes += table->kept_bytes();
    }
  }
  return bytes;
}

Status RowStore::Reset() {
  snapshot_ = 0;
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    COHORT_ASSIGN_OR_RETURN(tables_[t], MakeTable(tables_[t]->spec(), *tallies_[t]));
  }
  MakePlaces();
  leaving_.clear();
  snapshots_.clear();
  had_rounds_ = false;
  ledger_.Reset();
  rounds_.Begin(tables_, elects_);
  const std::lock_guard lock(carriers_mutex_);
  carriers_.clear();
  return {};
}

Error RowStore::Find(const FrameHeader& header, RowTable** table) const {
  if (!declared_.load(std::memory_order_acquire)) {
    return MakeError(Error::NOT_READY, "no model has been declared");
  }
  if (header.layout() != fingerprint_) {
    return MakeError(Error::SPEC_MISMATCH, "the frame is of another model than was declared");
  }
  if (!header.has_rows()) {
    return MakeError(Error::BAD_FRAME, "a frame of rows without a table");
  }
  return FindTable(header.rows(), table);
}

Error RowStore::FindTable(const RowBlock& block, RowTable** table) const {
  if (block.table() >= tables_.size()) {
    return MakeError(Error::UNKNOWN_TABLE, "table " + std::to_string(block.table()) + " of " +
                                               std::to_string(tables_.size()) +
                                               " that were declared");
  }
  *table = tables_[block.table()].get();
  return {};
}

namespace {

// The buckets of block `block`'s `ids` that are not here, and where each is.
void FindElsewhere(const BucketPlaces& places, std::span<const std::uint64_t> ids,
                   std::size_t block, RowStore::Moved* moved) {
  if (places.has_all()) {
    return;
  }
  std::set<std::uint32_t> found;
  for (const std::uint64_t id : ids) {
    const std::uint32_t bucket = BucketOf(id, places.buckets());
    if (!places.here(bucket)) {
      found.insert(bucket);
    }
  }
  for (const std::uint32_t bucket : found) {
    moved->push_back({block, bucket, static_cast<std::uint32_t>(places.server(bucket))});
  }
}

// While one lives, what of a block is here stays.
struct Staying {
  explicit Staying(const BucketPlaces& places) : visit(places.Enter()) {}
  BucketPlaces::Visit visit;
};

}  // namespace

// The tables of a frame's blocks; and whether the payload is what the blocks say, before memory is
// taken for it.
Error RowStore::CheckBlocks(bool push, const FrameHeader& header, const PayloadReader& payload,
                            std::vector<RowTable*>* tables) const {
  RowTable* table = nullptr;
  Error error = Find(header, &table);
  const std::size_t count = NumBlocks(header);
  if (error.kind() == Error::NONE && count > kMaxRowBlocks) {
    error = MakeError(Error::BAD_FRAME, "a frame of " + std::to_string(count) +
                                            " blocks of rows [at most " +
                                            std::to_string(kMaxRowBlocks) + "]");
  }
  std::uint64_t left = payload.remaining();
  for (std::size_t i = 0; error.kind() == Error::NONE && i < count; ++i) {
    const RowBlock& block = BlockAt(header, i);
    error = FindTable(block, &table);
    if (error.kind() == Error::NONE) {
      // At most 2^32 times 2^22 floats: no overflow.
      const TableSpec& spec = table->spec();
      const auto dim = static_cast<std::size_t>(spec.dim);
      const std::uint64_t bytes =
          IdBytes(block) +
          (push ? CountBytes(block) + EncodedBytes(spec.wire, dim, block.count()) +
                      LateParts::Of(table->rule()).PushBytes(spec.wire, dim, block.count())
                : 0);
      error = CheckBlock(block, left, i + 1 == count, bytes, *table);
      left -= std::min(left, bytes);
      tables->push_back(table);
    }
  }
  return error;
}

// `left`: bytes of the payload from where the block's begin.
Error RowStore::CheckBlock(const RowBlock& block, std::uint64_t left, bool last,
                           std::uint64_t bytes, const RowTable& table) const {
  if (block.dim() != static_cast<std::uint64_t>(table.spec().dim)) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": rows of " + std::to_string(block.dim()) +
                                           " floats, its dim is " +
                                           std::to_string(table.spec().dim));
  }
  if (block.dtype() != static_cast<std::uint32_t>(table.spec().wire)) {
    return MakeError(Error::BAD_FRAME,
                     NameOf(table) + ": values of type " + std::to_string(block.dtype()) +
                         ", the table's are " +
                         std::to_string(static_cast<std::uint32_t>(table.spec().wire)));
  }
  if (block.count_bytes() > 4 || block.count_bytes() == 3) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": counts of " +
                                           std::to_string(block.count_bytes()) + " bytes");
  }
  if (last ? left != bytes : left < bytes) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": " + std::to_string(left) + " bytes for " +
                                           std::to_string(block.count()) + " ids, which take " +
                                           std::to_string(bytes));
  }
  if (block.step() < 1 || block.step() > 0xFFFFFFFFU) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": step " + std::to_string(block.step()));
  }
  return {};
}

Error RowStore::Plan(const FrameHeader& header, PayloadReader payload, Reading* reading) {
  std::vector<RowTable*> tables;
  Error error = CheckBlocks(/*push=*/false, header, payload, &tables);
  std::int64_t bytes = 0;
  bool training = false;
  for (std::size_t i = 0; error.kind() == Error::NONE && i < tables.size(); ++i) {
    const RowBlock& block = BlockAt(header, i);
    training = training || block.training();
    const int more = LateParts::Of(tables[i]->rule()).updates ? 1 : 0;
    bytes += std::int64_t{block.count()} * (tables[i]->spec().dim + more) *
             static_cast<std::int64_t>(sizeof(float));
    if (bytes > kMaxPayloadBytes) {
      error =
          MakeError(Error::BAD_FRAME, NameOf(*tables[i]) + ": " + std::to_string(block.count()) +
                                          " rows do not fit in a frame" +
                                          (i > 0 ? " behind those of other tables" : "") +
                                          " [ask for fewer at a time]");
    }
  }
  if (error.kind() == Error::NONE && training && ledger_.retired(header.client())) {
    error = RefusalOf(PushLedger::Claimed::kFenced);
  }
  if (error.kind() != Error::NONE) {
    ++rejected_;
    return error;
  }
  reading->blocks.clear();
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const RowBlock& block = BlockAt(header, i);
    reading->blocks.push_back({.table = tables[i],
                               .places = &PlacesOf(block),
                               .ids = ReadIds(block, payload),
                               .step = static_cast<std::int64_t>(block.step()),
                               .training = block.training()});
  }
  return {};
}

std::size_t RowStore::Reading::Block::floats() const {
  const TableSpec& spec = table->spec();
  return (EncodedBytes(spec.wire, static_cast<std::size_t>(spec.dim), ids.size()) +
          LateParts::Of(table->rule()).PullBytes(ids.size())) /
         sizeof(float);
}

std::size_t RowStore::Reading::floats() const {
  std::size_t floats = 0;
  for (const Block& block : blocks) {
    floats += block.floats();
  }
  return floats;
}

Error RowStore::Admit(const FrameHeader& header, Deadline deadline) {
  std::uint64_t round = 0;
  for (std::size_t i = 0; i < NumBlocks(header); ++i) {
    round = std::max(round, BlockAt(header, i).after_round());
  }
  if (round == 0 || !declared_.load(std::memory_order_acquire)) {
    return {};
  }
  if (header.has_commit()) {
    if (const Status status = rounds_.Elect(header.commit()); !status.ok()) {
      return ToError(status);
    }
  }
  const Result<bool> applied = rounds_.WaitApplied(round, deadline);
  if (!applied.ok()) {
    return ToError(applied.status());
  }
  return *applied ? Error() : MakeError(Error::NOT_YET, rounds_.Describe());
}

namespace {

Status PullBlock(const RowStore::Reading::Block& block, std::span<float> to) {
  const TableSpec& spec = block.table->spec();
  const auto dim = static_cast<std::size_t>(spec.dim);
  const bool encodes = spec.wire != TableSpec::Wire::kFloat32;
  std::vector<float> exact(encodes ? block.ids.size() * dim : 0);
  std::vector<std::uint32_t> updates(LateParts::Of(block.table->rule()).updates ? block.ids.size()
                                                                                : 0);
  const std::span<float> behind = to.last(updates.size());
  to = to.first(to.size() - updates.size());
  COHORT_RETURN_IF_ERROR(
      block.table->Pull(block.ids, block.step,
                        block.training ? RowTable::Purpose::kTraining : RowTable::Purpose::kReading,
                        encodes ? std::span(exact) : to, updates));
  std::ranges::copy(std::as_bytes(std::span(updates)), std::as_writable_bytes(behind).begin());
  if (encodes) {
    if (const auto row = EncodeRows(spec.wire, dim, exact, std::as_writable_bytes(to));
        row.has_value()) {
      return InvalidArgument(NameOf(*block.table) + ": the row of id " +
                             std::to_string(block.ids[*row]) + " does not fit in " +
                             std::string(WireName(spec.wire)) +
                             " [another wire format for the table]");
    }
  }
  return {};
}

// Not while buckets are visited: it goes through a whole table, and a bucket that is given away
// waits for those who visit. A worker sends nothing to a server that has none of its rows, so what
// is due at the end of a step is done before the next frame, with the numbers of the steps that
// were left out: rows are what one process would have.
void EvictBefore(RowTable& table, std::int64_t step) {
  if (step > 1) {
    OrThrow(table.EvictWhenDue(step - 1));
  }
}

}  // namespace

Error RowStore::Pull(const Reading& reading, std::span<float> to, Moved* moved) {
  moved->clear();
  for (const Reading::Block& block : reading.blocks) {
    EvictBefore(*block.table, block.step);
  }
  std::deque<Staying> visits;
  for (std::size_t i = 0; i < reading.blocks.size(); ++i) {
    const Reading::Block& block = reading.blocks[i];
    visits.emplace_back(*block.places);
    FindElsewhere(*block.places, block.ids, i, moved);
  }
  if (!moved->empty()) {
    return {};
  }
  Status status;
  for (std::size_t i = 0; status.ok() && reading.blocks.size() > 1 && i < reading.blocks.size();
       ++i) {
    status = reading.blocks[i].table->CheckPresent(reading.blocks[i].ids);
  }
  for (std::size_t i = 0; status.ok() && i < reading.blocks.size(); ++i) {
    const std::size_t floats = reading.blocks[i].floats();
    status = PullBlock(reading.blocks[i], to.first(floats));
    to = to.subspan(floats);
  }
  ++(status.ok() ? pulls_ : rejected_);
  return ToError(status);
}

Error RowStore::Push(const FrameHeader& header, PayloadReader payload, Moved* moved) {
  moved->clear();
  std::vector<RowTable*> tables;
  Error error = CheckBlocks(/*push=*/true, header, payload, &tables);
  if (error.kind() == Error::NONE &&
      (!IsWeight(header.weight()) || (header.weight() == 0 && !header.has_round()) ||
       header.sequence() == 0)) {
    error = MakeError(Error::BAD_FRAME,
                      NameOf(*tables[0]) + ": a push needs a sequence number and a weight");
  }
  if (error.kind() == Error::NONE) {
    error = PushTo(tables, header, payload, moved);
  }
  if (error.kind() != Error::NONE) {
    ++rejected_;
    std::set<std::uint32_t> of;
    for (std::size_t i = 0; i < tables.size() && error.kind() != Error::NOT_YET; ++i) {
      of.insert(BlockAt(header, i).table());
    }
    for (const std::uint32_t refused : of) {
      ++tallies_[refused]->refused;
    }
  }
  return error;
}

namespace {

// Every block's, in their order. Where one fails behind others, for want of memory alone after
// what was checked, a repetition is told the same.
template <typename Updates>
Status ApplyAll(const Updates& updates, PushLedger::Applying& applying) {
  for (const auto& update : updates) {
    Status status;
    try {
      status = update.table->Apply(update.gradients);
    } catch (const std::bad_alloc&) {
      if (!applying.applied) {
        throw;
      }
      status = ResourceExhausted(NameOf(*update.table) + ": no memory for gradients");
    }
    if (!status.ok()) {
      if (applying.applied || status.code() == StatusCode::kResourceExhausted) {  // of some rows
        applying.FinishFailed(ToError(status));
      }
      return status;
    }
    applying.applied = true;
  }
  return {};
}

}  // namespace

Error RowStore::PushTo(std::span<RowTable* const> tables, const FrameHeader& header,
                       PayloadReader& payload, Moved* moved) {
  std::vector<Update> updates(tables.size());
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const RowBlock& block = BlockAt(header, i);
    Update& update = updates[i];
    update.table = tables[i];
    update.places = &PlacesOf(block);
    update.ids = ReadIds(block, payload);
    update.counts = ReadCounts(block, payload);
    update.gradients = {
        .ids = update.ids,
        .values = ReadRows(update.table->spec(), update.ids.size(), payload, update.copy),
        .counts = update.counts,
        .scale = header.has_round() ? 1.0F : static_cast<float>(1.0 / header.weight()),
        .step = static_cast<std::int64_t>(block.step())};
    const LateParts late = LateParts::Of(update.table->rule());
    if (late.updates && header.has_round()) {
      return MakeError(Error::BAD_FRAME, NameOf(*update.table) +
                                             ": a part of a round, where gradients are to be " +
                                             "single workers'");
    }
    if (late.updates) {
      update.updates.resize(update.ids.size());
      payload.Read(update.updates.data(), update.updates.size() * sizeof(std::uint32_t));
      update.gradients.updates = update.updates;
    }
    if (late.pulled) {
      update.gradients.pulled =
          ReadRows(update.table->spec(), update.ids.size(), payload, update.pulled);
    }
  }
  // One block alone is checked where it is applied.
  for (std::size_t i = 0; i < updates.size() && (header.has_round() || updates.size() > 1); ++i) {
    const Update& update = updates[i];
    if (header.has_round() && update.gradients.step != updates[0].gradients.step) {
      return MakeError(Error::BAD_FRAME,
                       NameOf(*update.table) + ": step " + std::to_string(update.gradients.step) +
                           " in a round of step " + std::to_string(updates[0].gradients.step));
    }
    if (const Status status = update.table->Check(update.gradients); !status.ok()) {
      return ToError(status);
    }
  }
  const auto find_elsewhere = [&] {
    for (std::size_t i = 0; i < updates.size(); ++i) {
      FindElsewhere(*updates[i].places, updates[i].ids, i, moved);
    }
  };
  if (const auto claimed =
          ledger_.Claim(header.client(), header.sequence(), DeadlineAfter(PushLedger::kPatience),
                        /*behind_all=*/header.advance());
      claimed != PushLedger::Claimed::kNew) {
    if (claimed == PushLedger::Claimed::kElsewhere) {
      find_elsewhere();
      for (std::size_t i = 0; moved->empty() && i < updates.size(); ++i) {  // all is back
        if (!updates[i].ids.empty()) {
          const BucketPlaces& places = *updates[i].places;
          const std::uint32_t bucket = BucketOf(updates[i].ids[0], places.buckets());
          *moved = {{i, bucket, static_cast<std::uint32_t>(places.server(bucket))}};
        }
      }
    }
    if (claimed == PushLedger::Claimed::kFailed) {
      return ledger_.AnswerTo(header.client(), header.sequence());
    }
    duplicates_ += claimed == PushLedger::Claimed::kRepeated ? 1 : 0;
    return RefusalOf(claimed);
  }
  Status status;
  {
    PushLedger::Applying applying(ledger_, header.client(), header.sequence());
    for (std::size_t i = 0; i < updates.size() && !header.has_round(); ++i) {  // rounds do it
      EvictBefore(*updates[i].table, updates[i].gradients.step);
    }
    std::deque<Staying> visits;
    for (const Update& update : updates) {
      visits.emplace_back(*update.places);
    }
    find_elsewhere();
    if (!moved->empty()) {
      applying.FinishElsewhere();
      return {};
    }
    for (std::size_t i = 0;
         status.ok() && updates.size() > 1 && !header.has_round() && i < updates.size(); ++i) {
      status = updates[i].table->CheckPresent(updates[i].ids);
    }
    if (!status.ok()) {
      return ToError(status);
    }
    status = header.has_round() ? AddToRound(header, updates) : ApplyAll(updates, applying);
    applying.applied = status.ok();
  }
  if (!status.ok()) {
    return ToError(status);
  }
  ++pushes_;
  return {};
}

Status RowStore::AddToRound(const FrameHeader& header, std::span<Update> updates) {
  had_rounds_ = true;
  if (header.has_commit()) {
    COHORT_RETURN_IF_ERROR(rounds_.Elect(header.commit()));
  }
  std::vector<RowRounds::Rows> rows;
  for (std::size_t i = 0; i < updates.size(); ++i) {
    Update& update = updates[i];
    if (!update.ids.empty()) {
      rows.push_back({.table = BlockAt(header, i).table(),
                      .ids = std::move(update.ids),
                      .counts = std::move(update.counts),
                      .values = update.copy.empty()
                                    ? std::vector<float>(update.gradients.values.begin(),
                                                         update.gradients.values.end())
                                    : std::move(update.copy)});
    }
  }
  return rounds_.Add(header.round(), header.weight(), updates[0].gradients.step, header.advance(),
                     std::move(rows));
}

std::vector<TableCounts> RowStore::counts() const {
  std::vector<TableCounts> counts;
  if (declared_.load(std::memory_order_acquire)) {
    for (const std::unique_ptr<Tally>& tally : tallies_) {
      counts.push_back({.name = tally->name,
                        .evicted = tally->losses->evicted,
                        .dropped = tally->losses->dropped,
                        .skipped = tally->losses->skipped,
                        .refused = tally->refused});
    }
  }
  return counts;
}

RowStoreStats RowStore::stats() const {
  RowStoreStats stats;
  stats.pulls = pulls_;
  stats.pushes = pushes_;
  stats.duplicates = duplicates_;
  stats.rejected = rejected_;
  if (declared_.load(std::memory_order_acquire)) {
    for (const std::unique_ptr<RowTable>& table : tables_) {
      const TableStats of_table = table->stats();
      stats.rows += of_table.rows;
      stats.row_bytes += of_table.row_bytes + of_table.overhead_bytes + table->kept_bytes();
    }
  }
  return stats;
}

}  // namespace cohort::ps
