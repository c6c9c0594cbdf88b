// `cohort doctor`: what this machine and this build have, and what of it does not fit together.

#include <cohort/comm/nccl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "../../mpi/mpi_peer.h"
#include "build_options.h"
#include "command.h"
#include "report.h"

namespace cohort {
int DoctorCommand(int argc, char** argv) {
  CLI::App app(
      "Prints what this machine has for training, what this build can use of it, and what does "
      "not fit together, with what to do. Exits with 0, or with 1 if there is a problem; that "
      "there is no GPU is none.",
      argv[0]);
  bool json = false;
  app.add_flag("--json", json, "Print one JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }

  doctor::Facts facts;
  facts.build.assign(std::begin(doctor::kBuildOptions), std::end(doctor::kBuildOptions));
  facts.machine = doctor::InspectMachine();
  facts.gpus = InspectGpus();
  // "Open MPI v4.1.4, package: ...": the package is the distribution's affair.
  facts.mpi = MpiLibrary();
  facts.mpi.resize(std::min(facts.mpi.find_first_of(",\n"), facts.mpi.size()));
  facts.rpc = LinkedRpcVersions();
  facts.nccl = NcclVersion();
  const std::vector<doctor::Finding> findings = doctor::FindingsOf(facts);
  std::fputs((json ? ToJson(facts, findings) : ToText(facts, findings)).c_str(), stdout);
  return std::any_of(findings.begin(), findings.end(),
                     [](const doctor::Finding& finding) { return finding.problem; })
             ? 1
             : 0;
}

}  // namespace cohort
