// The program `cohort`: a table of subcommands, nothing else.

#include "command.h"

#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cluster/problems.h"

namespace {

struct Entry {
  std::string_view name;
  const char* summary;
  int (*run)(int argc, char** argv);
};

struct Group {
  const char* title;
  std::vector<Entry> entries;
};

const std::vector<Group> kGroups = {
    {"run a job",
     {{"launch", "start a program as a cluster of processes on this machine",
       cohort::LaunchCommand},
      {"config check", "print the resolved cluster of this process, and every mistake in it",
       cohort::ConfigCheckCommand},
      {"doctor", "print what this machine and this build have, and what does not fit together",
       cohort::DoctorCommand},
      {"trace", "merge the ranks' flight records: who is behind, in which operation",
       cohort::TraceCommand}}},
    {"look at data",
     {{"data stat", "print format, records and features of a file", cohort::DataStatCommand},
      {"data cat", "print records as JSON, one a line", cohort::DataCatCommand},
      {"data verify", "check every checksum and record of files", cohort::DataVerifyCommand},
      {"data stats", "print moments, ranges and frequent texts of the fields of files",
       cohort::DataStatsCommand}}},
    {"make data",
     {{"data convert", "write the records of files as a file of another format",
       cohort::DataConvertCommand},
      {"data shard", "write the records of files as N files of even bytes",
       cohort::DataShardCommand},
      {"data index", "write where the records of TFRecord files lie", cohort::DataIndexCommand},
      {"data digits", "write generated digits as IDX files", cohort::DataDigitsCommand},
      {"data serve", "make the examples of files for trainers on other hosts",
       cohort::DataServeCommand}}},
    {"measure collectives",
     {{"bench allreduce",
       "all-reduce: time and bandwidth beside OpenMPI, Gloo and the machine's limits",
       cohort::BenchCollectiveCommand},
      {"bench reducescatter", "the same for reduce-scatter", cohort::BenchCollectiveCommand},
      {"bench allgather", "the same for all-gather", cohort::BenchCollectiveCommand},
      {"bench broadcast", "the same for broadcast", cohort::BenchCollectiveCommand},
      {"bench explain", "the cost model of collectives: measured, predicted, chosen",
       cohort::BenchExplainCommand},
      {"bench reduction", "the loops that combine elements, beside memcpy and the limit of memory",
       cohort::BenchReductionCommand}}},
    {"measure training",
     {{"bench train", "training steps per second, beside LibTorch and the FMA peak",
       cohort::BenchTrainCommand},
      {"bench scaling", "training on several workers, beside the same ones without communication",
       cohort::BenchScalingCommand},
      {"bench overlap", "gradients reduced during the backward pass, beside after it",
       cohort::BenchOverlapCommand},
      {"bench device", "a device's kernels, beside a copy of its memory",
       cohort::BenchDeviceCommand}}},
    {"measure parameter servers",
     {{"bench ps",
       "pushes and pulls, beside one TCP stream and plain gRPC; hot, resume, snapshot, "
       "workers: more of them",
       cohort::BenchPsCommand},
      {"bench embedding", "rows looked up and updated in a sparse table, beside a flat array",
       cohort::BenchEmbeddingCommand},
      {"bench dlrm", "training steps of a recommendation model, beside LibTorch",
       cohort::BenchDlrmCommand}}},
    {"measure input",
     {{"bench input", "the input pipeline, beside memcpy", cohort::BenchInputCommand},
      {"bench feed", "training from TFRecord files, beside the same without input",
       cohort::BenchFeedCommand},
      {"bench service",
       "examples through the data service, beside the same ones made in the process",
       cohort::BenchServiceCommand}}},
};

// All commands, or those of a first word.
void Print(std::FILE* out, std::string_view first = {}) {
  const std::string prefix = std::string(first) + " ";
  for (const Group& group : kGroups) {
    bool titled = false;
    for (const Entry& entry : group.entries) {
      if (!first.empty() && !entry.name.starts_with(prefix)) {
        continue;
      }
      if (!std::exchange(titled, true)) {
        std::fprintf(out, "\n%s\n", group.title);
      }
      std::fprintf(out, "  %-20s %s\n", std::string(entry.name).c_str(), entry.summary);
    }
  }
  std::fprintf(out, "\n`cohort COMMAND --help` tells more.\n");
}

int Usage(std::FILE* out, int code, std::string_view first = {}) {
  std::fprintf(out, "usage: cohort %s[ARGUMENTS...]\n",
               first.empty() ? "COMMAND " : (std::string(first) + " COMMAND ").c_str());
  Print(out, first);
  return code;
}

bool IsHelp(std::string_view word) { return word == "--help" || word == "-h" || word == "help"; }

int Unknown(const std::string& name) {
  std::vector<std::string_view> names;
  for (const Group& group : kGroups) {
    for (const Entry& entry : group.entries) {
      names.push_back(entry.name);
    }
  }
  const std::string nearest(cohort::Nearest(name, names));
  std::fprintf(stderr, "cohort: unknown command '%s'%s\n", name.c_str(),
               nearest.empty() ? " [cohort --help lists them]"
                               : (" [did you mean '" + nearest + "'?]").c_str());
  return 2;
}

int Run(const Entry& entry, std::vector<char*> arguments) {
  std::string name = "cohort " + std::string(entry.name);
  arguments.insert(arguments.begin(), name.data());
  const int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  try {
    return entry.run(count, arguments.data());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: internal error: %s\n", name.c_str(), error.what());
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<char*> words(argv + 1, argv + argc);
  char help[] = "--help";
  if (words.empty()) {
    return Usage(stderr, 2);
  }
  if (std::string_view(words[0]) == "--version") {
    std::printf("cohort %s\n", COHORT_VERSION);
    return 0;
  }
  if (IsHelp(words[0])) {
    if (words.size() == 1 || std::string_view(words[0]) != "help") {
      return Usage(stdout, 0);
    }
    words.erase(words.begin());  // help COMMAND is COMMAND --help
    words.push_back(help);
  }
  const std::string first = words[0];
  const std::string both = words.size() > 1 && words[1][0] != '-' ? first + " " + words[1] : first;
  bool is_group = false;
  for (const Group& group : kGroups) {
    for (const Entry& entry : group.entries) {
      is_group = is_group || entry.name.starts_with(first + " ");
      const int used = first == entry.name ? 1 : both == entry.name ? 2 : 0;
      if (used > 0) {
        return Run(entry, {words.begin() + used, words.end()});
      }
    }
  }
  if (is_group && (words.size() == 1 || IsHelp(words[1]))) {
    return Usage(words.size() == 1 ? stderr : stdout, words.size() == 1 ? 2 : 0, first);
  }
  return Unknown(both);
}
