#include "connection.h"

#include <algorithm>
#include <atomic>
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
constexpr milliseconds kLongestRest{600'000};
constexpr milliseconds kProbeTimeout{300};
constexpr std::size_t kProbed = 3;
constexpr std::uint64_t kFirstTurn = 1'000'000;

std::string Seconds(Duration duration) {
  const auto tenths = std::chrono::duration_cast<milliseconds>(duration).count() / 100;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

}  // namespace

struct Connection::Peer {
  // After a failure. One of a call that was under way by then already is the same failure.
  struct Rest {
    milliseconds first;
    milliseconds longest;
    milliseconds next = first;
    Deadline begun = {};
    Deadline until = {};

    void Begin(Deadline asked) {
      if (asked >= begun) {
        begun = std::chrono::steady_clock::now();
        until = begun + next;
        next = std::min(next * 2, longest);
      }
    }
    void End() {
      next = first;
      until = {};
    }
  };

  explicit Peer(milliseconds read_timeout)
      : failing{.first = kFirstPause, .longest = kLastPause},
        slow{.first = std::min(read_timeout, kLongestRest), .longest = kLongestRest} {}

  std::string address;
  int threads = 1;
  bool listed = true;  // by the dispatcher, when it was asked last
  std::unique_ptr<grpc::GenericStub> stub;
  int under_way = 0;
  std::uint64_t turn = 0;  // when it was asked last; before that at random
  Rest failing;            // calls end soon: nothing is asked
  Rest slow;               // calls end late: nothing is asked while another one answers
  std::string error;       // of its last call; empty: it was answered
  std::string probe;       // what a connection to it said last
};

// Examples [begin, begin + size) of the read.
struct Connection::Piece {
  std::size_t begin = 0;
  std::size_t size = 0;
  std::int64_t bytes = 0;  // about

  std::unique_ptr<grpc::ClientContext> context;  // of the next call, as the request
  grpc::ByteBuffer request;

  // Of the call that is under way, or has landed.
  bool flying = false;         // guarded by mutex_
  std::shared_ptr<Peer> peer;  // owners: this, and peers_
  Deadline asked;
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
  std::list<Piece> pieces;
  std::deque<Piece*> waiting;  // guarded by mutex_
  std::deque<Piece*> landed;   // guarded by mutex_
};

// A reading among reads_, until nothing of it is under way any more.
class Connection::Listed {
 public:
  Listed(Connection& connection, Reading& reading) : connection_(connection), reading_(reading) {
    const std::lock_guard lock(connection_.mutex_);
    connection_.reads_.push_back(&reading_);
  }
  ~Listed() {
    std::unique_lock lock(connection_.mutex_);
    std::erase(connection_.reads_, &reading_);
    connection_.changed_.notify_all();  // the turn of the next one
    // gRPC answers a cancelled call at once, whatever the worker does.
    for (const Piece& piece : reading_.pieces) {
      if (piece.flying) {
        piece.context->TryCancel();
      }
    }
    connection_.changed_.wait(lock, [this] {
      return std::none_of(reading_.pieces.begin(), reading_.pieces.end(),
                          [](const Piece& piece) { return piece.flying; });
    });
  }
  Listed(const Listed&) = delete;
  Listed& operator=(const Listed&) = delete;

 private:
  Connection& connection_;
  Reading& reading_;
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
  if (status.ok()) {
    dispatcher_probe_.clear();
  } else {
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
      return reply.ok() ? status.message()
                        : WhyNoAnswer(ProbeAddress(dispatcher_, kProbeTimeout), status.message());
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
    contract_ = Contract(info_);
  } else if (const std::string difference = Difference(info, info_); !difference.empty()) {
    return FailedPrecondition(Name() + " is another one now: " + difference);
  }
  for (auto& [address, peer] : peers_) {
    peer->listed = false;
  }
  for (const wire::FindReply::Worker& worker : reply.workers()) {
    std::string address = worker.address().empty() ? dispatcher_ : worker.address();
    if (address.starts_with(':')) {  // at the dispatcher's host
      address.insert(0, dispatcher_, 0, dispatcher_.rfind(':'));
    }
    std::shared_ptr<Peer>& peer = peers_[address];
    if (peer == nullptr) {
      peer = std::make_shared<Peer>(options_.read_timeout);
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
    ProbeMissing();
  }
}

void Connection::ProbeMissing() {
  std::vector<std::shared_ptr<Peer>> peers;
  bool dispatcher = false;
  {
    const std::lock_guard lock(mutex_);
    const Duration late = std::min(options_.roll_call_interval, options_.timeout) / 2;
    if (reads_.empty() || std::chrono::steady_clock::now() - last_landed_ < late) {
      return;
    }
    for (const auto& [address, peer] : peers_) {
      if (peers.size() < kProbed) {
        peers.push_back(peer);
      }
    }
    dispatcher = !find_error_.empty();
  }
  for (const std::shared_ptr<Peer>& peer : peers) {
    if (Pause(Duration::zero())) {
      return;
    }
    std::string probe = ProbeAddress(peer->address, kProbeTimeout);
    const std::lock_guard lock(mutex_);
    peer->probe = std::move(probe);
  }
  if (dispatcher && !Pause(Duration::zero())) {
    std::string probe = ProbeAddress(dispatcher_, kProbeTimeout);
    const std::lock_guard lock(mutex_);
    dispatcher_probe_ = std::move(probe);
  }
}

// ---- Reading
// -------------------------------------------------------------------------------------

std::int64_t Connection::ListBytes() const {
  return info_.ragged.empty() ? 0 : list_bytes_ >= 0 ? list_bytes_ : options_.piece_bytes / 8;
}

void Connection::Cut(Reading& reading) const {
  std::int64_t each = info_.row_bytes();
  std::int64_t threads = 0;
  {
    const std::lock_guard lock(mutex_);
    each += ListBytes();
    for (const auto& [address, peer] : peers_) {
      threads += peer->threads;
    }
  }
  each = std::max<std::int64_t>(each, 1);
  threads = std::max<std::int64_t>(threads, 1);
  const std::size_t size = reading.indexes.size();
  const std::int64_t by_bytes = options_.piece_bytes / each;
  const std::int64_t by_threads = (static_cast<std::int64_t>(size) + threads - 1) / threads;
  const auto most = static_cast<std::size_t>(
      std::clamp(std::min(by_bytes, by_threads), std::int64_t{1}, kMostExamples));
  for (std::size_t begin = 0; begin < size; begin += most) {
    Piece& piece = reading.pieces.emplace_back();
    piece.begin = begin;
    piece.size = std::min(most, size - begin);
    piece.bytes = each * static_cast<std::int64_t>(piece.size);
    Prepare(reading, piece);
    reading.waiting.push_back(&piece);
  }
}

void Connection::Prepare(const Reading& reading, Piece& piece) const {
  wire::ReadRequest request;
  request.set_pipeline(info_.name);
  request.set_contract(contract_);
  request.set_epoch(reading.epoch);
  const auto indexes = reading.indexes.subspan(piece.begin, piece.size);
  request.mutable_indexes()->Assign(indexes.begin(), indexes.end());
  const grpc::Slice slice(request.SerializeAsString());
  piece.request = grpc::ByteBuffer(&slice, 1);
  piece.reply.Clear();
  piece.context = std::make_unique<grpc::ClientContext>();
}

void Connection::Split(Reading& reading, Piece& piece) const {
  Piece& second = reading.pieces.emplace_back();
  const std::size_t half = piece.size / 2;
  const std::int64_t each = piece.bytes / static_cast<std::int64_t>(piece.size);
  second.begin = piece.begin + half;
  second.size = piece.size - half;
  second.bytes = each * static_cast<std::int64_t>(second.size);
  piece.size = half;
  piece.bytes = each * static_cast<std::int64_t>(half);
  Prepare(reading, second);
}

Status Connection::Read(std::int64_t epoch, std::span<const std::int64_t> indexes,
                        std::span<std::byte* const> rows, std::span<std::vector<std::byte>> values,
                        std::span<std::vector<std::int64_t>> ends) {
  Reading reading{.epoch = epoch, .indexes = indexes, .rows = rows, .values = values, .ends = ends};
  Cut(reading);
  {
    const Listed listed(*this, reading);
    COHORT_RETURN_IF_ERROR(Run(reading));
  }
  return Gather(reading);
}

Status Connection::Run(Reading& reading) {
  const std::atomic<bool>* const stop = StopScope::Current();
  // Since when this read has had its turn, and no piece of it has come. While an older one is
  // there, a piece of any read counts.
  Deadline progress = std::chrono::steady_clock::now();
  Deadline next_call = progress + options_.roll_call_interval;
  std::vector<Piece*> assigned;
  for (std::size_t there = 0; there < reading.pieces.size();) {
    std::deque<Piece*> landed;
    assigned.clear();
    assigned.reserve(reading.pieces.size());  // from Assign to Send nothing throws
    {
      std::unique_lock lock(mutex_);
      std::shared_ptr<Peer> peer;
      const auto can_start = [&] {
        peer = IsNext(reading) ? Choose(*reading.waiting.front()) : nullptr;
        return peer != nullptr;
      };
      changed_.wait_for(lock, kLook, [&] { return !reading.landed.empty() || can_start(); });
      while (can_start()) {
        Piece& piece = *reading.waiting.front();
        reading.waiting.pop_front();
        Assign(piece, std::move(peer));
        assigned.push_back(&piece);
      }
      if (!assigned.empty() && reading.waiting.empty()) {
        changed_.notify_all();  // the turn of the next read
      }
      if (reads_.front() != &reading) {
        progress = std::max(progress, last_landed_);
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
        continue;
      }
      Piece* second = nullptr;
      if (piece->size > 1 && piece->status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
        Split(reading, *piece);
        second = &reading.pieces.back();
      }
      Prepare(reading, *piece);
      const std::lock_guard lock(mutex_);
      if (second != nullptr) {
        reading.waiting.push_front(second);
      }
      reading.waiting.push_front(piece);
    }
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) {
      return Cancelled("the iterator is being destroyed");
    }
    const Deadline now = std::chrono::steady_clock::now();
    if (there < reading.pieces.size() && now - progress >= options_.timeout) {
      return DeadlineExceeded(Name() + ": no examples for " + Seconds(now - progress) + ": " +
                              WhyNothing());
    }
    if (now >= std::max(next_call, progress + options_.roll_call_interval)) {
      options_.log.Info("waiting for examples of " + Name() + ": " + WhyNothing());
      next_call = now + options_.roll_call_interval;
    }
  }
  return {};
}

bool Connection::IsNext(const Reading& reading) const {
  for (const Reading* read : reads_) {
    if (!read->waiting.empty()) {
      return read == &reading;
    }
  }
  return false;
}

std::shared_ptr<Connection::Peer> Connection::Choose(const Piece& piece) const {
  if (under_way_bytes_ > 0 && under_way_bytes_ + piece.bytes > options_.max_bytes) {
    return nullptr;
  }
  const Deadline now = std::chrono::steady_clock::now();
  const bool one_answers = std::any_of(peers_.begin(), peers_.end(),
                                       [](const auto& item) { return item.second->error.empty(); });
  const std::shared_ptr<Peer>* best = nullptr;
  const auto load = [](const Peer& peer) {
    return std::pair(static_cast<double>(peer.under_way) / peer.threads, peer.turn);
  };
  for (const auto& [address, peer] : peers_) {
    const int most = peer->error.empty() ? 2 * peer->threads : 1;
    if (peer->under_way < most && peer->failing.until <= now &&
        (!one_answers || peer->slow.until <= now) &&
        (best == nullptr || load(*peer) < load(**best))) {
      best = &peer;
    }
  }
  return best == nullptr ? nullptr : *best;
}

void Connection::Assign(Piece& piece, std::shared_ptr<Peer> peer) {
  piece.asked = std::chrono::steady_clock::now();
  piece.context->set_deadline(GrpcTimeout(std::clamp<milliseconds>(
      options_.read_timeout, milliseconds(1), std::max(options_.timeout / 3, milliseconds(1)))));
  piece.peer = std::move(peer);
  ++piece.peer->under_way;
  piece.peer->turn = turn_++;
  under_way_bytes_ += piece.bytes;
  piece.flying = true;
}

void Connection::Send(Reading& reading, Piece& piece) {
  piece.peer->stub->UnaryCall(piece.context.get(), "/cohort.data.wire.DataService/Read",
                              grpc::StubOptions(), &piece.request, &piece.reply,
                              [this, &reading, &piece](grpc::Status status) {
                                const std::lock_guard lock(mutex_);
                                piece.status = std::move(status);
                                --piece.peer->under_way;
                                under_way_bytes_ -= piece.bytes;
                                piece.flying = false;
                                reading.landed.push_back(&piece);
                                changed_.notify_all();
                              });
}

void Connection::Blame(const Piece& piece, const std::string& why) {
  const std::lock_guard lock(mutex_);
  Peer& peer = *piece.peer;
  peer.error = why;
  const grpc::StatusCode code = piece.status.error_code();
  if (code == grpc::StatusCode::RESOURCE_EXHAUSTED) {  // it is there, and has enough to do
    peer.failing.until = std::chrono::steady_clock::now() + kFirstPause;
    return;
  }
  const bool slow = code == grpc::StatusCode::DEADLINE_EXCEEDED ||
                    std::chrono::steady_clock::now() - piece.asked >= kLastPause;
  (slow ? peer.slow : peer.failing).Begin(piece.asked);
  const auto place = peers_.find(peer.address);
  if (!peer.listed && place != peers_.end() && place->second == piece.peer) {
    peers_.erase(place);
  }
}

Result<bool> Connection::Land(Reading& reading, Piece& piece) {
  const std::string where = "input worker " + piece.peer->address;
  if (!piece.status.ok()) {
    Blame(piece, piece.status.error_message());
    return false;
  }
  Received received;
  wire::ReadReply header;
  if (!received.Take(piece.reply) || !received.ReadHeader(&header)) {
    return Internal(where + ": a reply that is no message");
  }
  if (header.elsewhere()) {
    Blame(piece, header.outcome().message());
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
  last_landed_ = std::chrono::steady_clock::now();
  piece.peer->failing.End();
  piece.peer->slow.End();
  piece.peer->error.clear();
  piece.peer->probe.clear();
  return true;
}

Status Connection::Gather(Reading& reading) {
  reading.pieces.sort([](const Piece& a, const Piece& b) { return a.begin < b.begin; });
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

std::string Connection::WhyNothing() const {
  const std::lock_guard lock(mutex_);
  std::string why;
  std::size_t said = 0;
  for (const auto& [address, peer] : peers_) {
    if (said++ == kProbed) {
      why += " and " + std::to_string(peers_.size() - kProbed) + " more";
      break;
    }
    const bool connects = peer->probe.empty() || peer->probe == kAcceptsConnections;
    why += (why.empty() ? "" : ", ") + std::string("input worker ") + address + " (" +
           (!connects              ? peer->probe
            : !peer->error.empty() ? peer->error
                                   : "is reading") +
           ")";
  }
  if (peers_.empty()) {
    why = "no input worker is left";
  }
  if (!find_error_.empty()) {
    why += "; the dispatcher does not answer: " +
           (dispatcher_probe_.empty() ? find_error_ : WhyNoAnswer(dispatcher_probe_, find_error_));
  }
  return why;
}

}  // namespace cohort::data
