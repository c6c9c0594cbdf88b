#include <cohort/core/file_system.h>
#include <cohort/core/temporary_name.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

namespace cohort {
namespace {

namespace fs = std::filesystem;

class PosixRandomAccessFile final : public RandomAccessFile {
 public:
  PosixRandomAccessFile(int fd, std::uint64_t size, std::string path)
      : fd_(fd), size_(size), path_(std::move(path)) {}
  ~PosixRandomAccessFile() override { ::close(fd_); }

  std::uint64_t size() const override { return size_; }

  Result<std::size_t> Read(std::uint64_t offset, std::span<std::byte> out) const override {
    std::size_t done = 0;
    while (done < out.size()) {
      const ssize_t n =
          ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) {
        continue;
      }
      if (n < 0) {
        return ErrnoStatus(errno, "read " + path_);
      }
      if (n == 0) {
        break;
      }
      done += static_cast<std::size_t>(n);
    }
    return done;
  }

 private:
  int fd_;
  std::uint64_t size_;
  std::string path_;
};

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixWritableFile() override {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }

  Status Append(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) {
        continue;
      }
      if (n < 0) {
        return ErrnoStatus(errno, "write " + path_);
      }
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
    return {};
  }

  Status Flush() override { return {}; }  // nothing is buffered here

  Status Sync() override {
    return ::fsync(fd_) == 0 ? Status() : ErrnoStatus(errno, "sync " + path_);
  }

  Status Close() override {
    const int fd = std::exchange(fd_, -1);
    return fd < 0 || ::close(fd) == 0 ? Status() : ErrnoStatus(errno, "close " + path_);
  }

 private:
  int fd_;
  std::string path_;
};

class LocalFileSystem final : public FileSystem {
 public:
  Result<std::unique_ptr<RandomAccessFile>> OpenForRead(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      return ErrnoStatus(errno, "open " + path);
    }
    struct stat info = {};
    if (::fstat(fd, &info) != 0 || S_ISDIR(info.st_mode)) {
      const int error = S_ISDIR(info.st_mode) ? EISDIR : errno;
      ::close(fd);
      return ErrnoStatus(error, "open " + path);
    }
    return std::make_unique<PosixRandomAccessFile>(fd, static_cast<std::uint64_t>(info.st_size),
                                                   path);
  }

  Result<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path) override {
    return Create(path, O_TRUNC);
  }

  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path) override {
    return Create(path, O_EXCL);
  }

  Status CreateDirectories(const std::string& path) override {
    std::error_code error;
    fs::create_directories(path, error);
    return error ? ErrnoStatus(error.value(), "create folder " + path) : Status();
  }

  Status Rename(const std::string& from, const std::string& to) override {
    return ::rename(from.c_str(), to.c_str()) == 0
               ? Status()
               : ErrnoStatus(errno, "rename " + from + " to " + to);
  }

  Status SyncDirectory(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
      return ErrnoStatus(errno, "open folder " + path);
    }
    const int error = ::fsync(fd) == 0 ? 0 : errno;
    ::close(fd);
    return error == 0 ? Status() : ErrnoStatus(error, "sync folder " + path);
  }

  Status RemoveAll(const std::string& path) override {
    std::error_code error;
    fs::remove_all(path, error);
    return error ? ErrnoStatus(error.value(), "remove " + path) : Status();
  }

  bool Exists(const std::string& path) override {
    std::error_code error;
    return fs::exists(path, error);
  }

  Result<std::vector<std::string>> List(const std::string& path) override {
    std::error_code error;
    std::vector<std::string> names;
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    if (error) {
      return ErrnoStatus(error.value(), "list folder " + path);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  static Result<std::unique_ptr<WritableFile>> Create(const std::string& path, int flag) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flag, 0644);
    if (fd < 0) {
      return ErrnoStatus(errno, "create " + path);
    }
    return std::make_unique<PosixWritableFile>(fd, path);
  }
};

}  // namespace

FileSystem& FileSystem::Local() {
  static LocalFileSystem files;
  return files;
}

Result<std::string> ReadFile(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForRead(path));
  std::string content(file->size(), '\0');
  COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                          file->Read(0, std::as_writable_bytes(std::span(content))));
  content.resize(n);
  return content;
}

Status WriteFileAtomically(FileSystem& files, const std::string& path, std::string_view content) {
  const std::string temporary = TemporaryName(path);
  const auto write = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForWrite(temporary));
    COHORT_RETURN_IF_ERROR(file->Append(AsBytes(content)));
    COHORT_RETURN_IF_ERROR(file->Sync());
    COHORT_RETURN_IF_ERROR(file->Close());
    return files.Rename(temporary, path);
  };
  if (Status status = write(); !status.ok()) {
    static_cast<void>(files.RemoveAll(temporary));
    return status;
  }
  const std::string folder = fs::path(path).parent_path().string();
  return files.SyncDirectory(folder.empty() ? "." : folder);
}

}  // namespace cohort
