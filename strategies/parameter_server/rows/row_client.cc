#include "parameter_server/rows/row_client.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <numeric>
#include <utility>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/frames/frame_address.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/row_codec.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/rows/background.h"
#include "parameter_server/rows/bucket_client.h"
#include "parameter_server/rows/row_file.h"
#include "parameter_server/rows/row_residuals.h"
#include "parameter_server/rows/row_routes.h"

namespace cohort::ps {
namespace {

constexpr std::uint32_t kNone = 0xFFFFFFFF;
constexpr std::chrono::milliseconds kLocateTimeout{1'000};
// Of payload: a server works on a frame while the next one is on its way.
constexpr std::size_t kFrameBytes = std::size_t{1} << 20;

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
  // `unique` in the order of their servers; who makes it fills in the rest, and calls Encode.
  // `add`: what is kept of the table's rounded gradients; null: nothing, or these have it.
  RowsToPush(int of, const TableSpec& spec, UniqueIds ids_of_it, const RowRoutes& routes,
             RowResiduals* add)
      : table(of),
        dim(static_cast<std::size_t>(spec.dim)),
        residuals(add),
        unique(std::move(ids_of_it)),
        runs(Route(unique, table, spec.buckets, routes,
                   sizeof(std::uint64_t) + sizeof(std::uint32_t) + dim * sizeof(float))),
        ids(unique.ids),
        counts(unique.ids.size(), 0) {
    sums.Resize(unique.ids.size() * dim);
  }

  // Adds up the gradients of the ids that `unique` was made of.
  void Add(std::span<const float> gradients) {
    const std::span<float> sum = sums.values();
    for (std::size_t i = 0; i < unique.place.size(); ++i) {
      const std::size_t u = unique.place[i];
      const float* const from = gradients.data() + i * dim;
      float* const to = sum.data() + u * dim;
      if (counts[u]++ == 0) {
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

class FrameRowClient final : public RowClient {
 public:
  FrameRowClient(const ModelSpec& model, std::vector<std::string> addresses,
                 const ClientOptions& options)
      : tables_(model.tables),
        layout_(model.Fingerprint()),
        number_(options.client),
        epoch_(options.epoch),
        read_timeout_(options.read_timeout),
        locate_timeout_(std::min(kLocateTimeout, options.peer_timeout)),
        transport_(options.transport),
        copies_(model.copies),
        addresses_(std::move(addresses)),
        sequences_(options.row_pushes),
        channels_(LineChannels(model, addresses_)),
        routes_(model.tables, model.servers),
        feedback_(model, options.comes_again),
        buckets_(model, addresses_, channels_, options, routes_),
        link_(FrameLink::Make(
            LineNames(model, addresses_),
            [this](int line, bool may_share) { return Locate(line, may_share); },
            options.peer_timeout, options.read_timeout)) {
    sequences_.resize(addresses_.size(), 0);
  }

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
  Status PushAll(std::span<const Gradients> gradients, std::int64_t step, double weight,
                 const Part* part);
  Status PushOnce(std::deque<RowsToPush>& tables, std::int64_t step, double weight,
                  const Part* part, std::deque<std::vector<std::size_t>>* refused);
  Status Learn(int table, const FrameHeader& header);
  void BringElected(FrameHeader& header) const;
  void AddPart(const Part& part, std::int64_t step, double weight,
               std::vector<FrameRequest>& requests);
  Status WaitForRounds(int table);
  Result<std::string> Locate(int line, bool may_share);
  static std::vector<std::shared_ptr<grpc::Channel>> LineChannels(
      const ModelSpec& model, const std::vector<std::string>& addresses);
  Status PullUnique(int table, UniqueIds& unique, std::int64_t step, bool training,
                    Patience& patience, FloatBuffer& values);

  const std::vector<TableSpec> tables_;
  const std::uint64_t layout_;
  const std::uint64_t number_;  // of this client
  const std::uint64_t epoch_;
  const std::chrono::milliseconds read_timeout_;
  const std::chrono::milliseconds locate_timeout_;
  const FrameTransport transport_;
  const bool copies_;
  const std::vector<std::string> addresses_;
  std::vector<std::uint64_t> sequences_;                        // by server
  const std::vector<std::shared_ptr<grpc::Channel>> channels_;  // by line
  RowRoutes routes_;
  RowFeedback feedback_;
  BucketClient buckets_;
  const std::unique_ptr<FrameLink> link_;
  std::uint64_t read_after_ = 0;
  Commit elected_;                 // round 0: none
  BucketClient::Version version_;  // that Dump reads
  FloatBuffer values_;             // of a pull, each id once
};

std::vector<std::shared_ptr<grpc::Channel>> FrameRowClient::LineChannels(
    const ModelSpec& model, const std::vector<std::string>& addresses) {
  std::vector<std::shared_ptr<grpc::Channel>> channels = DataChannels(addresses);
  for (int line = model.servers; model.copies && line < 2 * model.servers; ++line) {
    channels.push_back(channels[static_cast<std::size_t>(ServerOfLine(line, model.servers))]);
  }
  return channels;
}

Result<std::string> FrameRowClient::Locate(int line, bool may_share) {
  const auto s = static_cast<std::size_t>(ServerOfLine(line, routes_.servers()));
  return LocateFrames(*Servers::NewStub(channels_[s]), addresses_[s], transport_, may_share,
                      locate_timeout_);
}

Status FrameRowClient::Pull(int table, std::span<const std::uint64_t> ids, std::int64_t step,
                            bool training, std::span<float> rows) {
  const auto dim = static_cast<std::size_t>(SpecOf(table).dim);
  Require(rows.size() == ids.size() * dim, "room for a row of each id: " + SpecOf(table).name);
  UniqueIds unique(ids);
  Patience patience(read_timeout_);
  COHORT_RETURN_IF_ERROR(PullUnique(table, unique, step, training, patience, values_));
  const std::span<const float> values = values_.values();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::memcpy(rows.data() + i * dim, values.data() + unique.place[i] * dim, dim * sizeof(float));
  }
  return {};
}

// The rows of `unique`, which it puts in the order of their servers, into `values`.
Status FrameRowClient::PullUnique(int table, UniqueIds& unique, std::int64_t step, bool training,
                                  Patience& patience, FloatBuffer& to) {
  const TableSpec& spec = SpecOf(table);
  const auto dim = static_cast<std::size_t>(spec.dim);
  const std::vector<Run> runs = Route(unique, table, spec.buckets, routes_,
                                      std::max(sizeof(std::uint64_t), dim * sizeof(float)));
  const IdsOnTheWire on_the_wire(unique.ids);
  std::vector<FrameRequest> requests;
  for (const Run& run : runs) {
    requests.push_back(Request(FrameMethod::kPullRows, table, run, on_the_wire, step));
    FrameHeader& header = requests.back().header;
    header.mutable_rows()->set_tag(requests.size() - 1);
    header.mutable_rows()->set_training(training);
    header.mutable_rows()->set_after_round(read_after_);
    header.set_bounded(read_after_ > 0);
    BringElected(header);
  }
  const std::span<float> values = to.Resize(unique.ids.size() * dim);
  const bool encoded = spec.wire != TableSpec::Wire::kFloat32;
  std::vector<FloatBuffer> packed(encoded ? runs.size() : 0);
  for (std::size_t r = 0; r < packed.size(); ++r) {
    packed[r].Resize(EncodedBytes(spec.wire, dim, runs[r].end - runs[r].begin) / sizeof(float));
  }
  std::vector<bool> refused(runs.size(), false);
  const auto place = [&](int server, const FrameHeader& header) -> Result<Places> {
    if (header.epoch() != epoch_) {
      return StaleReply("ps:" + std::to_string(server), header.epoch(), epoch_);
    }
    const std::uint64_t tag = header.rows().tag();
    if (tag >= runs.size() || runs[tag].server != server) {
      return Internal("table \"" + spec.name +
                      "\": a server's reply answers no pull of this client");
    }
    if (header.rows().moved_size() > 0) {
      refused[tag] = true;
      return Places{};
    }
    if (encoded) {
      return Places{packed[tag].values()};
    }
    return Places{values.subspan(runs[tag].begin * dim, (runs[tag].end - runs[tag].begin) * dim)};
  };
  COHORT_RETURN_IF_ERROR(link_->Run(
      requests, {.place = place,
                 .done = [&](int, const FrameHeader& header) { return Learn(table, header); }}));
  for (std::size_t r = 0; r < packed.size(); ++r) {
    if (!refused[r]) {
      DecodeRows(spec.wire, dim, std::as_bytes(packed[r].values()),
                 values.subspan(runs[r].begin * dim, (runs[r].end - runs[r].begin) * dim));
    }
  }
  std::vector<std::uint64_t> left;
  std::vector<std::size_t> left_at;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    for (std::size_t u = runs[r].begin; refused[r] && u < runs[r].end; ++u) {
      left.push_back(unique.ids[u]);
      left_at.push_back(u);
    }
  }
  if (left.empty()) {
    return {};
  }
  if (left.size() < unique.ids.size()) {
    patience.Begin();
  }
  COHORT_RETURN_IF_ERROR(patience.Wait("table \"" + spec.name + "\": the bucket of id " +
                                       std::to_string(left.front())));
  UniqueIds again = UniqueIds::Of(std::move(left));
  FloatBuffer rest;
  COHORT_RETURN_IF_ERROR(PullUnique(table, again, step, training, patience, rest));
  for (std::size_t i = 0; i < left_at.size(); ++i) {
    std::memcpy(values.data() + left_at[i] * dim, rest.values().data() + again.place[i] * dim,
                dim * sizeof(float));
  }
  return {};
}

void FrameRowClient::TakeOver(RowClient& before) {
  auto& from = static_cast<FrameRowClient&>(before);  // there is one kind
  if (from.number_ == number_) {
    feedback_ = std::move(from.feedback_);
    elected_ = from.elected_;  // a server that was mended may not have heard
  }
}

Status FrameRowClient::Push(std::span<const Gradients> gradients, std::int64_t step, double weight,
                            const Part* part) {
  feedback_.Begin(sequences_, part);
  const Status status = PushAll(gradients, step, weight, part);
  feedback_.End(status);
  return status;
}

Status FrameRowClient::PushAll(std::span<const Gradients> gradients, std::int64_t step,
                               double weight, const Part* part) {
  std::deque<RowsToPush> tables;
  for (const Gradients& of_table : gradients) {
    const TableSpec& spec = SpecOf(of_table.table);
    Require(of_table.values.size() == of_table.ids.size() * static_cast<std::size_t>(spec.dim),
            "as many gradients as ids: " + spec.name);
    // An id's residual is taken once, where a table comes twice as well.
    const bool first = std::ranges::none_of(
        tables, [&](const RowsToPush& other) { return other.table == of_table.table; });
    tables
        .emplace_back(of_table.table, spec, UniqueIds(of_table.ids), routes_,
                      first ? feedback_.Of(of_table.table) : nullptr)
        .Add(of_table.values);
  }
  Patience patience(read_timeout_);
  for (;;) {
    std::deque<std::vector<std::size_t>> refused;
    COHORT_RETURN_IF_ERROR(PushOnce(tables, step, weight, part, &refused));
    std::deque<RowsToPush> left;
    for (std::size_t t = 0; t < tables.size(); ++t) {
      std::vector<std::uint64_t> ids;
      for (const std::size_t r : refused[t]) {
        const Run& run = tables[t].runs[r];
        ids.insert(ids.end(), tables[t].unique.ids.begin() + static_cast<std::ptrdiff_t>(run.begin),
                   tables[t].unique.ids.begin() + static_cast<std::ptrdiff_t>(run.end));
      }
      if (!ids.empty()) {
        left.emplace_back(tables[t].table, SpecOf(tables[t].table), UniqueIds::Of(std::move(ids)),
                          routes_, nullptr)
            .TakeFrom(tables[t], refused[t]);
      }
    }
    if (left.empty()) {
      return {};
    }
    const std::string name = "table \"" + SpecOf(left[0].table).name + "\": the bucket of id " +
                             std::to_string(left[0].unique.ids[0]);
    if (part != nullptr) {
      return FailedPrecondition(name + " has moved, where updates are rounds");
    }
    const auto ids_of = [](const std::deque<RowsToPush>& of) {
      return std::accumulate(
          of.begin(), of.end(), std::size_t{0},
          [](std::size_t sum, const RowsToPush& rows) { return sum + rows.unique.ids.size(); });
    };
    if (ids_of(left) < ids_of(tables)) {
      patience.Begin();
    }
    COHORT_RETURN_IF_ERROR(patience.Wait(name));
    tables.swap(left);
  }
}

// `refused`: of each table, the runs of which the server does not have all buckets, and took
// nothing.
Status FrameRowClient::PushOnce(std::deque<RowsToPush>& tables, std::int64_t step, double weight,
                                const Part* part, std::deque<std::vector<std::size_t>>* refused) {
  std::vector<FrameRequest> requests;
  std::vector<std::pair<std::size_t, std::size_t>> sent;  // table and run, by tag
  refused->assign(tables.size(), {});
  for (std::size_t t = 0; t < tables.size(); ++t) {
    RowsToPush& rows = tables[t];
    COHORT_RETURN_IF_ERROR(rows.Encode(SpecOf(rows.table), weight));
    for (std::size_t r = 0; r < rows.runs.size(); ++r) {
      const Run& run = rows.runs[r];
      FrameRequest& request =
          requests.emplace_back(Request(FrameMethod::kPushRows, rows.table, run, rows.ids, step));
      request.header.set_sequence(++sequences_[static_cast<std::size_t>(run.server)]);
      request.header.set_weight(weight);
      request.header.mutable_rows()->set_tag(sent.size());
      request.header.mutable_rows()->set_count_bytes(rows.count_bytes);
      request.payload.push_back(Words(std::span<const std::uint32_t>(rows.packed_counts[r])));
      request.payload.push_back(
          rows.encoded.empty()
              ? rows.sums.values().subspan(run.begin * rows.dim, (run.end - run.begin) * rows.dim)
              : rows.encoded[r].values());
      sent.emplace_back(t, r);
    }
  }
  if (part != nullptr) {
    AddPart(*part, step, weight, requests);
  }
  if (copies_) {
    AddCopies(routes_.servers(), &requests);
  }
  const auto done = [&](int line, const FrameHeader& header) -> Status {
    if (header.rows().moved_size() == 0) {
      return {};
    }
    if (header.rows().tag() >= sent.size() || line >= routes_.servers()) {
      return Internal("a server's reply answers no push of this client");
    }
    const auto& [t, r] = sent[header.rows().tag()];
    (*refused)[t].push_back(r);
    return Learn(tables[t].table, header);
  };
  return link_->Run(requests, {.place = kNothingBack.place, .done = done});
}

Status FrameRowClient::Learn(int table, const FrameHeader& header) {
  const auto& moved = header.rows().moved();
  return moved.empty() ? OkStatus()
                       : routes_.Learn(table, std::span(moved.data(),
                                                        static_cast<std::size_t>(moved.size())));
}

// Says of each frame which part of which round it is, and of each server's last one that it is the
// last: one without ids where the part has none there.
void FrameRowClient::AddPart(const Part& part, std::int64_t step, double weight,
                             std::vector<FrameRequest>& requests) {
  for (int s = 0; s < routes_.servers(); ++s) {
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
    FrameHeader& header =
        requests.emplace_back(FrameRequest{s, FrameMethod::kPullRows, Header(table), {}}).header;
    header.mutable_rows()->set_dim(static_cast<std::uint32_t>(SpecOf(table).dim));
    header.mutable_rows()->set_dtype(static_cast<std::uint32_t>(SpecOf(table).wire));
    header.mutable_rows()->set_step(1);
    header.mutable_rows()->set_after_round(read_after_);
    header.set_bounded(true);
    BringElected(header);
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
  return RunInBackground(save).Annotate("rows of table \"" + spec.name + "\"");
}

Status LoadTable(RowClient& client, int table, const TableSpec& spec, FileSystem& files,
                 std::span<const std::string> paths, const std::vector<int>* servers) {
  const auto load = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto reader, RowFileReader::OpenChain(files, paths, spec));
    return client.Restore(
        table, [&](std::uint32_t bucket) { return reader->Read(bucket); }, servers);
  };
  return load().Annotate("rows of table \"" + spec.name + "\"");
}

}  // namespace cohort::ps
