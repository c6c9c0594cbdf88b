// NcclLink's thread: what becomes of operations, and of the link when one fails.
#include <cohort/core/thread_pool.h>

#include <algorithm>
#include <utility>

#include "nccl/nccl_link.h"
#include "nccl/nccl_verdict.h"

namespace cohort {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kLook = milliseconds(20);     // while something is under way
constexpr Duration kNap = microseconds(20);      // while the communicator ends
constexpr Duration kGrace = milliseconds(1500);  // for others to tell where they are
constexpr Duration kSettle = seconds(5);  // for aborted operations to let go of their buffers
constexpr Duration kFinalize = seconds(10);

Deadline Now() { return std::chrono::steady_clock::now(); }

}  // namespace

// --- what becomes of them

void NcclLink::Finish(NcclOperation& operation, const Status& status) {
  operation.done = true;
  operation.status = status;
  moved_ = Now();
  flight_.Ended(operation.flight, status.ok(), moved_);
  if (status.ok()) {
    counts_.Done(operation.record.kind, Algorithm::kNccl, operation.bytes);
  }
}

void NcclLink::Look() {
  while (failure_.ok() && noted_.ok() && !under_way_.empty()) {
    NcclOperation& first = *under_way_.front();
    if (first.event == nullptr || !first.event->done()) {
      break;
    }
    const Status status = first.event->Wait(Now());
    if (!status.ok()) {
      Note(status.Annotate(first.record.Numbered() + " on " + Name(rank()) +
                           ": its stream, or the one before it, failed"));
      return;
    }
    Finish(first, {});
    under_way_.pop_front();
    changed_.notify_all();
  }
  if (handle_ != nullptr && failure_.ok() && noted_.ok()) {
    const NcclApi::Outcome outcome = parts_.api->Poll(handle_);
    if (!outcome.status.ok()) {
      Note(outcome.status.Annotate(Where() + " on " + Name(rank())));
    }
  }
}

std::string NcclLink::Where() const {
  if (!under_way_.empty()) {
    return "during " + under_way_.front()->record.Numbered();
  }
  return flight_.operations() == 0 ? "before the first operation" : "after " + last_.Numbered();
}

Whereabouts NcclLink::Here() const {
  using State = Whereabouts::State;
  if (!under_way_.empty()) {
    return {State::kIn, under_way_.front()->record};
  }
  return {flight_.operations() == 0 ? State::kFresh : State::kAfter, last_};
}

void NcclLink::Note(Status status) {
  if (noted_.ok() && failure_.ok()) {
    noted_ = std::move(status);
    wake_.notify_one();
  }
}

// Whether nothing more is to be expected of a failed link.
bool NcclLink::Settled(Deadline now) const {
  return !failure_.ok() && (settled_ || now >= failed_at_ + kSettle);
}

Status NcclLink::AwaitFailure(Lock& lock) {
  while (!Settled(Now())) {  // the thread asks the board first, at most
    changed_.wait_for(lock, milliseconds(100));
  }
  return failure_;
}

// The first one counts.
void NcclLink::Fail(Lock& lock, const Status& status) {
  if (failure_.ok()) {
    failure_ = status;
    failed_at_ = Now();
  }
  lock.unlock();
  if (!options_.flight_folder.empty()) {
    const Result<std::string> path = DumpFlightRecord(failure().message());
    if (path.ok()) {
      options_.log.Info("flight record: " + path.value() +
                        " [cohort trace merges those of all ranks]");
    } else {
      options_.log.Warning("no flight record: " + path.status().ToString());
    }
  }
  lock.lock();
}

// NCCL's part of a failure: when the operations end, nobody writes to their buffers any more. Those
// who wait do not wait for ever if NCCL takes its time.
void NcclLink::TakeDown(Lock& lock) {
  const NcclApi::Handle handle = std::exchange(handle_, nullptr);
  const Status failure = failure_;
  std::vector<std::shared_ptr<Event>> events;
  for (const auto& operation : under_way_) {
    if (operation->event != nullptr) {
      events.push_back(operation->event);
    }
  }
  lock.unlock();
  parts_.api->Fail(*parts_.stream, failure);  // before its kernels end
  parts_.api->Abort(handle);
  const Deadline end = failed_at_ + kSettle;
  while (Now() < end &&
         !std::all_of(events.begin(), events.end(), [](const auto& e) { return e->done(); })) {
    std::this_thread::sleep_for(microseconds(100));
  }
  lock.lock();
  for (const auto& operation : under_way_) {
    Finish(*operation, failure_);
  }
  under_way_.clear();
  settled_ = true;
  changed_.notify_all();
}

std::shared_ptr<NcclOperation> NcclLink::FirstOverdue(Deadline now) const {
  for (const auto& operation : under_way_) {
    if (now >= operation->deadline) {
      return operation;
    }
  }
  return nullptr;
}

