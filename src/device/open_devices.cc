#include <cohort/device/device.h>

#include <charconv>
#include <optional>
#include <string>
#include <system_error>

#include "cuda/cuda_device.h"

namespace cohort {
namespace {

constexpr int kMaxReplicas = 1024;

struct Part {
  bool cuda = false;
  std::optional<int> ordinal;  // of one GPU; otherwise all of them
  int replicas = 1;
  bool tf32 = false;
};

std::optional<int> Number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 ||
      (text.size() > 1 && text.front() == '0')) {
    return std::nullopt;
  }
  return value;
}

// Takes `suffix` off the end of `text`; false if it does not end so.
bool TakeSuffix(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) {
    return false;
  }
  text.remove_suffix(suffix.size());
  return true;
}

// A number of replicas.
bool ParseReplicas(std::string_view text, int& replicas) {
  const std::optional<int> number = Number(text);
  replicas = number.value_or(0);
  return replicas >= 1 && replicas <= kMaxReplicas;
}

std::optional<Part> ParsePart(std::string_view text) {
  Part part;
  part.tf32 = TakeSuffix(text, "+tf32");
  const std::size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view rest = colon == text.npos ? "" : text.substr(colon + 1);
  if (kind == "cpu" && !part.tf32) {
    if (colon != text.npos && !ParseReplicas(rest, part.replicas)) {
      return std::nullopt;
    }
    return part;
  }
  if (kind != "cuda") {
    return std::nullopt;
  }
  part.cuda = true;
  if (colon == text.npos) {
    return part;
  }
  const std::size_t slash = rest.find('/');
  part.ordinal = Number(rest.substr(0, slash));
  if (!part.ordinal.has_value() ||
      (slash != rest.npos && !ParseReplicas(rest.substr(slash + 1), part.replicas))) {
    return std::nullopt;
  }
  return part;
}

Status Add(const Part& part, std::vector<std::shared_ptr<Device>>& devices) {
  const auto add = [&](const std::shared_ptr<Device>& device) {
    devices.insert(devices.end(), static_cast<std::size_t>(part.replicas), device);
  };
  if (!part.cuda) {
    add(CpuDevice());
    return {};
  }
  COHORT_ASSIGN_OR_RETURN(const int count, cuda::GpuCount());
  if (part.ordinal.has_value() && *part.ordinal >= count) {
    return FailedPrecondition(
        "there is no GPU " + std::to_string(*part.ordinal) + ": of " + std::to_string(count) +
        ", the last is cuda:" + std::to_string(count - 1) + " [CUDA_VISIBLE_DEVICES hides others]");
  }
  const int first = part.ordinal.value_or(0);
  const int last = part.ordinal.value_or(count - 1);
  for (int ordinal = first; ordinal <= last; ++ordinal) {
    COHORT_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device,
                            cuda::OpenGpu(ordinal, part.tf32));
    add(device);
  }
  return {};
}

}  // namespace

Result<std::vector<std::shared_ptr<Device>>> OpenDevices(std::string_view text) {
  // The whole text is checked before a device is touched.
  std::vector<std::pair<Part, std::string_view>> parts;
  for (std::string_view rest = text;;) {
    const std::size_t comma = rest.find(',');
    const std::string_view one = rest.substr(0, comma);
    const std::optional<Part> part = ParsePart(one);
    if (!part.has_value()) {
      return InvalidArgument(
          "devices \"" + std::string(text) + "\": \"" + std::string(one) +
          "\" is none [cpu, cpu:N for N replicas, cuda for every GPU, cuda:I, cuda:I/N for N "
          "replicas that share it; +tf32 behind a GPU; commas between]");
    }
    parts.emplace_back(*part, one);
    if (comma == rest.npos) {
      break;
    }
    rest.remove_prefix(comma + 1);
  }
  std::vector<std::shared_ptr<Device>> devices;
  for (const auto& [part, one] : parts) {
    if (const Status status = Add(part, devices); !status.ok()) {
      return status.Annotate("devices \"" + std::string(text) + "\": " + std::string(one));
    }
  }
  return devices;
}

}  // namespace cohort
