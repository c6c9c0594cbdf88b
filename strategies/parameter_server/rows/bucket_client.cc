#include "parameter_server/rows/bucket_client.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include <cohort/io/crc32c.h>

#include "parameter_server/frames/wire.h"

namespace cohort::ps {
namespace {

// How often a bucket that changes while its dump is fetched in pieces is begun anew.
constexpr int kDumpTries = 10;
constexpr std::size_t kFramesAhead = 16;  // asked for before the first of them is there
constexpr auto kMost = static_cast<std::size_t>(kMaxPayloadBytes);

std::uint32_t ChecksumOf(std::string_view dump) {
  return io::Crc32c(std::as_bytes(std::span(dump)));
}

}  // namespace

BucketClient::BucketClient(const ModelSpec& model, const std::vector<std::string>& addresses,
                           std::vector<std::shared_ptr<RenewableChannel>> channels,
                           const ClientOptions& options, RowRoutes& routes)
    : tables_(model.tables),
      layout_(model.Fingerprint()),
      number_(options.client),
      epoch_(options.epoch),
      read_timeout_(options.read_timeout),
      copies_(model.copies),
      routes_(routes),
      names_(LineNames(model, addresses)),
      sequences_(channels.size(), 0),
      exchange_(std::move(channels), names_, options.peer_timeout, "Rows", options.epoch) {}

FrameHeader BucketClient::Header(int table, int line) const {
  FrameHeader header;
  header.set_client(number_);
  header.set_layout(layout_);
  header.set_epoch(epoch_);
  header.mutable_rows()->set_table(static_cast<std::uint32_t>(table));
  header.set_copy(line >= routes_.servers());
  return header;
}

// What changes buckets: one request after the other, numbered, so that one which is repeated, or
// comes late, has its effect once.
Status BucketClient::Send(const std::string& method, int line, FrameHeader header,
                          grpc::Slice payload) {
  header.set_sequence(++sequences_[static_cast<std::size_t>(line)]);
  std::vector<FrameCall> calls;
  calls.push_back({line, Assemble(header, {std::move(payload)})});
  return exchange_.Run(method, std::move(calls), [](int, ReceivedFrame&) { return Status(); });
}

// ---- Dumps --------------------------------------------------------------------------------------

// A bucket's dump of which `begun`, or nothing, has come, with `piece`; the rest in as many frames
// as it takes.
Result<std::string> BucketClient::DumpRest(int table, int line, const Version& version,
                                           BucketPiece piece, std::string begun) {
  for (int tries = 0; tries < kDumpTries; ++tries) {
    BucketPiece next = piece;
    while (begun.size() < piece.total()) {
      FrameHeader header = Header(table, line);
      header.set_snapshot(version.snapshot);
      header.set_since(version.since);
      header.set_keep_round(version.keeps_rounds);
      header.set_until(piece.bucket() + 1);
      BucketPiece* from = header.add_buckets();
      from->set_bucket(piece.bucket());
      from->set_offset(begun.size());
      std::vector<FrameCall> calls;
      calls.push_back({line, Assemble(header, {})});
      COHORT_RETURN_IF_ERROR(
          exchange_.Run("Dump", std::move(calls), [&](int, ReceivedFrame& reply) -> Status {
            if (reply.frame.header.buckets_size() < 1) {
              return Internal(names_[static_cast<std::size_t>(line)] + ": table \"" +
                              SpecOf(table).name + "\": no piece of bucket " +
                              std::to_string(piece.bucket()) + " came");
            }
            next = reply.frame.header.buckets(0);
            const std::uint64_t rest = next.total() - std::min(next.offset(), next.total());
            if (next.bucket() != piece.bucket() || next.offset() != begun.size() ||
                next.bytes() > std::min<std::uint64_t>(rest, reply.frame.payload.remaining()) ||
                (next.bytes() == 0 && rest > 0)) {
              return Internal(names_[static_cast<std::size_t>(line)] + ": table \"" +
                              SpecOf(table).name + "\": " + std::to_string(next.bytes()) +
                              " bytes at byte " + std::to_string(next.offset()) +
                              " came for what follows byte " + std::to_string(begun.size()) +
                              " of the dump of bucket " + std::to_string(piece.bucket()) + ", " +
                              std::to_string(rest) + " of them are left");
            }
            begun.resize(next.offset() + next.bytes());
            reply.frame.payload.Read(begun.data() + next.offset(), next.bytes());
            return {};
          }));
      if (next.offset() == 0) {
        piece.set_total(next.total());
        piece.set_crc32c(next.crc32c());
      } else if (next.total() != piece.total() || next.crc32c() != piece.crc32c()) {
        break;  // rows changed: from the beginning
      }
    }
    if (begun.size() == piece.total() && ChecksumOf(begun) == piece.crc32c()) {
      return begun;
    }
    piece.set_total(next.total());
    piece.set_crc32c(next.crc32c());
    begun.clear();
  }
  return Aborted("table \"" + SpecOf(table).name + "\": bucket " + std::to_string(piece.bucket()) +
                 " changes while it is saved [save while nobody trains]");
}

// What has come and was not taken, and what is known of what comes.
struct BucketClient::Arrivals {
  struct Piece {
    int server = 0;
    BucketPiece piece;
    std::string bytes;
  };
  std::uint32_t next = 0;  // to be taken
  std::map<std::uint32_t, Piece> waiting;
  std::uint64_t bytes = 0;  // that came so far
  std::uint64_t buckets = 0;

