#include "hierarchical/hierarchical_collectives.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "algorithms/algorithms.h"

namespace cohort {
namespace {

// A barrier and two changes of thread are lost on less.
constexpr std::int64_t kWorthBytes = 256 << 10;
// Of a buffer that is on its way between hosts while the next part is summed inside them.
constexpr std::int64_t kBlockBytes = 4 << 20;
// How late a peer's abort is heard while this rank waits for one of the two communicators.
constexpr auto kSlice = std::chrono::milliseconds(20);

Buffer Part(const Buffer& buffer, std::int64_t begin, std::int64_t count) {
  return {
      static_cast<std::byte*>(buffer.data) + static_cast<std::size_t>(begin) * SizeOf(buffer.dtype),
      count, buffer.dtype};
}

int RanksOf(const HostLayout& layout) {
  int ranks = 0;
  for (int host = 0; host < layout.hosts(); ++host) {
    ranks += static_cast<int>(layout.ranks(host).size());
  }
  return ranks;
}

}  // namespace

HierarchicalCollectives::HierarchicalCollectives(const HostLayout& layout,
                                                 std::unique_ptr<Communicator> host,
                                                 std::unique_ptr<Communicator> across,
                                                 std::string across_algorithm)
    : even_(layout.even()),
      keeps_order_(layout.keeps_order() && across->keeps_order(across_algorithm)),
      ranks_(RanksOf(layout)),
      host_(std::move(host)),
      across_(std::move(across)),
      across_algorithm_(std::move(across_algorithm)) {}

bool HierarchicalCollectives::Supports(OperationKind kind, DType /*dtype*/) const {
  return kind == OperationKind::kAllReduce;
}

std::int64_t HierarchicalCollectives::worth_bytes() const { return kWorthBytes; }

Result<std::unique_ptr<Memory>> HierarchicalCollectives::Allocate(std::size_t bytes) {
  return host_->Allocate(bytes);
}

// One all-reduce. Every rank of a host posts the host's operations in the same order, whatever it
// waits for in between.
class HierarchicalCollectives::Run {
 public:
  Run(HierarchicalCollectives& owner, Exchange& exchange, DType dtype, ReduceOp op)
      : owner_(owner),
        exchange_(exchange),
        // The mean over all ranks is the sum over hosts of the sums inside, divided once.
        op_(op == ReduceOp::kMean ? ReduceOp::kSum : op),
        finish_(dtype, op) {
    options_.name = exchange.record().name;
    // The frame's deadline comes first: it is the one that names whom all are waiting for.
    options_.timeout = std::chrono::duration_cast<std::chrono::milliseconds>(
        2 * (exchange.deadline() - std::chrono::steady_clock::now()) + std::chrono::seconds(5));
    across_ = options_;
    across_.algorithm = owner.across_algorithm_;
  }

  // Where an exception goes past End: what is under way uses the caller's buffer.
  ~Run() {
    if (!works_.empty()) {
      (void)End(Internal("an all-reduce of hosts was left"));
    }
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Every local rank drives its slice of each block.
  Status InSlices(Buffer buffer) {
    const std::int64_t local = owner_.host_->size();
    const std::int64_t most =
        std::max<std::int64_t>(
            kBlockBytes / static_cast<std::int64_t>(SizeOf(buffer.dtype)) / local, 1) *
        local;
    for (std::int64_t at = 0; at < buffer.count; at += most) {
      const Buffer whole = Part(buffer, at, std::min(most, buffer.count - at));
      const std::int64_t count = whole.count / local;
      blocks_.push_back({whole, Part(whole, owner_.host_->rank() * count, count), {}, {}});
    }
    if (blocks_.empty()) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(Scatter(blocks_.front()));
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      if (b + 1 < blocks_.size()) {
        COHORT_RETURN_IF_ERROR(Scatter(blocks_[b + 1]));
      }
      COHORT_RETURN_IF_ERROR(Wait(*blocks_[b].scattered));
      COHORT_RETURN_IF_ERROR(
          Post(owner_.across_->AllReduce(blocks_[b].slice, op_, across_), blocks_[b].crossed));
      if (b > 0) {
        COHORT_RETURN_IF_ERROR(Gather(blocks_[b - 1]));
      }
    }
    return Gather(blocks_.back());
  }

