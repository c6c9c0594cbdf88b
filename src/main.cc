// The program `cohort`: a table of subcommands, nothing else.

#include "command.h"

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace {

struct Entry {
  const char* name;
  const char* summary;
  int (*run)(int argc, char** argv);
};

constexpr Entry kCommands[] = {
    {"doctor", "print what this machine and this build have, and what does not fit together",
     cohort::DoctorCommand},
    {"config check", "print the resolved cluster of this process, and every mistake in it",
     cohort::ConfigCheckCommand},
    {"data digits", "write generated digits as IDX files", cohort::DataDigitsCommand},
    {"data cat", "print records as JSON, one a line", cohort::DataCatCommand},
    {"data convert", "write the records of files as a file of another format",
     cohort::DataConvertCommand},
    {"data index", "write where the records of TFRecord files lie", cohort::DataIndexCommand},
    {"data shard", "write the records of files as N files of even bytes", cohort::DataShardCommand},
    {"data serve", "make the examples of files for trainers on other hosts",
     cohort::DataServeCommand},
    {"data stats", "print moments, ranges and frequent texts of the fields of files",
     cohort::DataStatsCommand},
    {"data verify", "check every checksum and record of files", cohort::DataVerifyCommand},
    {"data stat", "print format, records and features of a file", cohort::DataStatCommand},
    {"bench input", "measure the input pipeline beside memcpy", cohort::BenchInputCommand},
    {"bench feed", "training from TFRecord files, beside the same without input",
     cohort::BenchFeedCommand},
    {"bench service", "examples through the data service, beside the same ones made in the process",
     cohort::BenchServiceCommand},
    {"launch", "start a program as a cluster of processes on this machine", cohort::LaunchCommand},
    {"bench allreduce",
     "all-reduce: time and bandwidth beside OpenMPI, Gloo and the machine's limits",
     cohort::BenchCollectiveCommand},
    {"bench reducescatter", "the same for reduce-scatter", cohort::BenchCollectiveCommand},
    {"bench allgather", "the same for all-gather", cohort::BenchCollectiveCommand},
    {"bench broadcast", "the same for broadcast", cohort::BenchCollectiveCommand},
    {"bench scaling", "training on several workers, beside the same ones without communication",
     cohort::BenchScalingCommand},
    {"bench overlap", "gradients reduced during the backward pass, beside after it",
     cohort::BenchOverlapCommand},
    {"trace", "merge the ranks' flight records: who is behind, in which operation",
     cohort::TraceCommand},
    {"bench explain", "the cost model of collectives: measured, predicted, chosen",
     cohort::BenchExplainCommand},
    {"bench reduction", "the loops that combine elements, beside memcpy and the limit of memory",
     cohort::BenchReductionCommand},
    {"bench embedding", "rows looked up and updated in a sparse table, beside a flat array",
     cohort::BenchEmbeddingCommand},
    {"bench dlrm", "training steps of a recommendation model, beside LibTorch",
     cohort::BenchDlrmCommand},
    {"bench ps", "pushes and pulls of a parameter server, beside one TCP stream and plain gRPC",
     cohort::BenchPsCommand},
    {"bench train", "training steps per second, beside LibTorch and the FMA peak",
     cohort::BenchTrainCommand},
    {"bench device", "a device's kernels, beside a copy of its memory", cohort::BenchDeviceCommand},
};

int Usage(std::FILE* out, int code) {
  std::fprintf(out, "usage: cohort COMMAND [ARGUMENTS...]\n\ncommands:\n");
  for (const Entry& entry : kCommands) {
    std::fprintf(out, "  %-18s %s\n", entry.name, entry.summary);
  }
  std::fprintf(out, "\n`cohort COMMAND --help` tells more.\n");
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    return Usage(stderr, 2);
  }
  const std::string first = argv[1];
  if (first == "--help" || first == "-h" || first == "help") {
    return Usage(stdout, 0);
  }
  const std::string both = argc > 2 ? first + " " + argv[2] : first;
  for (const Entry& entry : kCommands) {
    const int words = first == entry.name ? 1 : both == entry.name ? 2 : 0;
    if (words == 0) {
      continue;
    }
    std::string name = "cohort " + std::string(entry.name);
    std::vector<char*> arguments = {name.data()};
    arguments.insert(arguments.end(), argv + 1 + words, argv + argc);
    const int count = static_cast<int>(arguments.size());
    arguments.push_back(nullptr);
    try {
      return entry.run(count, arguments.data());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: internal error: %s\n", name.c_str(), error.what());
      return 1;
    }
  }
  std::fprintf(stderr, "cohort: unknown command '%s'\n", both.c_str());
  return Usage(stderr, 2);
}
