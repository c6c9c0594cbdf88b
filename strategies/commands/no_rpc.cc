// Where the build has no gRPC: the commands that measure parameter servers.
#include <cstdio>

#include "command.h"

namespace cohort {
namespace {

int NoRpc(char** argv) {
  std::fprintf(stderr, "%s: built without gRPC [build with COHORT_RPC=ON]\n", argv[0]);
  return 2;
}

}  // namespace

int BenchEmbeddingCommand(int /*argc*/, char** argv) { return NoRpc(argv); }
int BenchPsCommand(int /*argc*/, char** argv) { return NoRpc(argv); }

}  // namespace cohort
