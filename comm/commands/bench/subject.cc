#include "subject.h"

#include <algorithm>

#include <cohort/cluster/folder_store.h>
#include <cohort/comm/hierarchical.h>
#include <cohort/comm/local.h>
#include <cohort/comm/mpi.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>

#include "../../mpi/mpi_peer.h"

namespace cohort::bench {
namespace {

Status Wait(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

class CohortSubject final : public Subject {
 public:
  CohortSubject(std::unique_ptr<Communicator> comm, const std::string& algorithm, bool shared)
      : comm_(std::move(comm)), how_{.name = "bench", .algorithm = algorithm}, shared_(shared) {}

  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  Status Barrier() override { return Wait(comm_->Barrier()); }
  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) override {
    return shared_ ? comm_->Allocate(bytes) : AllocateMemory(bytes);
  }
  Status Run(Operation operation, const Buffers& buffers) override {
    switch (operation) {
      case Operation::kAllReduce:
        return Wait(comm_->AllReduce(buffers.input, ReduceOp::kSum, how_));
      case Operation::kReduceScatter:
        return Wait(comm_->ReduceScatter(buffers.input, buffers.output, ReduceOp::kSum, how_));
      case Operation::kAllGather:
        return Wait(comm_->AllGather(buffers.input, buffers.output, how_));
      case Operation::kBroadcast:
        return Wait(comm_->Broadcast(buffers.input, 0, how_));
    }
    return Internal("no such operation");
  }

 private:
  const std::unique_ptr<Communicator> comm_;
  const CollectiveOptions how_;
  const bool shared_;
};

class MpiSubject final : public Subject {
 public:
  explicit MpiSubject(std::unique_ptr<MpiPeer> mpi) : mpi_(std::move(mpi)) {}

  int rank() const override { return mpi_->rank(); }
  int size() const override { return mpi_->size(); }
  Status Barrier() override { return mpi_->Barrier(); }
  Status Run(Operation operation, const Buffers& buffers) override {
    switch (operation) {
      case Operation::kAllReduce:
        return mpi_->AllReduce(buffers.input);
      case Operation::kReduceScatter:
        return mpi_->ReduceScatter(buffers.input, buffers.output);
      case Operation::kAllGather:
        return mpi_->AllGather(buffers.input, buffers.output);
      case Operation::kBroadcast:
        return mpi_->Broadcast(buffers.input);
    }
    return Internal("no such operation");
  }

