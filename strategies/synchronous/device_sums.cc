#include "synchronous/device_sums.h"

#include <algorithm>
#include <utility>

#include "synchronous/bucket_plan.h"

namespace cohort {
namespace {

// What is fetched at once: 16 MiB, at which copies between devices are at full speed.
constexpr std::int64_t kPieceElements = std::int64_t{4} << 20;

std::span<float> Part(std::span<float> arena, std::int64_t begin, std::int64_t end) {
  return arena.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
}

// fn(to, from) for each addition of the tree.
template <typename Fn>
void ForTree(int replicas, const Fn& fn) {
  for (int step = 1; step < replicas; step *= 2) {
    for (int r = 0; r + step < replicas; r += 2 * step) {
      fn(r, r + step);
    }
  }
}

}  // namespace

DeviceSums::DeviceSums(std::vector<DeviceCopy*> copies, std::int64_t elements, bool lands)
    : copies_(std::move(copies)), scratch_(copies_.size()) {
  const int replicas = static_cast<int>(copies_.size());
  for (int r = 0; r < replicas; ++r) {
    if (FirstOn(copy(r)) == r) {
      firsts_.push_back(r);
    }
  }
  ForTree(replicas, [&](int to, int from) {
    std::shared_ptr<std::byte>& scratch = scratch_[static_cast<std::size_t>(to)];
    if (&copy(to) != &copy(from) && scratch == nullptr) {
      scratch = copy(to).device()->Allocate(
          static_cast<std::size_t>(std::min(elements, kPieceElements)) * sizeof(float),
          "gradients of another device");
    }
  });
  if (lands && copy(0).apart()) {
    landing_ = Arena::MakeFor(*copy(0).device(), elements);
  }
}

int DeviceSums::FirstOn(const DeviceCopy& copy) const {
  return static_cast<int>(std::ranges::find(copies_, &copy) - copies_.begin());
}

void DeviceSums::AddFrom(int to, int from, const Arenas& arenas, std::int64_t begin,
                         std::int64_t end) {
  const std::span<float> sum = Part(arenas[static_cast<std::size_t>(to)], begin, end);
  std::span<float> more = Part(arenas[static_cast<std::size_t>(from)], begin, end);
  if (&copy(to) != &copy(from)) {
    const std::span<float> here(
        reinterpret_cast<float*>(scratch_[static_cast<std::size_t>(to)].get()), more.size());
    copy(to).Fetch(copy(from), more, here);
    more = here;
  }
  copy(to).Add(more, sum);
}

void DeviceSums::Sum(const Arenas& arenas, std::int64_t begin, std::int64_t end) {
  // Where nothing is fetched, in one piece.
  const bool fetches = firsts_.size() > 1;
  const std::int64_t piece = fetches ? kPieceElements : end - begin;
  for (std::int64_t at = begin; at < end; at += piece) {
    ForTree(static_cast<int>(copies_.size()),
            [&](int to, int from) { AddFrom(to, from, arenas, at, std::min(at + piece, end)); });
  }
}

void DeviceSums::Spread(const Arenas& arenas, std::int64_t begin, std::int64_t end) {
  if (begin == end) {
    return;
  }
  for (const int r : firsts_) {
    if (r != 0) {
      copy(r).Fetch(copy(0), Part(arenas[0], begin, end),
                    Part(arenas[static_cast<std::size_t>(r)], begin, end));
    }
  }
}

void DeviceSums::Land(const Arenas& arenas, std::int64_t begin, std::int64_t end) {
  if (landing_.has_value() && begin < end) {
    copy(0).Send(Part(arenas[0], begin, end), landing_->values(begin, end - begin));
  }
}

void DeviceSums::TakeOff(const Arenas& arenas, const Arena& landing, std::int64_t begin,
                         std::int64_t end) {
  if (begin == end) {
    return;
  }
  const std::span<float> sum = landing.values(begin, end - begin);
  for (const int r : firsts_) {
    const std::span<float> to = Part(arenas[static_cast<std::size_t>(r)], begin, end);
    if (to.data() != sum.data()) {
      copy(r).Send(sum, to);
    }
  }
}

}  // namespace cohort
