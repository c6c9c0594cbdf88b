#include "infer.h"

#include <algorithm>
#include <cstdlib>
#include <map>

#include <cohort/data/tf_example.h>
#include <cohort/io/record_file.h>

#include "../sources/csv_reader.h"

namespace cohort::data {

Result<std::vector<TfFeatureSpec>> InferTfFeatures(FileSystem& files, const std::string& path) {
  constexpr int kLooked = 1000;
  COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(files, path));
  std::map<std::string, TfFeatureSpec> specs;
  for (int i = 0; i < kLooked; ++i) {
    COHORT_ASSIGN_OR_RETURN(const auto record, reader->Next());
    if (!record.has_value()) {
      break;
    }
    COHORT_ASSIGN_OR_RETURN(const TfFeatures features, ParseTfExample(*record));
    for (const auto& [name, feature] : features) {
      TfFeatureSpec& spec = specs[name];
      spec.name = name;
      spec.type = feature.kind == TfFeature::Kind::kFloat   ? TfType::kFloat32
                  : feature.kind == TfFeature::Kind::kInt64 ? TfType::kInt64
                                                            : TfType::kHash;
      spec.ragged = spec.ragged || feature.size() > 1;
    }
  }
  std::vector<TfFeatureSpec> list;
  for (auto& [name, spec] : specs) {
    if (!spec.ragged) {
      spec.missing = 0;
    }
    list.push_back(spec);
  }
  return list;
}

Result<CsvOptions> InferCsvColumns(FileSystem& files, const std::string& path, char delimiter) {
  constexpr std::size_t kLooked = 1000;
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForRead(path));
  std::string head(std::min<std::uint64_t>(file->size(), std::uint64_t{1} << 20), '\0');
  COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                          file->Read(0, std::as_writable_bytes(std::span(head))));
  head.resize(n);
  CsvReader reader(head, delimiter, /*trim=*/true);
  std::vector<CsvField> fields;
  CsvOptions options{.delimiter = delimiter};
  for (std::size_t row = 0; row <= kLooked; ++row) {
    const Result<bool> more = reader.Next(fields);
    if (!more.ok() || !*more || (row > 0 && reader.offset() == head.size())) {
      break;
    }
    for (std::size_t i = 0; i < fields.size(); ++i) {
      if (row == 0) {
        options.columns.push_back({.name = std::string(fields[i].text), .missing = 0});
        continue;
      }
      const std::string text(fields[i].text);
      char* end = nullptr;
      static_cast<void>(std::strtof(text.c_str(), &end));
      if (*end != '\0' && i < options.columns.size()) {
        options.columns[i].type = CsvType::kCategory;
      }
    }
  }
  return options;
}

}  // namespace cohort::data
