#include "parameter_server/rows/row_store.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <utility>

#include "parameter_server/frames/row_codec.h"
#include "parameter_server/frames/weight.h"
#include "parameter_server/rows/row_errors.h"

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
  for (const TableSpec& spec : tables) {
    if (spec.dim > kMaxRowFloats) {
      return InvalidArgument("table \"" + spec.name + "\": a row of " + std::to_string(spec.dim) +
                             " floats does not fit in a frame [at most " +
                             std::to_string(kMaxRowFloats) + "]");
    }
    COHORT_RETURN_IF_ERROR(spec.Check());
    COHORT_ASSIGN_OR_RETURN(auto table, RowTable::Create(spec, {0, spec.buckets}));
    made.push_back(std::move(table));
  }
  tables_ = std::move(made);
  servers_ = servers;
  MakePlaces();
  elects_ = elects;
  rounds_.Begin(tables_, elects_);
  fingerprint_ = fingerprint;
  declared_.store(true, std::memory_order_release);
  return {};
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

Error RowStore::Freeze(std::uint64_t layout, std::uint64_t snapshot) {
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
    table->Freeze();
  }
  const std::lock_guard numbers(snapshots_mutex_);
  if (!tables_.empty()) {
    snapshots_[snapshot] = tables_.front()->snapshots();
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
  for (std::unique_ptr<RowTable>& table : tables_) {
    COHORT_ASSIGN_OR_RETURN(table, RowTable::Create(table->spec(), table->range()));
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
  if (header.rows().table() >= tables_.size()) {
    return MakeError(Error::UNKNOWN_TABLE, "table " + std::to_string(header.rows().table()) +
                                               " of " + std::to_string(tables_.size()) +
                                               " that were declared");
  }
  *table = tables_[header.rows().table()].get();
  return {};
}

namespace {

// The buckets of `ids` that are not here, and where each is.
void FindElsewhere(const BucketPlaces& places, std::span<const std::uint64_t> ids,
                   RowStore::Moved* moved) {
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
    moved->push_back(bucket);
    moved->push_back(static_cast<std::uint32_t>(places.server(bucket)));
  }
}

}  // namespace

Error RowStore::CheckBlock(const FrameHeader& header, const PayloadReader& payload,
                           std::uint64_t bytes, const RowTable& table) const {
  const RowBlock& block = header.rows();
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
  if (payload.remaining() != bytes) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": " + std::to_string(payload.remaining()) +
                                           " bytes for " + std::to_string(block.count()) +
                                           " ids, which take " + std::to_string(bytes));
  }
  if (block.step() < 1 || block.step() > 0xFFFFFFFFU) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": step " + std::to_string(block.step()));
  }
  return {};
}

Error RowStore::Plan(const FrameHeader& header, PayloadReader payload, Reading* reading) {
  const RowBlock& block = header.rows();
  Error error = Find(header, &reading->table);
  if (error.kind() == Error::NONE) {
    error = CheckBlock(header, payload, IdBytes(block), *reading->table);
  }
  if (error.kind() == Error::NONE && std::int64_t{block.count()} * reading->table->spec().dim *
                                             static_cast<std::int64_t>(sizeof(float)) >
                                         kMaxPayloadBytes) {
    error =
        MakeError(Error::BAD_FRAME, NameOf(*reading->table) + ": " + std::to_string(block.count()) +
                                        " rows do not fit in a frame [ask for fewer at a time]");
  }
  if (error.kind() == Error::NONE && block.training() && ledger_.retired(header.client())) {
    error = RefusalOf(PushLedger::Claimed::kFenced);
  }
  if (error.kind() != Error::NONE) {
    ++rejected_;
    return error;
  }
  reading->places = &PlacesOf(header);
  reading->ids = ReadIds(block, payload);
  reading->step = static_cast<std::int64_t>(block.step());
  reading->training = block.training();
  return {};
}

std::size_t RowStore::Reading::floats() const {
  const TableSpec& spec = table->spec();
  return EncodedBytes(spec.wire, static_cast<std::size_t>(spec.dim), ids.size()) / sizeof(float);
}

