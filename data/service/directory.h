// Directory: which input workers there are, and what they serve. Knows no network.
//
// It holds nothing that its workers do not say again with every heartbeat, so a dispatcher that is
// started anew knows all of it a heartbeat later.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "wire.h"

namespace cohort::data {

struct InputWorker {
  std::uint64_t incarnation = 0;
  // ":port": at this process's host. Empty: this process, which is never silent.
  std::string address;
  int threads = 1;
  std::vector<PipelineInfo> pipelines;
};

class Directory {
 public:
  // A worker that has been silent for longer is gone.
  explicit Directory(Duration silence) : silence_(silence) {}

  // FailedPrecondition: another worker serves a pipeline of that name, and in what they differ; the
  // worker is then not known. A worker at the address of another one replaces it.
  Status Register(InputWorker worker, Deadline now);
  void Leave(std::uint64_t incarnation) { workers_.erase(incarnation); }
  // That it has registered, and been heard since.
  bool Knows(std::uint64_t incarnation, Deadline now);

  struct Found {
    PipelineInfo pipeline;
    std::vector<const InputWorker*> workers;  // in no order of meaning; until the next call
  };
  // NotFound: nobody serves it, and what is served.
  Result<Found> Find(const std::string& pipeline, Deadline now);

 private:
  struct Entry {
    InputWorker worker;
    Deadline heard;
  };
  void Forget(Deadline now);

  Duration silence_;
  std::map<std::uint64_t, Entry> workers_;  // by incarnation
};

}  // namespace cohort::data
