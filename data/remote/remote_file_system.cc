#include <cohort/data/remote.h>

#include <utility>

#include "remote/prefix_lister.h"
#include "remote/remote_file.h"
#include "remote/requests.h"
#include "remote/s3.h"

namespace cohort::data {
namespace {

// S3 has no folders: what makes and syncs them has nothing to do there.
class RemoteFileSystem final : public FileSystem, public PrefixLister {
 public:
  explicit RemoteFileSystem(const RemoteOptions& options)
      : shared_(std::make_shared<Shared>(options)) {}
  ~RemoteFileSystem() override { shared_->stop = true; }

  Result<std::unique_ptr<RandomAccessFile>> OpenForRead(const std::string& path) override {
    if (!IsRemote(path)) {
      return Local().OpenForRead(path);
    }
    COHORT_ASSIGN_OR_RETURN(Target target, TargetOf(path, shared_->options.s3));
    return OpenRemote(shared_, std::move(target));
  }
  Result<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path) override {
    if (!IsRemote(path)) {
      return Local().OpenForWrite(path);
    }
    COHORT_RETURN_IF_ERROR(OnlyS3(path));
    return CreateS3Object(shared_, path, /*only_new=*/false);
  }
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path) override {
    if (!IsRemote(path)) {
      return Local().CreateNew(path);
    }
    COHORT_RETURN_IF_ERROR(OnlyS3(path));
    return CreateS3Object(shared_, path, /*only_new=*/true);
  }
  Status CreateDirectories(const std::string& path) override {
    return IsRemote(path) ? OnlyS3(path) : Local().CreateDirectories(path);
  }
  Status Rename(const std::string& from, const std::string& to) override {
    if (!IsRemote(from) && !IsRemote(to)) {
      return Local().Rename(from, to);
    }
    if (!IsS3(from) || !IsS3(to)) {
      return Unimplemented(from + " to " + to + ": only S3 objects are renamed, to S3 objects");
    }
    COHORT_RETURN_IF_ERROR(CopyS3Object(*shared_, from, to));
    return RemoveS3Object(*shared_, from);
  }
  Status SyncDirectory(const std::string& path) override {
    // "s3:/bucket" is how a folder is cut off a path.
    return IsRemote(path) || path.starts_with("s3:/") ? Status() : Local().SyncDirectory(path);
  }
  Status RemoveAll(const std::string& path) override {
    if (!IsRemote(path)) {
      return Local().RemoveAll(path);
    }
    COHORT_RETURN_IF_ERROR(OnlyS3(path));
    return RemoveS3(*shared_, path);
  }
  bool Exists(const std::string& path) override {
    return IsRemote(path) ? OpenForRead(path).ok() : Local().Exists(path);
  }
  Result<std::vector<std::string>> List(const std::string& path) override {
    return ListPrefix(path, "");
  }
  Result<std::vector<std::string>> ListPrefix(const std::string& path,
                                              const std::string& prefix) override {
    if (!IsRemote(path)) {
      return Local().List(path);
    }
    COHORT_RETURN_IF_ERROR(OnlyS3(path));
    return ListS3(*shared_, path, prefix);
  }

 private:
  static Status OnlyS3(const std::string& path) {
    return IsS3(path) ? Status()
                      : Unimplemented(
                            path + ": files behind HTTP are read, not written, listed or removed");
  }

  std::shared_ptr<Shared> shared_;  // owners: this and open files
};

}  // namespace

S3Options S3OptionsFrom(const Environment& environment) {
  const auto first = [&environment](std::initializer_list<const char*> names, std::string other) {
    for (const char* const name : names) {
      if (auto value = environment.Get(name); value.has_value() && !value->empty()) {
        return *value;
      }
    }
    return other;
  };
  return {.access_key = first({"AWS_ACCESS_KEY_ID"}, ""),
          .secret_key = first({"AWS_SECRET_ACCESS_KEY"}, ""),
          .session_token = first({"AWS_SESSION_TOKEN"}, ""),
          .region = first({"AWS_REGION", "AWS_DEFAULT_REGION"}, S3Options().region),
          .endpoint = first({"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}, "")};
}

std::unique_ptr<FileSystem> MakeRemoteFileSystem(const RemoteOptions& options) {
  Require(options.block >= 1 && options.part >= 1 && options.parallel >= 1 && options.attempts >= 1,
          "remote files: block, part, parallel and attempts are at least 1");
  return std::make_unique<RemoteFileSystem>(options);
}

}  // namespace cohort::data
