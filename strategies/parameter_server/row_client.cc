#include "parameter_server/row_client.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <cohort/io/crc32c.h>

#include "parameter_server/exchange.h"
#include "parameter_server/row_store.h"
#include "parameter_server/wire.h"

namespace cohort::ps {
namespace {

constexpr std::uint32_t kNone = 0xFFFFFFFF;
// How often a bucket that changes while its dump is fetched in pieces is begun anew.
constexpr int kDumpTries = 10;

// The different ids of a call, in the order of their first place.
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

// A run of `order`, all of one server, that is one frame.
struct Run {
  int server = 0;
  std::size_t begin = 0;
  std::size_t end = 0;
};

class GrpcRowClient final : public RowClient {
 public:
  GrpcRowClient(const ModelSpec& model, std::vector<std::string> addresses,
                const ClientOptions& options)
      : tables_(model.tables),
        layout_(model.Fingerprint()),
        servers_(model.servers),
        incarnation_(options.incarnation),
        epoch_(options.epoch),
        sequences_(addresses.size(), 0),
        exchange_(DataChannels(addresses), ServerNames(addresses), options.peer_timeout, "Rows",
                  options.epoch) {}

  Status Pull(int table, std::span<const std::uint64_t> ids, std::int64_t step, bool training,
              std::span<float> rows) override;
  Status Push(std::span<const Gradients> gradients, std::int64_t step, double weight) override;
  Status Dump(int table,
              const std::function<Status(std::uint32_t, std::string_view)>& take) override;
  Status Restore(int table, const std::function<Result<std::string>(std::uint32_t)>& give) override;
  void Abort(const Status& why) override { exchange_.Abort(why); }

 private:
  const TableSpec& SpecOf(int table) const {
    Require(table >= 0 && static_cast<std::size_t>(table) < tables_.size(), "a table of the model");
    return tables_[static_cast<std::size_t>(table)];
  }
  FrameHeader Header(int table) const {
    FrameHeader header;
    header.set_client(incarnation_);
    header.set_layout(layout_);
    header.set_epoch(epoch_);
    header.mutable_rows()->set_table(static_cast<std::uint32_t>(table));
    return header;
  }
  FrameHeader Header(int table, const Run& run, std::int64_t step) const {
    FrameHeader header = Header(table);
    RowBlock& rows = *header.mutable_rows();
    rows.set_count(static_cast<std::uint32_t>(run.end - run.begin));
    rows.set_dim(static_cast<std::uint32_t>(SpecOf(table).dim));
    rows.set_step(static_cast<std::uint64_t>(step));
    rows.set_tag(run.begin);
    return header;
  }
  // The ids by server, as indices in ascending order, and the frames into which they are cut.
  std::vector<Run> Route(const TableSpec& spec, std::span<const std::uint64_t> ids,
                         std::size_t bytes_per_id, std::vector<std::uint32_t>& order) const;
  void AddPushes(const Gradients& gradients, std::int64_t step, double weight,
                 std::vector<FrameCall>& calls);
  Result<std::string> DumpRest(int table, int server, BucketPiece piece, std::string begun);

  const std::vector<TableSpec> tables_;
  const std::uint64_t layout_;
  const int servers_;
  const std::uint64_t incarnation_;
  const std::uint64_t epoch_;
  std::vector<std::uint64_t> sequences_;  // by server
  Exchange exchange_;
};

std::vector<Run> GrpcRowClient::Route(const TableSpec& spec, std::span<const std::uint64_t> ids,
                                      std::size_t bytes_per_id,
                                      std::vector<std::uint32_t>& order) const {
  const auto servers = static_cast<std::size_t>(servers_);
  std::vector<std::uint32_t> server_of(ids.size());
  std::vector<std::size_t> ends(servers + 1, 0);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const int server = ServerOf(BucketOf(ids[i], spec.buckets), servers_, spec.buckets);
    server_of[i] = static_cast<std::uint32_t>(server);
    ++ends[static_cast<std::size_t>(server) + 1];
  }
  for (std::size_t s = 0; s < servers; ++s) {
    ends[s + 1] += ends[s];
  }
  order.resize(ids.size());
  std::vector<std::size_t> next(ends.begin(), ends.end() - 1);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    order[next[server_of[i]]++] = static_cast<std::uint32_t>(i);
  }
  const std::size_t most =
      std::max<std::size_t>(1, static_cast<std::size_t>(kMaxPayloadBytes) / bytes_per_id);
  std::vector<Run> runs;
  for (std::size_t s = 0; s < servers; ++s) {
    for (std::size_t begin = ends[s]; begin < ends[s + 1]; begin += most) {
      runs.push_back({static_cast<int>(s), begin, std::min(begin + most, ends[s + 1])});
    }
  }
  return runs;
}

