#include "mpi/mpi_transport.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <iterator>
#include <thread>
#include <utility>

#include "kept_frames.h"
#include "mpi/mpi_collectives.h"

namespace cohort {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

enum Tag { kFrameTag = 1, kBodyTag = 2, kUrgentTag = 3, kTags = 4 };

struct Header {
  FrameKind kind;
  std::uint8_t inside;  // whether the body follows in the same message
  std::uint8_t reserved[6];
  std::uint64_t bytes;
};
static_assert(sizeof(Header) == 16);

constexpr std::size_t kInsideBytes = Transport::kMaxControlBytes;
constexpr std::size_t kMaxMessage = 2 * (sizeof(Header) + kInsideBytes);  // of frames
constexpr std::size_t kBodiesUnderWay = 4;                                // from one peer
// Of what is sent, MPI keeps at the receiver's what is small and not asked for yet, without a
// bound. So that there is one, a frame waits to be received after so many bytes of data; what is
// large enough waits by itself, and counts as no more than MPI keeps.
constexpr std::size_t kUnmatchedBytes = 256 << 10;
constexpr std::size_t kEagerBytes = 64 << 10;
constexpr auto kSpin = microseconds(50);  // before a wait sleeps between looks
constexpr auto kShortNap = microseconds(20);
constexpr auto kIdleNap = milliseconds(10);  // between operations
constexpr auto kLetGo = milliseconds(1000);  // what is under way when the communicator fails

struct OutMessage {
  std::vector<std::byte> frame;
  Bytes body;  // sent apart if the frame does not hold it
  MPI_Request frame_request = MPI_REQUEST_NULL;
  MPI_Request body_request = MPI_REQUEST_NULL;
  std::uint64_t ticket = 0;  // 0: control
};

struct Posted {
  MutableBytes data;
  CombineWith combine;
};

struct BodyUnderWay {
  Posted posted;
  bool wanted = true;
  std::vector<std::byte> scratch;  // where it combines
  MPI_Request request = MPI_REQUEST_NULL;
};

struct Mailbox {  // a receive that is always posted
  std::vector<std::byte> bytes = std::vector<std::byte>(kMaxMessage);
  std::size_t size = 0;  // of what has come
  std::size_t at = 0;    // the frame in it that is next
  MPI_Request request = MPI_REQUEST_NULL;
};

struct Peer {
  int world = 0;  // its rank in MPI's communicator
  int group = 0;  // what it calls this group: in the tags of all that is sent to it
  bool lost = false;
  std::vector<std::byte> ahead;  // the record of an operation: goes with the next frame
  std::deque<OutMessage> out;
  std::size_t unmatched = 0;  // bytes of data since the last frame that is done when it is received
  std::deque<Posted> posted;
  KeptFrames kept;
  int dropping = 0;  // rejects still to come; the data before them are dropped
  std::deque<BodyUnderWay> bodies;
  Mailbox frames;
  Mailbox urgent;
  bool held = false;  // a frame in the mailbox waits: for a receive, or for the bodies before it
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm, int rank,
               std::vector<Peer> peers, bool native)
      : Transport(static_cast<int>(peers.size())),
        runtime_(std::move(runtime)),
        comm_(comm),
        rank_(rank),
        native_(native),
        peers_(std::move(peers)) {}
  ~MpiTransport() override;

  std::string_view backend() const override { return "mpi"; }
  void Attach(TransportListener* listener) override { listener_ = listener; }
  std::unique_ptr<NativeCollectives> Native() override {
    return native_ ? MakeMpiCollectives(runtime_, comm_) : nullptr;
  }
  void Wake() override {
    const std::lock_guard lock(wake_mutex_);
    woken_ = true;
    wake_.notify_all();
  }