  // Buckets that a frame is asked for, so that it has kFrameBytes of dumps, as far as those before
  // let it be foreseen.
  std::uint32_t together() const {
    const std::uint64_t each =
        buckets == 0 ? kFrameBytes : std::max<std::uint64_t>(bytes / buckets, 1);
    return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kFrameBytes / each, 1, 1024));
  }
};

// Asks for the next buckets, in frames that travel while earlier ones are taken. What did not fit
// into its frame is asked for by the next call.
Status BucketClient::DumpSome(int table, const Version& version, const Take& take,
                              Arrivals& arrivals) {
  const TableSpec& spec = SpecOf(table);
  const int server = routes_.ServerOf(table, arrivals.next);
  std::vector<FrameCall> calls;
  for (std::uint32_t at = arrivals.next; calls.size() < kFramesAhead && at < spec.buckets;) {
    const auto wanted = [&](std::uint32_t b) {
      return b < spec.buckets && !arrivals.waiting.contains(b) &&
             routes_.ServerOf(table, b) == server;
    };
    if (!wanted(at)) {
      if (!arrivals.waiting.contains(at)) {
        break;  // another server's: when these are taken
      }
      ++at;
      continue;
    }
    std::uint32_t end = at + 1;
    while (end - at < arrivals.together() && wanted(end)) {
      ++end;
    }
    FrameHeader header = Header(table, server);
    header.set_snapshot(version.snapshot);
    header.set_since(version.since);
    header.set_until(end);
    header.set_taken(version.snapshot == 0 ? 0 : arrivals.next);
    header.add_buckets()->set_bucket(at);
    calls.push_back({server, Assemble(header, {})});
    at = end;
  }
  const auto take_next = [&]() -> Status {
    for (auto first = arrivals.waiting.begin();
         first != arrivals.waiting.end() && first->first == arrivals.next &&
         first->second.bytes.size() == first->second.piece.total();
         first = arrivals.waiting.begin()) {
      if (ChecksumOf(first->second.bytes) != first->second.piece.crc32c()) {
        return DataLoss("table \"" + spec.name + "\": bucket " + std::to_string(arrivals.next) +
                        " arrived with another checksum than it was sent with");
      }
      COHORT_RETURN_IF_ERROR(take(arrivals.next, first->second.bytes));
      arrivals.waiting.erase(first);
      ++arrivals.next;
    }
    return {};
  };
  const auto arrive = [&](int from, ReceivedFrame& reply) -> Status {
    const auto& moved = reply.frame.header.rows().moved();
    COHORT_RETURN_IF_ERROR(
        routes_.Learn(table, std::span(moved.data(), static_cast<std::size_t>(moved.size()))));
    for (const BucketPiece& piece : reply.frame.header.buckets()) {
      if (piece.bytes() > reply.frame.payload.remaining() || piece.bytes() > piece.total() ||
          piece.bucket() >= spec.buckets) {
        return Internal("table \"" + spec.name + "\": a dump that is cut short");
      }
      Arrivals::Piece arrived{.server = from, .piece = piece, .bytes = {}};
      arrived.bytes.resize(piece.bytes());
      reply.frame.payload.Read(arrived.bytes.data(), piece.bytes());
      arrivals.bytes += piece.total();
      ++arrivals.buckets;
      if (piece.bucket() >= arrivals.next) {
        arrivals.waiting.try_emplace(piece.bucket(), std::move(arrived));
      }
    }
    return take_next();
  };
  COHORT_RETURN_IF_ERROR(exchange_.Run("Dump", std::move(calls), arrive));
  // A bucket that is larger than a frame.
  if (const auto first = arrivals.waiting.begin();
      first != arrivals.waiting.end() && first->first == arrivals.next) {
    Arrivals::Piece& begun = first->second;
    COHORT_ASSIGN_OR_RETURN(
        begun.bytes, DumpRest(table, begun.server, version, begun.piece, std::move(begun.bytes)));
    begun.piece.set_total(begun.bytes.size());
    begun.piece.set_crc32c(ChecksumOf(begun.bytes));
    return take_next();
  }
  return {};
}

