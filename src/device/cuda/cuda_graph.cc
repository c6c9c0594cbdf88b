#include "cuda/cuda_graph.h"

#include <utility>
#include <vector>

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

// What a stream is fed from Begin to End. What fails in between fails the recording, not the
// stream.
class Recorder {
 public:
  explicit Recorder(std::shared_ptr<StreamState> state) : state_(std::move(state)) {}
  // What is recorded and was not ended is dropped.
  ~Recorder() {
    if (capture_ != nullptr) {
      (void)Stop();
    }
  }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  void Begin() {
    Require(state_->capture == nullptr, "a stream is recorded for one graph at a time");
    UseGpu(state_->gpu->ordinal);
    const auto capture = std::make_shared<Capture>();
    state_->capture = capture;
    capture->streams.push_back(state_);
    state_->gpu->streams->SetCaptured(state_->native, true);
    const cudaError_t begun =
        cudaStreamBeginCapture(state_->native, cudaStreamCaptureModeThreadLocal);
    if (begun != cudaSuccess) {
      Close(*capture);
      Check(begun, state_->gpu->name + ": recording a graph");
    }
    before_ = state_->ExchangeFate(std::make_shared<Fate>());
    capture_ = capture;
  }

  // Throws StatusError where what was recorded can't be a graph.
  std::unique_ptr<Graph> End() {
    const std::shared_ptr<Capture> capture = capture_;
    Stopped stopped = Stop();
    cudaGraphExec_t executable = nullptr;
    if (stopped.status.ok()) {
      const cudaError_t error = cudaGraphInstantiate(&executable, stopped.graph.get(), 0);
      if (error != cudaSuccess) {
        (void)cudaGetLastError();
        stopped.status = state_->Describe(error, "making a graph of what was recorded");
      }
    }
    OrThrow(stopped.status);
    return std::make_unique<CudaGraph>(executable, capture);
  }

 private:
  struct Destroy {
    void operator()(cudaGraph_t graph) const { (void)cudaGraphDestroy(graph); }
  };
  struct Stopped {
    std::unique_ptr<CUgraph_st, Destroy> graph;
    Status status;
  };

  // The stream feeds the device again.
  Stopped Stop() {
    const std::shared_ptr<Capture> capture = std::exchange(capture_, nullptr);
    cudaGraph_t graph = nullptr;
    const cudaError_t error = cudaStreamEndCapture(state_->native, &graph);
    Close(*capture);
    (void)cudaGetLastError();
    Stopped stopped;
    stopped.graph.reset(graph);
    stopped.status = state_->ExchangeFate(std::exchange(before_, nullptr))->status();
    if (stopped.status.ok() && error != cudaSuccess) {
      stopped.status = state_->Describe(error, "recording a graph");
    }
    return stopped;
  }

  const std::shared_ptr<StreamState> state_;
  std::shared_ptr<Capture> capture_;  // nullptr: nothing is recorded
  std::shared_ptr<Fate> before_;      // the stream's, meanwhile
};

}  // namespace

std::vector<std::unique_ptr<Graph>> CaptureGraphs(
    const std::shared_ptr<StreamState>& state,
    const std::function<void(const Device::Cut& cut)>& feed) {
  std::vector<std::unique_ptr<Graph>> parts;  // go last: a graph waits for the stream, which then
  Recorder recorder(state);                   // is recorded no more
  recorder.Begin();
  feed([&] {
    parts.push_back(recorder.End());
    recorder.Begin();
  });
  parts.push_back(recorder.End());
  return parts;
}

std::unique_ptr<Graph> CaptureGraph(const std::shared_ptr<StreamState>& state,
                                    const std::function<void()>& feed) {
  return std::move(CaptureGraphs(state, [&](const Device::Cut& /*cut*/) { feed(); }).front());
}

}  // namespace cohort::cuda