  Ticket Send(int to, Bytes data) override {
    Lane& l = lane(to);
    ++l.sends;
    CountSent(data.size());
    Put(to, kFrameTag, FrameKind::kData, data, l.sends);
    return {to, true, l.sends};
  }
  Ticket Receive(int from, MutableBytes data, const CombineWith& combine) override;
  void Control(int to, FrameKind kind, Bytes body) override {
    if (kind == FrameKind::kOpen) {
      SendAhead(to);
      peer(to).ahead = Frame(kind, body);
      return;
    }
    const bool urgent = kind == FrameKind::kAbort || kind == FrameKind::kStalled;
    if (kind == FrameKind::kReject) {
      Put(to, kUrgentTag, kind, body, 0);
    }
    Put(to, urgent ? kUrgentTag : kFrameTag, kind, body, 0);
  }
  void Progress(Deadline until) override;
  bool Abandon() override;
  // MPI has nothing to wait on: the driver looks again and again.
  void Watch(Deadline until) override {
    std::unique_lock lock(wake_mutex_);
    wake_.wait_until(lock, std::min(until, DeadlineAfter(kIdleNap)), [this] { return woken_; });
  }
  void Forget() override;
  void Close(Deadline deadline) override;
  Result<std::string> Offer() override;
  Result<std::unique_ptr<Transport>> Join(const std::string& id, const std::vector<int>& members,
                                          int my_index, const std::vector<std::string>& offers,
                                          Deadline deadline) override;

 private:
  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }
  int size() const { return static_cast<int>(peers_.size()); }

  int TagOf(int receiver, Tag tag) { return kTags * peer(receiver).group + tag; }
  static std::vector<std::byte> Frame(FrameKind kind, Bytes body);
  static bool CountUnmatched(Peer& peer, std::size_t bytes);
  void SendAhead(int to);
  void Post(int to, Tag tag, OutMessage& message);
  void Put(int to, Tag tag, FrameKind kind, Bytes body, std::uint64_t ticket);
  bool Test(int peer, MPI_Request& request, std::size_t* received = nullptr);
  void Open(int from, Mailbox& mailbox, Tag tag);
  bool Look();
  bool LookAtSends(int to);
  bool LookAtUrgent(int from);
  bool LookAtFrames(int from);
  bool LookAtBodies(int from);
  bool TakeFrame(int from, const Header& header, Bytes body);
  bool ReceiveBody(int from, const Posted& posted, std::size_t bytes);
  void LetGo();
  bool Pause(Deadline until, Deadline since);
  bool Busy() const;
  void Lose(int rank, const Status& why);

  const std::shared_ptr<MpiRuntime> runtime_;  // owners: all transports of this process
  const MPI_Comm comm_;
  const int rank_;
  const bool native_;
  TransportListener* listener_ = nullptr;
  std::vector<Peer> peers_;
  std::vector<BodyUnderWay> left_behind_;  // receives that would not be cancelled
  std::deque<OutMessage> abandoned_;       // sends under way at the failure
  bool listening_ = false;
  bool forgotten_ = false;
  bool stop_ = false;

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool woken_ = false;  // guarded by wake_mutex_
};

MpiTransport::~MpiTransport() {
  if (!MpiRuntime::Finalized()) {
    runtime_->Call([this] { LetGo(); });
  }
}

void MpiTransport::LetGo() {
  for (Peer& p : peers_) {
    for (Mailbox* mailbox : {&p.frames, &p.urgent}) {
      if (mailbox->request != MPI_REQUEST_NULL) {
        MPI_Cancel(&mailbox->request);
        MPI_Wait(&mailbox->request,
                 MPI_STATUS_IGNORE);  // local: nothing has matched, or all is here
      }
    }
    std::move(p.out.begin(), p.out.end(), std::back_inserter(abandoned_));
    for (BodyUnderWay& body : p.bodies) {
      if (body.request != MPI_REQUEST_NULL) {
        MPI_Cancel(&body.request);
        MPI_Request_free(&body.request);
      }
    }
    std::move(p.bodies.begin(), p.bodies.end(), std::back_inserter(left_behind_));
  }
  for (OutMessage& message : abandoned_) {
    for (MPI_Request* request : {&message.frame_request, &message.body_request}) {
      if (*request != MPI_REQUEST_NULL) {
        MPI_Request_free(request);
      }
    }
    runtime_->Keep(std::move(message.frame));
  }
  for (BodyUnderWay& body : left_behind_) {
    runtime_->Keep(std::move(body.scratch));
  }
  // comm_ is not freed: MPI would give its context to the next communicator made, which would then
  // meet what peers sent to this one and nobody received.
}

