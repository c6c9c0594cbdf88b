#include "parameter_server/rows/row_client.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <numeric>
#include <utility>

#include <cohort/optim/id_index.h>
#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/frames/frame_address.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/renewable_channel.h"
#include "parameter_server/frames/row_codec.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/rows/background.h"
#include "parameter_server/rows/bucket_client.h"
#include "parameter_server/rows/late_rows.h"
#include "parameter_server/rows/pulled_rows.h"
#include "parameter_server/rows/row_file.h"
#include "parameter_server/rows/row_frames.h"
#include "parameter_server/rows/row_residuals.h"
#include "parameter_server/rows/row_routes.h"

namespace cohort::ps {
namespace {

constexpr std::chrono::milliseconds kLocateTimeout{1'000};

// The different ids of a call.
struct UniqueIds {
  // Of ids that are different.
  static UniqueIds Of(std::vector<std::uint64_t> ids) {
    UniqueIds unique({});
    unique.ids = std::move(ids);
    unique.place.resize(unique.ids.size());
    std::iota(unique.place.begin(), unique.place.end(), 0U);
    return unique;
  }
  explicit UniqueIds(std::span<const std::uint64_t> input) : place(input.size()) {
    IdIndex index(input.size());
    for (std::size_t i = 0; i < input.size(); ++i) {
      place[i] = index.Add(input[i]);
    }
    ids = std::move(index).TakeIds();
  }

  std::vector<std::uint64_t> ids;
  std::vector<std::uint32_t> place;  // in `ids`, of each of the input
};

// What is one block of a frame: ids that are neighbours in `UniqueIds`, all of one server.
struct Run {
  int server = 0;
  std::size_t begin = 0;
  std::size_t end = 0;
};

// Puts the ids in the order of their servers, and else of their first place; the runs into which
// they are cut, none of more than a frame.
std::vector<Run> Route(UniqueIds& unique, int table, std::uint32_t buckets, const RowRoutes& routes,
                       std::size_t bytes_per_id) {
  const std::size_t count = unique.ids.size();
  const int servers = routes.servers();
  std::vector<std::size_t> ends(static_cast<std::size_t>(servers) + 1, 0);
  if (servers == 1) {
    ends[1] = count;
  } else {
    std::vector<std::uint32_t> server_of(count);
    for (std::size_t u = 0; u < count; ++u) {
      server_of[u] =
          static_cast<std::uint32_t>(routes.ServerOf(table, BucketOf(unique.ids[u], buckets)));
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

// Are buckets not where they were sought?
bool SaysMoved(const FrameHeader& reply) {
  for (std::size_t i = 0; i < NumBlocks(reply); ++i) {
    if (BlockAt(reply, i).moved_size() > 0) {
      return true;
    }
  }
  return false;
}

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

// Of tables of a call: `Table` has runs and bytes_per_id.
template <typename Table>
RowFrames PackFrames(const std::deque<Table>& tables) {
  std::vector<RowPiece> pieces;
  for (std::size_t t = 0; t < tables.size(); ++t) {
    for (std::size_t r = 0; r < tables[t].runs.size(); ++r) {
      const Run& run = tables[t].runs[r];
      pieces.push_back({.server = run.server,
                        .bytes = (run.end - run.begin) * tables[t].bytes_per_id,
                        .table = t,
                        .run = r});
    }
  }
  return {std::move(pieces), kFrameBytes};
}

// What servers did not take, or give: by table of a call, in any order.
struct Refused {
  explicit Refused(std::size_t tables) : runs(tables) {}
  std::deque<std::vector<std::size_t>> runs;
  std::string first;  // a bucket that is not where it was sought
};

// The ids of these runs.
std::vector<std::uint64_t> IdsOf(const UniqueIds& unique, std::span<const Run> runs,
                                 std::span<const std::size_t> which) {
  std::vector<std::uint64_t> ids;
  for (const std::size_t r : which) {
    ids.insert(ids.end(), unique.ids.begin() + static_cast<std::ptrdiff_t>(runs[r].begin),
               unique.ids.begin() + static_cast<std::ptrdiff_t>(runs[r].end));
  }
  return ids;
}

// One table's part of a pull.
struct RowsToPull {
  // `unique` in the order of their servers. `memory` holds the rows, and lives as long as they are
  // needed.
  RowsToPull(int of, const TableSpec& spec, bool makes_rows, UniqueIds ids_of_it,
             const RowRoutes& routes, LateParts late, FloatBuffer& memory)
      : table(of),
        dim(static_cast<std::size_t>(spec.dim)),
        wire(spec.wire),
        training(makes_rows),
        bytes_per_id(std::max(sizeof(std::uint64_t), dim * sizeof(float) + late.PullBytes(1))),
        unique(std::move(ids_of_it)),
        runs(Route(unique, table, spec.buckets, routes, bytes_per_id)),
        ids(unique.ids),
        rows(memory.Resize(unique.ids.size() * dim)),
        updates(late.updates ? unique.ids.size() : 0, kNoRow),
        encoded(wire == TableSpec::Wire::kFloat32 ? 0 : runs.size()) {
    for (std::size_t r = 0; r < encoded.size(); ++r) {
      encoded[r].Resize(EncodedBytes(wire, dim, runs[r].end - runs[r].begin) / sizeof(float));
    }
  }

  std::span<float> RowsOf(const Run& run) const {
    return rows.subspan(run.begin * dim, (run.end - run.begin) * dim);
  }
  // Where the rows of a run go that come from a server, and the updates that they have had.
  void AddPlaces(std::size_t r, Places* places) {
    const Run& run = runs[r];
    places->push_back(encoded.empty() ? RowsOf(run) : encoded[r].values());
    if (!updates.empty()) {
      places->emplace_back(reinterpret_cast<float*>(updates.data() + run.begin),
                           run.end - run.begin);
    }
  }
  void Decode(std::span<const std::size_t> refused) {
    for (std::size_t r = 0; r < encoded.size(); ++r) {
      if (std::ranges::find(refused, r) == refused.end()) {
        DecodeRows(wire, dim, std::as_bytes(encoded[r].values()), RowsOf(runs[r]));
      }
    }
  }
  // Those of runs that another one of their ids, in their order, was pulled for.
  void TakeFrom(const RowsToPull& other, std::span<const std::size_t> refused) {
    std::size_t i = 0;
    for (const std::size_t r : refused) {
      for (std::size_t to = runs[r].begin; to < runs[r].end; ++to, ++i) {
        const std::size_t from = other.unique.place[i];
        std::memcpy(rows.data() + to * dim, other.rows.data() + from * dim, dim * sizeof(float));
        if (!updates.empty()) {
          updates[to] = other.updates[from];
        }
      }
    }
  }

  const int table;
  const std::size_t dim;
  const TableSpec::Wire wire;
  const bool training;
  const std::size_t bytes_per_id;
  UniqueIds unique;
  std::vector<Run> runs;
  IdsOnTheWire ids;
  const std::span<float> rows;         // [unique, dim]
  std::vector<std::uint32_t> updates;  // of each, where the table has that (late_rows.h)
  std::vector<FloatBuffer> encoded;    // of each run, unless rows travel as they are
};

// One table's part of a push, which is borrowed while it travels.
struct RowsToPush {
  // `unique` in the order of their servers; who makes it fills in the rest, and calls Encode.
  // `add`: what is kept of the table's rounded gradients; null: nothing, or these have it.
  RowsToPush(int of, const TableSpec& spec, UniqueIds ids_of_it, const RowRoutes& routes,
             RowResiduals* add, LateParts late_parts)
      : table(of),
        dim(static_cast<std::size_t>(spec.dim)),
        residuals(add),
        bytes_per_id(sizeof(std::uint64_t) + sizeof(std::uint32_t) + dim * sizeof(float) +
                     late_parts.PushBytes(TableSpec::Wire::kFloat32, dim, 1)),
        unique(std::move(ids_of_it)),
        runs(Route(unique, table, spec.buckets, routes, bytes_per_id)),
        ids(unique.ids),
        counts(unique.ids.size(), 0),
        late(late_parts, unique.ids.size(), dim) {
    sums.Resize(unique.ids.size() * dim);
  }

  // Adds up the gradients of the ids that `unique` was made of.
  void Add(const RowClient::Gradients& gradients) {
    const std::span<float> sum = sums.values();
    for (std::size_t i = 0; i < unique.place.size(); ++i) {
      const std::size_t u = unique.place[i];
      const float* const from = gradients.values.data() + i * dim;
      float* const to = sum.data() + u * dim;
      const bool first = counts[u] == 0;
      counts[u] += gradients.counts.empty() ? 1 : gradients.counts[i];
      if (first) {
        std::memcpy(to, from, dim * sizeof(float));
        continue;
      }
      for (std::size_t k = 0; k < dim; ++k) {
        to[k] += from[k];
      }
    }
  }

  // Takes the runs of another that were not taken where they were sent. `unique` is made of their
  // ids.
  void TakeFrom(RowsToPush& other, std::span<const std::size_t> refused) {
    std::size_t i = 0;
    for (const std::size_t r : refused) {
      for (std::size_t from = other.runs[r].begin; from < other.runs[r].end; ++from, ++i) {
        const std::size_t u = unique.place[i];
        counts[u] = other.counts[from];
        std::ranges::copy(other.sums.values().subspan(from * dim, dim),
                          sums.values().subspan(u * dim, dim).begin());
        late.Take(u, other.late, from, dim);
      }
    }
  }

  // Puts the sums of each run into the table's format, unless that is theirs. Once.
  Status Encode(const TableSpec& spec, double weight) {
    PackCounts();
    if (spec.wire == TableSpec::Wire::kFloat32) {
      return {};
    }
    for (const Run& run : runs) {
      const std::size_t count = run.end - run.begin;
      const std::span<float> to =
          encoded.emplace_back().Resize(EncodedBytes(spec.wire, dim, count) / sizeof(float));
      const std::span<float> rows = sums.values().subspan(run.begin * dim, count * dim);
      const std::span<std::byte> bytes = std::as_writable_bytes(to);
      const auto row =
          residuals == nullptr
              ? EncodeRows(spec.wire, dim, rows, bytes)
              : residuals->Encode(std::span(unique.ids).subspan(run.begin, count),
                                  std::span(counts).subspan(run.begin, count), weight, rows, bytes);
      if (row.has_value()) {
        return InvalidArgument("table \"" + spec.name + "\": the gradient of id " +
                               std::to_string(unique.ids[run.begin + *row]) + " does not fit in " +
                               std::string(WireName(spec.wire)) +
                               " [another wire format for the table]");
      }
    }
    return {};
  }

  const int table;
  const std::size_t dim;
  RowResiduals* const residuals;
  const std::size_t bytes_per_id;
  UniqueIds unique;
  std::vector<Run> runs;
  IdsOnTheWire ids;
  std::vector<std::uint32_t> counts;  // by id
  FloatBuffer sums;
  LateRows late;
  std::vector<FloatBuffer> encoded;  // of each run
  std::deque<FloatBuffer> encoded_late;
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

class FrameRowClient final : public RowClient {
 public:
  FrameRowClient(const ModelSpec& model, std::vector<std::string> addresses,
                 const ClientOptions& options)
      : tables_(model.tables),
        layout_(model.Fingerprint()),
        number_(options.client),
        epoch_(options.epoch),
        read_timeout_(options.read_timeout),
        locate_timeout_(std::min(kLocateTimeout, options.peer_timeout / 2)),
        transport_(options.transport),
        copies_(model.copies),
        addresses_(std::move(addresses)),
        sequences_(options.row_pushes),
        channels_(LineChannels(model, addresses_)),
        routes_(model.tables, model.servers),
        feedback_(model, options.comes_again),
        pulled_(model, options.comes_again),
        buckets_(model, addresses_, channels_, options, routes_),
        link_(FrameLink::Make(
            LineNames(model, addresses_),
            [this](int line, bool may_share) { return Locate(line, may_share); },
            options.peer_timeout, options.read_timeout)) {
    sequences_.resize(addresses_.size(), 0);
  }

  Status Pull(std::span<const Lookup> lookups, std::int64_t step) override;
  void Use(int table, std::span<const std::uint64_t> ids, std::span<const std::uint32_t> updates,
           std::span<const float> rows) override {
    pulled_.Pulled(table, ids, updates, rows);
  }
  Status Push(std::span<const Gradients> gradients, std::int64_t step, double weight) override {
    return Push(gradients, step, weight, nullptr);
  }
  Status PushPart(std::span<const Gradients> gradients, std::int64_t step, double weight,
                  const Part& part) override {
    return Push(gradients, step, weight, &part);
  }
  void ReadAfter(std::uint64_t round) override { read_after_ = round; }
  Status AwaitRounds() override { return WaitForRounds(0); }
  void Elected(const Commit& commit) override {
    elected_ = commit;
    feedback_.Elected(commit);
  }
  void ReadSnapshot(std::uint64_t snapshot, std::uint64_t since) override {
    version_ = {.snapshot = snapshot, .since = since};
  }
  Status Dump(int table, const BucketClient::Take& take) override {
    static_cast<void>(SpecOf(table));
    COHORT_RETURN_IF_ERROR(version_.snapshot == 0 ? WaitForRounds(table) : OkStatus());
    return buckets_.Dump(table, version_, take);
  }
  Status Restore(int table, const BucketClient::Give& give,
                 const std::vector<int>* servers) override {
    static_cast<void>(SpecOf(table));
    COHORT_RETURN_IF_ERROR(WaitForRounds(table));
    return buckets_.Restore(table, give, servers);
  }
  Status Move(int table, std::uint32_t bucket, int to) override {
    static_cast<void>(SpecOf(table));
    return buckets_.Move(table, bucket, to);
  }
  Status CopyPart(int table, int server, Client::Mend which) override {
    static_cast<void>(SpecOf(table));
    return buckets_.CopyPart(table, server, which);
  }
  std::vector<std::uint64_t> pushes() const override { return sequences_; }
  void TakeOver(RowClient& before) override;
  Residuals residuals() const override { return feedback_.stats(); }
  Result<std::vector<BucketLoad>> Loads(int table) override {
    static_cast<void>(SpecOf(table));
    return buckets_.Loads(table);
  }
  void Abort(const Status& why) override {
    buckets_.Abort(why);
    link_->Abort(why);
  }

 private:
  const TableSpec& SpecOf(int table) const {
    Require(table >= 0 && static_cast<std::size_t>(table) < tables_.size(), "a table of the model");
    return tables_[static_cast<std::size_t>(table)];
  }
  FrameRequest Request(int server, FrameMethod method) const {
    FrameRequest request{server, method, {}, {}};
    request.header.set_client(number_);
    request.header.set_layout(layout_);
    request.header.set_epoch(epoch_);
    return request;
  }
  // One without ids.
  RowBlock& AddEmptyBlock(FrameRequest& request, int table, std::int64_t step) const {
    RowBlock& rows = AddBlock(request.header);
    rows.set_table(static_cast<std::uint32_t>(table));
    rows.set_dim(static_cast<std::uint32_t>(SpecOf(table).dim));
    rows.set_step(static_cast<std::uint64_t>(step));
    rows.set_dtype(static_cast<std::uint32_t>(SpecOf(table).wire));
    return rows;
  }
  RowBlock& AddBlockOf(FrameRequest& request, int table, const Run& run, const IdsOnTheWire& ids,
                       std::int64_t step, std::size_t tag) const {
    RowBlock& rows = AddEmptyBlock(request, table, step);
    rows.set_count(static_cast<std::uint32_t>(run.end - run.begin));
    rows.set_tag(tag);
    rows.set_narrow_ids(ids.narrow());
    request.payload.push_back(ids.Of(run));
    return rows;
  }
  Status Push(std::span<const Gradients> gradients, std::int64_t step, double weight,
              const Part* part);
  Status PushAll(std::span<const Gradients> gradients, std::int64_t step, double weight,
                 const Part* part);
  Status PushOnce(std::deque<RowsToPush>& tables, std::int64_t step, double weight,
                  const Part* part, Refused* refused);
  Status PullAll(std::deque<RowsToPull>& tables, std::int64_t step, Patience& patience);
  Status PullOnce(std::deque<RowsToPull>& tables, std::int64_t step, Refused* refused);
  template <typename Table>
  Status Learn(const std::deque<Table>& tables, const RowFrames& frames,
               const RowFrames::Frame& frame, const FrameHeader& reply, Refused* refused);
  void BringElected(FrameHeader& header) const;
  void AddPart(const Part& part, std::int64_t step, double weight,
               std::vector<FrameRequest>& requests);
  Status WaitForRounds(int table);
  Result<std::string> Locate(int line, bool may_share);
  static std::vector<std::shared_ptr<RenewableChannel>> LineChannels(
      const ModelSpec& model, const std::vector<std::string>& addresses);

  const std::vector<TableSpec> tables_;
  const std::uint64_t layout_;
  const std::uint64_t number_;  // of this client
  const std::uint64_t epoch_;
  const std::chrono::milliseconds read_timeout_;
  const std::chrono::milliseconds locate_timeout_;
  const FrameTransport transport_;
  const bool copies_;
  const std::vector<std::string> addresses_;
  std::vector<std::uint64_t> sequences_;                           // by server
  const std::vector<std::shared_ptr<RenewableChannel>> channels_;  // by line
  RowRoutes routes_;
  RowFeedback feedback_;
  PulledRows pulled_;
  BucketClient buckets_;
  const std::unique_ptr<FrameLink> link_;
  std::uint64_t read_after_ = 0;
  Commit elected_;                  // round 0: none
  BucketClient::Version version_;   // that Dump reads
  std::deque<FloatBuffer> values_;  // of a pull, each id once; memory that is kept
};

std::vector<std::shared_ptr<RenewableChannel>> FrameRowClient::LineChannels(
    const ModelSpec& model, const std::vector<std::string>& addresses) {
  std::vector<std::shared_ptr<RenewableChannel>> channels = DataChannels(addresses);
  for (int line = model.servers; model.copies && line < 2 * model.servers; ++line) {
    channels.push_back(channels[static_cast<std::size_t>(ServerOfLine(line, model.servers))]);
  }
  return channels;
}

Result<std::string> FrameRowClient::Locate(int line, bool may_share) {
  const auto s = static_cast<std::size_t>(ServerOfLine(line, routes_.servers()));
  const std::shared_ptr<grpc::Channel> channel = channels_[s]->get();
  Result<std::string> address = LocateFrames(*Servers::NewStub(channel), addresses_[s], transport_,
                                             may_share, locate_timeout_);
  if (address.status().code() == StatusCode::kDeadlineExceeded) {
    channels_[s]->Renew(channel);
  }
  return address;
}

Status FrameRowClient::Pull(std::span<const Lookup> lookups, std::int64_t step) {
  if (values_.size() < lookups.size()) {
    values_.resize(lookups.size());
  }
  std::deque<RowsToPull> tables;
  for (std::size_t i = 0; i < lookups.size(); ++i) {
    const Lookup& lookup = lookups[i];
    const TableSpec& spec = SpecOf(lookup.table);
    Require(lookup.rows.size() == lookup.ids.size() * static_cast<std::size_t>(spec.dim),
            "room for a row of each id: " + spec.name);
    Require(lookup.updates.empty() || (pulled_.PartsOf(lookup.table).updates &&
                                       lookup.updates.size() == lookup.ids.size()),
            "updates of each id, of a table that has them: " + spec.name);
    tables.emplace_back(lookup.table, spec, lookup.training, UniqueIds(lookup.ids), routes_,
                        pulled_.PartsOf(lookup.table), values_[i]);
  }
  Patience patience(read_timeout_);
  COHORT_RETURN_IF_ERROR(PullAll(tables, step, patience));
  for (std::size_t i = 0; i < lookups.size(); ++i) {
    const RowsToPull& pulled = tables[i];
    const std::span<std::uint32_t> updates = lookups[i].updates;
    if (lookups[i].training && updates.empty()) {
      pulled_.Pulled(pulled.table, pulled.unique.ids, pulled.updates, pulled.rows);
    }
    for (std::size_t j = 0; j < updates.size(); ++j) {
      updates[j] = pulled.updates[pulled.unique.place[j]];
    }
    for (std::size_t j = 0; j < pulled.unique.place.size(); ++j) {
      std::memcpy(lookups[i].rows.data() + j * pulled.dim,
                  pulled.rows.data() + pulled.unique.place[j] * pulled.dim,
                  pulled.dim * sizeof(float));
    }
  }
  return {};
}

Status FrameRowClient::PullAll(std::deque<RowsToPull>& tables, std::int64_t step,
                               Patience& patience) {
  Refused refused(tables.size());
  COHORT_RETURN_IF_ERROR(PullOnce(tables, step, &refused));
  std::deque<RowsToPull> left;
  std::deque<FloatBuffer> memory;
  std::vector<std::size_t> of;  // in `tables`, of each that is left
  std::size_t asked = 0;
  std::size_t again = 0;
  for (std::size_t t = 0; t < tables.size(); ++t) {
    RowsToPull& rows = tables[t];
    rows.Decode(refused.runs[t]);
    asked += rows.unique.ids.size();
    if (std::vector<std::uint64_t> ids = IdsOf(rows.unique, rows.runs, refused.runs[t]);
        !ids.empty()) {
      again += ids.size();
      left.emplace_back(rows.table, SpecOf(rows.table), rows.training,
                        UniqueIds::Of(std::move(ids)), routes_, pulled_.PartsOf(rows.table),
                        memory.emplace_back());
      of.push_back(t);
    }
  }
  if (left.empty()) {
    return {};
  }
  if (again < asked) {
    patience.Begin();
  }
  COHORT_RETURN_IF_ERROR(patience.Wait(refused.first));
  COHORT_RETURN_IF_ERROR(PullAll(left, step, patience));
  for (std::size_t i = 0; i < left.size(); ++i) {
    tables[of[i]].TakeFrom(left[i], refused.runs[of[i]]);
  }
  return {};
}

// `refused`: what a server sent no rows of, because of some it does not have all buckets.
Status FrameRowClient::PullOnce(std::deque<RowsToPull>& tables, std::int64_t step,
                                Refused* refused) {
  const RowFrames frames = PackFrames(tables);
  std::vector<FrameRequest> requests;
  for (const RowFrames::Frame& frame : frames.frames()) {
    FrameRequest& request = requests.emplace_back(Request(frame.server, FrameMethod::kPullRows));
    for (std::size_t i = frame.begin; i < frame.end; ++i) {
      const RowPiece& piece = frames.pieces()[i];
      const RowsToPull& of = tables[piece.table];
      RowBlock& block = AddBlockOf(request, of.table, of.runs[piece.run], of.ids, step, i);
      block.set_training(of.training);
      block.set_after_round(read_after_);
    }
    request.header.set_bounded(read_after_ > 0);
    BringElected(request.header);
  }
  const auto frame_of = [&](int server,
                            const FrameHeader& reply) -> Result<const RowFrames::Frame*> {
    const RowFrames::Frame* const frame = frames.AnsweredBy(server, reply);
    if (frame == nullptr) {
      return Internal("ps:" + std::to_string(server) +
                      ": a reply that answers no pull of this client");
    }
    return frame;
  };
  const auto place = [&](int server, const FrameHeader& header) -> Result<Places> {
    if (header.epoch() != epoch_) {
      return StaleReply("ps:" + std::to_string(server), header.epoch(), epoch_);
    }
    COHORT_ASSIGN_OR_RETURN(const RowFrames::Frame* const frame, frame_of(server, header));
    Places places;
    for (std::size_t i = frame->begin; !SaysMoved(header) && i < frame->end; ++i) {
      const RowPiece& piece = frames.pieces()[i];
      tables[piece.table].AddPlaces(piece.run, &places);
    }
    return places;
  };
  const auto done = [&](int server, const FrameHeader& header) -> Status {
    COHORT_ASSIGN_OR_RETURN(const RowFrames::Frame* const frame, frame_of(server, header));
    return Learn(tables, frames, *frame, header, refused);
  };
  return link_->Run(requests, {.place = place, .done = done});
}

// Where a reply says that buckets are elsewhere, the whole of the frame is refused.
template <typename Table>
Status FrameRowClient::Learn(const std::deque<Table>& tables, const RowFrames& frames,
                             const RowFrames::Frame& frame, const FrameHeader& reply,
                             Refused* refused) {
  if (!SaysMoved(reply)) {
    return {};
  }
  for (std::size_t i = frame.begin; i < frame.end; ++i) {
    const RowPiece& piece = frames.pieces()[i];
    refused->runs[piece.table].push_back(piece.run);
    const auto& moved = BlockAt(reply, i - frame.begin).moved();
    if (moved.empty()) {
      continue;
    }
    const int table = tables[piece.table].table;
    if (refused->first.empty()) {
      refused->first = "table \"" + SpecOf(table).name + "\": bucket " + std::to_string(moved[0]);
    }
    COHORT_RETURN_IF_ERROR(
        routes_.Learn(table, std::span(moved.data(), static_cast<std::size_t>(moved.size()))));
  }
  return {};
}

void FrameRowClient::TakeOver(RowClient& before) {
  auto& from = static_cast<FrameRowClient&>(before);  // there is one kind
  if (from.number_ == number_) {
    feedback_ = std::move(from.feedback_);
    pulled_ = std::move(from.pulled_);
    elected_ = from.elected_;  // a server that was mended may not have heard
  }
}

Status FrameRowClient::Push(std::span<const Gradients> gradients, std::int64_t step, double weight,
                            const Part* part) {
  feedback_.Begin(sequences_, part);
  pulled_.Begin(sequences_);
  const Status status = PushAll(gradients, step, weight, part);
  feedback_.End(status);
  pulled_.End(status.ok(), sequences_);
  return status;
}

Status FrameRowClient::PushAll(std::span<const Gradients> gradients, std::int64_t step,
                               double weight, const Part* part) {
  std::deque<RowsToPush> tables;
  std::vector<bool> seen(tables_.size(), false);
  for (const Gradients& of_table : gradients) {
    const TableSpec& spec = SpecOf(of_table.table);
    Require(of_table.values.size() == of_table.ids.size() * static_cast<std::size_t>(spec.dim),
            "as many gradients as ids: " + spec.name);
    Require(of_table.counts.empty() ||
                (of_table.counts.size() == of_table.ids.size() &&
                 std::ranges::find(of_table.counts, 0U) == of_table.counts.end()),
            "a count of at least 1 of each gradient, or none: " + spec.name);
    // An id's residual is taken once, where a table comes twice as well.
    const auto number = static_cast<std::size_t>(of_table.table);
    RowsToPush& rows = tables.emplace_back(of_table.table, spec, UniqueIds(of_table.ids), routes_,
                                           seen[number] ? nullptr : feedback_.Of(of_table.table),
                                           pulled_.PartsOf(of_table.table));
    rows.Add(of_table);
    rows.late = pulled_.Fill(of_table.table, rows.unique.ids, rows.sums.values());
    seen[number] = true;
  }
  Patience patience(read_timeout_);
  for (;;) {
    Refused refused(tables.size());
    COHORT_RETURN_IF_ERROR(PushOnce(tables, step, weight, part, &refused));
    std::deque<RowsToPush> left;
    for (std::size_t t = 0; t < tables.size(); ++t) {
      if (std::vector<std::uint64_t> ids = IdsOf(tables[t].unique, tables[t].runs, refused.runs[t]);
          !ids.empty()) {
        left.emplace_back(tables[t].table, SpecOf(tables[t].table), UniqueIds::Of(std::move(ids)),
                          routes_, nullptr, tables[t].late.parts)
            .TakeFrom(tables[t], refused.runs[t]);
      }
    }
    if (left.empty()) {
      return {};
    }
    if (part != nullptr) {
      return FailedPrecondition(refused.first + " has moved, where updates are rounds");
    }
    const auto ids_of = [](const std::deque<RowsToPush>& of) {
      return std::accumulate(
          of.begin(), of.end(), std::size_t{0},
          [](std::size_t sum, const RowsToPush& rows) { return sum + rows.unique.ids.size(); });
    };
    if (ids_of(left) < ids_of(tables)) {
      patience.Begin();
    }
    COHORT_RETURN_IF_ERROR(patience.Wait(refused.first));
    tables.swap(left);
  }
}

// `refused`: what a server took nothing of, because of some it does not have all buckets.
Status FrameRowClient::PushOnce(std::deque<RowsToPush>& tables, std::int64_t step, double weight,
                                const Part* part, Refused* refused) {
  for (RowsToPush& rows : tables) {
    COHORT_RETURN_IF_ERROR(rows.Encode(SpecOf(rows.table), weight));
  }
  const RowFrames frames = PackFrames(tables);
  std::vector<FrameRequest> requests;
  for (const RowFrames::Frame& frame : frames.frames()) {
    FrameRequest& request = requests.emplace_back(Request(frame.server, FrameMethod::kPushRows));
    request.header.set_sequence(++sequences_[static_cast<std::size_t>(frame.server)]);
    request.header.set_weight(weight);
    for (std::size_t i = frame.begin; i < frame.end; ++i) {
      const auto& [server, bytes, t, r] = frames.pieces()[i];
      RowsToPush& rows = tables[t];
      const Run& run = rows.runs[r];
      AddBlockOf(request, rows.table, run, rows.ids, step, i).set_count_bytes(rows.count_bytes);
      request.payload.push_back(Words(std::span<const std::uint32_t>(rows.packed_counts[r])));
      request.payload.push_back(
          rows.encoded.empty()
              ? rows.sums.values().subspan(run.begin * rows.dim, (run.end - run.begin) * rows.dim)
              : rows.encoded[r].values());
      rows.late.AddTo(run.begin, run.end, SpecOf(rows.table).wire, rows.dim,
                      rows.encoded_late.emplace_back(), &request.payload);
    }
  }
  if (part != nullptr) {
    AddPart(*part, step, weight, requests);
  }
  if (copies_) {
    AddCopies(routes_.servers(), &requests);
  }
  const auto done = [&](int line, const FrameHeader& header) -> Status {
    if (!SaysMoved(header)) {
      return {};
    }
    const RowFrames::Frame* const frame = frames.AnsweredBy(line, header);
    if (frame == nullptr) {
      return Internal("a server's reply answers no push of this client");
    }
    return Learn(tables, frames, *frame, header, refused);
  };
  return link_->Run(requests, {.place = kNothingBack.place, .done = done});
}

// Says of each frame which part of which round it is, and of each server's last one that it is the
// last: one without ids where the part has none there.
void FrameRowClient::AddPart(const Part& part, std::int64_t step, double weight,
                             std::vector<FrameRequest>& requests) {
  for (int s = 0; s < routes_.servers(); ++s) {
    const auto last =
        std::find_if(requests.rbegin(), requests.rend(),
                     [s](const FrameRequest& request) { return request.server == s; });
    if (last != requests.rend()) {
      last->header.set_advance(true);
      continue;
    }
    FrameRequest& end = requests.emplace_back(Request(s, FrameMethod::kPushRows));
    end.header.set_sequence(++sequences_[static_cast<std::size_t>(s)]);
    end.header.set_weight(weight);
    end.header.set_advance(true);
    AddEmptyBlock(end, 0, step);
  }
  for (FrameRequest& request : requests) {
    Round& round = *request.header.mutable_round();
    round.set_round(part.round);
    round.set_attempt(static_cast<std::uint32_t>(part.attempt));
    round.set_part(static_cast<std::uint32_t>(part.part));
    round.set_parts(static_cast<std::uint32_t>(part.parts));
    BringElected(request.header);
  }
}

void FrameRowClient::BringElected(FrameHeader& header) const {
  if (elected_.round() > 0) {
    *header.mutable_commit() = elected_;
  }
}

Status FrameRowClient::WaitForRounds(int table) {
  if (read_after_ == 0) {
    return {};
  }
  std::vector<FrameRequest> requests;
  for (int s = 0; s < routes_.servers(); ++s) {
    FrameRequest& request = requests.emplace_back(Request(s, FrameMethod::kPullRows));
    AddEmptyBlock(request, table, /*step=*/1).set_after_round(read_after_);
    request.header.set_bounded(true);
    BringElected(request.header);
  }
  return link_->Run(requests, kNothingBack);
}

}  // namespace

std::unique_ptr<RowClient> RowClient::Make(const ModelSpec& model,
                                           std::vector<std::string> addresses,
                                           const ClientOptions& options) {
  Require(static_cast<int>(addresses.size()) == model.servers, "an address for every server");
  return std::make_unique<FrameRowClient>(model, std::move(addresses), options);
}

Status SaveTable(RowClient& client, int table, const TableSpec& spec, FileSystem& files,
                 const std::string& path, RowFileKind kind) {
  const auto save = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto writer,
                            RowFileWriter::Create(files, path, spec, {0, spec.buckets}, kind));
    COHORT_RETURN_IF_ERROR(client.Dump(table, [&](std::uint32_t /*bucket*/, std::string_view dump) {
      return writer->Write(dump);
    }));
    return writer->Close();
  };
  return RunAtLowPriority(save).Annotate("rows of table \"" + spec.name + "\"");
}

Status LoadTable(RowClient& client, int table, const TableSpec& spec, FileSystem& files,
                 std::span<const std::string> paths, const std::vector<int>* servers, bool* sent) {
  const auto load = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto reader, RowFileReader::OpenChain(files, paths, spec));
    if (sent != nullptr) {
      *sent = true;
    }
    return client.Restore(
        table, [&](std::uint32_t bucket) { return reader->Read(bucket); }, servers);
  };
  return load().Annotate("rows of table \"" + spec.name + "\"");
}

}  // namespace cohort::ps