 private:
  const std::unique_ptr<MpiPeer> mpi_;
};

bool Named(const std::vector<std::string>& names, const char* name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Everything that its users are told to try, but for what crosses hosts only.
void AddOpenMpi(const Options& options, std::vector<SubjectSpec>& specs) {
  const bool tcp_only = options.transport == "tcp";
  if (!tcp_only) {
    specs.push_back({"openmpi", "default", "shm", true, {}});
    specs.push_back(
        {"openmpi", "no-cma", "shm", true, {"OMPI_MCA_btl_vader_single_copy_mechanism=none"}});
  }
  specs.push_back(
      {"openmpi",
       "tcp",
       "tcp",
       true,
       {"OMPI_MCA_pml=ob1", "OMPI_MCA_btl=tcp,self", "OMPI_MCA_btl_tcp_if_include=lo"}});
}

}  // namespace

Result<std::vector<SubjectSpec>> SubjectsOf(const Options& options) {
  std::vector<SubjectSpec> specs;
  for (const std::string& buffer : options.buffers) {
    for (const int rails : options.rails) {
      const std::string several = rails == 1 ? "" : std::to_string(rails) + " rails";
      const std::string configuration =
          buffer == "private" ? several : buffer + (several.empty() ? "" : ", " + several);
      specs.push_back({"cohort",
                       configuration,
                       options.transport,
                       options.transport == "mpi",
                       {},
                       buffer,
                       rails});
    }
  }
  if (options.transport == "hierarchical") {  // what it is instead of
    specs.push_back({"cohort", "flat", "tcp", false, {}, "flat"});
  }
  if (!options.exec_prefix.empty() && (specs[0].mpirun || Named(options.peers, "openmpi"))) {
    return InvalidArgument(
        "mpirun starts the ranks of --transport mpi and --peer openmpi, where --exec-prefix does "
        "not reach [leave them out; --peer gloo runs where the prefix says]");
  }
  if (specs[0].mpirun && !MpiBuilt()) {
    return Unimplemented("this build has no MPI [install libopenmpi-dev and configure again]");
  }
  if (Named(options.peers, "openmpi")) {
    if (const std::string library = MpiLibrary(); library.rfind("Open MPI", 0) != 0) {
      return Unimplemented("peer openmpi: this build has " +
                           (library.empty() ? "no MPI" : "another MPI: " + library) +
                           " [install libopenmpi-dev and configure again]");
    }
    AddOpenMpi(options, specs);
  }
  if (Named(options.peers, "gloo")) {
    COHORT_RETURN_IF_ERROR(GlooHas(options).Annotate("peer gloo"));
    const bool scatters = options.operation == Operation::kReduceScatter;
    specs.push_back({"gloo", scatters ? "halving-doubling" : "ring", "tcp", false, {}});
    if (options.operation == Operation::kAllReduce) {
      specs.push_back({"gloo", "bcube", "tcp", false, {}});
    }
  }
  if (Named(options.limits, "memory")) {
    specs.push_back({"memory", "", "none", false, {}});
  }
  if (Named(options.limits, "handover")) {
    COHORT_RETURN_IF_ERROR(CheckHandover(options));
    specs.push_back({"handover", "", "none", false, {}});
  }
  if (Named(options.limits, "loopback")) {
    specs.push_back({"loopback", "", "tcp", false, {}});
  }
  return specs;
}

std::unique_ptr<Subject> MakeCohortSubject(std::unique_ptr<Communicator> comm,
                                           const std::string& algorithm,
                                           const std::string& buffer) {
  return std::make_unique<CohortSubject>(std::move(comm), algorithm, buffer == "shared");
}

Result<std::unique_ptr<Subject>> MakeMpiSubject() {
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<MpiPeer> peer, MakeMpiPeer());
  return std::make_unique<MpiSubject>(std::move(peer));
}

Result<std::vector<std::unique_ptr<Subject>>> MakeSubjects(const SubjectSpec& spec,
                                                           const Options& options) {
  std::vector<std::unique_ptr<Subject>> subjects;
  CommunicatorOptions how;
  how.timeout = options.timeout;
  FolderStore store(options.folder);
  if (spec.implementation == "openmpi") {
    COHORT_ASSIGN_OR_RETURN(subjects.emplace_back(), MakeMpiSubject());
  } else if (spec.implementation == "gloo") {
    COHORT_ASSIGN_OR_RETURN(subjects.emplace_back(), MakeGlooSubject(options, spec.configuration));
  } else if (spec.implementation == "memory") {
    subjects.push_back(MakeMemoryLimit(options));
  } else if (spec.implementation == "handover") {
    COHORT_ASSIGN_OR_RETURN(subjects.emplace_back(), MakeHandoverLimit(options));
  } else if (spec.implementation == "loopback") {
    COHORT_ASSIGN_OR_RETURN(subjects.emplace_back(), MakeLoopbackLimit(options));
  } else if (spec.transport == "local") {
    for (std::unique_ptr<Communicator>& comm : MakeLocalCommunicators(options.ranks, how)) {
      subjects.push_back(MakeCohortSubject(std::move(comm), options.algorithm, spec.buffer));
    }
  } else if (spec.transport == "shm") {
    COHORT_ASSIGN_OR_RETURN(
        std::unique_ptr<Communicator> comm,
        MakeShmCommunicator(options.rank, options.ranks, store, "cohort-" + spec.buffer,
                            {.connect_timeout = options.timeout}, how));
    subjects.push_back(MakeCohortSubject(std::move(comm), options.algorithm, spec.buffer));
  } else if (spec.transport == "hierarchical") {
    HierarchicalOptions hierarchical;
    hierarchical.tcp = {.rendezvous_host = options.rendezvous_host,
                        .connect_timeout = options.timeout};
    hierarchical.host = "host " + std::to_string(options.rank / options.ranks_per_host);
    hierarchical.across = options.across;
    COHORT_ASSIGN_OR_RETURN(
        std::unique_ptr<Communicator> comm,
        MakeHierarchicalCommunicator(options.rank, options.ranks, store, "cohort-" + spec.buffer,
                                     hierarchical, how));
    subjects.push_back(MakeCohortSubject(std::move(comm), options.algorithm, spec.buffer));
  } else if (spec.transport == "mpi") {
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> comm,
                            MakeMpiCommunicator({.implementation = options.mpi_implementation,
                                                 .connect_timeout = options.timeout},
                                                how));
    subjects.push_back(MakeCohortSubject(std::move(comm), options.algorithm, spec.buffer));
  } else {
    COHORT_ASSIGN_OR_RETURN(
        std::unique_ptr<Communicator> comm,
        MakeTcpCommunicator(options.rank, options.ranks, store,
                            "cohort-" + spec.buffer + std::to_string(spec.rails),
                            {.rendezvous_host = options.rendezvous_host,
                             .connect_timeout = options.timeout,
                             .rails = spec.rails},
                            how));
    subjects.push_back(MakeCohortSubject(std::move(comm), options.algorithm, spec.buffer));
  }
  return subjects;
}

}  // namespace cohort::bench