// --- sending

// Is the frame of so many bytes, the data with it, one that waits to be received?
bool MpiTransport::CountUnmatched(Peer& peer, std::size_t bytes) {
  peer.unmatched += std::min(bytes, kEagerBytes);
  if (peer.unmatched < kUnmatchedBytes) {
    return false;
  }
  peer.unmatched = 0;
  return true;
}

// A header, and the body if it is small.
std::vector<std::byte> MpiTransport::Frame(FrameKind kind, Bytes body) {
  const bool inside = body.size() <= kInsideBytes;
  const Header header = {kind, static_cast<std::uint8_t>(inside ? 1 : 0), {}, body.size()};
  std::vector<std::byte> frame(sizeof(Header) + (inside ? body.size() : 0));
  std::memcpy(frame.data(), &header, sizeof(Header));
  if (inside) {
    std::copy(body.begin(), body.end(), frame.begin() + sizeof(Header));
  }
  return frame;
}

void MpiTransport::Put(int to, Tag tag, FrameKind kind, Bytes body, std::uint64_t ticket) {
  Peer& p = peer(to);
  if (p.lost) {
    return;
  }
  OutMessage& message = p.out.emplace_back();
  message.frame = Frame(kind, body);
  if (tag == kFrameTag) {
    message.frame.insert(message.frame.begin(), p.ahead.begin(), p.ahead.end());
    p.ahead.clear();
  }
  if (body.size() > kInsideBytes) {
    message.body = body;
  }
  message.ticket = ticket;
  Post(to, tag, message);
}

// What was to go with a frame that has not come yet.
void MpiTransport::SendAhead(int to) {
  Peer& p = peer(to);
  if (!p.ahead.empty()) {
    OutMessage& message = p.out.emplace_back();
    message.frame.swap(p.ahead);
    Post(to, kFrameTag, message);
  }
}

void MpiTransport::Post(int to, Tag tag, OutMessage& message) {
  Peer& p = peer(to);
  const std::size_t bytes = message.frame.size() + message.body.size();
  const auto send = message.ticket != 0 && CountUnmatched(p, bytes) ? MPI_Issend : MPI_Isend;
  const int code = runtime_->Call([&] {
    const int sent = send(message.frame.data(), static_cast<int>(message.frame.size()), MPI_BYTE,
                          p.world, TagOf(to, tag), comm_, &message.frame_request);
    return sent != MPI_SUCCESS || message.body.empty()
               ? sent
               : MPI_Isend(message.body.data(), static_cast<int>(message.body.size()), MPI_BYTE,
                           p.world, TagOf(to, kBodyTag), comm_, &message.body_request);
  });
  if (code != MPI_SUCCESS) {
    Lose(to, MpiRuntime::Check(code, "MPI_Isend"));
  }
}

// Whether `request` is done; needs the lock. `received`: the bytes that came by it.
bool MpiTransport::Test(int rank, MPI_Request& request, std::size_t* received) {
  int done = 0;
  MPI_Status status;
  const int code = MPI_Test(&request, &done, &status);
  if (code != MPI_SUCCESS) {
    Lose(rank, MpiRuntime::Check(code, "MPI_Test"));
    return false;
  }
  if (done != 0 && received != nullptr) {
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    *received = static_cast<std::size_t>(bytes);
  }
  return done != 0;
}

bool MpiTransport::LookAtSends(int to) {
  Peer& p = peer(to);
  bool moved = false;
  while (!p.out.empty()) {
    OutMessage& message = p.out.front();
    {
      const std::lock_guard lock(runtime_->mutex());
      if (!Test(to, message.frame_request) || !Test(to, message.body_request)) {
        break;
      }
    }
    if (message.ticket != 0) {
      lane(to).sends_done = message.ticket;
    }
    p.out.pop_front();
    moved = true;
  }
  return moved;
}

// --- receiving

