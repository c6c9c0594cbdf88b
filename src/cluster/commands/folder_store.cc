#include "cluster/commands/folder_store.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace cohort {

std::string FolderStore::Path(std::string key) const {
  for (char& c : key) {
    c = c == '/' ? '_' : c;
  }
  return folder_ + "/" + key;
}

Status FolderStore::Insert(const std::string& key, const std::string& value) {
  static std::atomic<int> drafts = 0;
  const std::string draft =
      folder_ + "/draft." + std::to_string(::getpid()) + "." + std::to_string(drafts++);
  std::ofstream(draft) << value;
  const int result = ::link(draft.c_str(), Path(key).c_str());  // whole, or not at all
  const int error = errno;
  std::error_code ignored;
  std::filesystem::remove(draft, ignored);
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
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace cohort
