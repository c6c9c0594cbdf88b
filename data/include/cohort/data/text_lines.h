// Text files, a line an example.
//
// Lines end in LF or CRLF, the last one also with the file; line ends are no part of a line, nor is
// a byte order mark at the beginning of a file. Every line counts, empty ones too. Bytes are
// taken as they are: nothing is assumed of the encoding beyond LF being one byte.
//
// A file is walked once when it is opened, 8 bytes a line are kept, and an example costs one read.
// gzip is told by content; such files are unpacked into memory once. Errors name file and line.
//
// Thread rules: free functions, any thread; blocks for the disk. A decoder runs on the threads of
// Prefetch, several at once; an exception that it throws is reported like an error.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

// What a line becomes.
struct LineDecoder {
  std::vector<FeatureSpec> features;
  // Writes feature i of `features` to rows[i], all of its bytes. Its error is given file and line.
  std::function<Status(std::string_view line, std::span<std::byte* const> rows)> decode;
  std::string name;  // what it does: a part of the data set's fingerprint
};

// Feature "line": the 64-bit hash of the line's bytes, equal on every machine (int64, a scalar);
// modulo `buckets`, if not 0, and then never negative.
LineDecoder HashedLine(std::int64_t buckets = 0);
// Features "line", the bytes (uint8 [max_bytes], zeros behind them), and "length" (int64, a
// scalar). A longer line is an error, or, with `cut`, its first max_bytes.
LineDecoder PaddedLine(std::int64_t max_bytes, bool cut = false);

struct TextOptions {
  LineDecoder decoder = HashedLine();
  std::int64_t skip_lines = 0;  // at the beginning of each file
  // A longer line is DataLoss: what bounds the memory of a file that is no text.
  std::size_t max_line_bytes = std::size_t{16} << 20;
  FileSystem* files = &FileSystem::Local();
};

// The lines of all files, one file after another. Files without lines are allowed.
// InvalidArgument: no files, or options that make no sense.
Result<Dataset> TextLines(const std::vector<std::string>& paths, const TextOptions& options = {});

}  // namespace cohort::data
