#include "transport.h"

#include <cstring>

#include "native_collectives.h"

namespace cohort {

std::unique_ptr<NativeCollectives> Transport::Native() { return nullptr; }

void Deliver(std::byte* to, Bytes arriving, const CombineWith& combine, const std::byte* local) {
  if (arriving.empty()) {
    return;
  }
  if (combine.reduction == nullptr) {
    std::memcpy(to, arriving.data(), arriving.size());
  } else if (combine.local_first) {
    combine.reduction->Combine(to, local, arriving.data(), arriving.size());
  } else {
    combine.reduction->Combine(to, arriving.data(), local, arriving.size());
  }
}

std::string NameOf(const std::function<std::string(int)>& peer_name, int rank) {
  const std::string text = "rank " + std::to_string(rank);
  if (!peer_name) {
    return text;
  }
  std::string name = peer_name(rank);
  return name.starts_with("rank ") ? name : text + " (" + name + ")";
}

}  // namespace cohort
