#include "cuda/cudnn_graph.h"

#include <algorithm>
#include <array>
#include <utility>

namespace cohort::cuda {

GraphDescriptor::GraphDescriptor(const LibraryCalls& calls, cudnnBackendDescriptorType_t type)
    : calls_(calls),
      ok_(calls.cudnnBackendCreateDescriptor(type, &descriptor_) == CUDNN_STATUS_SUCCESS) {}

GraphDescriptor::~GraphDescriptor() {
  if (descriptor_ != nullptr) {
    (void)calls_.cudnnBackendDestroyDescriptor(descriptor_);
  }
}

GraphDescriptor::GraphDescriptor(GraphDescriptor&& other) noexcept
    : calls_(other.calls_),
      descriptor_(std::exchange(other.descriptor_, nullptr)),
      ok_(other.ok_) {}

void GraphDescriptor::Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                          std::int64_t count, const void* values) {
  ok_ = ok_ && calls_.cudnnBackendSetAttribute(descriptor_, name, type, count, values) ==
                   CUDNN_STATUS_SUCCESS;
}

std::int64_t GraphDescriptor::Get(cudnnBackendAttributeName_t name,
                                  cudnnBackendAttributeType_t type, std::int64_t most,
                                  void* values) const {
  std::int64_t count = 0;
  const cudnnStatus_t status =
      calls_.cudnnBackendGetAttribute(descriptor_, name, type, most, &count, values);
  return status == CUDNN_STATUS_SUCCESS ? count : 0;
}

bool GraphDescriptor::Finalize() {
  ok_ = ok_ && calls_.cudnnBackendFinalize(descriptor_) == CUDNN_STATUS_SUCCESS;
  return ok_;
}

namespace {

// What an engine says of its arithmetic.
bool Notes(const GraphDescriptor& engine, cudnnBackendNumericalNote_t wanted) {
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const std::int64_t count = engine.Get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                        static_cast<std::int64_t>(notes.size()), notes.data());
  const auto end = notes.begin() + std::min<std::int64_t>(count, notes.size());
  return std::find(notes.begin(), end, wanted) != end;
}

}  // namespace

std::vector<GraphWay> WaysOf(const LibraryCalls& calls, cudnnHandle_t handle,
                             const GraphDescriptor& operation, int most,
                             std::int64_t most_workspace) {
  std::vector<GraphWay> ways;
  GraphDescriptor graph(calls, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.Set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  graph.Set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
  if (!graph.Finalize()) {
    return ways;
  }
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    GraphDescriptor heuristics(calls, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristics.Set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    heuristics.Set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
    if (!heuristics.Finalize()) {
      continue;
    }
    // More than are used: some cannot be.
    std::vector<GraphDescriptor> found;
    std::vector<cudnnBackendDescriptor_t> raw;
    for (int i = 0; i < 3 * most; ++i) {
      found.emplace_back(calls, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
      raw.push_back(found.back().raw());
    }
    const std::int64_t count =
        heuristics.Get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                       static_cast<std::int64_t>(raw.size()), raw.data());
    for (std::int64_t i = 0;
         i < std::min<std::int64_t>(count, static_cast<std::int64_t>(found.size())) &&
         ways.size() < static_cast<std::size_t>(most);
         ++i) {
      const GraphDescriptor& config = found[static_cast<std::size_t>(i)];
      GraphDescriptor engine(calls, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
      cudnnBackendDescriptor_t engine_raw = engine.raw();
      if (config.Get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine_raw) !=
              1 ||
          Notes(engine, CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION)) {
        continue;
      }
      GraphDescriptor plan(calls, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      plan.Set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
      plan.Set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
      std::int64_t workspace = 0;
      if (!plan.Finalize() ||
          plan.Get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace) !=
              1 ||
          workspace > most_workspace) {
        continue;
      }
      const bool exact = !Notes(engine, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
      ways.push_back({std::move(plan), workspace, exact});
    }
    if (!ways.empty()) {
      break;
    }
  }
  return ways;
}

cudnnStatus_t RunWay(const LibraryCalls& calls, cudnnHandle_t handle, const GraphWay& way,
                     std::span<const std::int64_t> ids, std::span<const void* const> data,
                     void* workspace) {
  GraphDescriptor pack(calls, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.Set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
           static_cast<std::int64_t>(ids.size()), ids.data());
  pack.Set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
           static_cast<std::int64_t>(data.size()), data.data());
  pack.Set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  if (!pack.Finalize()) {
    return CUDNN_STATUS_BAD_PARAM;
  }
  return calls.cudnnBackendExecute(handle, way.plan.raw(), pack.raw());
}

}  // namespace cohort::cuda
