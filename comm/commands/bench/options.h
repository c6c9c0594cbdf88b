// What `cohort bench allreduce|reducescatter|allgather|broadcast` is asked to measure.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/dtype.h>

namespace cohort::bench {

enum class Operation { kAllReduce, kReduceScatter, kAllGather, kBroadcast };
std::string_view OperationName(Operation operation);  // "allreduce", as in the command

struct Options {
  Operation operation = Operation::kAllReduce;
  std::string transport = "local";
  int ranks = 2;
  std::vector<std::int64_t> sizes;  // bytes of the whole buffer, as nccl-tests counts them
  DType dtype = DType::kFloat32;
  std::string algorithm = "auto";
  std::string mpi_implementation = "cohort";
  std::vector<std::string> buffers;  // private, shared: cohort is measured with each
  std::vector<std::string> peers;
  std::vector<std::string> limits;
  int rounds = 5;        // blocks of each implementation, in turns
  double seconds = 0.3;  // of each implementation and size, over all rounds
  std::chrono::milliseconds timeout{60'000};
  bool pin = true;
  bool read = true;                      // an operation lasts until each rank has read its result
  std::string rendezvous_host;           // tcp: the interface that routes there is used
  std::vector<int> rails = {1};          // tcp: see TcpOptions; several in turns
  std::vector<std::string> exec_prefix;  // before the command of a rank's process
  std::string across = "auto";           // hierarchical: the algorithm across hosts
  int ranks_per_host = 1;                // consecutive ranks that hierarchical takes for one host's
  // allreduce, ranks that are processes: the last rank comes so late to each operation, and what
  // the others' wait takes of their cores is told.
  std::chrono::milliseconds late{0};
  bool json = false;

  // Of a rank's own process; empty in the one that the user starts.
  std::string folder;  // where the ranks and who gives them orders meet
  int group = 0;
  int rank = 0;
};

// The exit code if there is nothing to run: help was printed, or a mistake.
std::optional<int> ParseOptions(int argc, char** argv, Options& options);

}  // namespace cohort::bench
