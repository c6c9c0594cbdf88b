#include "parameter_server/variables/block_round.h"

#include <algorithm>

#include <cohort/optim/gradients.h>

namespace cohort::ps {

void BlockRound::Clear() {
  attempt_ = 0;
  parts_.clear();
  waits_ = false;
}

bool BlockRound::Enter(const Round& round, std::uint64_t version) {
  if (round.round() <= version || (!parts_.empty() && round.attempt() < attempt_)) {
    return false;
  }
  if (parts_.size() != round.parts() || attempt_ != round.attempt()) {
    attempt_ = round.attempt();
    parts_.resize(round.parts());
    waits_ = false;
    for (Part& part : parts_) {
      part.present = false;
    }
  }
  return true;
}

std::span<float> BlockRound::Room(std::uint32_t part, double weight, std::size_t floats) {
  Part& to = parts_[part];
  to.weight = weight;
  to.values.resize(floats);
  return to.values;
}

bool BlockRound::IsLastMissing(std::uint32_t part) const {
  return std::all_of(parts_.begin(), parts_.end(),
                     [last = &parts_[part]](const Part& p) { return p.present || &p == last; });
}

std::optional<std::uint64_t> BlockRound::Elect(const Commit& commit, std::uint64_t version) {
  std::vector<char> wins(parts_.size());
  bool there =
      commit.round() == version + 1 && commit.attempt() == attempt_ && commit.winners_size() > 0;
  for (const std::uint32_t part : commit.winners()) {
    there = there && part < wins.size() && parts_[part].present;
    if (there) {
      wins[part] = 1;
    }
  }
  if (!there) {
    return std::nullopt;
  }
  std::uint64_t late = 0;
  for (std::size_t p = 0; p < wins.size(); ++p) {
    Part& part = parts_[p];
    if (wins[p] == 0) {
      late += part.present ? 1 : 0;
      part.values.clear();
      part.weight = 0;
    }
  }
  return late;
}

// In the order of the parts, whatever the order of arrival.
void BlockRound::Sum(bool trainable, bool waits) {
  weight_ = 0;
  Part* first = nullptr;
  for (Part& part : parts_) {
    weight_ += part.weight;
    if (part.values.empty() || part.weight == 0) {
      part.values.clear();
    } else if (first == nullptr) {
      first = &part;
    } else if (trainable) {
      for (std::size_t i = 0; i < part.values.size(); ++i) {
        first->values[i] += part.values[i];
      }
      part.values.clear();
    }
  }
  squares_ = waits && trainable && first != nullptr ? SquaredNorm(first->values) : 0;
  waits_ = waits;
}

std::span<const float> BlockRound::gradient() const {
  const auto sum =
      std::ranges::find_if(parts_, [](const Part& part) { return !part.values.empty(); });
  return sum == parts_.end() ? std::span<const float>() : std::span<const float>(sum->values);
}

void BlockRound::Mean(std::span<float> values) const {
  std::vector<const Part*> parts;
  for (const Part& part : parts_) {
    if (!part.values.empty()) {
      parts.push_back(&part);
    }
  }
  if (parts.size() == 1) {
    std::ranges::copy(parts[0]->values, values.begin());
  } else if (!parts.empty()) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      double sum = 0;
      for (const Part* part : parts) {
        sum += part->weight * static_cast<double>(part->values[i]);
      }
      values[i] = static_cast<float>(sum / weight_);
    }
  }
}

void BlockRound::Finish() {
  waits_ = false;
  for (Part& part : parts_) {
    part.present = false;
  }
  attempt_ = 0;
}

void BlockRound::Tell(ChunkRound* told) const {
  told->set_attempt(attempt_);
  told->set_waits(waits_);
  told->set_squares(squares_);
  told->set_weight(weight_);
  for (const Part& part : parts_) {
    PartOfRound* const of_part = told->add_parts();
    of_part->set_present(part.present);
    of_part->set_weight(part.weight);
    // Else it is memory for the next round's.
    of_part->set_pieces(!part.values.empty() && (part.present || waits_) ? 1 : 0);
  }
}

void BlockRound::Learn(const ChunkRound& told) {
  attempt_ = told.attempt();
  waits_ = told.waits();
  squares_ = told.squares();
  weight_ = told.weight();
  parts_.clear();
  for (const PartOfRound& of_part : told.parts()) {
    Part& part = parts_.emplace_back();
    part.present = of_part.present();
    part.weight = of_part.weight();
  }
}

}  // namespace cohort::ps
