#include <cohort/data/glob.h>

#include <fnmatch.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "remote/prefix_lister.h"
#include "remote/requests.h"
#include "sources/same_file.h"

namespace cohort::data {
namespace {

constexpr const char* kMagic = "*?[";

Result<std::vector<std::string>> NamesIn(FileSystem& files, const std::string& folder,
                                         const std::string& prefix) {
  if (auto* const lister = dynamic_cast<PrefixLister*>(&files)) {
    return lister->ListPrefix(folder, prefix);
  }
  return files.List(folder);
}

// Appends what matches `rest` behind `base`, which ends with '/' or is empty.
Status Match(FileSystem& files, const std::string& base, const std::string& rest,
             std::vector<std::string>& found) {
  const std::size_t magic = rest.find_first_of(kMagic);
  if (magic == std::string::npos) {
    const std::string path = base + rest;
    // A remote file that cannot be asked for now is not one that is not there.
    if (IsRemote(path)) {
      const Status there = files.OpenForRead(path).status();
      if (there.code() == StatusCode::kNotFound) {
        return {};
      }
      COHORT_RETURN_IF_ERROR(there);
    } else if (!files.Exists(path)) {
      return {};
    }
    found.push_back(path);
    return {};
  }
  const std::size_t begin = rest.rfind('/', magic);  // of the first name with a pattern
  const std::string folder = base + (begin == std::string::npos ? "" : rest.substr(0, begin + 1));
  const std::string tail = begin == std::string::npos ? rest : rest.substr(begin + 1);
  const std::size_t end = tail.find('/');
  const std::string pattern = tail.substr(0, end);
  const Result<std::vector<std::string>> names = NamesIn(
      files, folder.empty() ? "." : folder, pattern.substr(0, pattern.find_first_of(kMagic)));
  if (names.status().code() == StatusCode::kNotFound) {
    return {};  // no such folder, or none
  }
  COHORT_RETURN_IF_ERROR(names.status());
  for (const std::string& name : *names) {
    if (::fnmatch(pattern.c_str(), name.c_str(), FNM_PERIOD) != 0) {
      continue;
    }
    if (end == std::string::npos) {
      found.push_back(folder + name);
    } else {
      COHORT_RETURN_IF_ERROR(Match(files, folder + name + "/", tail.substr(end + 1), found));
    }
  }
  return {};
}

}  // namespace

std::string RealPath(const std::string& path) {
  if (IsRemote(path)) {
    return path;
  }
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  return error ? path : real.string();
}

void WarnOfTwice(const std::vector<std::string>& paths, const Log& log) {
  std::map<std::string, const std::string*> seen;
  std::int64_t times = 0;
  std::string first;
  for (const std::string& path : paths) {
    const auto [it, is_new] = seen.try_emplace(RealPath(path), &path);
    if (!is_new && times++ == 0) {
      first = *it->second == path ? path : *it->second + " and " + path;
    }
  }
  if (times > 0) {
    log.Warning(std::to_string(times) + " of " + std::to_string(paths.size()) +
                " files are given twice, the first: " + first);
  }
}

Result<std::vector<std::string>> GlobAll(FileSystem& files,
                                         const std::vector<std::string>& patterns, const Log& log) {
  std::vector<std::string> all;
  for (const std::string& pattern : patterns) {
    COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> found, Glob(files, pattern));
    all.insert(all.end(), found.begin(), found.end());
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  std::map<std::string, std::string> names;  // by what they name
  std::vector<std::string> once;
  for (const std::string& path : all) {
    const auto [it, is_new] = names.emplace(RealPath(path), path);
    if (is_new) {
      once.push_back(path);
    } else {
      log.Warning(path + " is " + it->second + ", which is read once");
    }
  }
  return once;
}

Result<std::vector<std::string>> Glob(FileSystem& files, const std::string& pattern) {
  const bool http = IsRemote(pattern) && !IsS3(pattern);
  if (http || pattern.find_first_of(kMagic) == std::string::npos) {
    return std::vector<std::string>{pattern};
  }
  std::vector<std::string> found;
  const std::size_t bucket = IsS3(pattern) ? pattern.find('/', 5) : 0;
  if (bucket == std::string::npos || (IsS3(pattern) && pattern.find_first_of(kMagic) < bucket)) {
    return InvalidArgument(pattern + ": patterns are for keys, not for buckets");
  }
  const std::size_t begin = IsS3(pattern) ? bucket + 1 : 0;
  COHORT_RETURN_IF_ERROR(Match(files, pattern.substr(0, begin), pattern.substr(begin), found));
  if (found.empty()) {
    std::error_code error;
    return NotFound("no file matches " + pattern +
                    (IsS3(pattern) || pattern.starts_with('/')
                         ? ""
                         : " in " + std::filesystem::current_path(error).string()));
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace cohort::data
