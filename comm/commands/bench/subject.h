// Subject: what is measured: one library, or a limit of the machine, on one rank.

#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/comm/memory.h>

#include "options.h"

namespace cohort::bench {

// The buffers of an operation. All-reduce and broadcast work in place: output is input; so does a
// reduce-scatter that scatters in place: output is the first part of input.
struct Buffers {
  Buffer input;
  Buffer output;
};

class Subject {
 public:
  virtual ~Subject() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // One operation (sum; broadcast from rank 0), to its end. May hang if a peer dies: whoever gives
  // the orders then ends the process.
  virtual Status Run(Operation operation, const Buffers& buffers) = 0;
  virtual Status Barrier() = 0;
  // On all ranks, before the first operation on these buffers. Not timed.
  virtual Status Prepare(Operation /*operation*/, const Buffers& /*buffers*/) { return {}; }
  // Memory for the buffers: private, unless the subject has better and was asked for it.
  virtual Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) {
    return AllocateMemory(bytes);
  }
  virtual bool scatters_in_place() const { return false; }
  // Whether results are right, or only the time is.
  virtual bool exact() const { return true; }
};

// A group of processes that measure one subject.
struct SubjectSpec {
  std::string implementation;  // "cohort", "openmpi", "gloo", "memory", "handover",
                               // "loopback"
  std::string configuration;   // of one that has several; else empty
  std::string transport;
  bool mpirun = false;                   // how its processes are started
  std::vector<std::string> environment;  // NAME=value, besides what all have
  std::string buffer = "private";
  int rails = 1;  // of ours over TCP

  std::string name() const {
    return implementation + (configuration.empty() ? "" : " " + configuration);
  }
};

// All subjects that the options ask for, cohort first. Unimplemented for a peer that is not there
// or has no such operation, InvalidArgument for one that cannot be started so.
Result<std::vector<SubjectSpec>> SubjectsOf(const Options& options);

// Makes the subject of this process: one, or for threads (local) one for each rank.
Result<std::vector<std::unique_ptr<Subject>>> MakeSubjects(const SubjectSpec& spec,
                                                           const Options& options);

// Ours over a communicator.
std::unique_ptr<Subject> MakeCohortSubject(std::unique_ptr<Communicator> comm,
                                           const std::string& algorithm, const std::string& buffer);
// MPI's collectives. Status of a build without MPI: Unimplemented.
Result<std::unique_ptr<Subject>> MakeMpiSubject();

// gloo.cc or no_gloo.cc.
Status GlooHas(const Options& options);
Result<std::unique_ptr<Subject>> MakeGlooSubject(const Options& options,
                                                 const std::string& configuration);

// limits.cc
std::unique_ptr<Subject> MakeMemoryLimit(const Options& options);
Result<std::unique_ptr<Subject>> MakeLoopbackLimit(const Options& options);
// handover.cc. InvalidArgument where it does not measure what the options ask for.
Status CheckHandover(const Options& options);
Result<std::unique_ptr<Subject>> MakeHandoverLimit(const Options& options);

}  // namespace cohort::bench
