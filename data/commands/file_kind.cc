#include "file_kind.h"

#include <algorithm>
#include <cstring>

#include <cohort/data/image.h>
#include <cohort/io/crc32c.h>
#include <cohort/io/record_file.h>

#include "../sources/content.h"
#include "../sources/npy.h"
#include "../sources/tar.h"

namespace cohort::data {
namespace {

bool BeginsAsRecord(std::string_view start) {
  if (start.size() < 12) {
    return false;
  }
  std::uint32_t stored = 0;
  std::memcpy(&stored, start.data() + 8, sizeof(stored));
  return io::MaskCrc(io::Crc32c(start.substr(0, 8))) == stored;
}

bool IsCalledRecords(const std::string& path) {
  return path.find(".tfrecord") != std::string::npos || path.find("tfevents") != std::string::npos;
}

}  // namespace

std::string_view FormatName(Format format) {
  switch (format) {
    case Format::kEmpty:
      return "empty";
    case Format::kTfRecord:
      return "TFRecord";
    case Format::kNpy:
      return ".npy";
    case Format::kSafetensors:
      return "safetensors";
    case Format::kTar:
      return "WebDataset (tar)";
    case Format::kImage:
      return "image";
    case Format::kIdx:
      return "IDX";
    case Format::kCsv:
      return "CSV";
    case Format::kText:
      return "text";
  }
  return "";
}

Result<FileKind> KindOf(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto raw, OpenRaw(files, path));
  if (raw->size() == 0) {
    return FileKind{};
  }
  std::string start(std::size_t{1} << 16, '\0');
  const auto load = [&start](const RandomAccessFile& file) -> Status {
    start.resize(std::size_t{1} << 16);
    COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                            file.Read(0, std::as_writable_bytes(std::span(start))));
    start.resize(n);
    return {};
  };
  COHORT_RETURN_IF_ERROR(load(*raw));
  if (BeginsAsRecord(start)) {
    return FileKind{Format::kTfRecord};
  }
  COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(files, path));
  if (reader->compression() != io::Compression::kNone) {
    const bool sound = reader->Next().ok();
    if (sound || reader->ordinal() > 0 || IsCalledRecords(path)) {
      return FileKind{Format::kTfRecord};
    }
  } else if (IsCalledRecords(path)) {
    return FileKind{Format::kTfRecord};
  }
  COHORT_ASSIGN_OR_RETURN(const auto file, OpenMaybeGzip(files, path));
  COHORT_RETURN_IF_ERROR(load(*file));
  if (start.empty()) {
    return FileKind{};
  }
  if (start.starts_with(kNpyMagic)) {
    return FileKind{Format::kNpy};
  }
  if (start.size() >= 9 && start[8] == '{' && start[7] == 0) {
    return FileKind{Format::kSafetensors};
  }
  if (LooksLikeTar(*file)) {
    return FileKind{Format::kTar};
  }
  if (ImageFormatOf(start) != ImageFormat::kUnknown) {
    return FileKind{Format::kImage};
  }
  if (start.size() >= 4 && start[0] == 0 && start[1] == 0) {
    return FileKind{Format::kIdx};
  }
  const std::string_view first_line = std::string_view(start).substr(0, start.find('\n'));
  if (first_line.find('\0') == std::string_view::npos &&
      first_line.find_first_of(",\t") != std::string_view::npos) {
    return FileKind{Format::kCsv, first_line.find(',') == std::string_view::npos ? '\t' : ','};
  }
  if (start.find('\0') == std::string::npos) {
    return FileKind{Format::kText};
  }
  return InvalidArgument(path +
                         ": neither IDX, TFRecord, .npy, safetensors, tar, JPEG, PNG, CSV with a "
                         "header nor text [records of one length can't be told by content]");
}

}  // namespace cohort::data
