// What a file is, told by its content.

#pragma once

#include <string>
#include <string_view>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

namespace cohort::data {

enum class Format { kEmpty, kTfRecord, kNpy, kSafetensors, kTar, kImage, kIdx, kCsv, kText };

struct FileKind {
  Format format = Format::kEmpty;
  char delimiter = ',';  // kCsv
};

std::string_view FormatName(Format format);  // "TFRecord", "WebDataset (tar)", ...

// By the first bytes, unpacked where the file is gzip. What begins as none of the formats is
// InvalidArgument, unless the name ends as a record file's does: then it is a damaged one.
Result<FileKind> KindOf(FileSystem& files, const std::string& path);

}  // namespace cohort::data
