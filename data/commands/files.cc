#include "files.h"

#include <cstdio>
#include <filesystem>

#include <cohort/core/environment.h>
#include <cohort/data/glob.h>
#include <cohort/data/remote.h>

#include "../sources/same_file.h"

namespace cohort::data {

FileSystem& CommandFiles() {
  static const std::unique_ptr<FileSystem> files = [] {
    const Environment environment = Environment::OfProcess();
    RemoteOptions options{.s3 = S3OptionsFrom(environment)};
    options.ca_file = environment.Get("AWS_CA_BUNDLE").value_or("");
    return MakeRemoteFileSystem(options);
  }();
  return *files;
}

int ExpandPaths(const char* program, std::vector<std::string>& paths) {
  std::vector<std::string> expanded;
  for (const std::string& path : paths) {
    if (!path.starts_with("s3://")) {
      expanded.push_back(path);
      continue;
    }
    const Result<std::vector<std::string>> found = Glob(CommandFiles(), path);
    if (!found.ok()) {
      std::fprintf(stderr, "%s: %s\n", program, found.status().ToString().c_str());
      return ExitCode(found.status());
    }
    expanded.insert(expanded.end(), found->begin(), found->end());
  }
  paths = std::move(expanded);
  WarnOfTwice(paths, Log([program](LogLevel, std::string_view message) {
                std::fprintf(stderr, "%s: warning: %.*s\n", program,
                             static_cast<int>(message.size()), message.data());
              }));
  return 0;
}

Result<std::vector<std::uint64_t>> SizesOf(const std::vector<std::string>& paths) {
  std::vector<std::uint64_t> sizes;
  for (const std::string& path : paths) {
    COHORT_ASSIGN_OR_RETURN(const auto file, CommandFiles().OpenForRead(path));
    sizes.push_back(file->size());
  }
  return sizes;
}

bool SameFile(const std::string& one, const std::string& other) {
  std::error_code absent;
  return one == other || std::filesystem::equivalent(one, other, absent);
}

}  // namespace cohort::data
