// RowStore, whole buckets: their dumps, the way back from them, and the way to another server.

#include <algorithm>
#include <array>
#include <utility>

#include <cohort/io/crc32c.h>

#include "parameter_server/row_errors.h"
#include "parameter_server/row_store.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kMaxIncoming = 64;  // clients that restore at the same time

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
  if (const Status status = frozen ? OkStatus() : rounds_.Settle(); !status.ok()) {
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
  const auto is_here = [&](std::uint32_t b) {
    const std::lock_guard lock(moves_mutex_);
    return places.here(b) || leaving_.contains({header.rows().table(), b});
  };
  if (!is_here(from.bucket())) {
    *moved = {from.bucket(), static_cast<std::uint32_t>(places.server(from.bucket()))};
    return {};
  }
  const std::uint32_t end =
      std::min(header.until() == 0 ? table->range().end : header.until(), table->range().end);
  constexpr auto kMost = static_cast<std::uint64_t>(kMaxPayloadBytes);
  for (std::uint32_t b = from.bucket(); b < end && is_here(b); ++b) {
    Result<std::string> dumped = since > 0 ? table->DumpFrozenSince(b, since)
                                 : frozen  ? table->DumpFrozen(b)
                                           : Result<std::string>(table->DumpBucket(b));
    if (!dumped.ok()) {
      return ToError(dumped.status());
    }
    const std::string dump = std::move(dumped).value();
    const std::uint64_t offset = b == from.bucket() ? from.offset() : 0;
    if (offset > dump.size()) {
      return MakeError(Error::BAD_FRAME, NameOf(*table) + ": bucket " + std::to_string(b) +
                                             " has become smaller than what is left of its dump");
    }
    const std::uint64_t rest = dump.size() - offset;
    const bool first = pieces->empty();
    if (!first && bytes->size() + rest > kMost) {
      break;
    }
    BucketPiece piece;
    piece.set_bucket(b);
    piece.set_offset(offset);
    piece.set_bytes(std::min(rest, kMost));
    piece.set_total(dump.size());
    piece.set_crc32c(io::Crc32c(std::as_bytes(std::span(dump))));
    bytes->append(dump, offset, piece.bytes());
    const bool whole = piece.bytes() == rest;
    pieces->push_back(std::move(piece));
    if (!whole) {
      break;
    }
  }
  return {};
}

Error RowStore::Restore(const FrameHeader& header, PayloadReader payload) {
  RowTable* table = nullptr;
  if (Error error = Find(header, &table); error.kind() != Error::NONE) {
    return error;
  }
  // A round that waits to be applied is of the rows that are replaced.
  if (const Status status = rounds_.Settle(); !status.ok()) {
    return ToError(status);
  }
  // All pieces, before the first has an effect.
  BucketPlaces& places = PlacesOf(header);
  std::uint64_t left = payload.remaining();
  for (const BucketPiece& piece : header.buckets()) {
    if (Error error = CheckPiece(*table, piece); error.kind() != Error::NONE) {
      return error;
    }
    if (piece.bytes() > left || piece.offset() > piece.total() ||
        piece.bytes() > piece.total() - piece.offset() ||
        (!header.adopt() && !places.here(piece.bucket()))) {
      return MakeError(Error::BAD_FRAME, NameOf(*table) + ": bucket " +
                                             std::to_string(piece.bucket()) +
                                             " is cut short, or none of this server's");
    }
    left -= piece.bytes();
  }
  if (left > 0) {
    return MakeError(Error::BAD_FRAME, NameOf(*table) + ": " + std::to_string(left) +
                                           " bytes of the payload belong to no bucket");
  }
  const std::lock_guard lock(incoming_mutex_);
  if (incoming_.size() >= kMaxIncoming && !incoming_.contains(header.client())) {
    incoming_.clear();
  }
  Incoming& incoming = incoming_[header.client()];
  for (const BucketPiece& piece : header.buckets()) {
    if (piece.offset() == 0 || incoming.table != header.rows().table() ||
        incoming.bucket != piece.bucket()) {
      incoming = {.table = header.rows().table(), .bucket = piece.bucket()};
    }
    // The last piece, again; and what has changed here since it came must not be lost.
    if (incoming.restored || (header.adopt() && places.here(piece.bucket()))) {
      payload.Skip(piece.bytes());
      continue;
    }
    if (piece.offset() > incoming.bytes.size()) {
      return MakeError(Error::DAMAGED, NameOf(*table) + ": the beginning of bucket " +
                                           std::to_string(piece.bucket()) + " is missing");
    }
    // A repeated piece stands where it stood.
    incoming.bytes.resize(piece.offset() + piece.bytes());
    payload.Read(incoming.bytes.data() + piece.offset(), piece.bytes());
    if (incoming.bytes.size() < piece.total()) {
      continue;
    }
    const std::string dump = std::exchange(incoming.bytes, {});
    if (io::Crc32c(std::as_bytes(std::span(dump))) != piece.crc32c()) {
      return MakeError(Error::DAMAGED, NameOf(*table) + ": bucket " +
                                           std::to_string(piece.bucket()) +
                                           " arrived with another checksum than it was sent with");
    }
    if (const Status status = table->RestoreBucket(piece.bucket(), dump); !status.ok()) {
      return ToError(status);
    }
    incoming.restored = true;
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
  const std::uint32_t to = header.move().to();
  if (header.buckets_size() != 1 || header.buckets(0).bucket() >= table->spec().buckets ||
      to >= static_cast<std::uint32_t>(servers_)) {
    return MakeError(Error::BAD_FRAME, NameOf(*table) + ": a move of no bucket of the " +
                                           std::to_string(table->spec().buckets) +
                                           ", or to no server: ps:" + std::to_string(to));
  }
  const std::uint32_t bucket = header.buckets(0).bucket();
  const auto key = std::pair(header.rows().table(), bucket);
  const std::lock_guard lock(moves_mutex_);
  BucketPlaces& places = PlacesOf(header);
  switch (header.move().step()) {
    case BucketMove::GIVE:
      if (leaving_.contains(key)) {
        return {};
      }
      if (snapshot_ != 0 || had_rounds_ || !places.here(bucket)) {
        return MakeError(Error::NOT_NOW,
                         NameOf(*table) + ": bucket " + std::to_string(bucket) +
                             (snapshot_ != 0 ? " cannot move while a snapshot is saved"
                              : had_rounds_  ? " cannot move where updates are rounds"
                                             : " is not here"));
      }
      leaving_.insert(key);
      places.Give(bucket, static_cast<int>(to));
      return {};
    case BucketMove::DROP:
      if (leaving_.erase(key) > 0) {
        const std::array<std::uint32_t, 3> nothing = {bucket, 0, 0};
        return ToError(table->RestoreBucket(
            bucket, {reinterpret_cast<const char*>(nothing.data()), sizeof(nothing)}));
      }
      return {};
    case BucketMove::KEEP:
      if (leaving_.erase(key) > 0) {
        places.Take(bucket);
      }
      return {};
    default:
      return MakeError(Error::BAD_FRAME, NameOf(*table) + ": an unknown step of a move");
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
