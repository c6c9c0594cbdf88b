#include "flight_records.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

namespace cohort::trace {

using Json = nlohmann::json;

std::string Operation::What() const {
  return fmt::format("{}{} {}[{}]", op, name.empty() ? "" : " '" + name + "'", dtype, count);
}

std::string Operation::Numbered() const { return fmt::format("{} #{}", What(), sequence); }

const Operation* FlightRecord::Last() const {
  const auto it = std::find_if(operations.rbegin(), operations.rend(),
                               [](const Operation& o) { return o.begun(); });
  return it == operations.rend() ? nullptr : &*it;
}

std::string RankName(int rank, const std::string& task) {
  const std::string text = "rank " + std::to_string(rank);
  return task.empty() || task == text ? text : text + " (" + task + ")";
}

Result<FlightRecord> ParseFlightRecord(const std::string& path, const std::string& text) {
  const auto foreign = [&](const std::string& why) {
    return InvalidArgument(path + " is neither a flight record nor a step trace: " + why +
                           " [flight records are written to flight_folder, NAME.gG.rankR.jsonl]");
  };
  FlightRecord record;
  record.path = path;
  std::istringstream lines(text);
  std::string line;
  bool ended = false;
  for (int number = 1; std::getline(lines, line); ++number) {
    const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    try {
      if (number == 1) {
        if (!object.is_object() || !object.contains("cohort_flight_record")) {
          return foreign("its first line is no header");
        }
        if (object.at("cohort_flight_record") != 1) {
          return foreign("it is of version " + object.at("cohort_flight_record").dump() +
                         ", and this program reads version 1");
        }
        record.group = object.at("group");
        record.generation = object.at("generation");
        record.rank = object.at("rank");
        record.size = object.at("size");
        record.task = object.at("task");
        record.reason = object.at("reason");
        record.status = object.at("status");
        record.dumped_us = object.at("dumped_us");
      } else if (object.is_discarded() && lines.peek() == std::istringstream::traits_type::eof()) {
        break;  // cut within a line
      } else if (ended) {
        return foreign("line " + std::to_string(number) + " comes after its end");
      } else if (object.contains("end")) {
        ended = object.at("end").get<std::size_t>() == record.operations.size();
        if (!ended) {
          break;
        }
      } else {
        record.operations.push_back({.op = object.at("op"),
                                     .name = object.at("name"),
                                     .dtype = object.at("dtype"),
                                     .algorithm = object.at("algorithm"),
                                     .state = object.at("state"),
                                     .count = object.at("count"),
                                     .bytes = object.at("bytes"),
                                     .sequence = object.value("sequence", std::uint64_t{0}),
                                     .peer = object.value("peer", std::int64_t{-1}),
                                     .queued_us = object.at("queued_us"),
                                     .started_us = object.value("started_us", std::int64_t{0}),
                                     .ended_us = object.value("ended_us", std::int64_t{0})});
      }
    } catch (const Json::exception& error) {
      return foreign("line " + std::to_string(number) + ": " + error.what());
    }
  }
  if (text.empty()) {
    return foreign("it is empty");
  }
  if (!ended) {
    return DataLoss(
        fmt::format("{} was cut: {} operations and no last line that counts them [dump "
                    "it again, or copy it again]",
                    path, record.operations.size()));
  }
  return record;
}

Status AddTo(Groups& groups, FlightRecord record) {
  Ranks& ranks = groups[{record.group, record.generation}];
  if (!ranks.empty() && ranks.begin()->second.size != record.size) {
    return InvalidArgument(fmt::format(
        "{} is of a group of {} ranks, {} of one of {}: they are of different jobs",
        ranks.begin()->second.path, ranks.begin()->second.size, record.path, record.size));
  }
  const int rank = record.rank;
  const auto it = ranks.find(rank);
  if (it != ranks.end()) {
    return InvalidArgument(fmt::format("{} and {} are both of rank {} of '{}', generation {}",
                                       it->second.path, record.path, rank, record.group,
                                       record.generation));
  }
  ranks.emplace(rank, std::move(record));
  return {};
}

namespace {

std::string Joined(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

// Who is behind, in one sentence each.
std::string Verdict(const Ranks& ranks) {
  const int size = ranks.begin()->second.size;
  std::vector<std::string> missing;
  for (int rank = 0; rank < size; ++rank) {
    if (!ranks.contains(rank)) {
      missing.push_back("rank " + std::to_string(rank));
    }
  }
  std::uint64_t front = 0;
  for (const auto& [rank, record] : ranks) {
    front = std::max(front, record.Last() != nullptr ? record.Last()->sequence : 0);
  }
  std::string text;
  std::map<std::string, std::vector<std::string>> in_front;  // operation: ranks
  std::vector<std::string> waiting;
  for (const auto& [rank, record] : ranks) {
    const Operation* last = record.Last();
    if (last == nullptr) {
      text += fmt::format("behind: {} has entered no operation\n", RankName(rank, record.task));
    } else if (last->sequence < front) {
      text += fmt::format("behind: {} last entered {} ({}, {:.1f} s before its dump)\n",
                          RankName(rank, record.task), last->Numbered(), last->state,
                          static_cast<double>(record.dumped_us - last->started_us) / 1e6);
    } else {
      in_front[last->Numbered()].push_back(RankName(rank, record.task));
      if (last->state != "done") {
        waiting.push_back(RankName(rank, record.task));
      }
    }
  }
  if (!missing.empty()) {
    text += fmt::format("behind, or gone: {} wrote no record\n", Joined(missing));
  }
  if (in_front.size() > 1) {
    text += "differ:\n";
  }
  for (const auto& [operation, names] : in_front) {
    text += fmt::format("{}{} in {}\n", in_front.size() > 1 ? "  " : "",
                        static_cast<int>(names.size()) == size
                            ? "all ranks are"
                            : Joined(names) + (names.size() > 1 ? " are" : " is"),
                        operation);
  }
  return text;
}

}  // namespace

void Print(const Ranks& ranks) {
  const FlightRecord& any = ranks.begin()->second;
  std::printf("%s, generation %llu: %d ranks, %zu records\n", any.group.c_str(),
              static_cast<unsigned long long>(any.generation), any.size, ranks.size());
  std::size_t task_width = 4;
  std::size_t last_width = 12;
  for (const auto& [rank, record] : ranks) {
    task_width = std::max(task_width, record.task.size());
    last_width =
        std::max(last_width, record.Last() == nullptr ? 0 : record.Last()->Numbered().size());
  }
  std::printf("%s", fmt::format("{:>5} {:<{}} {:<{}} {:<8} {:>10} {:>9} {:<18} {}\n", "rank",
                                "task", task_width, "last entered", last_width, "state", "bytes",
                                "age s", "algorithm", "status")
                        .c_str());
  for (int rank = 0; rank < any.size; ++rank) {
    const auto it = ranks.find(rank);
    if (it == ranks.end()) {
      std::printf("%5d %s\n", rank, "no record");
      continue;
    }
    const FlightRecord& record = it->second;
    const Operation* last = record.Last();
    const Operation none;
    const Operation& o = last == nullptr ? none : *last;
    std::printf(
        "%s",
        fmt::format(
            "{:>5} {:<{}} {:<{}} {:<8} {:>10} {:>9.3f} {:<18} {}\n", rank, record.task, task_width,
            last == nullptr ? "none" : o.Numbered(), last_width, o.state, o.bytes,
            last == nullptr ? 0.0 : static_cast<double>(record.dumped_us - o.started_us) / 1e6,
            o.algorithm, record.status)
            .c_str());
  }
  std::printf("%s", Verdict(ranks).c_str());
}

}  // namespace cohort::trace