Status GrpcRowClient::Pull(int table, std::span<const std::uint64_t> ids, std::int64_t step,
                           bool training, std::span<float> rows) {
  const TableSpec& spec = SpecOf(table);
  const auto dim = static_cast<std::size_t>(spec.dim);
  Require(rows.size() == ids.size() * dim, "room for a row of each id: " + spec.name);
  const UniqueIds unique(ids);
  std::vector<std::uint32_t> order;
  const std::vector<Run> runs =
      Route(spec, unique.ids, std::max(sizeof(std::uint64_t), dim * sizeof(float)), order);
  std::vector<FrameCall> calls;
  for (const Run& run : runs) {
    FrameHeader header = Header(table, run, step);
    header.mutable_rows()->set_training(training);
    std::span<float> memory;
    std::vector<grpc::Slice> payload = {NewSlice(2 * (run.end - run.begin), &memory)};
    auto* to = reinterpret_cast<std::byte*>(memory.data());
    for (std::size_t i = run.begin; i < run.end; ++i, to += sizeof(std::uint64_t)) {
      std::memcpy(to, &unique.ids[order[i]], sizeof(std::uint64_t));
    }
    calls.push_back({run.server, Assemble(header, std::move(payload))});
  }
  std::vector<float> values(unique.ids.size() * dim);
  COHORT_RETURN_IF_ERROR(
      exchange_.Run("Pull", std::move(calls), [&](int server, ReceivedFrame& reply) -> Status {
        const std::uint64_t tag = reply.frame.header.rows().tag();
        const auto run = std::ranges::find_if(
            runs, [&](const Run& r) { return r.begin == tag && r.server == server; });
        if (run == runs.end() ||
            reply.frame.payload.remaining() != (run->end - run->begin) * dim * sizeof(float)) {
          return Internal("table \"" + spec.name + "\": a server's reply of " +
                          std::to_string(reply.frame.payload.remaining()) +
                          " bytes answers no pull of this client");
        }
        for (std::size_t i = run->begin; i < run->end; ++i) {
          reply.frame.payload.Read(values.data() + order[i] * dim, dim * sizeof(float));
        }
        return {};
      }));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::memcpy(rows.data() + i * dim, values.data() + unique.place[i] * dim, dim * sizeof(float));
  }
  return {};
}

void GrpcRowClient::AddPushes(const Gradients& gradients, std::int64_t step, double weight,
                              std::vector<FrameCall>& calls) {
  const TableSpec& spec = SpecOf(gradients.table);
  const auto dim = static_cast<std::size_t>(spec.dim);
  Require(gradients.values.size() == gradients.ids.size() * dim,
          "as many gradients as ids: " + spec.name);
  const UniqueIds unique(gradients.ids);
  std::vector<std::uint32_t> counts(unique.ids.size(), 0);
  std::vector<float> sums(unique.ids.size() * dim);
  for (std::size_t i = 0; i < gradients.ids.size(); ++i) {
    const std::size_t u = unique.place[i];
    const float* const from = gradients.values.data() + i * dim;
    float* const to = sums.data() + u * dim;
    if (counts[u]++ == 0) {
      std::memcpy(to, from, dim * sizeof(float));
      continue;
    }
    for (std::size_t k = 0; k < dim; ++k) {
      to[k] += from[k];
    }
  }
  std::vector<std::uint32_t> order;
  const std::size_t bytes_per_id =
      sizeof(std::uint64_t) + sizeof(std::uint32_t) + dim * sizeof(float);
  for (const Run& run : Route(spec, unique.ids, bytes_per_id, order)) {
    FrameHeader header = Header(gradients.table, run, step);
    header.set_sequence(++sequences_[static_cast<std::size_t>(run.server)]);
    header.set_weight(weight);
    const std::size_t count = run.end - run.begin;
    std::span<float> memory;
    std::vector<grpc::Slice> payload = {NewSlice(count * bytes_per_id / sizeof(float), &memory)};
    auto* ids = reinterpret_cast<std::byte*>(memory.data());
    std::byte* numbers = ids + count * sizeof(std::uint64_t);
    float* values = memory.data() + 3 * count;
    for (std::size_t i = run.begin; i < run.end; ++i) {
      const std::size_t u = order[i];
      std::memcpy(ids, &unique.ids[u], sizeof(std::uint64_t));
      std::memcpy(numbers, &counts[u], sizeof(std::uint32_t));
      std::memcpy(values, sums.data() + u * dim, dim * sizeof(float));
      ids += sizeof(std::uint64_t);
      numbers += sizeof(std::uint32_t);
      values += dim;
    }
    calls.push_back({run.server, Assemble(header, std::move(payload))});
  }
}

Status GrpcRowClient::Push(std::span<const Gradients> gradients, std::int64_t step, double weight) {
  std::vector<FrameCall> calls;
  for (const Gradients& of_table : gradients) {
    AddPushes(of_table, step, weight, calls);
  }
  return exchange_.Run("Push", std::move(calls), [](int, ReceivedFrame&) { return Status(); });
}

// A bucket's dump of which `begun` has come, with `piece`; the rest in as many frames as it takes.
Result<std::string> GrpcRowClient::DumpRest(int table, int server, BucketPiece piece,
                                            std::string begun) {
  for (int tries = 0; tries < kDumpTries; ++tries) {
    BucketPiece next = piece;
    while (begun.size() < piece.total()) {
      FrameHeader header = Header(table);
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

Status GrpcRowClient::Dump(int table,
                           const std::function<Status(std::uint32_t, std::string_view)>& take) {
  const TableSpec& spec = SpecOf(table);
  for (int server = 0; server < servers_; ++server) {
    const BucketRange range = BucketsOf(server, servers_, spec.buckets);
    for (std::uint32_t bucket = range.begin; bucket < range.end;) {
      FrameHeader header = Header(table);
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

Status GrpcRowClient::Restore(int table,
                              const std::function<Result<std::string>(std::uint32_t)>& give) {
  const TableSpec& spec = SpecOf(table);
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
  return std::make_unique<GrpcRowClient>(model, std::move(addresses), options);
}

}  // namespace cohort::ps
