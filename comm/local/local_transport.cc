#include "local/local_transport.h"

#include <immintrin.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

namespace cohort {
namespace {

constexpr std::size_t kCopiedBytes = 4096;  // larger payloads are lent
constexpr std::int64_t kSegmentBytes = 256 << 10;
constexpr int kSpins = 100;  // a few microseconds before a wait sleeps

// Owners: the sender, which may take it back, and the frame on its way.
struct Loan {
  enum State { kOffered, kReading, kReturned, kTakenBack };
  std::atomic<State> state = kOffered;
  Bytes data;
};

struct Frame {
  int from = 0;
  FrameKind kind = FrameKind::kData;
  std::vector<std::byte> body;
  std::shared_ptr<Loan> loan;  // instead of body

  Bytes data() const { return loan ? loan->data : Bytes(body); }
};

struct Inbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Frame> frames;             // guarded by mutex
  std::vector<std::uint64_t> returned;  // guarded by mutex: loans given back, by rank
  bool woken = false;                   // guarded by mutex
  std::atomic<bool> something = false;  // any of the above, for spinning
};

}  // namespace

class LocalHub {
 public:
  explicit LocalHub(int size) : size_(size), inboxes_(static_cast<std::size_t>(size)) {
    for (Inbox& inbox : inboxes_) {
      inbox.returned.resize(static_cast<std::size_t>(size));
    }
  }
  int size() const { return size_; }
  Inbox& inbox(int rank) { return inboxes_[static_cast<std::size_t>(rank)]; }

  void Put(int to, Frame frame) {
    Change(to, [&](Inbox& inbox) { inbox.frames.push_back(std::move(frame)); });
  }
  void Return(int to, int from) {
    Change(to, [&](Inbox& inbox) { ++inbox.returned[static_cast<std::size_t>(from)]; });
  }
  void Wake(int rank) {
    Change(rank, [](Inbox& inbox) { inbox.woken = true; });
  }

  // The hub of the group `id`, the same for its `members` callers.
  std::shared_ptr<LocalHub> Group(const std::string& id, int members) {
    const std::lock_guard lock(groups_mutex_);
    auto& [hub, joined] = groups_[id];
    if (!hub) {
      hub = std::make_shared<LocalHub>(members);
    }
    std::shared_ptr<LocalHub> result = hub;
    if (++joined == members) {
      groups_.erase(id);
    }
    return result;
  }

 private:
  template <typename F>
  void Change(int rank, F f) {
    Inbox& box = inbox(rank);
    {
      const std::lock_guard lock(box.mutex);
      f(box);
      box.something.store(true, std::memory_order_release);
    }
    box.changed.notify_all();  // the driver, and who watches
  }

  const int size_;
  std::deque<Inbox> inboxes_;
  std::mutex groups_mutex_;
  std::map<std::string, std::pair<std::shared_ptr<LocalHub>, int>> groups_;  // guarded
};

