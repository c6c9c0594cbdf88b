#include "parameter_server/rows/row_rounds.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/weight.h"

namespace cohort::ps {
void RowRounds::Begin(std::span<const std::unique_ptr<RowTable>> tables, bool elects) {
  Lock lock(mutex_);
  AwaitNoneTaken(lock);
  tables_ = tables;
  elects_ = elects;
  applied_ = 0;
  open_.clear();
  failed_ = {};
  out_of_memory_ = ResourceExhausted("no memory for the update of a round of rows");
}

bool RowRounds::Open::complete() const {
  return elected && std::ranges::all_of(parts, [](const Part& part) { return part.complete; });
}

bool RowRounds::complete(std::uint64_t round) const {
  return std::ranges::all_of(
      open_, [&](const auto& open) { return open.first > round || open.second.complete(); });
}

Status RowRounds::Add(const Round& round, double weight, std::int64_t step, bool last,
                      std::vector<Rows> rows) {
  Lock lock(mutex_);
  COHORT_RETURN_IF_ERROR(failed_);
  if (round.parts() < 1 || round.parts() > kMaxParts || round.part() >= round.parts()) {
    return InvalidArgument("part " + std::to_string(round.part()) + " of " +
                           std::to_string(round.parts()) + " of a round");
  }
  if (round.round() <= decided()) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(ApplyComplete(lock, round.round() - 1, /*wait=*/false));
  if (round.round() <= decided()) {
    return {};
  }
  if (!open_.empty() && open_.begin()->first + 1 < round.round()) {
    return Aborted("round " + std::to_string(round.round()) + " of rows is begun, and of round " +
                   std::to_string(open_.begin()->first) + " parts are missing");
  }
  Open& open = open_[round.round()];
  if (round.attempt() < open.attempt) {
    return {};
  }
  if (open.parts.empty() || round.attempt() > open.attempt) {
    open = {.attempt = round.attempt(),
            .step = step,
            .parts = std::vector<Part>(round.parts()),
            .elected = !elects_};
  }
  Part& part = open.parts[std::min<std::size_t>(round.part(), open.parts.size() - 1)];
  if (round.parts() != open.parts.size() || step != open.step || part.complete) {
    return InvalidArgument("part " + std::to_string(round.part()) + " of " +
                           std::to_string(round.parts()) + " of round " +
                           std::to_string(round.round()) + ", step " + std::to_string(step) +
                           (part.complete ? ": it was complete"
                                          : ": others are of " + std::to_string(open.parts.size()) +
                                                " parts, step " + std::to_string(open.step)));
  }
  // Room for all before the first is there.
  if (const std::size_t size = part.frames.size() + rows.size(); size > part.frames.capacity()) {
    part.frames.reserve(std::max(size, 2 * part.frames.size()));
  }
  std::ranges::move(rows, std::back_inserter(part.frames));
  part.weight = weight;
  part.complete = last;
  if (open.complete()) {
    changed_.notify_all();
  }
  return {};
}

Status RowRounds::Elect(const Commit& commit) {
  Lock lock(mutex_);
  COHORT_RETURN_IF_ERROR(failed_);
  if (commit.round() <= decided()) {
    return {};
  }
  const auto found = open_.find(commit.round());
  if (found != open_.end() && found->second.elected) {
    return {};
  }
  std::vector<char> wins(found == open_.end() ? 0 : found->second.parts.size());
  bool there = found != open_.end() && found->second.attempt == commit.attempt() &&
               commit.winners_size() > 0;
  for (const std::uint32_t part : commit.winners()) {
    there = there && part < wins.size() && found->second.parts[part].complete;
    if (there) {
      wins[part] = 1;
    }
  }
  if (!there) {
    return FailedPrecondition("the parts of round " + std::to_string(commit.round()) +
                              " of rows are not there, round " + std::to_string(decided()) +
                              " is the last that is applied");
  }
  for (std::size_t p = 0; p < wins.size(); ++p) {
    if (wins[p] == 0) {
      found->second.parts[p] = {.frames = {}, .weight = 0, .complete = true};
    }
  }
  found->second.elected = true;
  changed_.notify_all();
  return ApplyComplete(lock, commit.round(), /*wait=*/false);
}

Result<bool> RowRounds::WaitApplied(std::uint64_t round, Deadline deadline) {
  Lock lock(mutex_);
  const auto settled = [&] { return !failed_.ok() || complete(round); };
  if (!changed_.wait_until(lock, deadline, settled)) {
    return false;
  }
  COHORT_RETURN_IF_ERROR(failed_);
  COHORT_RETURN_IF_ERROR(ApplyComplete(lock, round, /*wait=*/true));
  return true;
}

Status RowRounds::Settle() {
  Lock lock(mutex_);
  COHORT_RETURN_IF_ERROR(failed_);
  return ApplyComplete(lock, std::numeric_limits<std::uint64_t>::max(), /*wait=*/true);
}

void RowRounds::Tell(Rounds* rounds) const {
  Lock lock(mutex_);
  AwaitNoneTaken(lock);
  rounds->set_applied(applied_);
  for (const auto& [number, open] : open_) {
    OpenRound* const told = rounds->add_rows();
    told->set_round(number);
    told->set_attempt(open.attempt);
    told->set_step(open.step);
    told->set_elected(open.elected);
    for (const Part& part : open.parts) {
      PartOfRound* const of_part = told->add_parts();
      of_part->set_present(part.complete);
      of_part->set_weight(part.weight);
      of_part->set_pieces(static_cast<std::uint32_t>(part.frames.size()));
    }
  }
}

Status RowRounds::Learn(const Rounds& rounds) {
  std::map<std::uint64_t, Open> open;
  for (const OpenRound& told : rounds.rows()) {
    Open& one = open[told.round()];
    if (!one.parts.empty() || told.parts_size() < 1 || told.parts_size() > kMaxParts ||
        told.round() <= rounds.applied() || told.step() < 1 ||
        told.step() > std::numeric_limits<std::uint32_t>::max() || (!elects_ && !told.elected()) ||
        !std::ranges::all_of(told.parts(),
                             [](const PartOfRound& part) { return IsWeight(part.weight()); })) {
      return InvalidArgument("round " + std::to_string(told.round()) + " of rows in " +
                             std::to_string(told.parts_size()) + " parts, after " +
                             std::to_string(rounds.applied()));
    }
    one.attempt = told.attempt();
    one.step = told.step();
    one.elected = told.elected();
    for (const PartOfRound& of_part : told.parts()) {
      one.parts.push_back(
          {.frames = {}, .weight = of_part.weight(), .complete = of_part.present()});
    }
  }
  {
    Lock lock(mutex_);
    AwaitNoneTaken(lock);
    applied_ = rounds.applied();
    open_ = std::move(open);
  }
  changed_.notify_all();
  return {};
}

const RowRounds::Rows* RowRounds::Find(const RoundPiece& piece) const {
  const auto open = open_.find(piece.round());
  if (open == open_.end() || piece.part() >= open->second.parts.size() ||
      piece.piece() >= open->second.parts[piece.part()].frames.size()) {
    return nullptr;
  }
  return &open->second.parts[piece.part()].frames[piece.piece()];
}

Status RowRounds::TellPiece(const RoundPiece& asked, RoundPiece* piece) const {
  Lock lock(mutex_);
  AwaitNoneTaken(lock);
  const Rows* const rows = Find(asked);
  if (rows == nullptr) {
    return InvalidArgument("no frame " + std::to_string(asked.piece()) + " of part " +
                           std::to_string(asked.part()) + " of round " +
                           std::to_string(asked.round()) + " of rows");
  }
  *piece = asked;
  piece->set_table(static_cast<std::uint32_t>(rows->table));
  piece->mutable_ids()->Assign(rows->ids.begin(), rows->ids.end());
  piece->mutable_counts()->Assign(rows->counts.begin(), rows->counts.end());
  piece->mutable_values()->Assign(rows->values.begin(), rows->values.end());
  return {};
}

// They come in order; one that is there already is repeated.
Status RowRounds::LearnPiece(const RoundPiece& piece) {
  Lock lock(mutex_);
  AwaitNoneTaken(lock);
  const auto ids = static_cast<std::size_t>(piece.ids_size());
  const auto open = open_.find(piece.round());
  if (open == open_.end() || piece.part() >= open->second.parts.size() ||
      piece.piece() > open->second.parts[piece.part()].frames.size() ||
      piece.table() >= tables_.size() || static_cast<std::size_t>(piece.counts_size()) != ids ||
      static_cast<std::size_t>(piece.values_size()) !=
          ids * static_cast<std::size_t>(tables_[piece.table()]->spec().dim)) {
    return InvalidArgument("frame " + std::to_string(piece.piece()) + " of part " +
                           std::to_string(piece.part()) + " of round " +
                           std::to_string(piece.round()) + " of rows, with " + std::to_string(ids) +
                           " ids");
  }
  COHORT_RETURN_IF_ERROR(tables_[piece.table()]->Check(
      {.ids = {piece.ids().data(), ids},
       .values = {piece.values().data(), static_cast<std::size_t>(piece.values_size())},
       .counts = {piece.counts().data(), ids},
       .step = open->second.step}));
  std::vector<Rows>& frames = open->second.parts[piece.part()].frames;
  if (piece.piece() == frames.size()) {
    frames.push_back({.table = piece.table(),
                      .ids = {piece.ids().begin(), piece.ids().end()},
                      .counts = {piece.counts().begin(), piece.counts().end()},
                      .values = {piece.values().begin(), piece.values().end()}});
  }
  return {};
}

std::string RowRounds::Describe() const {
  const std::lock_guard lock(mutex_);
  if (taken_.round > 0) {
    return "round " + std::to_string(taken_.round) + " of rows is being applied";
  }
  if (open_.empty()) {
    return "no round of rows is open";
  }
  const auto& [round, open] = *open_.begin();
  if (!open.elected) {
    return "nobody has said which parts round " + std::to_string(round) + " of rows has";
  }
  std::string missing;
  for (std::size_t p = 0; p < open.parts.size(); ++p) {
    if (!open.parts[p].complete) {
      missing += " " + std::to_string(p);
    }
  }
  return "round " + std::to_string(round) + " of rows waits for part(s)" + missing + " of " +
         std::to_string(open.parts.size());
}

Status RowRounds::ApplyComplete(Lock& lock, std::uint64_t round, bool wait) {
  while (failed_.ok()) {
    const bool more =
        !open_.empty() && open_.begin()->first <= round && open_.begin()->second.complete();
    if (taken_.round > 0 && (more || (wait && taken_.round <= round))) {
      Help(lock);
      const std::uint64_t taken = taken_.round;
      changed_.wait(lock, [&] { return taken == 0 || taken_.round != taken || CanHelp(); });
    } else if (more) {
      Take(lock);
    } else {
      return {};
    }
  }
  return failed_;
}

void RowRounds::Take(Lock& lock) {
  auto taken = open_.extract(open_.begin());
  taken_.round = taken.key();
  lock.unlock();
  try {
    SumUp(taken.mapped(), taken_);  // nobody looks at it until it is ready
  } catch (...) {
    lock.lock();
    taken_ = {};
    open_.insert(std::move(taken));
    changed_.notify_all();
    throw;
  }
  taken = {};  // the frames, before rows take memory
  lock.lock();
  taken_.ready = true;
  changed_.notify_all();
  Help(lock);
}

void RowRounds::SumUp(const Open& open, Taken& taken) const {
  double weight = 0;
  for (const Part& part : open.parts) {
    weight += part.weight;
  }
  taken.step = open.step;
  taken.scale = weight > 0 ? static_cast<float>(1.0 / weight) : 0.0F;
  taken.sums.resize(tables_.size());
  std::vector<std::size_t> ids(tables_.size());
  const auto for_all = [&](const auto& fn) {
    for (const Part& part : open.parts) {
      for (const Rows& rows : part.frames) {
        if (part.weight > 0) {
          fn(rows);
        }
      }
    }
  };
  for_all([&](const Rows& rows) { ids[rows.table] += rows.ids.size(); });
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    taken.sums[t].ids.reserve(ids[t]);
    taken.sums[t].counts.reserve(ids[t]);
    taken.sums[t].values.reserve(ids[t] * static_cast<std::size_t>(tables_[t]->spec().dim));
  }
  for_all([&](const Rows& rows) {
    Rows& all = taken.sums[rows.table];
    all.ids.insert(all.ids.end(), rows.ids.begin(), rows.ids.end());
    all.counts.insert(all.counts.end(), rows.counts.begin(), rows.counts.end());
    all.values.insert(all.values.end(), rows.values.begin(), rows.values.end());
  });
  // What is still to go of the steps before: nothing, where each had its round here.
  for (const std::unique_ptr<RowTable>& table : tables_) {
    if (open.step > 1) {
      OrThrow(table->EvictWhenDue(open.step - 1));
    }
  }
}

