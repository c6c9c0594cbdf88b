// RowStore, whole buckets: their dumps, the way back from them, and the way to another server.

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <utility>

#include <cohort/io/crc32c.h>

#include "parameter_server/rows/row_errors.h"
#include "parameter_server/rows/row_store.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kMaxCarriers = 4'096;

std::uint32_t ChecksumOf(const std::string& dump) {
  return io::Crc32c(std::as_bytes(std::span(dump)));
}

}  // namespace

Error RowStore::CheckPiece(const RowTable& table, const BucketPiece& piece) const {
  if (piece.bucket() >= table.spec().buckets) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": bucket " +
                                           std::to_string(piece.bucket()) + " of " +
                                           std::to_string(table.spec().buckets));
  }
  return {};
}

Error RowStore::Dump(const FrameHeader& header, std::vector<BucketPiece>* pieces,
                     std::string* bytes, Moved* moved) {
  moved->clear();
  RowTable* table = nullptr;
  if (Error error = Find(header, &table); error.kind() != Error::NONE) {
    return error;
  }
  const bool frozen = header.snapshot() != 0;
  if (frozen && header.snapshot() != snapshot_) {
    return MakeError(Error::BAD_FRAME, NameOf(*table) + ": there is no snapshot " +
                                           std::to_string(header.snapshot()) + " any more");
  }
  if (const Status status = frozen || header.keep_round() ? OkStatus() : rounds_.Settle();
      !status.ok()) {
    return ToError(status);
  }
  if (header.buckets_size() != 1) {
    return MakeError(Error::BAD_FRAME, NameOf(*table) + ": a dump begins at one bucket");
  }
  const BucketPiece& from = header.buckets(0);
  if (Error error = CheckPiece(*table, from); error.kind() != Error::NONE) {
    return error;
  }
  std::uint32_t since = 0;  // as the table counts
  if (frozen) {
    const std::lock_guard lock(snapshots_mutex_);
    table->Thaw(header.taken());
    const auto found = snapshots_.find(header.since());
    since = found == snapshots_.end() || header.since() == header.snapshot() ? 0 : found->second;
  }
  const BucketPlaces& places = PlacesOf(header);
  const std::uint32_t end =
      std::min(header.until() == 0 ? table->range().end : header.until(), table->range().end);
  constexpr auto kMost = static_cast<std::uint64_t>(kMaxPayloadBytes);
  for (std::uint32_t b = from.bucket(); b < end; ++b) {
    Leaving dump = LeavingAs(header.rows().table(), b);
    if (dump.dump == nullptr) {
      const BucketPlaces::Visit visit = places.Enter();
      if (!places.here(b)) {
        break;
      }
      Result<std::string> dumped = since > 0 ? table->DumpFrozenSince(b, since)
                                   : frozen  ? table->DumpFrozen(b)
                                             : Result<std::string>(table->DumpBucket(b));
      if (!dumped.ok()) {
        return ToError(dumped.status());
      }
      dump.dump = std::make_shared<const std::string>(std::move(dumped).value());
      dump.crc32c = ChecksumOf(*dump.dump);
    }
    const std::string& all = *dump.dump;
    const std::uint64_t offset = b == from.bucket() ? from.offset() : 0;
    if (offset > all.size()) {
      return MakeError(Error::BAD_FRAME, NameOf(*table) + ": bucket " + std::to_string(b) +
                                             " has become smaller than what is left of its dump");
    }
    const std::uint64_t rest = all.size() - offset;
    const bool first = pieces->empty();
    if (!first && bytes->size() + rest > kMost) {
      break;
    }
    BucketPiece piece;
    piece.set_bucket(b);
    piece.set_offset(offset);
    piece.set_bytes(std::min(rest, kMost));
    piece.set_total(all.size());
    piece.set_crc32c(dump.crc32c);
    bytes->append(all, offset, piece.bytes());
    const bool whole = piece.bytes() == rest;
    pieces->push_back(std::move(piece));
    if (!whole) {
      break;
    }
  }
  if (pieces->empty()) {
    *moved = {{0, from.bucket(), static_cast<std::uint32_t>(places.server(from.bucket()))}};
  }
  return {};
}

RowStore::Leaving RowStore::LeavingAs(std::uint32_t table, std::uint32_t bucket) {
  const std::lock_guard lock(moves_mutex_);
  const auto found = leaving_.find({table, bucket});
  return found == leaving_.end() ? Leaving() : found->second;
}

Error RowStore::Once(const FrameHeader& header, const std::function<Error(Carrier&)>& request) {
  if (header.sequence() == 0) {
    return MakeError(Error::BAD_FRAME, "what restores or moves buckets needs a sequence number");
  }
  const std::lock_guard lock(carriers_mutex_);
  if (carriers_.size() >= kMaxCarriers && !carriers_.contains(header.client())) {
    return MakeError(Error::TOO_MANY, std::to_string(kMaxCarriers) +
                                          " processes restore or move buckets here already");
  }
  Carrier& carrier = carriers_[header.client()];
  if (header.sequence() > carrier.sequence) {
    carrier.answer = request(carrier);
    carrier.sequence = header.sequence();
  }
  return header.sequence() == carrier.sequence
             ? carrier.answer
             : MakeError(Error::OUT_OF_ORDER, "a request that was over long ago");
}

Error RowStore::Restore(const FrameHeader& header, PayloadReader payload) {
  RowTable* table = nullptr;
  if (Error error = Find(header, &table); error.kind() != Error::NONE) {
    return error;
  }
  return Once(header,
              [&](Carrier& carrier) { return RestorePieces(header, payload, *table, carrier); });
}

