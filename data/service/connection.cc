#include "connection.h"

#include <algorithm>
#include <limits>
#include <random>
#include <span>
#include <system_error>
#include <utility>

#include <grpcpp/generic/generic_stub.h>

#include <cohort/core/thread_pool.h>
#include <cohort/data/stop_scope.h>

#include "grpc_util.h"

namespace cohort::data {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFindTry{2'000};
constexpr milliseconds kLook{50};  // for a stop, a pause that is over, a deadline
constexpr milliseconds kFirstPause{50};
constexpr milliseconds kLastPause{2'000};
constexpr milliseconds kProbeTimeout{300};
constexpr std::size_t kProbed = 3;
constexpr std::uint64_t kFirstTurn = 1'000'000;

std::string Seconds(Duration duration) {
  const auto tenths = std::chrono::duration_cast<milliseconds>(duration).count() / 100;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

}  // namespace

struct Connection::Peer {
  std::string address;
  int threads = 1;
  bool listed = true;  // by the dispatcher, when it was asked last
  std::unique_ptr<grpc::GenericStub> stub;
  int under_way = 0;
  std::uint64_t turn = 0;  // when it was asked last; before that at random
  Deadline rests_until;
  milliseconds pause = kFirstPause;
  std::string error;  // of its last call; empty: it was answered
};

// Examples [begin, begin + size) of the read.
struct Connection::Piece {
  std::size_t begin = 0;
  std::size_t size = 0;
  std::int64_t bytes = 0;  // about

  // Of the call that is under way, or has landed.
  std::shared_ptr<Peer> peer;  // owners: this, and peers_
  std::unique_ptr<grpc::ClientContext> context;
  grpc::ByteBuffer request;
  grpc::ByteBuffer reply;
  grpc::Status status;

  std::vector<std::vector<std::byte>> values;  // of each ragged feature
  std::vector<std::vector<std::int64_t>> ends;
};

struct Connection::Reading {
  std::int64_t epoch = 0;
  std::span<const std::int64_t> indexes;
  std::span<std::byte* const> rows;
  std::span<std::vector<std::byte>> values;
  std::span<std::vector<std::int64_t>> ends;
  std::vector<Piece> pieces;
  std::deque<Piece*> waiting;
  std::vector<Piece*> flying;  // guarded by mutex_
  std::deque<Piece*> landed;   // guarded by mutex_
};

Connection::Connection(std::string dispatcher, std::string pipeline,
                       const FromServiceOptions& options)
    : dispatcher_(std::move(dispatcher)),
      options_(options),
      info_{.name = std::move(pipeline)},
      stub_(wire::DataService::NewStub(NewChannel(dispatcher_))),
      turn_(kFirstTurn) {}

Connection::~Connection() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    if (find_ != nullptr) {
      find_->TryCancel();
    }
  }
  stopped_.notify_all();
  if (learner_.joinable()) {
    learner_.join();
  }
}

std::string Connection::Name() const {
  return "pipeline '" + info_.name + "' of the data service at " + dispatcher_;
}

// ---- Who is there
// --------------------------------------------------------------------------------

Result<std::unique_ptr<Connection>> Connection::Open(const std::string& dispatcher,
                                                     const std::string& pipeline,
                                                     const FromServiceOptions& options) {
  COHORT_RETURN_IF_ERROR(ParseHostPort(dispatcher).status());
  std::unique_ptr<Connection> connection(new Connection(dispatcher, pipeline, options));
  COHORT_RETURN_IF_ERROR(connection->FindFirst());
  try {
    connection->learner_ = std::thread([raw = connection.get()] {
      NameThisThread("data/service");
      raw->KeepLearning();
    });
  } catch (const std::system_error& error) {
    return ResourceExhausted(std::string("start of the data service's thread: ") + error.what());
  }
  return connection;
}

Result<wire::FindReply> Connection::Find(milliseconds timeout) {
  grpc::ClientContext context;
  context.set_deadline(GrpcTimeout(timeout));
  {
    const std::lock_guard lock(mutex_);
    if (stop_) {
      return Cancelled("the data set is gone");
    }
    find_ = &context;
  }
  wire::FindRequest request;
  request.set_pipeline(info_.name);
  wire::FindReply reply;
  const grpc::Status status = stub_->Find(&context, request, &reply);
  const std::lock_guard lock(mutex_);
  find_ = nullptr;
  find_error_ = status.ok() ? "" : status.error_message();
  if (!status.ok()) {
    return FromGrpc(status);
  }
  return reply;
}

Status Connection::FindFirst() {
  const Deadline begun = std::chrono::steady_clock::now();
  const Deadline last = begun + options_.timeout;
  Deadline next_call = begun + options_.roll_call_interval;
  milliseconds pause = kFirstPause;
  for (;;) {
    const Result<wire::FindReply> reply = Find(std::clamp(
        std::chrono::duration_cast<milliseconds>(last - std::chrono::steady_clock::now()),
        milliseconds(1), kFindTry));
    if (reply.ok() && reply->outcome().code() == 0) {
      return Learn(*reply);
    }
    const Status status = reply.ok() ? FromWire(reply->outcome()) : reply.status();
    if (reply.ok() && status.code() != StatusCode::kNotFound) {
      return status.Annotate(Name());
    }
    if (status.code() == StatusCode::kUnimplemented) {
      return FailedPrecondition(Name() +
                                ": what answers there is no data service: " + status.message());
    }
    const auto reason = [&] {
      return reply.ok() ? status.message() : ProbeAddress(dispatcher_, kProbeTimeout);
    };
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= last) {
      return DeadlineExceeded(Name() + ": " + reason() + ", after " + Seconds(now - begun) +
                              " [start `cohort data serve` there, or check the address]");
    }
    if (now >= next_call) {
      options_.log.Info("waiting for " + Name() + ": " + reason());
      next_call = now + options_.roll_call_interval;
    }
    Pause(std::min<Duration>(pause, last - now));
    pause = std::min(pause * 2, kLastPause);
  }
}