namespace {

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalHub> hub, int rank)
      : Transport(hub->size()),
        hub_(std::move(hub)),
        rank_(rank),
        peers_(static_cast<std::size_t>(hub_->size())) {}

  std::string_view backend() const override { return "local"; }
  std::int64_t default_segment_bytes() const override { return kSegmentBytes; }
  void Attach(TransportListener* listener) override { listener_ = listener; }
  void Wake() override { hub_->Wake(rank_); }

  void Watch(Deadline until) override {
    Inbox& inbox = hub_->inbox(rank_);
    std::unique_lock lock(inbox.mutex);
    inbox.changed.wait_until(lock, until, [&] { return inbox.something.load(); });
  }

  Ticket Send(int to, Bytes data) override {
    Lane& l = lane(to);
    Peer& p = peer(to);
    ++l.sends;
    CountSent(data.size());
    Frame frame{.from = rank_};
    if (data.size() <= kCopiedBytes) {
      frame.body.assign(data.begin(), data.end());
      if (p.lent.empty()) {
        l.sends_done = l.sends;
      }
    } else {
      frame.loan = std::make_shared<Loan>();
      frame.loan->data = data;
      p.lent.emplace_back(l.sends, frame.loan);
    }
    hub_->Put(to, std::move(frame));
    return {to, true, l.sends};
  }

  Ticket Receive(int from, MutableBytes data, const CombineWith& combine) override {
    Lane& l = lane(from);
    Peer& p = peer(from);
    const Posted posted{data, combine};
    ++l.receives;
    if (p.posted.empty() && !p.unexpected.empty() &&
        p.unexpected.front().kind == FrameKind::kData) {
      const Frame frame = std::move(p.unexpected.front());
      p.unexpected.pop_front();
      Take(frame, posted);
    } else {
      p.posted.push_back(posted);
    }
    return {from, false, l.receives};
  }

  void Control(int to, FrameKind kind, Bytes body) override {
    hub_->Put(to, {.from = rank_, .kind = kind, .body = {body.begin(), body.end()}});
  }

  void Progress(Deadline until) override {
    if (arrived_.empty()) {
      Collect(until);
    }
    while (!arrived_.empty()) {
      const Frame frame = std::move(arrived_.front());
      arrived_.pop_front();
      if (frame.kind != FrameKind::kData) {
        if (frame.kind == FrameKind::kReject) {
          TakeReject(frame);
        }
        if (!listener_->OnControl(frame.from, frame.kind, frame.body)) {
          return;
        }
        continue;
      }
      Peer& p = peer(frame.from);
      if (forgotten_ || p.dropping > 0) {
        continue;
      }
      if (p.posted.empty() || !p.unexpected.empty()) {
        p.unexpected.push_back(frame);
      } else {
        const Posted posted = p.posted.front();
        p.posted.pop_front();
        Take(frame, posted);
      }
    }
  }

  void Forget() override {
    forgotten_ = true;
    for (Peer& p : peers_) {
      p.posted.clear();
      p.unexpected.clear();
      TakeBackLoans(p);
    }
  }

  bool Abandon() override {
    for (int r = 0; r < hub_->size(); ++r) {
      Peer& p = peer(r);
      Lane& l = lane(r);
      p.posted.clear();
      TakeBackLoans(p);
      l.receives_done = l.receives;
      l.sends_done = l.sends;
      if (r == rank_) {
        continue;
      }
      const auto reject = std::find_if(p.unexpected.begin(), p.unexpected.end(),
                                       [](const Frame& f) { return f.kind == FrameKind::kReject; });
      if (reject == p.unexpected.end()) {
        p.unexpected.clear();
        ++p.dropping;
      } else {
        p.unexpected.erase(p.unexpected.begin(), std::next(reject));
      }
    }
    return true;
  }

  void Close(Deadline /*deadline*/) override {}

  Result<std::unique_ptr<Transport>> Join(const std::string& id, const std::vector<int>& members,
                                          int my_index, const std::vector<std::string>& /*offers*/,
                                          Deadline /*deadline*/) override {
    if (members.empty()) {
      return std::unique_ptr<Transport>();
    }
    return MakeLocalTransport(hub_->Group(id, static_cast<int>(members.size())), my_index);
  }

 private:
  struct Posted {
    MutableBytes data;
    CombineWith combine;
  };
  struct Peer {
    std::deque<Posted> posted;
    std::deque<Frame> unexpected;  // data that came before its receive, rejects in between
    std::deque<std::pair<std::uint64_t, std::shared_ptr<Loan>>> lent;  // by ticket number
    std::uint64_t forgotten_loans = 0;  // read by the peer, and given back after we gave up
    int dropping = 0;                   // rejects still to come; the data before them are dropped
  };
  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }

  // After this no peer reads what was lent.
  static void TakeBackLoans(Peer& p) {
    for (const auto& [number, loan] : p.lent) {
      Loan::State state = Loan::kOffered;
      if (!loan->state.compare_exchange_strong(state, Loan::kTakenBack)) {
        while (loan->state.load(std::memory_order_acquire) == Loan::kReading) {
          std::this_thread::yield();  // for as long as a segment takes to be read
        }
        ++p.forgotten_loans;
      }
    }
    p.lent.clear();
  }

  void TakeReject(const Frame& frame) {
    Peer& p = peer(frame.from);
    if (p.dropping > 0) {
      --p.dropping;
    } else {
      p.unexpected.push_back(frame);
    }
  }

  // Brings over what the inbox holds; waits for it until `until`.
  void Collect(Deadline until) {
    Inbox& inbox = hub_->inbox(rank_);
    for (int i = 0; i < kSpins && !inbox.something.load(std::memory_order_acquire); ++i) {
      _mm_pause();
    }
    std::unique_lock lock(inbox.mutex);
    inbox.changed.wait_until(lock, until, [&] { return inbox.something.load(); });
    inbox.something = false;
    inbox.woken = false;
    arrived_.swap(inbox.frames);
    for (int from = 0; from < hub_->size(); ++from) {
      std::uint64_t& returned = inbox.returned[static_cast<std::size_t>(from)];
      if (returned > 0) {
        Returned(from, returned);
        returned = 0;
      }
    }
  }

  void Returned(int from, std::uint64_t count) {
    Peer& p = peer(from);
    Lane& l = lane(from);
    const std::uint64_t old = std::min(count, p.forgotten_loans);
    p.forgotten_loans -= old;
    count -= old;
    for (; count > 0 && !p.lent.empty(); --count) {
      p.lent.pop_front();
    }
    l.sends_done = p.lent.empty() ? l.sends : p.lent.front().first - 1;
  }

  void Take(const Frame& frame, const Posted& posted) {
    if (frame.data().size() != posted.data.size()) {
      listener_->OnWrongSize(frame.from, frame.data().size(), posted.data.size());
      return;
    }
    if (frame.loan) {
      Loan::State state = Loan::kOffered;
      if (!frame.loan->state.compare_exchange_strong(state, Loan::kReading)) {
        return;  // the sender gave up and is about to say so
      }
    }
    Deliver(posted.data.data(), frame.data(), posted.combine, posted.combine.local);
    CountReceived(posted.data.size());
    ++lane(frame.from).receives_done;
    if (frame.loan) {
      frame.loan->state.store(Loan::kReturned, std::memory_order_release);
      hub_->Return(frame.from, rank_);
    }
  }

  const std::shared_ptr<LocalHub> hub_;
  const int rank_;
  TransportListener* listener_ = nullptr;
  std::vector<Peer> peers_;
  std::deque<Frame> arrived_;
  bool forgotten_ = false;
};

}  // namespace

std::shared_ptr<LocalHub> MakeLocalHub(int size) { return std::make_shared<LocalHub>(size); }

std::unique_ptr<Transport> MakeLocalTransport(std::shared_ptr<LocalHub> hub, int rank) {
  return std::make_unique<LocalTransport>(std::move(hub), rank);
}

}  // namespace cohort
