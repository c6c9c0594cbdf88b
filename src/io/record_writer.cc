#include <cohort/io/record_file.h>

#include "byte_source.h"
#include "record_format.h"

namespace cohort::io {
namespace {

template <typename T>
void AppendInteger(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

class FileRecordWriter final : public RecordWriter {
 public:
  FileRecordWriter(std::unique_ptr<WritableFile> file, Compression compression)
      : file_(std::move(file)) {
    if (compression != Compression::kNone) {
      deflater_ = MakeDeflater(
          compression, [this](std::span<const std::byte> bytes) { return file_->Append(bytes); });
    }
  }
  // Whether what was written is a file, the file decides.
  ~FileRecordWriter() override {
    if (file_ != nullptr) {
      static_cast<void>(Drain(Deflater::Mode::kEnd));
    }
  }

  Status Write(std::string_view record) override {
    Require(file_ != nullptr, "nothing is written after Close");
    const std::size_t begin = buffer_.size();
    AppendInteger(buffer_, static_cast<std::uint64_t>(record.size()));
    AppendInteger(buffer_, MaskCrc(Crc32c(std::string_view(buffer_).substr(begin, 8))));
    buffer_.append(record);
    AppendInteger(buffer_, MaskCrc(Crc32c(record)));
    constexpr std::size_t kBufferBytes = std::size_t{1} << 16;
    return buffer_.size() < kBufferBytes ? Status() : Drain(Deflater::Mode::kMore);
  }

  Status Flush() override {
    Require(file_ != nullptr, "nothing is flushed after Close");
    COHORT_RETURN_IF_ERROR(Drain(Deflater::Mode::kFlush));
    return file_->Flush();
  }

  Status Sync() override {
    COHORT_RETURN_IF_ERROR(Flush());
    return file_->Sync();
  }

  Status Close() override {
    if (file_ == nullptr) {
      return {};
    }
    const Status drained = Drain(Deflater::Mode::kEnd);
    const Status closed = file_->Close();
    file_.reset();
    return drained.ok() ? closed : drained;
  }

 private:
  Status Drain(Deflater::Mode mode) {
    const std::string bytes = std::exchange(buffer_, {});
    return deflater_ ? deflater_->Write(AsBytes(bytes), mode) : file_->Append(AsBytes(bytes));
  }

  std::unique_ptr<WritableFile> file_;
  std::unique_ptr<Deflater> deflater_;
  std::string buffer_;
};

}  // namespace

std::unique_ptr<RecordWriter> RecordWriter::To(std::unique_ptr<WritableFile> file,
                                               Compression compression) {
  return std::make_unique<FileRecordWriter>(std::move(file), compression);
}

Result<std::unique_ptr<RecordWriter>> RecordWriter::Create(FileSystem& files,
                                                           const std::string& path,
                                                           Compression compression) {
  COHORT_ASSIGN_OR_RETURN(auto file, files.OpenForWrite(path));
  return To(std::move(file), compression);
}

}  // namespace cohort::io