Status Connection::Learn(const wire::FindReply& reply) {
  COHORT_ASSIGN_OR_RETURN(PipelineInfo info, FromWire(reply.pipeline()));
  const std::lock_guard lock(mutex_);
  if (!std::exchange(found_, true)) {
    info_ = std::move(info);
  } else if (const std::string difference = Difference(info, info_); !difference.empty()) {
    return FailedPrecondition(Name() + " is another one now: " + difference);
  }
  for (auto& [address, peer] : peers_) {
    peer->listed = false;
  }
  for (const wire::FindReply::Worker& worker : reply.workers()) {
    const std::string address = worker.address().empty() ? dispatcher_ : worker.address();
    std::shared_ptr<Peer>& peer = peers_[address];
    if (peer == nullptr) {
      peer = std::make_shared<Peer>();
      peer->address = address;
      peer->turn = std::random_device()() % kFirstTurn;
      peer->stub = std::make_unique<grpc::GenericStub>(
          NewChannel(address, {.max_message_bytes = std::numeric_limits<std::int32_t>::max()}));
    }
    peer->listed = true;
    peer->threads = std::max(worker.threads(), 1);
  }
  return {};
}

bool Connection::Pause(Duration pause) {
  std::unique_lock lock(mutex_);
  return stopped_.wait_for(lock, pause, [this] { return stop_; });
}

void Connection::KeepLearning() {
  std::string said;
  while (!Pause(options_.refresh_interval)) {
    const Result<wire::FindReply> reply = Find(kFindTry);
    Status status = reply.status();
    if (reply.ok()) {
      status = FromWire(reply->outcome());
      if (status.ok()) {
        status = Learn(*reply);
      }
    }
    if (status.message() != said && status.code() != StatusCode::kCancelled) {
      said = status.message();
      options_.log.Warning(Name() + ": " + (status.ok() ? "it is there again" : said));
    }
    changed_.notify_all();
  }
}

// ---- Reading
// -------------------------------------------------------------------------------------

std::vector<Connection::Piece> Connection::Cut(std::span<const std::int64_t> indexes) const {
  std::int64_t each = info_.row_bytes();
  {
    const std::lock_guard lock(mutex_);
    each += list_bytes_;
  }
  each = std::max<std::int64_t>(each, 1);
  const auto most =
      static_cast<std::size_t>(std::max<std::int64_t>(options_.piece_bytes / each, 1));
  std::vector<Piece> pieces;
  for (std::size_t begin = 0; begin < indexes.size(); begin += most) {
    Piece& piece = pieces.emplace_back();
    piece.begin = begin;
    piece.size = std::min(most, indexes.size() - begin);
    piece.bytes = each * static_cast<std::int64_t>(piece.size);
  }
  return pieces;
}