Status BucketClient::Dump(int table, const Version& version, const Take& take) {
  Arrivals arrivals;
  Patience patience(read_timeout_);
  while (arrivals.next < SpecOf(table).buckets) {
    const std::uint32_t before = arrivals.next;
    COHORT_RETURN_IF_ERROR(DumpSome(table, version, take, arrivals));
    if (arrivals.next != before) {
      patience.Begin();
    } else {
      COHORT_RETURN_IF_ERROR(
          patience.Wait("table \"" + SpecOf(table).name + "\": bucket " + std::to_string(before)));
    }
  }
  return {};
}

// ---- The way back -------------------------------------------------------------------------------

Status BucketClient::Restore(int table, const Give& give, const std::vector<int>* servers) {
  const TableSpec& spec = SpecOf(table);
  FrameHeader header;
  std::string payload;
  const auto send = [&](int server) {
    FrameHeader sent = std::exchange(header, Header(table, server));
    const grpc::Slice bytes = OwnedSlice(std::exchange(payload, {}));
    COHORT_RETURN_IF_ERROR(Send("Restore", server, sent, bytes));
    if (!copies_) {
      return OkStatus();
    }
    sent.set_copy(true);
    return Send("Restore", LineOf(server, routes_.servers(), /*copy=*/true), std::move(sent),
                bytes);
  };
  for (int server = 0; server < routes_.servers(); ++server) {
    const BucketRange range = BucketsOf(server, routes_.servers(), spec.buckets);
    header = Header(table, server);
    for (std::uint32_t bucket = range.begin; bucket < range.end; ++bucket) {
      COHORT_ASSIGN_OR_RETURN(const std::string dump, give(bucket));
      if (servers != nullptr && std::ranges::find(*servers, server) == servers->end()) {
        continue;
      }
      const std::uint32_t crc = ChecksumOf(dump);
      std::size_t offset = 0;
      do {
        const std::size_t bytes = std::min(dump.size() - offset, kMost);
        if (!payload.empty() && payload.size() + bytes > kMost) {
          COHORT_RETURN_IF_ERROR(send(server));
        }
        BucketPiece* piece = header.add_buckets();
        piece->set_bucket(bucket);
        piece->set_offset(offset);
        piece->set_bytes(bytes);
        piece->set_total(dump.size());
        piece->set_crc32c(crc);
        payload.append(dump, offset, bytes);
        offset += bytes;
      } while (offset < dump.size());
    }
    if (header.buckets_size() > 0) {
      COHORT_RETURN_IF_ERROR(send(server));
    }
  }
  return {};
}

// ---- To another server --------------------------------------------------------------------------

namespace {

// Has a server refused, so that nothing has changed there? Else it may have, or will yet.
bool IsAnswer(const Status& status) {
  return status.code() == StatusCode::kFailedPrecondition ||
         status.code() == StatusCode::kInvalidArgument ||
         status.code() == StatusCode::kResourceExhausted || status.code() == StatusCode::kDataLoss;
}

// Of a move that went wrong in the middle.
Status NowhereFor(const Status& why) {
  return {StatusCode::kUnavailable,
          why.message() + " [a bucket is on its way: the servers have to go back to a save]"};
}

}  // namespace

Status BucketClient::Step(int table, std::uint32_t bucket, int server, const BucketMove& step) {
  FrameHeader header = Header(table, server);
  header.add_buckets()->set_bucket(bucket);
  *header.mutable_move() = step;
  return Send("Move", server, std::move(header), grpc::Slice());
}

Status BucketClient::Install(int table, std::uint32_t bucket, int line, const std::string& dump,
                             bool adopt, bool keep_rounds) {
  std::size_t offset = 0;
  do {
    FrameHeader header = Header(table, line);
    header.set_adopt(adopt);
    header.set_keep_round(keep_rounds);
    BucketPiece* piece = header.add_buckets();
    piece->set_bucket(bucket);
    piece->set_offset(offset);
    piece->set_bytes(std::min(dump.size() - offset, kMost));
    piece->set_total(dump.size());
    piece->set_crc32c(ChecksumOf(dump));
    grpc::Slice payload(dump.data() + offset, piece->bytes());
    offset += piece->bytes();
    COHORT_RETURN_IF_ERROR(Send("Restore", line, std::move(header), std::move(payload)));
  } while (offset < dump.size());
  return {};
}

