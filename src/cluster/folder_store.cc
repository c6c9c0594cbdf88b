#include <cohort/cluster/folder_store.h>

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <iterator>
#include <string_view>
#include <thread>

namespace cohort {
namespace {

constexpr std::size_t kMaxBytes = 1 << 20;
constexpr std::size_t kMaxName = 200;  // file systems take 255

// `a//b/` is the file "key.a%2Fb": one name for a key, and one key for a name.
Result<std::string> FileName(std::string_view key) {
  std::string name;
  bool slash = false;
  for (const char c : key) {
    if (c == '/') {
      slash = true;
      continue;
    }
    if (slash && !name.empty()) {
      name += "%2F";
    }
    slash = false;
    name += c == '%' ? "%25" : std::string(1, c);
  }
  if (name.empty() || name.size() > kMaxName) {
    return InvalidArgument("key \"" + std::string(key.substr(0, kMaxName)) +
                           "\" [1 to 200 characters, other than slashes]");
  }
  return "key." + name;
}

Status WriteAll(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  return file ? OkStatus() : ErrnoStatus(errno, path);
}

}  // namespace

Status FolderStore::Insert(const std::string& key, const std::string& value) {
  static std::atomic<int> drafts = 0;
  COHORT_ASSIGN_OR_RETURN(const std::string name, FileName(key));
  if (value.size() > kMaxBytes) {
    return InvalidArgument("value of key " + key + ": " + std::to_string(value.size()) +
                           " bytes [at most 1 MiB]");
  }
  char host[256] = {};
  ::gethostname(host, sizeof(host) - 1);
  const std::string draft = folder_ + "/draft." + host + "." + std::to_string(::getpid()) + "." +
                            std::to_string(drafts++);
  COHORT_RETURN_IF_ERROR(WriteAll(draft, value));
  const std::string path = folder_ + "/" + name;
  const int linked = ::link(draft.c_str(), path.c_str());
  const int error = errno;
  ::unlink(draft.c_str());
  if (linked != 0 && error == EEXIST) {
    return AlreadyExists("key " + key + " in " + folder_);
  }
  return linked == 0 ? OkStatus() : ErrnoStatus(error, path);
}

Result<std::string> FolderStore::Get(const std::string& key) {
  COHORT_ASSIGN_OR_RETURN(const std::string name, FileName(key));
  std::ifstream file(folder_ + "/" + name, std::ios::binary);
  if (!file) {
    return NotFound("key " + key + " in " + folder_);
  }
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Result<std::string> FolderStore::Wait(const std::string& key, Deadline deadline) {
  for (;;) {
    Result<std::string> value = Get(key);
    if (value.ok() || value.status().code() != StatusCode::kNotFound) {
      return value;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded("nobody has inserted key " + key + " in " + folder_);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace cohort