void NcclLink::Watch() {
  NameThisThread("nccl-" + std::to_string(rank()));
  Lock lock(mutex_);
  for (;;) {
    Look();
    const Deadline now = Now();
    if (failure_.ok() && !noted_.ok()) {
      const Status noted = noted_;
      lock.unlock();
      const Status verdict = size() > 1 ? board_.Judge(noted) : noted;
      lock.lock();
      told_ = true;
      Fail(lock, verdict);
    } else if (!failure_.ok() && !told_) {
      told_ = true;
      const Status failure = failure_;
      lock.unlock();
      if (size() > 1) {
        (void)board_.Judge(failure);
      }
      lock.lock();
      Fail(lock, failure);  // which it has: the flight record
    } else if (!failure_.ok() && handle_ != nullptr) {
      TakeDown(lock);
    } else if (const auto overdue = FirstOverdue(now); overdue != nullptr) {
      FindCulprit(lock, overdue);
    } else if (stopping_ && under_way_.empty()) {
      break;
    } else if (size() > 1 && failure_.ok() && now - moved_ >= parts_.quiet) {
      AskBoard(lock);
    } else {
      wake_at_ = under_way_.empty() ? now + parts_.quiet : now + kLook;
      if (!failure_.ok()) {
        wake_at_ = Deadline::max();
      } else if (stopping_) {
        wake_at_ = now + milliseconds(1);
      }
      for (const auto& operation : under_way_) {
        wake_at_ = std::min(wake_at_, operation->deadline);
      }
      if (wake_at_ == Deadline::max()) {
        wake_.wait(lock, [this] { return stopping_; });
      } else {
        wake_.wait_until(lock, wake_at_);
      }
    }
  }
  Leave(lock);
  closed_ = true;
  changed_.notify_all();
}

void NcclLink::AskBoard(Lock& lock) {
  const Whereabouts here = Here();
  lock.unlock();
  std::optional<Status> verdict;
  const bool trouble = board_.LookAll("trouble").ok();
  if (trouble) {
    verdict = board_.Verdict();
    if (!verdict) {
      board_.TellWhere(here);
      (void)board_.HearAll("verdict", DeadlineAfter(2 * kGrace));
      verdict = board_.Judge(Unavailable(Name(rank()) +
                                         " was told of trouble, and not of which [a peer has "
                                         "ended meanwhile: see its own log]"));
    }
  }
  lock.lock();
  moved_ = Now();
  if (verdict) {
    told_ = true;
    Fail(lock, *verdict);
  }
}

void NcclLink::FindCulprit(Lock& lock, const std::shared_ptr<NcclOperation>& stalled) {
  const Whereabouts here = Here();
  lock.unlock();
  std::vector<std::optional<Whereabouts>> ranks(static_cast<std::size_t>(size()));
  std::optional<Status> verdict;
  if (size() > 1) {
    board_.TellWhere(here);
    (void)board_.TellAll("trouble", std::to_string(rank()));
    const Deadline end = DeadlineAfter(kGrace);
    for (bool all = false; !all && !verdict && Now() < end;) {
      all = true;
      for (int r = 0; r < size(); ++r) {
        auto& there = ranks[static_cast<std::size_t>(r)];
        if (r != rank() && !there) {
          there = board_.Where(r);
          all = all && there.has_value();
        }
      }
      verdict = board_.Verdict();
      if (!all && !verdict) {
        std::this_thread::sleep_for(milliseconds(10));
      }
    }
  }
  if (!verdict) {
    verdict = StallVerdict(*stalled, rank(), ranks, [this](int r) { return Name(r); });
    if (size() > 1) {
      verdict = board_.Judge(*verdict);
    }
  }
  lock.lock();
  told_ = true;
  Fail(lock, *verdict);
}

// The end of a link.
void NcclLink::Leave(Lock& lock) {
  if (!failure_.ok()) {
    return;  // it has been taken down
  }
  const Whereabouts here = {Whereabouts::State::kLeft, last_};
  const NcclApi::Handle handle = std::exchange(handle_, nullptr);
  lock.unlock();
  if (size() > 1) {
    board_.TellWhere(here);
  }
  NcclApi::Outcome outcome = parts_.api->Finalize(handle);
  const Deadline end = DeadlineAfter(kFinalize);
  while (outcome.status.ok() && outcome.under_way && Now() < end) {
    std::this_thread::sleep_for(kNap);
    outcome = parts_.api->Poll(handle);
  }
  if (outcome.status.ok() && !outcome.under_way) {
    parts_.api->Destroy(handle);
  } else {
    parts_.api->Abort(handle);
  }
  lock.lock();
}

}  // namespace cohort
