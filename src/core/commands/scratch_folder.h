// ScratchFolder: a folder of a command's own in the temporary one, gone with this.

#pragma once

#include <string>
#include <utility>

#include <cohort/core/status.h>

namespace cohort {

class ScratchFolder {
 public:
  // An error names the folder that it would stand in ($TMPDIR, or /tmp).
  static Result<ScratchFolder> Make();
  ScratchFolder(ScratchFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ScratchFolder& operator=(ScratchFolder&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~ScratchFolder();

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit ScratchFolder(std::string path) : path_(std::move(path)) {}

  std::string path_;  // empty: moved away
};

}  // namespace cohort
