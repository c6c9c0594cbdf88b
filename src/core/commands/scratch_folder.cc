#include "core/commands/scratch_folder.h"

#include <stdlib.h>

#include <cerrno>
#include <filesystem>

namespace cohort {

Result<ScratchFolder> ScratchFolder::Make() {
  std::error_code absent;
  const std::filesystem::path place = std::filesystem::temp_directory_path(absent);
  if (absent) {
    return NotFound("no temporary folder: " + absent.message() +
                    " [set TMPDIR to a folder that can be written to]");
  }
  std::string path = (place / "cohort-XXXXXX").string();
  if (::mkdtemp(path.data()) == nullptr) {
    return ErrnoStatus(errno, path);
  }
  return ScratchFolder(std::move(path));
}

ScratchFolder::~ScratchFolder() {
  if (!path_.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
}

}  // namespace cohort
