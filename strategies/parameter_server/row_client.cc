#include "parameter_server/row_client.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <utility>

#include <cohort/io/crc32c.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/exchange.h"
#include "parameter_server/frame_address.h"
#include "parameter_server/frame_link.h"
#include "parameter_server/row_codec.h"
#include "parameter_server/row_file.h"
#include "parameter_server/row_store.h"
#include "parameter_server/wire.h"

namespace cohort::ps {
namespace {

constexpr std::uint32_t kNone = 0xFFFFFFFF;
// How often a bucket that changes while its dump is fetched in pieces is begun anew.
constexpr int kDumpTries = 10;
constexpr std::chrono::milliseconds kLocateTimeout{1'000};
// Of payload: a server works on a frame while the next one is on its way.
constexpr std::size_t kFrameBytes = std::size_t{1} << 20;

// The different ids of a call.
struct UniqueIds {
  explicit UniqueIds(std::span<const std::uint64_t> input) : place(input.size()) {
    // Open addressing, at most half full.
    const std::size_t slots = std::bit_ceil(std::max<std::size_t>(16, 2 * input.size()));
    std::vector<std::uint32_t> index(slots, kNone);
    for (std::size_t i = 0; i < input.size(); ++i) {
      const std::uint64_t id = input[i];
      std::size_t slot = HashId(id) & (slots - 1);
      while (index[slot] != kNone && ids[index[slot]] != id) {
        slot = (slot + 1) & (slots - 1);
      }
      if (index[slot] == kNone) {
        index[slot] = static_cast<std::uint32_t>(ids.size());
        ids.push_back(id);
      }
      place[i] = index[slot];
    }
  }

  std::vector<std::uint64_t> ids;
  std::vector<std::uint32_t> place;  // in `ids`, of each of the input
};

// What is one frame: ids that are neighbours in `UniqueIds`, all of one server.
struct Run {
  int server = 0;
  std::size_t begin = 0;
  std::size_t end = 0;
};

// Puts the ids in the order of their servers, and else of their first place; the frames into which
// they are cut.
std::vector<Run> Route(UniqueIds& unique, std::uint32_t buckets, int servers,
                       std::size_t bytes_per_id) {
  const std::size_t count = unique.ids.size();
  std::vector<std::size_t> ends(static_cast<std::size_t>(servers) + 1, 0);
  if (servers == 1) {
    ends[1] = count;
  } else {
    std::vector<std::uint32_t> server_of(count);
    for (std::size_t u = 0; u < count; ++u) {
      server_of[u] =
          static_cast<std::uint32_t>(ServerOf(BucketOf(unique.ids[u], buckets), servers, buckets));
      ++ends[server_of[u] + 1];
    }
    for (std::size_t s = 1; s < ends.size(); ++s) {
      ends[s] += ends[s - 1];
    }
    std::vector<std::size_t> next(ends.begin(), ends.end() - 1);
    std::vector<std::uint32_t> moved(count);
    std::vector<std::uint64_t> ids(count);
    for (std::size_t u = 0; u < count; ++u) {
      const std::size_t to = next[server_of[u]]++;
      moved[u] = static_cast<std::uint32_t>(to);
      ids[to] = unique.ids[u];
    }
    unique.ids = std::move(ids);
    for (std::uint32_t& place : unique.place) {
      place = moved[place];
    }
  }
  const std::size_t most = std::max<std::size_t>(1, kFrameBytes / bytes_per_id);
  std::vector<Run> runs;
  for (std::size_t s = 0; s + 1 < ends.size(); ++s) {
    for (std::size_t begin = ends[s]; begin < ends[s + 1]; begin += most) {
      runs.push_back({static_cast<int>(s), begin, std::min(begin + most, ends[s + 1])});
    }
  }
  return runs;
}

const ReplyHandler kNothingBack = {
    .place = [](int, const FrameHeader&) -> Result<Places> { return Places(); },
    .done = [](int, const FrameHeader&) { return Status(); }};

// A payload is bytes; frames have their memory as floats.
template <typename T>
std::span<const float> Words(std::span<const T> values) {
  static_assert(sizeof(T) % sizeof(float) == 0);
  return {reinterpret_cast<const float*>(values.data()), values.size_bytes() / sizeof(float)};
}

// Ids as they travel: in 4 bytes each where all of a call fit.
class IdsOnTheWire {
 public:
  explicit IdsOnTheWire(const std::vector<std::uint64_t>& ids) : wide_(ids) {
    if (std::ranges::all_of(ids, [](std::uint64_t id) { return id <= 0xFFFFFFFF; })) {
      narrow_.assign(ids.begin(), ids.end());
    }
  }
  bool narrow() const { return narrow_.size() == wide_.size(); }
  std::span<const float> Of(const Run& run) const {
    const std::size_t count = run.end - run.begin;
    return narrow() ? Words(std::span(narrow_).subspan(run.begin, count))
                    : Words(wide_.subspan(run.begin, count));
  }

 private:
  std::span<const std::uint64_t> wide_;
  std::vector<std::uint32_t> narrow_;
};

// One table's part of a push, which is borrowed while it travels.
struct RowsToPush {
  RowsToPush(const RowClient::Gradients& gradients, std::size_t dim, std::uint32_t buckets,
             int servers)
      : unique(gradients.ids),
        runs(Route(unique, buckets, servers,
                   sizeof(std::uint64_t) + sizeof(std::uint32_t) + dim * sizeof(float))),
        ids(unique.ids),
        counts(unique.ids.size(), 0) {
    const std::span<float> sum = sums.Resize(unique.ids.size() * dim);
    for (std::size_t i = 0; i < gradients.ids.size(); ++i) {
      const std::size_t u = unique.place[i];
      const float* const from = gradients.values.data() + i * dim;
      float* const to = sum.data() + u * dim;
      if (counts[u]++ == 0) {
        std::memcpy(to, from, dim * sizeof(float));
        continue;
      }
      for (std::size_t k = 0; k < dim; ++k) {
        to[k] += from[k];
      }
    }
    PackCounts();
  }

  // Puts the sums of each run into the table's format, unless that is theirs.
  Status Encode(const TableSpec& spec) {
    if (spec.wire == TableSpec::Wire::kFloat32) {
      return {};
    }
    const auto dim = static_cast<std::size_t>(spec.dim);
    for (const Run& run : runs) {
      const std::size_t count = run.end - run.begin;
      const std::span<float> to =
          encoded.emplace_back().Resize(EncodedBytes(spec.wire, dim, count) / sizeof(float));
      const auto row =
          EncodeRows(spec.wire, dim, sums.values().subspan(run.begin * dim, count * dim),
                     std::as_writable_bytes(to));
      if (row.has_value()) {
        return InvalidArgument("table \"" + spec.name + "\": the gradient of id " +
                               std::to_string(unique.ids[run.begin + *row]) +
                               " does not fit in float16 [another wire format for the table]");
      }
    }
    return {};
  }

  UniqueIds unique;
  std::vector<Run> runs;
  IdsOnTheWire ids;
  std::vector<std::uint32_t> counts;  // by id
  FloatBuffer sums;
  std::vector<FloatBuffer> encoded;  // of each run
  // The counts of each run, as bytes up to a multiple of 4.
  std::uint32_t count_bytes = 4;
  std::vector<std::vector<std::uint32_t>> packed_counts;

 private:
  void PackCounts() {
    const std::uint32_t most = counts.empty() ? 0 : std::ranges::max(counts);
    count_bytes = most <= 0xFF ? 1 : most <= 0xFFFF ? 2 : 4;
    for (const Run& run : runs) {
      const std::size_t count = run.end - run.begin;
      auto& packed = packed_counts.emplace_back((count * count_bytes + 3) / 4);
      auto* to = reinterpret_cast<std::byte*>(packed.data());
      for (std::size_t i = run.begin; i < run.end; ++i, to += count_bytes) {
        std::memcpy(to, &counts[i], count_bytes);  // little endian: its low bytes
      }
    }
  }
};

class Implementation final : public RowClient {
 public:
  Implementation(const ModelSpec& model, std::vector<std::string> addresses,
                 const ClientOptions& options)
      : tables_(model.tables),
        layout_(model.Fingerprint()),
        servers_(model.servers),
        number_(options.client),
        epoch_(options.epoch),
        locate_timeout_(std::min(kLocateTimeout, options.peer_timeout)),
        transport_(options.transport),
        addresses_(std::move(addresses)),
        sequences_(addresses_.size(), 0),
        channels_(DataChannels(addresses_)),
        exchange_(channels_, ServerNames(addresses_), options.peer_timeout, "Rows", options.epoch),
        link_(FrameLink::Make(
            ServerNames(addresses_),
            [this](int server, bool may_share) { return Locate(server, may_share); },
            options.peer_timeout, options.read_timeout)) {}

  Status Pull(int table, std::span<const std::uint64_t> ids, std::int64_t step, bool training,
              std::span<float> rows) override;
  Status Push(std::span<const Gradients> gradients, std::int64_t step, double weight) override {
    return Push(gradients, step, weight, nullptr);
  }
  Status PushPart(std::span<const Gradients> gradients, std::int64_t step, double weight,
                  const Part& part) override {
    return Push(gradients, step, weight, &part);
  }
  void ReadAfter(std::uint64_t round) override { read_after_ = round; }
  void ReadSnapshot(std::uint64_t snapshot) override { snapshot_ = snapshot; }
  Status Dump(int table,
              const std::function<Status(std::uint32_t, std::string_view)>& take) override;
  Status Restore(int table, const std::function<Result<std::string>(std::uint32_t)>& give,
                 const std::vector<int>* servers) override;
  void Abort(const Status& why) override {
    exchange_.Abort(why);
    link_->Abort(why);
  }

 private:
  const TableSpec& SpecOf(int table) const {
    Require(table >= 0 && static_cast<std::size_t>(table) < tables_.size(), "a table of the model");
    return tables_[static_cast<std::size_t>(table)];
  }
  FrameHeader Header(int table) const {
    FrameHeader header;
    header.set_client(number_);
    header.set_layout(layout_);
    header.set_epoch(epoch_);
    header.mutable_rows()->set_table(static_cast<std::uint32_t>(table));
    return header;
  }
  FrameRequest Request(FrameMethod method, int table, const Run& run, const IdsOnTheWire& ids,
                       std::int64_t step) const {
    FrameRequest request{run.server, method, Header(table), {ids.Of(run)}};
    RowBlock& rows = *request.header.mutable_rows();
    rows.set_count(static_cast<std::uint32_t>(run.end - run.begin));
    rows.set_dim(static_cast<std::uint32_t>(SpecOf(table).dim));
    rows.set_step(static_cast<std::uint64_t>(step));
    rows.set_dtype(static_cast<std::uint32_t>(SpecOf(table).wire));
    rows.set_tag(run.begin);
    rows.set_narrow_ids(ids.narrow());
    return request;
  }
  Status Push(std::span<const Gradients> gradients, std::int64_t step, double weight,
              const Part* part);
  void AddPart(const Part& part, std::int64_t step, double weight,
               std::vector<FrameRequest>& requests);
  Status WaitForRounds(int table);
  Result<std::string> Locate(int server, bool may_share);
  Result<std::string> DumpRest(int table, int server, BucketPiece piece, std::string begun);

  const std::vector<TableSpec> tables_;
  const std::uint64_t layout_;
  const int servers_;
  const std::uint64_t number_;  // of this client
  const std::uint64_t epoch_;
  const std::chrono::milliseconds locate_timeout_;
  const FrameTransport transport_;
  const std::vector<std::string> addresses_;
  std::vector<std::uint64_t> sequences_;  // by server
  const std::vector<std::shared_ptr<grpc::Channel>> channels_;
  Exchange exchange_;
  const std::unique_ptr<FrameLink> link_;
  std::uint64_t read_after_ = 0;
  std::uint64_t snapshot_ = 0;  // that Dump reads
  FloatBuffer values_;          // of a pull, each id once
};

Result<std::string> Implementation::Locate(int server, bool may_share) {
  const auto s = static_cast<std::size_t>(server);
  return LocateFrames(*Servers::NewStub(channels_[s]), addresses_[s], transport_, may_share,
                      locate_timeout_);
}

Status Implementation::Pull(int table, std::span<const std::uint64_t> ids, std::int64_t step,
                            bool training, std::span<float> rows) {
  const TableSpec& spec = SpecOf(table);
  const auto dim = static_cast<std::size_t>(spec.dim);
  Require(rows.size() == ids.size() * dim, "room for a row of each id: " + spec.name);
  UniqueIds unique(ids);
  const std::vector<Run> runs =
      Route(unique, spec.buckets, servers_, std::max(sizeof(std::uint64_t), dim * sizeof(float)));
  const IdsOnTheWire on_the_wire(unique.ids);
  std::vector<FrameRequest> requests;
  for (const Run& run : runs) {
    requests.push_back(Request(FrameMethod::kPullRows, table, run, on_the_wire, step));
    FrameHeader& header = requests.back().header;
    header.mutable_rows()->set_training(training);
    header.mutable_rows()->set_after_round(read_after_);
    header.set_bounded(read_after_ > 0);
  }
  const std::span<float> values = values_.Resize(unique.ids.size() * dim);
  const bool encoded = spec.wire != TableSpec::Wire::kFloat32;
  std::vector<FloatBuffer> packed(encoded ? runs.size() : 0);
  for (std::size_t r = 0; r < packed.size(); ++r) {
    packed[r].Resize(EncodedBytes(spec.wire, dim, runs[r].end - runs[r].begin) / sizeof(float));
  }
  const auto place = [&](int server, const FrameHeader& header) -> Result<Places> {
    if (header.epoch() != epoch_) {
      return StaleReply("ps:" + std::to_string(server), header.epoch(), epoch_);
    }
    const std::uint64_t tag = header.rows().tag();
    const auto run = std::ranges::find_if(
        runs, [&](const Run& r) { return r.begin == tag && r.server == server; });
    if (run == runs.end()) {
      return Internal("table \"" + spec.name +
                      "\": a server's reply answers no pull of this client");
    }
    if (encoded) {
      return Places{packed[static_cast<std::size_t>(run - runs.begin())].values()};
    }
    return Places{values.subspan(run->begin * dim, (run->end - run->begin) * dim)};
  };
  COHORT_RETURN_IF_ERROR(link_->Run(
      requests, {.place = place, .done = [](int, const FrameHeader&) { return Status(); }}));
  for (std::size_t r = 0; r < packed.size(); ++r) {
    DecodeRows(spec.wire, dim, std::as_bytes(packed[r].values()),
               values.subspan(runs[r].begin * dim, (runs[r].end - runs[r].begin) * dim));
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::memcpy(rows.data() + i * dim, values.data() + unique.place[i] * dim, dim * sizeof(float));
  }
  return {};
}

Status Implementation::Push(std::span<const Gradients> gradients, std::int64_t step, double weight,
                            const Part* part) {
  std::deque<RowsToPush> tables;
  std::vector<FrameRequest> requests;
  for (const Gradients& of_table : gradients) {
    const TableSpec& spec = SpecOf(of_table.table);
    const auto dim = static_cast<std::size_t>(spec.dim);
    Require(of_table.values.size() == of_table.ids.size() * dim,
            "as many gradients as ids: " + spec.name);
    RowsToPush& rows = tables.emplace_back(of_table, dim, spec.buckets, servers_);
    COHORT_RETURN_IF_ERROR(rows.Encode(spec));
    for (std::size_t r = 0; r < rows.runs.size(); ++r) {
      const Run& run = rows.runs[r];
      FrameRequest& request = requests.emplace_back(
          Request(FrameMethod::kPushRows, of_table.table, run, rows.ids, step));
      request.header.set_sequence(++sequences_[static_cast<std::size_t>(run.server)]);
      request.header.set_weight(weight);
      request.header.mutable_rows()->set_count_bytes(rows.count_bytes);
      request.payload.push_back(Words(std::span<const std::uint32_t>(rows.packed_counts[r])));
      request.payload.push_back(
          rows.encoded.empty()
              ? rows.sums.values().subspan(run.begin * dim, (run.end - run.begin) * dim)
              : rows.encoded[r].values());
    }
  }
  if (part != nullptr) {
    AddPart(*part, step, weight, requests);
  }
  return link_->Run(requests, kNothingBack);
}

// Says of each frame which part of which round it is, and of each server's last one that it is the
// last: one without ids where the part has none there.
void Implementation::AddPart(const Part& part, std::int64_t step, double weight,
                             std::vector<FrameRequest>& requests) {
  for (int s = 0; s < servers_; ++s) {
    FrameRequest& end =
        requests.emplace_back(FrameRequest{s, FrameMethod::kPushRows, Header(0), {}});
    end.header.set_sequence(++sequences_[static_cast<std::size_t>(s)]);
    end.header.set_weight(weight);
    end.header.set_advance(true);
    end.header.mutable_rows()->set_dim(static_cast<std::uint32_t>(SpecOf(0).dim));
    end.header.mutable_rows()->set_dtype(static_cast<std::uint32_t>(SpecOf(0).wire));
    end.header.mutable_rows()->set_step(static_cast<std::uint64_t>(step));
  }
  for (FrameRequest& request : requests) {
    Round& round = *request.header.mutable_round();
    round.set_round(part.round);
    round.set_attempt(static_cast<std::uint32_t>(part.attempt));
    round.set_part(static_cast<std::uint32_t>(part.part));
    round.set_parts(static_cast<std::uint32_t>(part.parts));
  }
}

Status Implementation::WaitForRounds(int table) {
  if (read_after_ == 0) {
    return {};
  }
  std::vector<FrameRequest> requests;
  for (int s = 0; s < servers_; ++s) {
    FrameHeader& header =
        requests.emplace_back(FrameRequest{s, FrameMethod::kPullRows, Header(table), {}}).header;
    header.mutable_rows()->set_dim(static_cast<std::uint32_t>(SpecOf(table).dim));
    header.mutable_rows()->set_dtype(static_cast<std::uint32_t>(SpecOf(table).wire));
    header.mutable_rows()->set_step(1);
    header.mutable_rows()->set_after_round(read_after_);
    header.set_bounded(true);
  }
  return link_->Run(requests, kNothingBack);
}

// A bucket's dump of which `begun` has come, with `piece`; the rest in as many frames as it takes.
Result<std::string> Implementation::DumpRest(int table, int server, BucketPiece piece,
                                             std::string begun) {
  for (int tries = 0; tries < kDumpTries; ++tries) {
    BucketPiece next = piece;
    while (begun.size() < piece.total()) {
      FrameHeader header = Header(table);
      header.set_snapshot(snapshot_);
      BucketPiece* from = header.add_buckets();
      from->set_bucket(piece.bucket());
      from->set_offset(begun.size());
      std::vector<FrameCall> calls;
      calls.push_back({server, Assemble(header, {})});
      COHORT_RETURN_IF_ERROR(
          exchange_.Run("Dump", std::move(calls), [&](int, ReceivedFrame& reply) -> Status {
            if (reply.frame.header.buckets_size() < 1 ||
                reply.frame.header.buckets(0).bytes() > reply.frame.payload.remaining()) {
              return Internal("table \"" + SpecOf(table).name + "\": an empty piece of bucket " +
                              std::to_string(piece.bucket()));
            }
            next = reply.frame.header.buckets(0);
            begun.resize(next.offset() + next.bytes());
            reply.frame.payload.Read(begun.data() + next.offset(), next.bytes());
            return {};
          }));
      if (next.total() != piece.total() || next.crc32c() != piece.crc32c()) {
        break;  // rows changed: from the beginning
      }
    }
    if (begun.size() == piece.total() &&
        io::Crc32c(std::as_bytes(std::span(begun))) == piece.crc32c()) {
      return begun;
    }
    piece.set_total(next.total());
    piece.set_crc32c(next.crc32c());
    begun.clear();
  }
  return Aborted("table \"" + SpecOf(table).name + "\": bucket " + std::to_string(piece.bucket()) +
                 " changes while it is saved [save while nobody trains]");
}

Status Implementation::Dump(int table,
                            const std::function<Status(std::uint32_t, std::string_view)>& take) {
  const TableSpec& spec = SpecOf(table);
  COHORT_RETURN_IF_ERROR(snapshot_ == 0 ? WaitForRounds(table) : OkStatus());
  for (int server = 0; server < servers_; ++server) {
    const BucketRange range = BucketsOf(server, servers_, spec.buckets);
    for (std::uint32_t bucket = range.begin; bucket < range.end;) {
      FrameHeader header = Header(table);
      header.set_snapshot(snapshot_);
      header.add_buckets()->set_bucket(bucket);
      std::vector<FrameCall> calls;
      calls.push_back({server, Assemble(header, {})});
      std::vector<std::pair<BucketPiece, std::string>> pieces;
      COHORT_RETURN_IF_ERROR(
          exchange_.Run("Dump", std::move(calls), [&](int, ReceivedFrame& reply) -> Status {
            for (const BucketPiece& piece : reply.frame.header.buckets()) {
              if (piece.bytes() > reply.frame.payload.remaining()) {
                return Internal("table \"" + spec.name + "\": a dump that is cut short");
              }
              std::string bytes(piece.bytes(), '\0');
              reply.frame.payload.Read(bytes.data(), bytes.size());
              pieces.emplace_back(piece, std::move(bytes));
            }
            return {};
          }));
      for (auto& [piece, begun] : pieces) {
        if (piece.bucket() != bucket) {
          return Internal("table \"" + spec.name + "\": bucket " + std::to_string(piece.bucket()) +
                          " instead of " + std::to_string(bucket));
        }
        COHORT_ASSIGN_OR_RETURN(const std::string dump,
                                DumpRest(table, server, piece, std::move(begun)));
        COHORT_RETURN_IF_ERROR(take(bucket, dump));
        ++bucket;
      }
      if (pieces.empty()) {
        return Internal("table \"" + spec.name + "\": no dump of bucket " + std::to_string(bucket));
      }
    }
  }
  return {};
}

Status Implementation::Restore(int table,
                               const std::function<Result<std::string>(std::uint32_t)>& give,
                               const std::vector<int>* servers) {
  const TableSpec& spec = SpecOf(table);
  COHORT_RETURN_IF_ERROR(WaitForRounds(table));
  constexpr auto kMost = static_cast<std::size_t>(kMaxPayloadBytes);
  FrameHeader header;
  std::string payload;
  const auto send = [&](int server) {
    std::vector<FrameCall> calls;
    calls.push_back({server, Assemble(header, {grpc::Slice(payload)})});
    header = Header(table);
    payload.clear();
    return exchange_.Run("Restore", std::move(calls), [](int, ReceivedFrame&) { return Status(); });
  };
  for (int server = 0; server < servers_; ++server) {
    const BucketRange range = BucketsOf(server, servers_, spec.buckets);
    header = Header(table);
    for (std::uint32_t bucket = range.begin; bucket < range.end; ++bucket) {
      COHORT_ASSIGN_OR_RETURN(const std::string dump, give(bucket));
      if (servers != nullptr && std::ranges::find(*servers, server) == servers->end()) {
        continue;
      }
      const std::uint32_t crc = io::Crc32c(std::as_bytes(std::span(dump)));
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
      if (dump.size() > kMost) {
        // The end of a bucket in pieces travels alone: a server that is told it again knows it.
        COHORT_RETURN_IF_ERROR(send(server));
      }
    }
    if (header.buckets_size() > 0) {
      COHORT_RETURN_IF_ERROR(send(server));
    }
  }
  return {};
}

}  // namespace

std::unique_ptr<RowClient> RowClient::Make(const ModelSpec& model,
                                           std::vector<std::string> addresses,
                                           const ClientOptions& options) {
  Require(static_cast<int>(addresses.size()) == model.servers, "an address for every server");
  return std::make_unique<Implementation>(model, std::move(addresses), options);
}

Status SaveTable(RowClient& client, int table, const TableSpec& spec, FileSystem& files,
                 const std::string& path) {
  const auto save = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto writer,
                            RowFileWriter::Create(files, path, spec, {0, spec.buckets}));
    COHORT_RETURN_IF_ERROR(client.Dump(table, [&](std::uint32_t /*bucket*/, std::string_view dump) {
      return writer->Write(dump);
    }));
    return writer->Close();
  };
  return save().Annotate("rows of table \"" + spec.name + "\"");
}

Status LoadTable(RowClient& client, int table, const TableSpec& spec, FileSystem& files,
                 const std::string& path, const std::vector<int>* servers) {
  const auto load = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto reader, RowFileReader::Open(files, path, spec));
    return client.Restore(
        table, [&](std::uint32_t bucket) { return reader->Read(bucket); }, servers);
  };
  return load().Annotate("rows of table \"" + spec.name + "\"");
}

}  // namespace cohort::ps
