// What a file's first records hold, as a reader is told it.

#pragma once

#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/data/csv.h>
#include <cohort/data/tf_record.h>

namespace cohort::data {

// All features of the first records of Examples: those of one value as scalars, others ragged. Text
// is hashed.
Result<std::vector<TfFeatureSpec>> InferTfFeatures(FileSystem& files, const std::string& path);
// All columns: numbers as float32, others as categories.
Result<CsvOptions> InferCsvColumns(FileSystem& files, const std::string& path,
                                   char delimiter = ',');

}  // namespace cohort::data
