// A parameter server's process that holds tables, and clients of it.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "commands/bench_children.h"
#include "parameter_server/model/table_spec.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/variables/client.h"

namespace cohort::embedding {

class RemoteTables {
 public:
  // Forks: gRPC must have no part in this process yet.
  static Result<std::unique_ptr<RemoteTables>> Start(std::vector<ps::TableSpec> tables);

  // `number` is the client's, and `transport` as in TransportOptions::implementation.
  Result<std::unique_ptr<ps::RowClient>> Client(std::uint64_t number,
                                                const std::string& transport) const;
  // Ends the server; an error if it has not ended well.
  Status End();

 private:
  RemoteTables() = default;

  ps::ModelSpec model_;
  Children children_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<ps::Client> control_;
};

}  // namespace cohort::embedding