// Posts the receive of the next frame; needs the lock.
void MpiTransport::Open(int from, Mailbox& mailbox, Tag tag) {
  mailbox.at = 0;
  const int code = MPI_Irecv(mailbox.bytes.data(), static_cast<int>(mailbox.bytes.size()), MPI_BYTE,
                             peer(from).world, TagOf(rank_, tag), comm_, &mailbox.request);
  if (code != MPI_SUCCESS) {
    Lose(from, MpiRuntime::Check(code, "MPI_Irecv"));
  }
}

Ticket MpiTransport::Receive(int from, MutableBytes data, const CombineWith& combine) {
  Lane& l = lane(from);
  Peer& p = peer(from);
  ++l.receives;
  if (p.posted.empty() && p.bodies.empty() && p.kept.HasData()) {
    const std::vector<std::byte> body = p.kept.Take();
    if (body.size() != data.size()) {
      listener_->OnWrongSize(from, body.size(), data.size());
    } else {
      Deliver(data.data(), body, combine, combine.local);
      CountReceived(data.size());
      ++l.receives_done;
    }
  } else {
    p.posted.push_back({data, combine});
  }
  return {from, false, l.receives};
}

bool MpiTransport::LookAtUrgent(int from) {
  Peer& p = peer(from);
  {
    const std::lock_guard lock(runtime_->mutex());
    if (p.urgent.request == MPI_REQUEST_NULL || !Test(from, p.urgent.request)) {
      return false;
    }
  }
  Header header;
  std::memcpy(&header, p.urgent.bytes.data(), sizeof(Header));
  const std::vector<std::byte> body(
      p.urgent.bytes.begin() + sizeof(Header),
      p.urgent.bytes.begin() + sizeof(Header) +
          static_cast<std::ptrdiff_t>(std::min<std::size_t>(header.bytes, kInsideBytes)));
  {
    const std::lock_guard lock(runtime_->mutex());
    Open(from, p.urgent, kUrgentTag);
  }
  stop_ |= !listener_->OnControl(from, header.kind, body);
  return true;
}

bool MpiTransport::LookAtFrames(int from) {
  Peer& p = peer(from);
  if (!p.held) {
    const std::lock_guard lock(runtime_->mutex());
    if (p.frames.request == MPI_REQUEST_NULL || !Test(from, p.frames.request, &p.frames.size)) {
      return false;
    }
    p.held = true;
  }
  bool moved = false;
  while (p.frames.at < p.frames.size) {
    Header header;
    std::memcpy(&header, p.frames.bytes.data() + p.frames.at, sizeof(Header));
    const Bytes body(p.frames.bytes.data() + p.frames.at + sizeof(Header),
                     header.inside != 0 ? header.bytes : 0);
    if (stop_ || !TakeFrame(from, header, body)) {
      return moved;
    }
    p.frames.at += sizeof(Header) + body.size();
    moved = true;
  }
  p.held = false;
  const std::lock_guard lock(runtime_->mutex());
  Open(from, p.frames, kFrameTag);
  return true;
}

// Deals with a frame; false if it must wait.
bool MpiTransport::TakeFrame(int from, const Header& header, Bytes body) {
  Peer& p = peer(from);
  const bool inside = header.inside != 0;
  if (header.kind != FrameKind::kData) {
    if (!p.bodies.empty()) {
      return false;
    }
    if (header.kind == FrameKind::kReject) {
      if (p.dropping > 0) {
        --p.dropping;
      } else {
        p.kept.KeepReject();
      }
    }
    const std::vector<std::byte> copy(body.begin(), body.end());
    stop_ |= !listener_->OnControl(from, header.kind, copy);
    return true;
  }
  if (forgotten_) {
    return inside;  // a large body stays where it is
  }
  if (!inside && p.bodies.size() >= kBodiesUnderWay) {
    return false;
  }
  if (p.dropping > 0) {
    return inside || ReceiveBody(from, {}, header.bytes);
  }
  const bool expected = !p.posted.empty() && p.kept.empty();
  if (inside) {
    if (!p.bodies.empty()) {
      return false;
    }
    if (!expected) {
      if (!p.kept.MayKeep(body.size())) {
        return false;
      }
      p.kept.Keep({body.begin(), body.end()});
      return true;
    }
  } else if (!expected) {
    return false;
  }
  const Posted posted = p.posted.front();
  p.posted.pop_front();
  if (posted.data.size() != header.bytes) {
    stop_ = true;
    listener_->OnWrongSize(from, header.bytes, posted.data.size());
    return false;
  }
  if (inside) {
    Deliver(posted.data.data(), body, posted.combine, posted.combine.local);
    CountReceived(body.size());
    ++lane(from).receives_done;
    return true;
  }
  return ReceiveBody(from, posted, header.bytes);
}

