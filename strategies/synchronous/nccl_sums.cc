#include "synchronous/nccl_sums.h"

#include <chrono>
#include <utility>

#include <cohort/core/thread_pool.h>

namespace cohort {
namespace {

constexpr std::chrono::milliseconds kLook{20};  // of the watch
// How long the job may take to notice that a process is gone of which NCCL has heard.
constexpr std::chrono::seconds kNotice{1};

// NCCL's own words, of a peer that it does not name.
bool OfPeer(const Status& status) {
  return status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kInternal ||
         status.code() == StatusCode::kAborted;
}

}  // namespace

// The operations of all GPUs of this process.
class NcclSums::SumWork final : public Work {
 public:
  SumWork(const NcclSums& sums, std::vector<std::unique_ptr<Work>> works)
      : sums_(sums), works_(std::move(works)) {}

  bool done() const override {
    for (const std::unique_ptr<Work>& work : works_) {
      if (!work->done()) {
        return false;
      }
    }
    return true;
  }
  Status Wait(Deadline deadline) override {
    return All([&](Work& work) { return work.Wait(deadline); });
  }
  Status Wait() override {
    return All([](Work& work) { return work.Wait(); });
  }
  void Order(Stream& stream) override {
    for (const std::unique_ptr<Work>& work : works_) {
      work->Order(stream);
    }
  }

 private:
  // Waits for all of them, also after an error: nothing uses the buffers then.
  template <typename Fn>
  Status All(const Fn& wait) {
    Status status;
    for (const std::unique_ptr<Work>& work : works_) {
      const Status one = wait(*work);
      status = status.ok() ? one : status;
    }
    return status.ok() ? status : sums_.Explain(status);
  }

  const NcclSums& sums_;
  const std::vector<std::unique_ptr<Work>> works_;
};

Result<std::unique_ptr<NcclSums>> NcclSums::Make(Options options) {
  Require(!options.copies.empty() && options.copies.size() == options.ranks.size(),
          "NcclSums with a rank for each copy");
  COHORT_ASSIGN_OR_RETURN(auto communicators,
                          MakeNcclCommunicators(options.ranks, options.first_rank, options.size,
                                                options.job == nullptr ? nullptr : options.store,
                                                options.prefix, options.communicator));
  return std::unique_ptr<NcclSums>(new NcclSums(std::move(options), std::move(communicators)));
}

NcclSums::NcclSums(Options options, std::vector<std::unique_ptr<Communicator>> communicators)
    : options_(std::move(options)),
      communicators_(std::move(communicators)),
      lanes_(static_cast<int>(communicators_.size()), "nccl lane ", 0) {
  if (options_.job != nullptr) {
    watch_ = std::thread([this] { Watch(); });
  }
}

NcclSums::~NcclSums() { Close(); }

void NcclSums::Watch() {
  NameThisThread("nccl watch");
  std::unique_lock lock(mutex_);
  while (!stop_asked_.wait_for(lock, kLook, [this] { return stop_; })) {
    if (const Status failure = options_.job->status(); !failure.ok()) {
      Abort(failure);
      return;
    }
  }
}

Communicator::Pending NcclSums::AllReduce(std::span<const Buffer> parts,
                                          const CollectiveOptions& options) {
  Require(parts.size() == options_.copies.size(), "a part for each copy");
  if (communicators_.empty()) {
    return without_;
  }
  std::vector<std::unique_ptr<Work>> works(parts.size());
  std::vector<Status> statuses(parts.size());
  lanes_.Run([&](int lane) {
    const auto l = static_cast<std::size_t>(lane);
    CollectiveOptions mine = options;
    mine.algorithm = "auto";
    mine.stream = &options_.copies[l]->stream();
    try {
      Communicator::Pending pending = communicators_[l]->AllReduce(parts[l], ReduceOp::kSum, mine);
      if (pending.ok()) {
        works[l] = std::move(pending).value();
      } else {
        statuses[l] = pending.status();
      }
    } catch (const StatusError& error) {
      statuses[l] = error.status();
    }
  });
  for (const Status& status : statuses) {
    if (!status.ok()) {
      // Those that were called would wait for those that were not.
      Abort(status);
      for (const std::unique_ptr<Work>& work : works) {
        if (work != nullptr) {
          (void)work->Wait();
        }
      }
      return Explain(status);
    }
  }
  return std::make_unique<SumWork>(*this, std::move(works));
}

void NcclSums::Abort(const Status& reason) {
  const std::lock_guard lock(communicators_mutex_);
  for (const std::unique_ptr<Communicator>& communicator : communicators_) {
    communicator->Abort(reason);
  }
}

// Who was lost, or gave up and why, the job knows, or hears in a moment.
Status NcclSums::Explain(const Status& status) const {
  if (options_.job == nullptr) {
    return status;
  }
  const Deadline deadline = DeadlineAfter(OfPeer(status) ? Duration(kNotice) : Duration(0));
  for (;;) {
    if (Status failure = options_.job->status(); !failure.ok()) {
      return failure;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return status;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

void NcclSums::Close() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_asked_.notify_all();
  if (watch_.joinable()) {
    watch_.join();
  }
  End();
}

void NcclSums::End() {
  Communicators gone;
  {
    const std::lock_guard lock(communicators_mutex_);
    gone = std::exchange(communicators_, {});
  }
  if (!gone.empty()) {
    lanes_.Run([&](int lane) { gone[static_cast<std::size_t>(lane)] = nullptr; });
  }
}

void NcclSums::Renew() {
  Require(options_.job == nullptr, "NCCL's communicators anew where there is one process");
  End();
  Result<Communicators> made =
      MakeNcclCommunicators(options_.ranks, options_.first_rank, options_.size, nullptr,
                            options_.prefix, options_.communicator);
  if (!made.ok()) {
    without_ = made.status().Annotate("connecting the GPUs again");
    return;
  }
  const std::lock_guard lock(communicators_mutex_);
  communicators_ = std::move(made).value();
}

Result<std::string> NcclSums::DumpFlightRecord(std::string_view reason) const {
  const std::lock_guard lock(communicators_mutex_);
  Result<std::string> first = without_;
  for (const std::unique_ptr<Communicator>& communicator : communicators_) {
    Result<std::string> path = communicator->DumpFlightRecord(reason);
    if (communicator == communicators_.front()) {
      first = std::move(path);
    }
  }
  return first;
}

}  // namespace cohort
