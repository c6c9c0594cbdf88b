// What is fuzzed: readers of bytes that others wrote. Each takes any bytes; it throws where a
// reader breaks its word (what was read twice differs, something lies outside of the file), and
// sanitizers see the rest.

#pragma once

#include <cstddef>
#include <string_view>

namespace cohort::fuzz {

void TfRecordFile(std::string_view bytes);
void TfExampleMessage(std::string_view bytes);
void CsvFile(std::string_view bytes);
void IdxFile(std::string_view bytes);
void TarFile(std::string_view bytes);
void NpyFile(std::string_view bytes);
void SafetensorsFile(std::string_view bytes);
void IndexFile(std::string_view bytes);  // a TFRecord file's PATH.idx
void CriteoLines(std::string_view bytes);

struct Target {
  const char* name;  // its corpus is tests/fuzz/corpus/NAME
  void (*run)(std::string_view bytes);
  // Memory that it may take at once, for each byte of the file, unpacked: also what the target
  // itself keeps of it.
  std::size_t per_byte;
};

// And what does not depend on the file: buffers of readers.
inline constexpr std::size_t kBuffers = std::size_t{3} << 20;

// Runs it; throws also where it takes more memory than it may.
void RunTarget(const Target& target, std::string_view bytes);

inline constexpr Target kTargets[] = {
    {"tf_record", TfRecordFile, 16},
    {"tf_example", TfExampleMessage, 128},
    {"csv", CsvFile, 100},
    {"idx", IdxFile, 8},
    {"tar", TarFile, 8},
    {"npy", NpyFile, 8},
    {"safetensors", SafetensorsFile, 8},
    {"index", IndexFile, 8},
    {"criteo", CriteoLines, 32},
};

}  // namespace cohort::fuzz