// Asks for a body: for `posted`, or to be dropped if that is empty.
bool MpiTransport::ReceiveBody(int from, const Posted& posted, std::size_t bytes) {
  BodyUnderWay& under_way = peer(from).bodies.emplace_back();
  under_way.posted = posted;
  under_way.wanted = posted.data.data() != nullptr;
  std::byte* to = posted.data.data();
  if (!under_way.wanted || posted.combine.reduction != nullptr) {
    under_way.scratch.resize(bytes);
    to = under_way.scratch.data();
  }
  const std::lock_guard lock(runtime_->mutex());
  const int code = MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, peer(from).world,
                             TagOf(rank_, kBodyTag), comm_, &under_way.request);
  if (code != MPI_SUCCESS) {
    Lose(from, MpiRuntime::Check(code, "MPI_Irecv"));
  }
  return true;
}

bool MpiTransport::LookAtBodies(int from) {
  Peer& p = peer(from);
  bool moved = false;
  while (!p.bodies.empty() && !p.lost) {
    BodyUnderWay& body = p.bodies.front();
    {
      const std::lock_guard lock(runtime_->mutex());
      if (!Test(from, body.request)) {
        break;
      }
    }
    if (body.wanted && body.posted.combine.reduction != nullptr) {
      Deliver(body.posted.data.data(), body.scratch, body.posted.combine,
              body.posted.combine.local);
    }
    if (!body.posted.data.empty()) {
      CountReceived(body.posted.data.size());
      ++lane(from).receives_done;
    }
    p.bodies.pop_front();
    moved = true;
  }
  return moved;
}

// --- waiting

bool MpiTransport::Look() {
  if (!listening_) {
    listening_ = true;
    const std::lock_guard lock(runtime_->mutex());
    for (int p = 0; p < size(); ++p) {
      if (p != rank_) {
        Open(p, peer(p).frames, kFrameTag);
        Open(p, peer(p).urgent, kUrgentTag);
      }
    }
  }
  bool moved = false;
  for (int p = 0; p < size() && !stop_; ++p) {
    if (p != rank_ && !peer(p).lost) {
      SendAhead(p);
      moved |= LookAtSends(p);
      moved |= LookAtUrgent(p);
      while (!stop_ && !peer(p).lost) {
        const bool body = LookAtBodies(p);
        const bool frame = !stop_ && LookAtFrames(p);
        moved |= body || frame;
        if (!body && !frame) {
          break;
        }
      }
    }
  }
  return moved;
}

bool MpiTransport::Busy() const {
  return std::any_of(peers_.begin(), peers_.end(), [](const Peer& p) {
    return !p.lost && (!p.posted.empty() || !p.bodies.empty() || !p.out.empty());
  });
}

void MpiTransport::Progress(Deadline until) {
  stop_ = false;
  const Deadline since = std::chrono::steady_clock::now();
  do {
    if (runtime_->Funnel([this] { return Look(); })) {
      break;
    }
  } while (!stop_ && Pause(until, since));
  const std::lock_guard lock(wake_mutex_);
  woken_ = false;
}

// MPI is looked at again and again: at first at once, later after naps, so that waiting leaves the
// core to others. False: return.
bool MpiTransport::Pause(Deadline until, Deadline since) {
  const Deadline now = std::chrono::steady_clock::now();
  std::unique_lock lock(wake_mutex_);
  if (woken_ || now >= until) {
    return false;
  }
  const bool busy = Busy();
  if (busy && now - since < kSpin) {
    lock.unlock();
    std::this_thread::yield();
    return true;
  }
  const Duration nap = busy ? MpiRuntime::Nap(now - since) : Duration(kIdleNap);
  return !wake_.wait_until(lock, std::min(until, now + nap), [this] { return woken_; });
}

