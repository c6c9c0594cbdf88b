// Layout: how the variables of a model are cut into chunks and dealt to the servers. A pure
// function of names, shapes and the number of servers, so every process computes the same one.
//
// A parameter is cut into shards by the Partitioner, and these into chunks of equal size, at most
// kMaxChunkElements. Shards (by default: chunks) are placed largest first on the server with the
// fewest elements so far, ties by index. A server of a model with tables that has none then gets a
// chunk without elements, where ModelSpec::counts_steps: what goes by a chunk's version (the step,
// the workers' clocks, whether a server has its part) goes by that one's for its rows.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/consistency.h>
#include <cohort/strategies/partitioner.h>

namespace cohort::ps {

inline constexpr std::int64_t kMaxChunkElements = std::int64_t{1} << 18;  // 1 MiB

struct ParameterSpec {
  std::string name;
  Shape shape;
  bool trainable = true;
  std::int64_t offset = 0;  // in the arena of a client; a server need not know it

  std::string ToString() const;  // "dense/kernel [784,512]"
};

// What clients and servers must agree on.
struct ModelSpec {
  std::vector<ParameterSpec> parameters;
  std::string optimizer;  // Optimizer::config()
  Consistency consistency;
  int servers = 1;
  std::vector<TableSpec> tables;
  Partitioner partitioner;
  bool copies = false;  // every server's part is on its successor, too (ServerLoss::kReplica)
  // Every server has a chunk, if only to count its updates. Not where none is ever assigned.
  bool counts_steps = false;

  // Tables that name no optimizer get `optimizer`.
  static ModelSpec Of(const ParameterSet& parameters, std::string optimizer,
                      const Consistency& consistency, int servers);
  // Of a model whose parameters are elsewhere: its tables, updated in rounds.
  static ModelSpec OfTables(const ParameterSet& parameters, std::string optimizer, int servers);
  std::uint64_t Fingerprint() const;
  // Do servers apply a round of variables when they are told which parts of which attempt it has?
  // With backup workers, and where there are copies: of an attempt that a lost worker left
  // unfinished one of two servers may have all parts, and the other not.
  bool elects() const {
    return consistency.synchronous() && (consistency.backup_workers > 0 || copies);
  }
  // OK if `other` is the same model; else FailedPrecondition with the first difference, in which
  // this spec is "declared" and `other` is `who`'s.
  Status Compare(const ModelSpec& other, const std::string& who) const;
};

// Who keeps the copy of a server's part.
inline int CopyHolder(int server, int servers) { return (server + 1) % servers; }
inline int CopiedServer(int holder, int servers) { return (holder + servers - 1) % servers; }
// A client has a line to each server, and, where there are copies, as many more: to the copies.
inline int LineOf(int server, int servers, bool copy) { return copy ? servers + server : server; }
inline int ServerOfLine(int line, int servers) {
  return line < servers ? line : CopyHolder(line - servers, servers);
}

inline constexpr int kNoParameter = -1;

struct Chunk {
  int parameter = 0;       // kNoParameter: it has no elements, only a version
  std::int64_t begin = 0;  // element of the parameter
  std::int64_t elements = 0;
  std::int64_t offset = 0;  // element of a client's arena
  int server = 0;
  bool trainable = true;
};

// ContractError if servers < 1.
std::vector<Chunk> MakeChunks(const ModelSpec& spec, std::int64_t max_elements = kMaxChunkElements);

// Which chunks travel together: of one server, in order, at most max_bytes of payload each (a
// larger chunk goes alone). `floats_per_element`: 1, or 1 + slots.
std::vector<std::vector<int>> PackFrames(const std::vector<Chunk>& chunks, int server,
                                         std::int64_t max_bytes, int floats_per_element = 1);

}  // namespace cohort::ps
