#include "cuda/cuda_graph.h"

#include <exception>
#include <utility>

namespace cohort::cuda {
namespace {

class CudaGraph final : public Graph {
 public:
  CudaGraph(cudaGraphExec_t graph, std::shared_ptr<Capture> capture)
      : graph_(graph), capture_(std::move(capture)) {}
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  ~CudaGraph() override {
    const StreamState& state = *capture_->streams.front();
    UseGpu(state.gpu->ordinal);
    if (!Settle(*capture_->streams.front())) {
      new std::shared_ptr<Capture>(capture_);  // a replay that is stuck uses it
      return;
    }
    (void)cudaGraphExecDestroy(graph_);
    (void)cudaGetLastError();
  }

  void Replay(Stream& stream) override {
    const std::shared_ptr<StreamState>& state = AsCuda(stream).state();
    Require(state == capture_->streams.front(), "a graph runs on the stream it was recorded on");
    Require(state->capture == nullptr, "a graph is not part of another");
    UseGpu(state->gpu->ordinal);
    for (std::size_t i = 1; i < capture_->streams.size(); ++i) {
      state->fate()->Await(capture_->streams[i]->fate());
    }
    (void)cudaGraphLaunch(graph_, state->native);
    Launched(stream, "a graph");
  }

 private:
  const cudaGraphExec_t graph_;
  const std::shared_ptr<Capture> capture_;
};

// Streams feed the device again.
void Close(Capture& capture) {
  capture.open = false;
  for (const std::shared_ptr<StreamState>& state : capture.streams) {
    state->capture = nullptr;
    state->gpu->streams->SetCaptured(state->native, false);
  }
}

}  // namespace

std::unique_ptr<Graph> CaptureGraph(const std::shared_ptr<StreamState>& state,
                                    const std::function<void()>& feed) {
  Require(state->capture == nullptr, "a stream is recorded for one graph at a time");
  UseGpu(state->gpu->ordinal);
  const auto capture = std::make_shared<Capture>();
  state->capture = capture;
  capture->streams.push_back(state);
  state->gpu->streams->SetCaptured(state->native, true);
  const cudaError_t begun = cudaStreamBeginCapture(state->native, cudaStreamCaptureModeThreadLocal);
  if (begun != cudaSuccess) {
    Close(*capture);
    Check(begun, state->gpu->name + ": recording a graph");
  }

  // What fails while it is recorded fails the recording, not the stream.
  const std::shared_ptr<Fate> before = state->ExchangeFate(std::make_shared<Fate>());
  std::exception_ptr thrown;
  try {
    feed();
  } catch (...) {
    thrown = std::current_exception();
  }
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(state->native, &graph);
  Close(*capture);
  (void)cudaGetLastError();

  Status status = state->ExchangeFate(before)->status();
  if (status.ok() && error != cudaSuccess) {
    status = state->Describe(error, "recording a graph");
  }
  cudaGraphExec_t executable = nullptr;
  if (thrown == nullptr && status.ok()) {
    error = cudaGraphInstantiate(&executable, graph, 0);
    if (error != cudaSuccess) {
      (void)cudaGetLastError();
      status = state->Describe(error, "making a graph of what was recorded");
    }
  }
  if (graph != nullptr) {
    (void)cudaGraphDestroy(graph);
  }
  if (thrown != nullptr) {
    std::rethrow_exception(thrown);
  }
  OrThrow(status);
  return std::make_unique<CudaGraph>(executable, capture);
}

}  // namespace cohort::cuda