void MpiTransport::Lose(int rank, const Status& why) {
  if (!peer(rank).lost) {
    peer(rank).lost = true;
    stop_ = true;
    listener_->OnLost(rank, why);
  }
}

// --- the end

// What MPI has been given it keeps until it is done: bodies on their way are waited for, those
// still to come go nowhere.
bool MpiTransport::Abandon() {
  for (int r = 0; r < size(); ++r) {
    Peer& p = peer(r);
    lane(r).receives -= p.posted.size();
    p.posted.clear();
    for (BodyUnderWay& body : p.bodies) {
      body.wanted = false;
    }
    if (!p.kept.GiveUp()) {
      ++p.dropping;
    }
  }
  return true;
}

void MpiTransport::Forget() {
  forgotten_ = true;
  runtime_->LeaveWithin(kLetGo);
  const Deadline patience = DeadlineAfter(kLetGo);
  for (Peer& p : peers_) {
    p.posted.clear();
    p.kept.Clear();
    p.ahead.clear();
    for (BodyUnderWay& body : p.bodies) {
      int done = 0;
      const auto look = [&] { MPI_Test(&body.request, &done, MPI_STATUS_IGNORE); };
      runtime_->Call([&] {
        MPI_Cancel(&body.request);
        look();
      });
      while (done == 0 && body.scratch.empty() && std::chrono::steady_clock::now() < patience) {
        std::this_thread::sleep_for(kShortNap);
        runtime_->Call(look);
      }
      if (done == 0) {
        left_behind_.push_back(std::move(body));
      }
    }
    p.bodies.clear();
    std::deque<OutMessage> still;  // what was said to the peer goes on
    for (OutMessage& message : p.out) {
      (message.ticket == 0 ? still : abandoned_).push_back(std::move(message));
    }
    p.out = std::move(still);
  }
}

void MpiTransport::Close(Deadline deadline) {
  if (MpiRuntime::Finalized()) {
    return;
  }
  const auto unsent = [this] {
    return std::any_of(peers_.begin(), peers_.end(),
                       [](const Peer& p) { return !p.lost && !p.out.empty(); });
  };
  while (unsent() && std::chrono::steady_clock::now() < deadline) {
    stop_ = false;
    if (!runtime_->Funnel([this] { return Look(); })) {
      std::this_thread::sleep_for(kShortNap);
    }
  }
}

// A group has MPI's communicator in common with this one, so nothing waits for anybody to make it.
// What is sent to a rank has the rank's own number of the group in its tag, which it has offered.
Result<std::string> MpiTransport::Offer() {
  const int group = runtime_->NewGroup();
  int* most = nullptr;
  int known = 0;
  runtime_->Call([&] { MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &most, &known); });
  if (known == 0 || group >= *most / kTags) {
    return ResourceExhausted("MPI has no tag left for one more group of ranks");
  }
  return std::to_string(group);
}

Result<std::unique_ptr<Transport>> MpiTransport::Join(const std::string& /*id*/,
                                                      const std::vector<int>& members, int my_index,
                                                      const std::vector<std::string>& offers,
                                                      Deadline /*deadline*/) {
  if (members.empty()) {
    return std::unique_ptr<Transport>();
  }
  std::vector<Peer> peers(members.size());
  for (std::size_t i = 0; i < members.size(); ++i) {
    peers[i].world = peer(members[i]).world;
    peers[i].group = std::stoi(offers[i]);
  }
  return std::make_unique<MpiTransport>(runtime_, comm_, my_index, std::move(peers),
                                        /*native=*/false);
}

}  // namespace

std::unique_ptr<Transport> MakeMpiTransport(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm,
                                            bool native) {
  int rank = 0;
  int size = 1;
  runtime->Call([&] {
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
  });
  std::vector<Peer> peers(static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) {
    peers[static_cast<std::size_t>(r)].world = r;
  }
  return std::make_unique<MpiTransport>(std::move(runtime), comm, rank, std::move(peers), native);
}

}  // namespace cohort