// Until servers answer: `fn` may be repeated, under new numbers, which keep what came of it before
// from having an effect later. Where a process is lost the job ends that by Abort.
Status BucketClient::Insist(const std::function<Status()>& fn) {
  const Deadline give_up = DeadlineAfter(read_timeout_);
  Status status = fn();
  while (!status.ok() && !IsAnswer(status) && exchange_.aborted().ok() &&
         std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    status = fn();
  }
  return status.ok() || IsAnswer(status) ? status : NowhereFor(status);
}

// The bucket is all at `from` again, where it was given away: nobody else has it. `why`: what the
// move ends with.
Status BucketClient::Keep(int table, std::uint32_t bucket, int from, const Status& why) {
  BucketMove keep;
  keep.set_step(BucketMove::KEEP);
  COHORT_RETURN_IF_ERROR(Insist([&] { return Step(table, bucket, from, keep); }));
  return FailedPrecondition("bucket " + std::to_string(bucket) + " of table \"" +
                            SpecOf(table).name + "\" stays at ps:" + std::to_string(from) + ": " +
                            why.message());
}

Status BucketClient::Move(int table, std::uint32_t bucket, int to) {
  Require(bucket < SpecOf(table).buckets && to >= 0 && to < routes_.servers(),
          "a bucket of the table, and a server");
  const int from = routes_.ServerOf(table, bucket);
  if (from == to) {
    return {};
  }
  BucketMove step;
  step.set_to(static_cast<std::uint32_t>(to));
  step.set_step(BucketMove::GIVE);
  if (const Status given = Step(table, bucket, from, step); !given.ok()) {
    return IsAnswer(given) ? given : Keep(table, bucket, from, given);
  }
  BucketPiece nothing;
  nothing.set_bucket(bucket);
  nothing.set_total(1);  // the first reply says how much it is
  const Result<std::string> dump = DumpRest(table, from, {}, nothing, {});
  if (!dump.ok()) {
    return Keep(table, bucket, from, dump.status());
  }
  // The other one may have it without its answer's having come: it is told again until it answers.
  if (const Status installed =
          Insist([&] { return Install(table, bucket, to, *dump, /*adopt=*/true); });
      !installed.ok()) {
    return IsAnswer(installed) ? Keep(table, bucket, from, installed) : installed;
  }
  const std::uint32_t moved[] = {bucket, static_cast<std::uint32_t>(to)};
  COHORT_RETURN_IF_ERROR(routes_.Learn(table, moved));
  step.set_step(BucketMove::DROP);
  const Status dropped = Insist([&] { return Step(table, bucket, from, step); });
  return dropped.ok() ? dropped : NowhereFor(dropped);
}

Status BucketClient::CopyPart(int table, int server, Client::Mend which) {
  const int servers = routes_.servers();
  const bool from_copy = which == Client::Mend::kServer;
  const BucketRange range = BucketsOf(server, servers, SpecOf(table).buckets);
  for (std::uint32_t bucket = range.begin; bucket < range.end; ++bucket) {
    BucketPiece nothing;
    nothing.set_bucket(bucket);
    nothing.set_total(1);  // the first reply says how much it is
    COHORT_ASSIGN_OR_RETURN(
        const std::string dump,
        DumpRest(table, LineOf(server, servers, from_copy), {.keeps_rounds = true}, nothing, {}));
    COHORT_RETURN_IF_ERROR(Install(table, bucket, LineOf(server, servers, !from_copy), dump,
                                   /*adopt=*/false,
                                   /*keep_rounds=*/true));
  }
  return {};
}

Result<std::vector<BucketLoad>> BucketClient::Loads(int table) {
  std::vector<BucketLoad> loads;
  std::vector<FrameCall> calls;
  calls.reserve(static_cast<std::size_t>(routes_.servers()));
  for (int server = 0; server < routes_.servers(); ++server) {
    calls.push_back({server, Assemble(Header(table, server), {})});
  }
  COHORT_RETURN_IF_ERROR(
      exchange_.Run("Loads", std::move(calls), [&](int server, ReceivedFrame& reply) -> Status {
        const FrameHeader& header = reply.frame.header;
        for (int i = 0; i < std::min(header.buckets_size(), header.updates_size()); ++i) {
          loads.push_back({header.buckets(i).bucket(), server, header.updates(i)});
        }
        return {};
      }));
  std::ranges::sort(loads, {}, &BucketLoad::bucket);
  return loads;
}

}  // namespace cohort::ps
