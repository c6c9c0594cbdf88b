#include <cohort/device/device.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace cohort {
namespace {

class CpuDeviceImpl final : public Device {
 public:
  const std::string& name() const override { return name_; }
  MemorySpace memory_space() const override { return MemorySpace::kHost; }
  std::unique_ptr<Stream> MakeStream() override { return MakeInlineStream(); }
  std::unique_ptr<Kernels> MakeKernels(int threads) override { return MakeCpuKernels(threads); }

  std::shared_ptr<std::byte> Allocate(std::size_t bytes, std::string_view what) override {
    constexpr std::size_t kAlignment = 4096;
    const std::size_t size = std::max(bytes + kAlignment - 1, kAlignment) / kAlignment * kAlignment;
    auto* memory =
        size < bytes ? nullptr : static_cast<std::byte*>(std::aligned_alloc(kAlignment, size));
    if (memory == nullptr) {
      throw StatusError(ResourceExhausted("no memory for " + std::string(what) + ": " +
                                          std::to_string(bytes) + " bytes"));
    }
    return {memory, [](std::byte* p) { std::free(p); }};
  }
  std::shared_ptr<std::byte> AllocateHost(std::size_t bytes, std::string_view what) override {
    return Allocate(bytes, what);
  }
  void Copy(Stream& stream, const std::byte* from, std::byte* to, std::size_t bytes) override {
    stream.Enqueue([=]() -> Status {
      if (bytes > 0) {
        std::memmove(to, from, bytes);
      }
      return {};
    });
  }
  std::unique_ptr<Graph> Capture(Stream& /*stream*/,
                                 const std::function<void()>& /*feed*/) override {
    return nullptr;
  }

 private:
  const std::string name_ = "cpu";
};

}  // namespace

std::shared_ptr<Device> CpuDevice() {
  static const std::shared_ptr<Device> device = std::make_shared<CpuDeviceImpl>();
  return device;
}

}  // namespace cohort