Status RowRounds::ApplyTo(std::size_t table, const Taken& taken) const {
  const Rows& rows = taken.sums[table];
  if (!rows.ids.empty()) {
    COHORT_RETURN_IF_ERROR(tables_[table]->Apply({.ids = rows.ids,
                                                  .values = rows.values,
                                                  .counts = rows.counts,
                                                  .scale = taken.scale,
                                                  .step = taken.step}));
  }
  try {
    return tables_[table]->EvictWhenDue(taken.step).status();
  } catch (const std::bad_alloc&) {
    return {};  // the next round, or who reads before it, makes up for it
  }
}

bool RowRounds::CanHelp() const {
  return taken_.ready && taken_.next < taken_.sums.size() && failed_.ok();
}

void RowRounds::Help(Lock& lock) {
  while (CanHelp()) {
    const std::size_t table = taken_.next++;
    ++taken_.under_way;
    lock.unlock();
    Status status;
    bool memory_ended = false;
    try {
      status = ApplyTo(table, taken_);
    } catch (...) {  // bad_alloc, for the words of an error if for nothing else
      memory_ended = true;
    }
    lock.lock();
    --taken_.under_way;
    if (failed_.ok()) {
      failed_ = std::move(memory_ended ? out_of_memory_ : status);
    }
  }
  if (taken_.ready && taken_.under_way == 0) {
    applied_ = taken_.round;
    taken_ = {};
    changed_.notify_all();
  }
}

void RowRounds::AwaitNoneTaken(Lock& lock) const {
  changed_.wait(lock, [this] { return taken_.round == 0; });
}

}  // namespace cohort::ps