Error RowStore::RestorePieces(const FrameHeader& header, PayloadReader payload, RowTable& table,
                              Carrier& carrier) {
  // A round that waits to be applied is of the rows that are replaced.
  if (const Status status = header.keep_round() ? OkStatus() : rounds_.Settle(); !status.ok()) {
    return ToError(status);
  }
  // All pieces, before the first has an effect.
  BucketPlaces& places = PlacesOf(header);
  std::uint64_t left = payload.remaining();
  for (const BucketPiece& piece : header.buckets()) {
    if (Error error = CheckPiece(table, piece); error.kind() != Error::NONE) {
      return error;
    }
    if (piece.bytes() > left || piece.offset() > piece.total() ||
        piece.bytes() > piece.total() - piece.offset() ||
        (!header.adopt() && !places.here(piece.bucket()))) {
      return MakeError(Error::BAD_FRAME, NameOf(table) + ": bucket " +
                                             std::to_string(piece.bucket()) +
                                             " is cut short, or none of this server's");
    }
    left -= piece.bytes();
  }
  if (left > 0) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": " + std::to_string(left) +
                                           " bytes of the payload belong to no bucket");
  }
  for (const BucketPiece& piece : header.buckets()) {
    if (piece.offset() == 0 || carrier.table != header.rows().table() ||
        carrier.bucket != piece.bucket()) {
      carrier.table = header.rows().table();
      carrier.bucket = piece.bucket();
      carrier.bytes.clear();
    }
    if (header.adopt() && places.here(piece.bucket())) {
      payload.Skip(piece.bytes());
      continue;
    }
    if (piece.offset() != carrier.bytes.size()) {
      return MakeError(Error::DAMAGED, NameOf(table) + ": the beginning of bucket " +
                                           std::to_string(piece.bucket()) + " is missing");
    }
    carrier.bytes.resize(piece.offset() + piece.bytes());
    payload.Read(carrier.bytes.data() + piece.offset(), piece.bytes());
    if (carrier.bytes.size() < piece.total()) {
      continue;
    }
    const std::string dump = std::exchange(carrier.bytes, {});
    if (ChecksumOf(dump) != piece.crc32c()) {
      return MakeError(Error::DAMAGED, NameOf(table) + ": bucket " +
                                           std::to_string(piece.bucket()) +
                                           " arrived with another checksum than it was sent with");
    }
    using Origin = RowTable::Origin;
    if (const Status status = table.RestoreBucket(piece.bucket(), dump,
                                                  header.adopt() ? Origin::kTable : Origin::kSave);
        !status.ok()) {
      return ToError(status);
    }
    if (header.adopt()) {
      const std::lock_guard moves(moves_mutex_);
      places.Take(piece.bucket());
    }
  }
  return {};
}

Error RowStore::Move(const FrameHeader& header) {
  RowTable* table = nullptr;
  if (Error error = Find(header, &table); error.kind() != Error::NONE) {
    return error;
  }
  return Once(header, [&](Carrier& /*carrier*/) { return Step(header, *table); });
}

Error RowStore::Step(const FrameHeader& header, RowTable& table) {
  const std::uint32_t to = header.move().to();
  if (header.buckets_size() != 1 || header.buckets(0).bucket() >= table.spec().buckets ||
      to >= static_cast<std::uint32_t>(servers_)) {
    return MakeError(Error::BAD_FRAME, NameOf(table) + ": a move of no bucket of the " +
                                           std::to_string(table.spec().buckets) +
                                           ", or to no server: ps:" + std::to_string(to));
  }
  const std::uint32_t bucket = header.buckets(0).bucket();
  const auto key = std::pair(header.rows().table(), bucket);
  const std::lock_guard lock(moves_mutex_);
  BucketPlaces& places = PlacesOf(header);
  switch (header.move().step()) {
    case BucketMove::GIVE:
      if (snapshot_ != 0 || had_rounds_ || !places.here(bucket)) {
        return MakeError(Error::NOT_NOW,
                         NameOf(table) + ": bucket " + std::to_string(bucket) +
                             (snapshot_ != 0 ? " cannot move while a snapshot is saved"
                              : had_rounds_  ? " cannot move where updates are rounds"
                                             : " is not here"));
      }
      places.Give(bucket, static_cast<int>(to));
      try {
        auto dump = std::make_shared<const std::string>(table.DumpBucket(bucket));
        const std::uint32_t crc32c = ChecksumOf(*dump);
        leaving_[key] = {.dump = std::move(dump), .crc32c = crc32c};
      } catch (const std::bad_alloc&) {
        places.Take(bucket);
        return MakeError(Error::NOT_NOW, NameOf(table) + ": no memory for the dump of bucket " +
                                             std::to_string(bucket));
      }
      return {};
    case BucketMove::DROP:
      if (leaving_.erase(key) > 0) {
        const std::array<std::uint32_t, 3> nothing = {bucket, 0, 0};
        return ToError(table.RestoreBucket(
            bucket, {reinterpret_cast<const char*>(nothing.data()), sizeof(nothing)},
            RowTable::Origin::kTable));
      }
      return {};
    case BucketMove::KEEP:
      if (leaving_.erase(key) > 0) {
        places.Take(bucket);
      }
      return {};
    default:
      return MakeError(Error::BAD_FRAME, NameOf(table) + ": an unknown step of a move");
  }
}

Error RowStore::Loads(const FrameHeader& header, FrameHeader* reply) const {
  RowTable* table = nullptr;
  if (Error error = Find(header, &table); error.kind() != Error::NONE) {
    return error;
  }
  for (std::uint32_t b = 0; b < table->spec().buckets; ++b) {
    if (PlacesOf(header).here(b)) {
      reply->add_buckets()->set_bucket(b);
      reply->add_updates(table->UpdatesOf(b));
    }
  }
  return {};
}

}  // namespace cohort::ps
