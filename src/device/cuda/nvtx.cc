#include "trace/nvtx.h"

#include <nvtx3/nvToolsExt.h>

#include <array>
#include <cstdio>

namespace cohort::trace {
namespace {

// Null where no tool is attached. Never destroyed: threads may have ranges until the end.
nvtxDomainHandle_t Domain() {
  static const nvtxDomainHandle_t domain = nvtxDomainCreateA("cohort");
  return domain;
}

}  // namespace

bool Profiled() { return Domain() != nullptr; }

void PushRange(Phase phase, std::int64_t number) {
  std::array<char, 64> text;
  const std::string_view name = PhaseName(phase);
  std::snprintf(text.data(), text.size(), "%.*s %lld", static_cast<int>(name.size()), name.data(),
                static_cast<long long>(number));
  nvtxEventAttributes_t attributes = {};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = text.data();
  attributes.payloadType = NVTX_PAYLOAD_TYPE_INT64;
  attributes.payload.llValue = number;
  attributes.category = static_cast<std::uint32_t>(phase) + 1;
  (void)nvtxDomainRangePushEx(Domain(), &attributes);
}

void PopRange() { (void)nvtxDomainRangePop(Domain()); }

}  // namespace cohort::trace
