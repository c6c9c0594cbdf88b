// What is fuzzed: readers of bytes that others wrote. Each takes any bytes; it throws where a
// reader breaks its word (what was read twice differs, something lies outside of the file), and
// sanitizers see the rest.

#pragma once

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
};

inline constexpr Target kTargets[] = {
    {"tf_record", TfRecordFile},
    {"tf_example", TfExampleMessage},
    {"csv", CsvFile},
    {"idx", IdxFile},
    {"tar", TarFile},
    {"npy", NpyFile},
    {"safetensors", SafetensorsFile},
    {"index", IndexFile},
    {"criteo", CriteoLines},
};

}  // namespace cohort::fuzz
