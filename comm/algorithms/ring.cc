// The ring: rank r receives from r-1 and sends to r+1 only.
//
// Reduce-scatter, n-1 steps. In step k rank r sends chunk r-1-k and receives chunk r-2-k, combining
// it with its own; what arrives in the last step is chunk r, reduced over all ranks. The order of
// combination for chunk c is c+1, c+2, ..., c: fixed, so results are bitwise repeatable, and since
// one rank makes each chunk, equal everywhere.
//
// All-gather, n-1 steps. In step k rank r sends block r-k and receives block r-1-k.
//
// Every receive of both phases is posted before anything is sent; then each segment is forwarded as
// it arrives. The transport therefore always knows where bytes belong, segments of several steps
// are on the wire at once, and the stream from the predecessor never stalls. Posting the
// all-gather's receives over chunks that are still being reduced is safe: a finished chunk arrives
// only after our share of it has been received by the successor.

#include "algorithms/algorithms.h"

#include <cstring>

namespace cohort {
namespace {

struct Arrival {
  Ticket ticket;
  MutableBytes segment;
  const Reduction* finish = nullptr;  // after the last combination
  bool forward = false;
};

class Ring {
 public:
  explicit Ring(Exchange& exchange)
      : exchange_(exchange),
        size_(exchange.size()),
        next_((exchange.rank() + 1) % size_),
        previous_((exchange.rank() + size_ - 1) % size_) {}

  // The index `back` places before this rank.
  int Before(int back) const { return ((exchange_.rank() - back) % size_ + size_) % size_; }
  void Expect(MutableBytes segment, const CombineWith& combine, bool forward,
              const Reduction* finish = nullptr) {
    arrivals_.push_back({exchange_.Receive(previous_, segment, combine), segment, finish, forward});
  }
  void Send(Bytes segment) { exchange_.Send(next_, segment); }
  Status Run() {
    for (const Arrival& arrival : arrivals_) {
      COHORT_RETURN_IF_ERROR(exchange_.Wait(arrival.ticket));
      if (arrival.finish != nullptr) {
        arrival.finish->Finish(arrival.segment.data(), arrival.segment.size(), size_);
      }
      if (arrival.forward) {
        Send(arrival.segment);
      }
    }
    return exchange_.WaitAll();
  }

 private:
  Exchange& exchange_;
  const int size_;
  const int next_;
  const int previous_;
  std::vector<Arrival> arrivals_;
};

}  // namespace

Status RingAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                     const Reduction& reduction) {
  const int n = exchange.size();
  const std::size_t element = reduction.element_bytes();
  const std::size_t segment_bytes = exchange.SegmentBytes(element);
  Ring ring(exchange);
  const auto segments = [&](auto data, int back) {
    return Segments(Chunk(data, ring.Before(back), n, element), segment_bytes);
  };
  for (int step = 0; step < n - 1; ++step) {
    const std::vector<Bytes> mine = segments(input, 2 + step);
    const std::vector<MutableBytes> results = segments(output, 2 + step);
    for (std::size_t s = 0; s < mine.size(); ++s) {
      ring.Expect(results[s], {&reduction, mine[s].data(), false}, true,
                  step == n - 2 ? &reduction : nullptr);
    }
  }
  for (int step = 0; step < n - 1; ++step) {
    for (const MutableBytes segment : segments(output, 1 + step)) {
      ring.Expect(segment, {}, step < n - 2);
    }
  }
  for (const Bytes segment : segments(input, 1)) {
    ring.Send(segment);
  }
  return ring.Run();
}

Status RingReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                         const Reduction& reduction) {
  const int n = exchange.size();
  const std::size_t segment_bytes = exchange.SegmentBytes(reduction.element_bytes());
  Ring ring(exchange);
  const auto segments = [&](int back) {
    const auto index = static_cast<std::size_t>(ring.Before(back));
    return Segments(input.subspan(index * output.size(), output.size()), segment_bytes);
  };
  for (int step = 0; step < n - 2; ++step) {
    for (const MutableBytes segment : segments(2 + step)) {
      ring.Expect(segment, {&reduction, segment.data(), false}, true);
    }
  }
  const std::vector<MutableBytes> mine = segments(n);
  const std::vector<MutableBytes> results = Segments(output, segment_bytes);
  for (std::size_t s = 0; s < mine.size(); ++s) {
    ring.Expect(results[s], {&reduction, mine[s].data(), false}, false, &reduction);
  }
  for (const MutableBytes segment : segments(1)) {
    ring.Send(segment);
  }
  return ring.Run();
}

Status RingAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                     std::size_t element_bytes) {
  const int n = exchange.size();
  const std::size_t segment_bytes = exchange.SegmentBytes(element_bytes);
  Ring ring(exchange);
  const auto segments = [&](int back) {
    return Segments(blocks[static_cast<std::size_t>(ring.Before(back))], segment_bytes);
  };
  for (int step = 0; step < n - 1; ++step) {
    for (const MutableBytes segment : segments(1 + step)) {
      ring.Expect(segment, {}, step < n - 2);
    }
  }
  for (const MutableBytes segment : segments(0)) {
    ring.Send(segment);
  }
  return ring.Run();
}

}  // namespace cohort