Status Connection::Read(std::int64_t epoch, std::span<const std::int64_t> indexes,
                        std::span<std::byte* const> rows, std::span<std::vector<std::byte>> values,
                        std::span<std::vector<std::int64_t>> ends) {
  Reading reading{.epoch = epoch,
                  .indexes = indexes,
                  .rows = rows,
                  .values = values,
                  .ends = ends,
                  .pieces = Cut(indexes)};
  for (Piece& piece : reading.pieces) {
    reading.waiting.push_back(&piece);
  }
  const Status status = Run(reading);
  {
    // gRPC answers a cancelled call at once, whatever the worker does.
    std::unique_lock lock(mutex_);
    for (Piece* piece : reading.flying) {
      piece->context->TryCancel();
    }
    changed_.wait(lock, [&] { return reading.flying.empty(); });
  }
  return status.ok() ? Gather(reading) : status;
}

Status Connection::Run(Reading& reading) {
  const std::atomic<bool>* const stop = StopScope::Current();
  const Deadline begun = std::chrono::steady_clock::now();
  Deadline progress = begun;
  Deadline next_call = begun + options_.roll_call_interval;
  for (std::size_t there = 0; there < reading.pieces.size();) {
    std::deque<Piece*> landed;
    std::vector<Piece*> assigned;
    {
      std::unique_lock lock(mutex_);
      std::shared_ptr<Peer> peer;
      const auto can_start = [&] {
        peer = reading.waiting.empty() ? nullptr : Choose(*reading.waiting.front());
        return peer != nullptr;
      };
      changed_.wait_for(lock, kLook, [&] { return !reading.landed.empty() || can_start(); });
      while (can_start()) {
        Piece& piece = *reading.waiting.front();
        reading.waiting.pop_front();
        Assign(reading, piece, std::move(peer));
        assigned.push_back(&piece);
      }
      landed.swap(reading.landed);
    }
    for (Piece* piece : assigned) {
      Send(reading, *piece);
    }
    for (Piece* piece : landed) {
      COHORT_ASSIGN_OR_RETURN(const bool complete, Land(reading, *piece));
      if (complete) {
        ++there;
        progress = std::chrono::steady_clock::now();
        next_call = progress + options_.roll_call_interval;
      } else {
        reading.waiting.push_front(piece);
      }
    }
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) {
      return Cancelled("the iterator is being destroyed");
    }
    const Deadline now = std::chrono::steady_clock::now();
    if (there < reading.pieces.size() && now - progress >= options_.timeout) {
      return DeadlineExceeded(Name() + ": no examples for " + Seconds(now - progress) + ": " +
                              WhyNothing());
    }
    if (now >= next_call) {
      options_.log.Info("waiting for examples of " + Name() + ": " + WhyNothing());
      next_call = now + options_.roll_call_interval;
    }
  }
  return {};
}

std::shared_ptr<Connection::Peer> Connection::Choose(const Piece& piece) const {
  if (under_way_bytes_ > 0 && under_way_bytes_ + piece.bytes > options_.max_bytes) {
    return nullptr;
  }
  const Deadline now = std::chrono::steady_clock::now();
  const std::shared_ptr<Peer>* best = nullptr;
  const auto load = [](const Peer& peer) {
    return std::pair(static_cast<double>(peer.under_way) / peer.threads, peer.turn);
  };
  for (const auto& [address, peer] : peers_) {
    if (peer->under_way < 2 * peer->threads && peer->rests_until <= now &&
        (best == nullptr || load(*peer) < load(**best))) {
      best = &peer;
    }
  }
  return best == nullptr ? nullptr : *best;
}

void Connection::Assign(Reading& reading, Piece& piece, std::shared_ptr<Peer> peer) {
  piece.context = std::make_unique<grpc::ClientContext>();
  piece.context->set_deadline(GrpcTimeout(options_.read_timeout));
  piece.peer = std::move(peer);
  ++piece.peer->under_way;
  piece.peer->turn = turn_++;
  under_way_bytes_ += piece.bytes;
  reading.flying.push_back(&piece);
}

void Connection::Send(Reading& reading, Piece& piece) {
  wire::ReadRequest request;
  request.set_pipeline(info_.name);
  request.set_fingerprint(info_.fingerprint);
  request.set_epoch(reading.epoch);
  const auto indexes = reading.indexes.subspan(piece.begin, piece.size);
  request.mutable_indexes()->Assign(indexes.begin(), indexes.end());
  const grpc::Slice slice(request.SerializeAsString());
  piece.request = grpc::ByteBuffer(&slice, 1);
  piece.reply.Clear();
  piece.peer->stub->UnaryCall(piece.context.get(), "/cohort.data.wire.DataService/Read",
                              grpc::StubOptions(), &piece.request, &piece.reply,
                              [this, &reading, &piece](grpc::Status status) {
                                const std::lock_guard lock(mutex_);
                                piece.status = std::move(status);
                                --piece.peer->under_way;
                                under_way_bytes_ -= piece.bytes;
                                std::erase(reading.flying, &piece);
                                reading.landed.push_back(&piece);
                                changed_.notify_all();
                              });
}

