#include "testing/folder_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace cohort::testing {

Status FolderStore::Insert(const std::string& key, const std::string& value) {
  const std::string draft = folder_ + "/draft." + std::to_string(::getpid());
  std::ofstream(draft) << value;
  const int result = ::link(draft.c_str(), Path(key + suffix_).c_str());  // whole, or not at all
  const int error = errno;
  std::filesystem::remove(draft);
  return result == 0 ? OkStatus() : ErrnoStatus(error, key);
}

Result<std::string> FolderStore::Get(const std::string& key) {
  std::ifstream file(Path(key));
  if (!file) {
    return NotFound(key);
  }
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Result<std::string> FolderStore::Wait(const std::string& key, Deadline deadline) {
  for (;;) {
    Result<std::string> value = Get(key);
    if (value.ok()) {
      return value;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded(key);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::string FolderStore::Path(std::string key) const {
  std::replace(key.begin(), key.end(), '/', '_');
  return folder_ + "/" + key;
}

}  // namespace cohort::testing
