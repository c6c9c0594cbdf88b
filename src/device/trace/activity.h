// Activity: what a GPU did, and where records of it come from (CUPTI, or a double of it).

#pragma once

#include <cohort/core/status.h>

#include <cstdint>
#include <memory>
#include <string_view>

namespace cohort::trace {

struct Activity {
  enum class Kind : std::uint8_t { kKernel, kCopy, kFill };
  Kind kind = Kind::kKernel;
  std::string_view name;  // of a kernel, mangled; of a copy "host to device"
  std::uint32_t device = 0;
  std::uint32_t stream = 0;       // CUPTI's number of it
  std::uint32_t correlation = 0;  // of the call that launched it
  std::uint64_t graph_node = 0;   // 0: not of a graph
  std::uint64_t bytes = 0;        // of copies and fills
  // Of the steady clock; an end of 0: it was cut off.
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
};

// Thread rules: called from any thread, also from several at once, and from within calls of the
// source.
class ActivitySink {
 public:
  virtual ~ActivitySink() = default;
  virtual void Add(const Activity& activity) = 0;
  // The call `correlation` was made within the range of that id.
  virtual void Correlate(std::uint32_t correlation, std::uint64_t range) = 0;
  virtual void Lost(std::uint64_t records) = 0;
  // A node of a graph was made by this thread, or for a graph that is run, of another node.
  virtual void NodeMade(std::uint64_t node) = 0;
  virtual void NodeCloned(std::uint64_t from, std::uint64_t node) = 0;
};

class ActivitySource {
 public:
  virtual ~ActivitySource() = default;
  // From here on `sink` hears of graphs' nodes, until the source is destroyed.
  virtual Status Watch(ActivitySink& sink) = 0;
  // Records of what is launched from here on, to the sink.
  virtual Status Start() = 0;
  // Waits, within a deadline, for what was launched, and until the sink has the records of it.
  virtual Status Stop() = 0;
  // What the calling thread launches is of this range, until Pop.
  virtual void Push(std::uint64_t range) = 0;
  virtual void Pop() = 0;
};

// CUPTI's. FailedPrecondition says what is missing.
Result<std::unique_ptr<ActivitySource>> OpenActivitySource();

}  // namespace cohort::trace