void Connection::Blame(Piece& piece, const std::string& why, bool busy) {
  const std::lock_guard lock(mutex_);
  Peer& peer = *piece.peer;
  peer.error = why;
  peer.rests_until = std::chrono::steady_clock::now() + peer.pause;
  peer.pause = busy ? kFirstPause : std::min(peer.pause * 2, kLastPause);
  if (!busy && !peer.listed) {
    peers_.erase(peer.address);
  }
}

Result<bool> Connection::Land(Reading& reading, Piece& piece) {
  const std::string where = "input worker " + piece.peer->address;
  if (!piece.status.ok()) {
    Blame(piece, piece.status.error_message(),
          piece.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
    return false;
  }
  Received received;
  wire::ReadReply header;
  if (!received.Take(piece.reply) || !received.ReadHeader(&header)) {
    return Internal(where + ": a reply that is no message");
  }
  if (header.elsewhere()) {
    Blame(piece, header.outcome().message(), false);
    return false;
  }
  COHORT_RETURN_IF_ERROR(FromWire(header.outcome()).Annotate(where));
  bool whole = true;
  for (std::size_t i = 0; i < info_.features.size() && whole; ++i) {
    const std::size_t bytes = info_.features[i].bytes();
    whole = received.Read(reading.rows[i] + piece.begin * bytes, piece.size * bytes);
  }
  piece.values.resize(info_.ragged.size());
  piece.ends.resize(info_.ragged.size());
  std::int64_t lists = 0;
  for (std::size_t i = 0; i < info_.ragged.size() && whole; ++i) {
    const auto element = static_cast<std::int64_t>(SizeOf(info_.ragged[i].dtype));
    std::vector<std::int64_t>& ends = piece.ends[i];
    ends.resize(piece.size);
    whole = received.Read(ends.data(), ends.size() * sizeof(std::int64_t));
    std::int64_t before = 0;
    for (const std::int64_t end : ends) {
      whole = whole && end >= before && end % element == 0;
      before = end;
    }
    whole = whole && before <= static_cast<std::int64_t>(received.remaining());
    if (whole) {
      piece.values[i].resize(static_cast<std::size_t>(before));
      whole = received.Read(piece.values[i].data(), piece.values[i].size());
      lists += before;
    }
  }
  if (!whole || received.remaining() != 0) {
    return Internal(where + ": a reply that is not of the examples that were asked for");
  }
  piece.reply.Clear();
  const std::lock_guard lock(mutex_);
  list_bytes_ = std::max(list_bytes_, lists / static_cast<std::int64_t>(piece.size));
  piece.peer->pause = kFirstPause;
  piece.peer->error.clear();
  return true;
}

Status Connection::Gather(Reading& reading) {
  for (std::size_t i = 0; i < reading.values.size(); ++i) {
    std::vector<std::byte>& values = reading.values[i];
    for (const Piece& piece : reading.pieces) {
      const auto before = static_cast<std::int64_t>(values.size());
      values.insert(values.end(), piece.values[i].begin(), piece.values[i].end());
      for (const std::int64_t end : piece.ends[i]) {
        reading.ends[i].push_back(before + end);
      }
    }
  }
  return {};
}

std::string Connection::WhyNothing() {
  std::vector<std::pair<std::string, std::string>> workers;  // address, its error
  std::string dispatcher_error;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [address, peer] : peers_) {
      workers.emplace_back(address, peer->error);
    }
    dispatcher_error = find_error_;
  }
  std::string why;
  for (std::size_t i = 0; i < workers.size() && i < kProbed; ++i) {
    const std::string probe = ProbeAddress(workers[i].first, kProbeTimeout);
    why += (why.empty() ? "" : ", ") + std::string("input worker ") + workers[i].first + " (" +
           (probe != kAcceptsConnections ? probe
            : workers[i].second.empty()  ? "is reading"
                                         : workers[i].second) +
           ")";
  }
  if (workers.size() > kProbed) {
    why += " and " + std::to_string(workers.size() - kProbed) + " more";
  }
  if (workers.empty()) {
    why = "no input worker is left";
  }
  return why + (dispatcher_error.empty() ? ""
                                         : "; the dispatcher does not answer: " +
                                               ProbeAddress(dispatcher_, kProbeTimeout));
}

}  // namespace cohort::data
