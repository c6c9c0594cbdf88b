// What `cohort doctor` makes of what it sees.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/device/report.h>
#include <cohort/rpc/versions.h>

#include "machine.h"

namespace cohort::doctor {

struct Facts {
  std::vector<std::pair<std::string, std::string>> build;  // option, value
  Machine machine;
  GpuReport gpus;
  std::string mpi;  // "Open MPI v4.1.4"; empty: built without
  RpcVersions rpc;
  Result<std::string> nccl = FailedPrecondition("not asked");  // "2.28.9"
};

struct Finding {
  bool problem = false;  // this build cannot do on this machine what it is made for; else advice
  std::string what;
  std::string remedy;
};

std::vector<Finding> FindingsOf(const Facts& facts);

// Why there is no GPU to train on, in one line; empty where there is one.
std::string NoGpus(const Facts& facts);

std::string CudaVersion(int version);    // 12040: "12.4"
std::string Bytes(std::uint64_t bytes);  // "64.0 MiB"
std::string CublasVersion(int version);  // 120402: "12.4.2"
std::string CudnnVersion(int version);   // 91900: "9.19.0"; 8907: "8.9.7"

}  // namespace cohort::doctor
