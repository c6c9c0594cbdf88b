#include "remote_tables.h"

#include <utility>

#include <cohort/optim/optimizers.h>

namespace cohort::embedding {

Result<std::unique_ptr<RemoteTables>> RemoteTables::Start(std::vector<ps::TableSpec> tables) {
  std::unique_ptr<RemoteTables> remote(new RemoteTables);
  remote->model_.parameters = {{"none", {1}, true, 0}};
  remote->model_.optimizer = Sgd()->config();
  remote->model_.tables = std::move(tables);
  COHORT_ASSIGN_OR_RETURN(remote->server_, ServerProcess::Start(remote->children_));
  remote->control_ = ps::Client::Make(remote->model_, {remote->server_->address()}, {});
  COHORT_RETURN_IF_ERROR(remote->control_->Declare());
  COHORT_RETURN_IF_ERROR(remote->control_->Assign(std::vector<float>(16), {}, 0));
  return remote;
}

Result<std::unique_ptr<ps::RowClient>> RemoteTables::Client(std::uint64_t number,
                                                            const std::string& transport) const {
  ps::ClientOptions identity;
  identity.client = number;
  COHORT_ASSIGN_OR_RETURN(identity.transport, ps::TransportOf({.implementation = transport}));
  return ps::RowClient::Make(model_, {server_->address()}, identity);
}

Status RemoteTables::End() {
  server_->End();
  return children_.Wait();
}

}  // namespace cohort::embedding
