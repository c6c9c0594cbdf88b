#include "synchronous/device_sums.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "synchronous/bucket_plan.h"

namespace cohort {
namespace {

// What is fetched at once: 16 MiB, at which copies between devices are at full speed.
constexpr std::int64_t kPieceElements = std::int64_t{4} << 20;

std::span<float> Part(std::span<float> arena, std::int64_t begin, std::int64_t end) {
  return arena.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
}

}  // namespace

DeviceSums::DeviceSums(std::vector<DeviceCopy*> copies, std::int64_t elements, Way way, bool lands)
    : copies_(std::move(copies)), scratch_(copies_.size()) {
  for (int r = 0; r < static_cast<int>(copies_.size()); ++r) {
    if (FirstOn(copy(r)) == r) {
      firsts_.push_back(r);
    }
  }
  PlanSums(way);
  PlanSpread();
  for (const Edge& edge : sums_) {
    std::shared_ptr<std::byte>& scratch = scratch_[static_cast<std::size_t>(edge.to)];
    if (Fetches(edge) && scratch == nullptr) {
      scratch = copy(edge.to).device()->Allocate(
          static_cast<std::size_t>(std::min(elements, kPieceElements)) * sizeof(float),
          "gradients of another device");
    }
  }
  if (lands && copy(0).apart()) {
    landing_ = Arena::MakeFor(*copy(0).device(), elements);
  }
}

void DeviceSums::PlanSums(Way way) {
  const auto tree = [this](const std::vector<int>& replicas) {
    for (std::size_t step = 1; step < replicas.size(); step *= 2) {
      for (std::size_t r = 0; r + step < replicas.size(); r += 2 * step) {
        sums_.push_back({.to = replicas[r], .from = replicas[r + step]});
      }
    }
  };
  std::vector<int> all(copies_.size());
  std::iota(all.begin(), all.end(), 0);
  if (way == Way::kTree) {
    tree(all);
    return;
  }
  for (const int first : firsts_) {
    std::vector<int> here;
    std::ranges::copy_if(all, std::back_inserter(here),
                         [&](int r) { return &copy(r) == &copy(first); });
    tree(here);
  }
  for (const int first : firsts_) {
    if (way == Way::kOneDevice && first != 0) {
      sums_.push_back({.to = 0, .from = first});
    }
  }
}

// Back along the way on which sums came.
void DeviceSums::PlanSpread() {
  std::vector<const DeviceCopy*> have{&copy(0)};
  for (auto edge = sums_.rbegin(); edge != sums_.rend(); ++edge) {
    if (std::ranges::find(have, &copy(edge->from)) == have.end()) {
      have.push_back(&copy(edge->from));
      spreads_.push_back({.to = FirstOn(copy(edge->from)), .from = FirstOn(copy(edge->to))});
    }
  }
}

int DeviceSums::FirstOn(const DeviceCopy& copy) const {
  return static_cast<int>(std::ranges::find(copies_, &copy) - copies_.begin());
}

bool DeviceSums::Fetches(const Edge& edge) const {
  return &copy(edge.to) != &copy(edge.from) &&
         !copy(edge.to).device()->Reaches(*copy(edge.from).device());
}

void DeviceSums::Add(const Edge& edge, const Arenas& arenas, std::int64_t begin, std::int64_t end) {
  DeviceCopy& to = copy(edge.to);
  DeviceCopy& from = copy(edge.from);
  const std::span<float> sum = Part(arenas[static_cast<std::size_t>(edge.to)], begin, end);
  std::span<float> more = Part(arenas[static_cast<std::size_t>(edge.from)], begin, end);
  if (Fetches(edge)) {
    const std::span<float> here(
        reinterpret_cast<float*>(scratch_[static_cast<std::size_t>(edge.to)].get()), more.size());
    to.Fetch(from, more, here);
    more = here;
  } else if (&to != &from) {
    to.Follow(from);
  }
  to.Add(more, sum);
}

void DeviceSums::Sum(const Arenas& arenas, std::int64_t begin, std::int64_t end) {
  // Where nothing is fetched, in one piece.
  const bool fetches = std::ranges::any_of(scratch_, [](const auto& s) { return s != nullptr; });
  const std::int64_t piece = fetches ? kPieceElements : end - begin;
  for (std::int64_t at = begin; at < end; at += piece) {
    for (const Edge& edge : sums_) {
      Add(edge, arenas, at, std::min(at + piece, end));
    }
  }
}

void DeviceSums::Spread(const Arenas& arenas, std::int64_t begin, std::int64_t end) {
  for (const Edge& edge : spreads_) {
    if (begin < end) {
      copy(edge.to).Fetch(copy(edge.from),
                          Part(arenas[static_cast<std::size_t>(edge.from)], begin, end),
                          Part(arenas[static_cast<std::size_t>(edge.to)], begin, end));
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
