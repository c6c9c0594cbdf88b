#include "row_writer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include <cohort/data/arrays.h>
#include <cohort/data/csv.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/safetensors.h>

#include "../sources/atomic_file.h"
#include "../sources/npy.h"
#include "atomic_records.h"

namespace cohort::data {
namespace {

bool IsFloat(DType dtype) {
  return dtype != DType::kInt32 && dtype != DType::kInt64 && dtype != DType::kUInt8;
}

double NumberAt(const Tensor& tensor, std::size_t i) {
  switch (tensor.dtype()) {
    case DType::kFloat32:
      return static_cast<double>(tensor.data<float>()[i]);
    case DType::kFloat64:
      return tensor.data<double>()[i];
    case DType::kFloat16:
      return static_cast<double>(static_cast<float>(tensor.data<Float16>()[i]));
    case DType::kBFloat16:
      return static_cast<double>(static_cast<float>(tensor.data<BFloat16>()[i]));
    default:
      return 0;
  }
}

std::int64_t IntegerAt(const Tensor& tensor, std::size_t i) {
  switch (tensor.dtype()) {
    case DType::kInt32:
      return tensor.data<std::int32_t>()[i];
    case DType::kInt64:
      return tensor.data<std::int64_t>()[i];
    case DType::kUInt8:
      return tensor.data<std::uint8_t>()[i];
    default:
      return 0;
  }
}

template <typename T>
std::string TextOf(T value) {
  std::array<char, 64> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

// As short as reads back to the same value.
std::string TextAt(const Tensor& tensor, std::size_t i) {
  if (!IsFloat(tensor.dtype())) {
    return TextOf(IntegerAt(tensor, i));
  }
  return tensor.dtype() == DType::kFloat64 ? TextOf(NumberAt(tensor, i))
                                           : TextOf(static_cast<float>(NumberAt(tensor, i)));
}

// The values of one row by the names of the summary; null where a field is missing.
class RowIndex {
 public:
  RowIndex(const std::string& path, const Summary& summary) : path_(path), summary_(summary) {}

  std::vector<const Value*> Sort(const Row& row) const {
    std::vector<const Value*> sorted(summary_.fields.size(), nullptr);
    for (const auto& [name, value] : row) {
      for (std::size_t f = 0; f < sorted.size(); ++f) {
        if (summary_.fields[f].name == name && value.kind != Value::Kind::kMissing) {
          sorted[f] = &value;
        }
      }
    }
    return sorted;
  }
  const std::vector<FieldSummary>& fields() const { return summary_.fields; }
  Status Bad(const FieldSummary& field, const std::string& what) const {
    return InvalidArgument(path_ + ": field '" + field.name + "' " + what);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Summary summary_;
};

std::string Between(const FieldSummary& field) {
  return std::to_string(field.fewest) + " to " + std::to_string(field.most);
}

class ExampleWriter final : public RowWriter {
 public:
  ExampleWriter(RowIndex index, const WriteOptions& options, std::unique_ptr<AtomicRecords> records)
      : index_(std::move(index)), options_(options), records_(std::move(records)) {}

  Status Write(const Row& row) override {
    const auto values = index_.Sort(row);
    TfFeatures features;
    std::vector<std::string> blobs(values.size());  // what the features' views point into
    for (std::size_t f = 0; f < values.size(); ++f) {
      if (values[f] != nullptr) {
        COHORT_RETURN_IF_ERROR(
            Put(*values[f], index_.fields()[f], blobs[f], features[index_.fields()[f].name]));
      }
    }
    ++rows_;
    return records_->Write(EncodeTfExample(features));
  }
  Status Close() override { return records_->Close(); }

 private:
  Status Put(const Value& value, const FieldSummary& field, std::string& blob,
             TfFeature& feature) const {
    if (value.kind == Value::Kind::kStrings) {
      feature.kind = TfFeature::Kind::kBytes;
      feature.bytes.assign(value.strings.begin(), value.strings.end());
      return {};
    }
    const Tensor& numbers = value.numbers;
    if (numbers.dtype() == DType::kUInt8 && numbers.shape().rank() > 0) {
      feature.kind = TfFeature::Kind::kBytes;
      blob.assign(reinterpret_cast<const char*>(numbers.raw()), numbers.bytes());
      feature.bytes = {blob};
      return {};
    }
    const auto n = static_cast<std::size_t>(numbers.elements());
    if (!IsFloat(numbers.dtype())) {
      feature.kind = TfFeature::Kind::kInt64;
      for (std::size_t i = 0; i < n; ++i) {
        feature.ints.push_back(IntegerAt(numbers, i));
      }
      return {};
    }
    feature.kind = TfFeature::Kind::kFloat;
    for (std::size_t i = 0; i < n; ++i) {
      const double exact = NumberAt(numbers, i);
      const auto narrow = static_cast<float>(exact);
      if (!options_.float32 && !std::isnan(exact) && static_cast<double>(narrow) != exact &&
          !SameText(exact, narrow)) {
        return index_.Bad(field, "in row " + std::to_string(rows_) + " is " + TextOf(exact) +
                                     ", which a float32 does not hold [--float32 rounds it]");
      }
      feature.floats.push_back(narrow);
    }
    return {};
  }

  // Decimal numbers that a float32 gives back digit by digit lose nothing.
  static bool SameText(double exact, float narrow) { return TextOf(exact) == TextOf(narrow); }

  RowIndex index_;
  WriteOptions options_;
  std::unique_ptr<AtomicRecords> records_;
  std::int64_t rows_ = 0;
};

class CsvRowWriter final : public RowWriter {
 public:
  CsvRowWriter(RowIndex index, std::unique_ptr<CsvWriter> csv)
      : index_(std::move(index)), csv_(std::move(csv)) {}

  // A field of one value is a column of its name, one of n values n columns.
  static Result<std::vector<std::string>> Header(const RowIndex& index) {
    std::vector<std::string> header;
    for (const FieldSummary& field : index.fields()) {
      if (field.rows > 0 && field.fewest != field.most) {
        return index.Bad(field, "holds " + Between(field) +
                                    " values: CSV has as many in every row [write TFRecord, or "
                                    "leave it out with --fields]");
      }
      if (field.rows == 0 || field.most == 1) {
        header.push_back(field.name);
        continue;
      }
      for (std::int64_t i = 0; i < field.most; ++i) {
        header.push_back(field.name + "_" + std::to_string(i));
      }
    }
    return header;
  }

  Status Write(const Row& row) override {
    const auto values = index_.Sort(row);
    std::vector<std::optional<std::string>> cells;
    for (std::size_t f = 0; f < values.size(); ++f) {
      const FieldSummary& field = index_.fields()[f];
      const std::int64_t width = field.rows == 0 ? 1 : field.most;
      for (std::int64_t i = 0; i < width; ++i) {
        const auto at = static_cast<std::size_t>(i);
        if (values[f] == nullptr) {
          cells.emplace_back();
        } else if (values[f]->kind == Value::Kind::kStrings) {
          cells.emplace_back(values[f]->strings[at]);
        } else if (IsFloat(values[f]->numbers.dtype()) &&
                   !std::isfinite(NumberAt(values[f]->numbers, at))) {
          return index_.Bad(field, "is not finite: CSV has no such number");
        } else {
          cells.emplace_back(TextAt(values[f]->numbers, at));
        }
      }
    }
    return csv_->Write(cells);
  }
  Status Close() override { return csv_->Close(); }

 private:
  RowIndex index_;
  std::unique_ptr<CsvWriter> csv_;
};

// .npy and safetensors: each field an array, gathered in memory.
class ArrayWriter final : public RowWriter {
 public:
  ArrayWriter(RowIndex index, FileSystem& files, bool npy, std::optional<double> fill)
      : index_(std::move(index)), files_(files), npy_(npy), fill_(fill) {}

  Status Begin(std::int64_t rows) {
    if (npy_ && index_.fields().size() != 1) {
      return InvalidArgument(index_.path() + ": a .npy file holds one array, there are " +
                             std::to_string(index_.fields().size()) +
                             " fields [name one with --fields, or write safetensors]");
    }
    for (const FieldSummary& field : index_.fields()) {
      if (field.strings || field.mixed || !field.dtype.has_value()) {
        return index_.Bad(field, field.mixed ? "is not of one type in all rows"
                                             : "is no number [leave it out with --fields]");
      }
      // A list of one value is a scalar of the row.
      const bool scalar = field.most == 1 && field.fewest == 1;
      if (!field.shape.has_value() && !scalar) {
        return index_.Bad(field,
                          "holds " + Between(field) + " values: an array has as many in every row");
      }
      if (field.rows < rows && !fill_.has_value()) {
        return index_.Bad(field, "is missing in " + std::to_string(rows - field.rows) + " of " +
                                     std::to_string(rows) + " rows [--fill stands for it]");
      }
      std::vector<std::int64_t> dims = {rows};
      if (!scalar || field.shape->rank() > 1) {
        dims.insert(dims.end(), field.shape->dims().begin(), field.shape->dims().end());
      }
      arrays_.emplace_back(*field.dtype, Shape(std::move(dims)));
      if (npy_ && *field.dtype == DType::kBFloat16) {
        return index_.Bad(field, "is bfloat16, which .npy does not have");
      }
    }
    return {};
  }

  Status Write(const Row& row) override {
    const auto values = index_.Sort(row);
    for (std::size_t f = 0; f < values.size(); ++f) {
      const Tensor slot = arrays_[f].Rows(row_, row_ + 1);
      if (values[f] != nullptr && slot.bytes() > 0) {
        std::memcpy(slot.raw(), values[f]->numbers.raw(), slot.bytes());
      } else if (values[f] == nullptr) {
        Fill(slot);
      }
    }
    ++row_;
    return {};
  }

  Status Close() override {
    if (npy_) {
      return WriteNpy(files_, index_.path(), arrays_[0]);
    }
    std::vector<io::SafetensorsEntry> entries;
    for (std::size_t f = 0; f < arrays_.size(); ++f) {
      entries.push_back({.name = index_.fields()[f].name,
                         .dtype = arrays_[f].dtype(),
                         .shape = arrays_[f].shape()});
    }
    COHORT_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(files_, index_.path()));
    COHORT_RETURN_IF_ERROR(file->Append(AsBytes(io::EncodeSafetensorsHeader(entries))));
    for (const Tensor& array : arrays_) {
      COHORT_RETURN_IF_ERROR(file->Append({array.raw(), array.bytes()}));
    }
    return file->Close();
  }

 private:
  void Fill(const Tensor& slot) const {
    const double value = *fill_;
    const auto all = [&slot](auto number) {
      std::fill_n(slot.data<decltype(number)>().begin(), slot.elements(), number);
    };
    switch (slot.dtype()) {
      case DType::kFloat32:
        return all(static_cast<float>(value));
      case DType::kFloat64:
        return all(value);
      case DType::kInt32:
        return all(static_cast<std::int32_t>(value));
      case DType::kInt64:
        return all(static_cast<std::int64_t>(value));
      case DType::kUInt8:
        return all(static_cast<std::uint8_t>(value));
      case DType::kFloat16:
        return all(Float16(static_cast<float>(value)));
      case DType::kBFloat16:
        return all(BFloat16(static_cast<float>(value)));
    }
  }

  RowIndex index_;
  FileSystem& files_;
  bool npy_;
  std::optional<double> fill_;
  std::vector<Tensor> arrays_;  // of each field
  std::int64_t row_ = 0;
};

class SampleWriter final : public RowWriter {
 public:
  SampleWriter(RowIndex index, std::unique_ptr<TarWriter> tar)
      : index_(std::move(index)), tar_(std::move(tar)) {}

  // A string is a member as it is, an integer its digits, other numbers a .npy member.
  Status Write(const Row& row) override {
    const auto values = index_.Sort(row);
    std::string key = std::to_string(rows_);
    key.insert(0, key.size() < 8 ? 8 - key.size() : 0, '0');
    std::map<std::string, std::string> members;
    for (std::size_t f = 0; f < values.size(); ++f) {
      const FieldSummary& field = index_.fields()[f];
      if (values[f] == nullptr) {
        continue;
      }
      const Value& value = *values[f];
      if (field.name == "__key__" && value.kind == Value::Kind::kStrings) {
        key = value.strings.at(0);
        continue;
      }
      std::string extension = field.name;
      std::string content;
      if (value.kind == Value::Kind::kStrings) {
        if (value.strings.size() != 1) {
          return index_.Bad(field, "holds " + std::to_string(value.strings.size()) +
                                       " strings in row " + std::to_string(rows_) +
                                       ": a member is one");
        }
        content = value.strings[0];
      } else if (!IsFloat(value.numbers.dtype()) && value.numbers.elements() == 1) {
        content = TextAt(value.numbers, 0);
      } else if (value.numbers.dtype() == DType::kBFloat16) {
        return index_.Bad(field, "is bfloat16, which .npy members do not have");
      } else {
        extension += ".npy";
        content = EncodeNpyHeader(value.numbers.dtype(), value.numbers.shape());
        content.append(reinterpret_cast<const char*>(value.numbers.raw()), value.numbers.bytes());
      }
      members.emplace(std::move(extension), std::move(content));
    }
    ++rows_;
    if (members.empty()) {
      return InvalidArgument(index_.path() + ": row " + std::to_string(rows_ - 1) +
                             " has no values: a sample without members is none");
    }
    return tar_->AddSample(key, members);
  }
  Status Close() override { return tar_->Close(); }

 private:
  RowIndex index_;
  std::unique_ptr<TarWriter> tar_;
  std::int64_t rows_ = 0;
};

}  // namespace

void Summary::Add(const Row& row) {
  ++rows;
  for (const auto& [name, value] : row) {
    const auto [it, is_new] = places_.emplace(name, fields.size());
    if (is_new) {
      fields.push_back({.name = name});
    }
    FieldSummary& field = fields[it->second];
    if (value.kind == Value::Kind::kMissing) {
      continue;
    }
    const bool first = field.rows++ == 0;
    const std::int64_t size = value.size();
    field.fewest = first ? size : std::min(field.fewest, size);
    field.most = std::max(field.most, size);
    if (value.kind == Value::Kind::kStrings) {
      field.mixed = field.mixed || (!first && !field.strings);
      field.strings = true;
      continue;
    }
    const Tensor& numbers = value.numbers;
    field.mixed = field.mixed || (!first && field.dtype != numbers.dtype());
    field.dtype = numbers.dtype();
    if (first) {
      field.shape = numbers.shape();
    } else if (field.shape.has_value() && *field.shape != numbers.shape()) {
      field.shape.reset();
    }
  }
}

Result<std::unique_ptr<RowWriter>> RowWriter::Create(FileSystem& files, const std::string& path,
                                                     Format format, const Summary& summary,
                                                     const WriteOptions& options) {
  RowIndex index(path, summary);
  if (summary.fields.empty()) {
    return InvalidArgument(path + ": there are no fields to write");
  }
  switch (format) {
    case Format::kTfRecord: {
      COHORT_ASSIGN_OR_RETURN(auto records,
                              AtomicRecords::Create(files, path, options.compression));
      return std::make_unique<ExampleWriter>(std::move(index), options, std::move(records));
    }
    case Format::kCsv: {
      COHORT_ASSIGN_OR_RETURN(const auto header, CsvRowWriter::Header(index));
      COHORT_ASSIGN_OR_RETURN(
          auto csv, CsvWriter::Create(files, path, header,
                                      path.find(".tsv") == std::string::npos ? ',' : '\t'));
      return std::make_unique<CsvRowWriter>(std::move(index), std::move(csv));
    }
    case Format::kNpy:
    case Format::kSafetensors: {
      auto writer = std::make_unique<ArrayWriter>(std::move(index), files, format == Format::kNpy,
                                                  options.fill);
      COHORT_RETURN_IF_ERROR(writer->Begin(summary.rows));
      return writer;
    }
    case Format::kTar: {
      COHORT_ASSIGN_OR_RETURN(auto tar, TarWriter::Create(files, path));
      return std::make_unique<SampleWriter>(std::move(index), std::move(tar));
    }
    default:
      return InvalidArgument(path + ": " + std::string(FormatName(format)) +
                             " is read, not written");
  }
}

}  // namespace cohort::data
