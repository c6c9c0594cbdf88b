// `cohort trace`: merges the flight records of a job's ranks, and says who is behind.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include <cohort/core/file_system.h>

#include "command.h"

namespace cohort {
namespace {

using Json = nlohmann::json;

struct Operation {
  std::string op;
  std::string name;
  std::string dtype;
  std::string algorithm;
  std::string state;
  std::int64_t count = 0;
  std::int64_t bytes = 0;
  std::uint64_t sequence = 0;  // 0: not begun
  std::int64_t peer = -1;      // of Send and Receive
  std::int64_t queued_us = 0;
  std::int64_t started_us = 0;
  std::int64_t ended_us = 0;

  bool begun() const { return started_us != 0; }
  // Ranks whose operations are equal here are in the same one.
  std::string What() const {
    return fmt::format("{}{} {}[{}]", op, name.empty() ? "" : " '" + name + "'", dtype, count);
  }
  std::string Numbered() const { return fmt::format("{} #{}", What(), sequence); }
};

struct Record {
  std::string path;
  std::string group;
  std::uint64_t generation = 0;
  int rank = 0;
  int size = 0;
  std::string task;
  std::string reason;
  std::string status;
  std::int64_t dumped_us = 0;
  std::vector<Operation> operations;

  std::string Name() const {
    const std::string text = "rank " + std::to_string(rank);
    return task.empty() || task == text ? text : text + " (" + task + ")";
  }
  // The operation that this rank entered last.
  const Operation* Last() const {
    const auto it = std::find_if(operations.rbegin(), operations.rend(),
                                 [](const Operation& o) { return o.begun(); });
    return it == operations.rend() ? nullptr : &*it;
  }
};

Result<Record> Parse(const std::string& path, const std::string& text) {
  const auto foreign = [&](const std::string& why) {
    return InvalidArgument(path + " is no flight record: " + why +
                           " [they are written to flight_folder, NAME.gG.rankR.jsonl]");
  };
  Record record;
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

// The records of one group and generation, by rank.
using Ranks = std::map<int, Record>;
using Groups = std::map<std::pair<std::string, std::uint64_t>, Ranks>;

Result<Groups> ReadAll(const std::vector<std::string>& paths) {
  Groups groups;
  for (const std::string& path : paths) {
    COHORT_ASSIGN_OR_RETURN(const std::string text, ReadFile(FileSystem::Local(), path));
    COHORT_ASSIGN_OR_RETURN(Record record, Parse(path, text));
    Ranks& ranks = groups[{record.group, record.generation}];
    if (!ranks.empty() && ranks.begin()->second.size != record.size) {
      return InvalidArgument(
          fmt::format("{} is of a group of {} ranks, {} of one of {}: they are of different jobs",
                      ranks.begin()->second.path, ranks.begin()->second.size, path, record.size));
    }
    const int rank = record.rank;
    const auto [it, added] = ranks.emplace(rank, std::move(record));
    if (!added) {
      return InvalidArgument(fmt::format("{} and {} are both of rank {} of '{}', generation {}",
                                         it->second.path, path, rank, it->second.group,
                                         it->second.generation));
    }
  }
  return groups;
}

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
      text += fmt::format("behind: {} has entered no operation\n", record.Name());
    } else if (last->sequence < front) {
      text += fmt::format("behind: {} last entered {} ({}, {:.1f} s before its dump)\n",
                          record.Name(), last->Numbered(), last->state,
                          static_cast<double>(record.dumped_us - last->started_us) / 1e6);
    } else {
      in_front[last->Numbered()].push_back(record.Name());
      if (last->state != "done") {
        waiting.push_back(record.Name());
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

void Print(const Ranks& ranks) {
  const Record& any = ranks.begin()->second;
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
    const Record& record = it->second;
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

// Chrome's trace event format: a process a rank, an operation a bar from its start to its end.
Json ChromeTrace(const Groups& groups) {
  Json events = Json::array();
  for (const auto& [key, ranks] : groups) {
    for (const auto& [rank, record] : ranks) {
      const std::string thread = fmt::format("{} generation {}", key.first, key.second);
      const auto tid = static_cast<std::int64_t>(std::distance(groups.begin(), groups.find(key)));
      events.push_back({{"name", "process_name"},
                        {"ph", "M"},
                        {"pid", rank},
                        {"args", {{"name", record.Name()}}}});
      events.push_back({{"name", "thread_name"},
                        {"ph", "M"},
                        {"pid", rank},
                        {"tid", tid},
                        {"args", {{"name", thread}}}});
      for (const Operation& o : record.operations) {
        if (!o.begun()) {
          continue;
        }
        const std::int64_t end = o.ended_us != 0 ? o.ended_us : record.dumped_us;
        events.push_back({{"name", o.name.empty() ? o.op : o.name},
                          {"cat", o.op},
                          {"ph", "X"},
                          {"pid", rank},
                          {"tid", tid},
                          {"ts", o.started_us},
                          {"dur", std::max<std::int64_t>(end - o.started_us, 0)},
                          {"args",
                           {{"op", o.op},
                            {"sequence", o.sequence},
                            {"bytes", o.bytes},
                            {"algorithm", o.algorithm},
                            {"state", o.state},
                            {"queued_us", o.queued_us}}}});
      }
    }
  }
  return {{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}};
}

Status Run(const std::vector<std::string>& paths, const std::string& chrome) {
  COHORT_ASSIGN_OR_RETURN(const Groups groups, ReadAll(paths));
  for (const auto& [key, ranks] : groups) {
    Print(ranks);
  }
  if (!chrome.empty()) {
    COHORT_RETURN_IF_ERROR(
        WriteFileAtomically(FileSystem::Local(), chrome, ChromeTrace(groups).dump()));
    std::printf("wrote %s [open it at chrome://tracing or ui.perfetto.dev]\n", chrome.c_str());
  }
  return {};
}

}  // namespace

int TraceCommand(int argc, char** argv) {
  std::vector<std::string> paths;
  std::string chrome;
  CLI::App app(
      "Merges the flight records of a job's ranks (flight_folder/*.jsonl), and says which rank is "
      "behind in which operation.",
      argv[0]);
  app.add_option("files", paths, "one file a rank")->required();
  app.add_option("--chrome", chrome, "also write a trace for chrome://tracing");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const Status status = Run(paths, chrome);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
