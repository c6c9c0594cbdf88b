// Device: where a replica's memory is, and its arithmetic runs.
//
// The CPU is one; its memory is the host's. Of others ("cuda:0") the memory is apart: the host
// knows addresses there, hands them to kernels, and copies; it never follows them.
//
// Thread rules: any thread may allocate, and drop memory. Streams and tables say theirs.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/device/kernels.h>
#include <cohort/device/stream.h>

namespace cohort {

// Work that a stream was fed once, to be put on it again as a whole: same operations, same
// addresses.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void Replay(Stream& stream) = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const std::string& name() const = 0;  // "cpu", "cuda:0"
  virtual MemorySpace memory_space() const = 0;
  // Devices compute side by side; two replicas on one device share it.
  virtual std::unique_ptr<Stream> MakeStream() = 0;
  // For one of its streams. `threads`: as MakeCpuKernels, for a CPU.
  virtual std::unique_ptr<Kernels> MakeKernels(int threads) = 0;

  // At least so many bytes of the device's memory, aligned to 256, contents unspecified. Never
  // null. Throws StatusError: ResourceExhausted names `what`, the request and what is in use. May
  // stop the device: for memory that is kept, not for every step. It keeps the device alive.
  virtual std::shared_ptr<std::byte> Allocate(std::size_t bytes, std::string_view what) = 0;
  // Memory of the host that copies to and from the device reach at full speed, and that they need
  // not wait for.
  virtual std::shared_ptr<std::byte> AllocateHost(std::size_t bytes, std::string_view what) = 0;
  // Whether this is such memory, of this device or another of its kind. Where it is not known, no.
  virtual bool PageLocked(const std::byte* /*address*/) const { return false; }
  // Puts a copy on the stream; each side is the host's memory, this device's, or that of another of
  // its kind, and must stay until then. Memory of the host that AllocateHost did not make may block
  // the caller until it is copied.
  virtual void Copy(Stream& stream, const std::byte* from, std::byte* to, std::size_t bytes) = 0;
  // Whether kernels of this device may follow addresses of the other's memory.
  virtual bool Reaches(const Device& /*other*/) const { return false; }

  // Calls `feed`, which feeds the stream; what it puts there does not run now, but at each Replay.
  // `feed` may not block on the stream, nor allocate. nullptr where the device cannot: `feed` was
  // not called.
  virtual std::unique_ptr<Graph> Capture(Stream& stream, const std::function<void()>& feed) = 0;
  // The same in parts: `feed` is given what ends a part and begins the next. Replayed in their
  // order they do what was fed, and other work may be put on the stream in between. At the end of
  // a part the stream must have waited for other streams that take part. Empty where the device
  // cannot; one part, where it does not cut.
  using Cut = std::function<void()>;
  virtual std::vector<std::unique_ptr<Graph>> CaptureParts(
      Stream& stream, const std::function<void(const Cut& cut)>& feed) {
    std::vector<std::unique_ptr<Graph>> parts;
    if (auto graph = Capture(stream, [&] { feed([] {}); }); graph != nullptr) {
      parts.push_back(std::move(graph));
    }
    return parts;
  }
};

// The CPU. Its streams are inline. One and the same for all callers.
std::shared_ptr<Device> CpuDevice();

// The devices of local replicas, in order, from "cpu", "cpu:2" (two replicas on the CPU), "cuda:0",
// "cuda:0/2" (two replicas that share GPU 0), "cuda" (every GPU there is), and lists of these with
// commas. InvalidArgument names the part that is none; FailedPrecondition says what is missing:
// the build's CUDA, a driver, or that GPU.
Result<std::vector<std::shared_ptr<Device>>> OpenDevices(std::string_view text);

}  // namespace cohort
