// BucketClient: whole buckets of the sparse tables from and to the servers, over gRPC: their dumps,
// the way back from these, and from one server to another.
//
// Calls that fail for want of a connection are repeated, until the server has been silent for
// `peer_timeout`; then the error is Unavailable and names the server. Errors of a table name it.
//
// Thread rules: one thread calls; Abort from any.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>

#include "parameter_server/frames/exchange.h"
#include "parameter_server/rows/row_routes.h"
#include "parameter_server/variables/client.h"

namespace cohort::ps {

// A bucket, where it is, and how many gradients it took there.
struct BucketLoad {
  std::uint32_t bucket = 0;
  int server = 0;
  std::uint64_t updates = 0;
};

class BucketClient {
 public:
  // `channels`: one for each line (layout.h). `routes`: the client's, which learns, and outlives
  // this.
  BucketClient(const ModelSpec& model, const std::vector<std::string>& addresses,
               std::vector<std::shared_ptr<RenewableChannel>> channels,
               const ClientOptions& options, RowRoutes& routes);

  // All buckets in ascending order, as they are, or (`snapshot`) were; where `since` is not 0, as
  // what has changed since that snapshot, where a server knows (row_changes.h). Several frames are
  // under way, and in memory, at a time.
  struct Version {
    std::uint64_t snapshot = 0;
    std::uint64_t since = 0;
    bool keeps_rounds = false;  // as they are, whatever rounds wait to be applied
  };
  using Take = std::function<Status(std::uint32_t bucket, std::string_view)>;
  Status Dump(int table, const Version& version, const Take& take);

  // As RowClient's.
  using Give = std::function<Result<std::string>(std::uint32_t bucket)>;
  Status Restore(int table, const Give& give, const std::vector<int>* servers);
  Status Move(int table, std::uint32_t bucket, int to);
  Result<std::vector<BucketLoad>> Loads(int table);
  Status CopyPart(int table, int server, Client::Mend which);

  void Abort(const Status& why) { exchange_.Abort(why); }

 private:
  struct Arrivals;
  FrameHeader Header(int table, int line) const;
  Status Send(const std::string& method, int line, FrameHeader header, grpc::Slice payload);
  const TableSpec& SpecOf(int table) const { return tables_[static_cast<std::size_t>(table)]; }
  Result<std::string> DumpRest(int table, int line, const Version& version, BucketPiece piece,
                               std::string begun);
  Status DumpSome(int table, const Version& version, const Take& take, Arrivals& arrivals);
  Status Install(int table, std::uint32_t bucket, int line, const std::string& dump, bool adopt,
                 bool keep_rounds = false);
  Status Step(int table, std::uint32_t bucket, int server, const BucketMove& step);
  Status Insist(const std::function<Status()>& fn);
  Status Keep(int table, std::uint32_t bucket, int from, const Status& why);

  const std::vector<TableSpec> tables_;
  const std::uint64_t layout_;
  const std::uint64_t number_;  // of this client
  const std::uint64_t epoch_;
  const std::chrono::milliseconds read_timeout_;
  const bool copies_;
  RowRoutes& routes_;
  const std::vector<std::string> names_;  // by line
  std::vector<std::uint64_t> sequences_;  // by line, of what restores and moves
  Exchange exchange_;
};

}  // namespace cohort::ps