  // The host's first rank drives all of it.
  Status ByLeaders(Buffer buffer) {
    std::shared_ptr<cohort::Work> work;
    COHORT_RETURN_IF_ERROR(Post(owner_.host_->Reduce(buffer, op_, 0, options_), work));
    if (owner_.host_->rank() == 0) {
      COHORT_RETURN_IF_ERROR(Wait(*work));
      COHORT_RETURN_IF_ERROR(Post(owner_.across_->AllReduce(buffer, op_, across_), work));
      COHORT_RETURN_IF_ERROR(Wait(*work));
      Finish(buffer);
    }
    return Post(owner_.host_->Broadcast(buffer, 0, options_), work);
  }

  // `status`: how it went. Returns when nothing is under way any more.
  Status End(Status status) {
    for (std::size_t i = 0; i < works_.size() && status.ok(); ++i) {
      status = Wait(*works_[i]);
    }
    if (!status.ok()) {
      owner_.host_->Abort(status);
      if (owner_.across_) {
        owner_.across_->Abort(status);
      }
      for (const std::shared_ptr<cohort::Work>& work : works_) {
        (void)work->Wait();  // ends: its communicator has failed
      }
    }
    works_.clear();
    return status;
  }

 private:
  struct Block {
    Buffer whole;
    Buffer slice;  // this rank's
    std::shared_ptr<cohort::Work> scattered;
    std::shared_ptr<cohort::Work> crossed;
  };

  Status Post(Communicator::Pending pending, std::shared_ptr<cohort::Work>& work) {
    COHORT_RETURN_IF_ERROR(pending.status().Annotate(What()));
    work = std::move(pending).value();
    works_.push_back(work);
    return {};
  }
  // Hears the peers of the frame meanwhile.
  Status Wait(cohort::Work& work) {
    COHORT_RETURN_IF_ERROR(exchange_.Poll(
        [&] {
          (void)work.Wait(DeadlineAfter(kSlice));
          return work.done();
        },
        "the ranks of its host, or of its place on the other hosts", Duration(0)));
    return work.Wait().Annotate(What());
  }
  // Errors of the two say which of their operations, which nobody has called.
  std::string What() const { return exchange_.record().Numbered(); }
  Status Scatter(Block& block) {
    return Post(owner_.host_->ReduceScatter(block.whole, block.slice, op_, options_),
                block.scattered);
  }
  Status Gather(Block& block) {
    COHORT_RETURN_IF_ERROR(Wait(*block.crossed));
    Finish(block.slice);
    std::shared_ptr<cohort::Work> gathered;
    return Post(owner_.host_->AllGather(block.slice, block.whole, options_), gathered);
  }
  void Finish(const Buffer& buffer) const {
    finish_.Finish(static_cast<std::byte*>(buffer.data), buffer.bytes(), owner_.ranks_);
  }

  HierarchicalCollectives& owner_;
  Exchange& exchange_;
  const ReduceOp op_;
  const Reduction finish_;
  CollectiveOptions options_;  // of the host's operations
  CollectiveOptions across_;
  std::vector<Block> blocks_;
  std::vector<std::shared_ptr<cohort::Work>> works_;  // all that was posted, until End
};

Status HierarchicalCollectives::AllReduce(Exchange& exchange, Buffer buffer, ReduceOp op) {
  COHORT_RETURN_IF_ERROR(DisseminationBarrier(exchange));
  // What does not divide by the ranks of a host is left for the leaders.
  const std::int64_t sliced = even_ ? buffer.count / host_->size() * host_->size() : 0;
  Run slices(*this, exchange, buffer.dtype, op);
  Run rest(*this, exchange, buffer.dtype, op);
  Status status = slices.End(slices.InSlices(Part(buffer, 0, sliced)));
  if (status.ok() && sliced < buffer.count) {
    status = rest.End(rest.ByLeaders(Part(buffer, sliced, buffer.count - sliced)));
  }
  return status;
}

}  // namespace cohort
