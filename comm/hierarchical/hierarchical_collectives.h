// HierarchicalCollectives: all-reduce by a communicator inside each host and one across hosts, as
// an algorithm of the flat communicator over all ranks.
//
// The flat communicator's operation is the frame: its records find ranks that differ, its deadline
// and its failures hold, and nothing is asked of the two others before all ranks have entered the
// same operation. When that operation fails, both are aborted, and what they had under way has
// ended when it does.

#pragma once

#include <cohort/comm/communicator.h>

#include <memory>
#include <string>

#include "hierarchical/host_layout.h"
#include "native_collectives.h"

namespace cohort {

class HierarchicalCollectives final : public NativeCollectives {
 public:
  // `across`: of the ranks with this one's place in their hosts; where hosts differ in size, of the
  // first ranks of the hosts, nullptr on the others.
  HierarchicalCollectives(const HostLayout& layout, std::unique_ptr<Communicator> host,
                          std::unique_ptr<Communicator> across, std::string across_algorithm);

  Algorithm algorithm() const override { return Algorithm::kHierarchical; }
  bool keeps_order() const override { return keeps_order_; }
  bool Supports(OperationKind kind, DType dtype) const override;
  std::int64_t worth_bytes() const override;
  // What the ranks of this host read where it lies.
  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) override;
  Status AllReduce(Exchange& exchange, Buffer buffer, ReduceOp op) override;

 private:
  class Run;

  const bool even_;
  const bool keeps_order_;
  const int ranks_;
  const std::unique_ptr<Communicator> host_;
  const std::unique_ptr<Communicator> across_;
  const std::string across_algorithm_;
};

}  // namespace cohort