Error RowStore::Admit(const FrameHeader& header, Deadline deadline) {
  const std::uint64_t round = header.rows().after_round();
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

Error RowStore::Pull(const Reading& reading, std::span<float> to, Moved* moved) {
  moved->clear();
  const BucketPlaces::Visit visit = reading.places->Enter();
  FindElsewhere(*reading.places, reading.ids, moved);
  if (!moved->empty()) {
    return {};
  }
  const TableSpec& spec = reading.table->spec();
  const auto dim = static_cast<std::size_t>(spec.dim);
  const bool encodes = spec.wire != TableSpec::Wire::kFloat32;
  std::vector<float> exact(encodes ? reading.ids.size() * dim : 0);
  Status status = reading.table->Pull(
      reading.ids, reading.step,
      reading.training ? RowTable::Purpose::kTraining : RowTable::Purpose::kReading,
      encodes ? std::span(exact) : to);
  if (status.ok() && encodes) {
    if (const auto row = EncodeRows(spec.wire, dim, exact, std::as_writable_bytes(to));
        row.has_value()) {
      status = InvalidArgument(NameOf(*reading.table) + ": the row of id " +
                               std::to_string(reading.ids[*row]) + " does not fit in " +
                               std::string(WireName(spec.wire)) +
                               " [another wire format for the table]");
    }
  }
  ++(status.ok() ? pulls_ : rejected_);
  return ToError(status);
}

Error RowStore::Push(const FrameHeader& header, PayloadReader payload, Moved* moved) {
  moved->clear();
  RowTable* table = nullptr;
  Error error = Find(header, &table);
  if (error.kind() == Error::NONE) {
    // At most 2^32 times 2^22 floats: no overflow.
    const RowBlock& block = header.rows();
    const std::uint64_t values = EncodedBytes(
        table->spec().wire, static_cast<std::size_t>(table->spec().dim), block.count());
    error = CheckBlock(header, payload, IdBytes(block) + CountBytes(block) + values, *table);
  }
  if (error.kind() == Error::NONE &&
      (!IsWeight(header.weight()) || (header.weight() == 0 && !header.has_round()) ||
       header.sequence() == 0)) {
    error = MakeError(Error::BAD_FRAME,
                      NameOf(*table) + ": a push needs a sequence number and a weight");
  }
  if (error.kind() == Error::NONE) {
    error = PushTo(*table, header, payload, moved);
  }
  if (error.kind() != Error::NONE) {
    ++rejected_;
  }
  return error;
}

Error RowStore::PushTo(RowTable& table, const FrameHeader& header, PayloadReader& payload,
                       Moved* moved) {
  const RowBlock& block = header.rows();
  std::vector<std::uint64_t> ids = ReadIds(block, payload);
  std::vector<std::uint32_t> counts = ReadCounts(block, payload);
  std::vector<float> copy;
  const RowTable::Gradients gradients{
      .ids = ids,
      .values = ReadRows(table.spec(), ids.size(), payload, copy),
      .counts = counts,
      .scale = header.has_round() ? 1.0F : static_cast<float>(1.0 / header.weight()),
      .step = static_cast<std::int64_t>(header.rows().step())};
  if (header.has_round()) {
    if (const Status status = table.Check(gradients); !status.ok()) {
      return ToError(status);
    }
  }
  const BucketPlaces& places = PlacesOf(header);
  if (const auto claimed =
          ledger_.Claim(header.client(), header.sequence(), DeadlineAfter(PushLedger::kPatience),
                        /*behind_all=*/header.advance());
      claimed != PushLedger::Claimed::kNew) {
    if (claimed == PushLedger::Claimed::kElsewhere) {
      FindElsewhere(places, ids, moved);
      if (moved->empty() && !ids.empty()) {  // all is back
        const std::uint32_t bucket = BucketOf(ids[0], places.buckets());
        *moved = {bucket, static_cast<std::uint32_t>(places.server(bucket))};
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
    const BucketPlaces::Visit visit = places.Enter();
    FindElsewhere(places, ids, moved);
    if (!moved->empty()) {
      applying.FinishElsewhere();
      return {};
    }
    if (header.has_round()) {
      had_rounds_ = true;
      if (header.has_commit()) {
        status = rounds_.Elect(header.commit());
      }
    }
    if (header.has_round() && status.ok()) {
      status = rounds_.Add(header.round(), header.weight(), gradients.step, header.advance(),
                           {.table = block.table(),
                            .ids = std::move(ids),
                            .counts = std::move(counts),
                            .values = {gradients.values.begin(), gradients.values.end()}});
    } else if (!header.has_round()) {
      status = table.Apply(gradients);
      if (status.code() == StatusCode::kResourceExhausted) {  // of some rows
        applying.FinishFailed(ToError(status));
      }
    }
    applying.applied = status.ok();
  }
  if (!status.ok()) {
    return ToError(status);
  }
  ++pushes_;
  if (header.has_round()) {
    return {};
  }
  // Not within the visit: it goes through the whole table, and a bucket that is given away waits
  // for those who visit.
  return ToError(table.EvictWhenDue(gradients.step).status());
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
