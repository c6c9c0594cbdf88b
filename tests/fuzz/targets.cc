#include "targets.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include <cohort/core/file_system.h>
#include <cohort/data/arrays.h>
#include <cohort/data/criteo.h>
#include <cohort/data/csv.h>
#include <cohort/data/idx.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/record_file.h>

#include "allocation_meter.h"
#include "sources/content.h"
#include "sources/csv_reader.h"
#include "sources/tar.h"
#include "sources/tf_decoder.h"

namespace cohort::fuzz {
namespace {

using namespace data;

void Check(bool holds, const char* what) {
  if (!holds) {
    throw std::logic_error(what);
  }
}

// Files in memory, to be read.
class MemoryFiles final : public FileSystem {
 public:
  void Put(const std::string& path, std::string_view bytes) { files_[path] = bytes; }

  Result<std::unique_ptr<RandomAccessFile>> OpenForRead(const std::string& path) override {
    const auto it = files_.find(path);
    if (it == files_.end()) {
      return NotFound(path);
    }
    return std::make_unique<BytesFile>(it->second);
  }
  bool Exists(const std::string& path) override { return files_.contains(path); }
  Result<std::unique_ptr<WritableFile>> OpenForWrite(const std::string&) override { return No(); }
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string&) override { return No(); }
  Status CreateDirectories(const std::string&) override { return No(); }
  Status Rename(const std::string&, const std::string&) override { return No(); }
  Status SyncDirectory(const std::string&) override { return No(); }
  Status RemoveAll(const std::string&) override { return No(); }
  Result<std::vector<std::string>> List(const std::string&) override { return No(); }

 private:
  static Status No() { return Unimplemented("files to read"); }
  std::map<std::string, std::string> files_;
};

MemoryFiles One(std::string_view bytes) {
  MemoryFiles files;
  files.Put("f", bytes);
  return files;
}

void ReadAll(const Dataset& data) {
  for (std::int64_t i = 0; i < data.size(); ++i) {
    const auto example = data.source().Read(i);
    Check(!data.source().Where(i).empty(), "every example is somewhere");
    if (!example.ok()) {
      Check(!example.status().message().empty(), "an error says what");
    }
  }
  static_cast<void>(data.Fingerprint());
}

// What a decoder makes of a message: what is wrong with it, or rows and values.
std::string Decoded(const std::vector<TfFeatureSpec>& specs, std::string_view bytes) {
  const TfDecoder decoder(specs);
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> rows;
  for (const FeatureSpec& feature : decoder.features()) {
    rows.push_back(memory.emplace_back(feature.bytes()).data());
  }
  std::vector<std::vector<std::byte>> values(decoder.ragged().size());
  const Status status = decoder.Decode(bytes, rows, values);
  if (!status.ok()) {
    return status.ToString();
  }
  memory.insert(memory.end(), values.begin(), values.end());
  std::string all;
  for (const std::vector<std::byte>& part : memory) {
    all.append(reinterpret_cast<const char*>(part.data()), part.size());
    all += '/';
  }
  return all;
}

}  // namespace

void RunTarget(const Target& target, std::string_view bytes) {
  // A byte of deflate unpacks to 1032 at most.
  const bool packed = bytes.starts_with("\x1f\x8b") ||
                      (bytes.size() > 1 && bytes[0] == '\x78' &&
                       (bytes[0] * 256 + static_cast<unsigned char>(bytes[1])) % 31 == 0);
  const std::size_t limit = kBuffers + target.per_byte * bytes.size() * (packed ? 1032 : 1);
  const AllocationMeter meter;
  target.run(bytes);
  const std::size_t most = AllocationMeter::Most();
  if (most > limit) {
    throw std::logic_error(std::string(target.name) + " takes " + std::to_string(most) +
                           " bytes for a file of " + std::to_string(bytes.size()) + ", at most " +
                           std::to_string(limit) + " are its own");
  }
}

void TfRecordFile(std::string_view bytes) {
  MemoryFiles files = One(bytes);
  const auto reader = io::RecordReader::Open(files, "f");
  if (!reader.ok()) {
    return;
  }
  // Each record is read or refused once, and the end or the damage stays.
  std::int64_t sound = 0;
  for (;;) {
    const std::int64_t before = (*reader)->ordinal();
    const auto record = (*reader)->Next();
    if (record.ok() && !record->has_value()) {
      break;
    }
    if ((*reader)->ordinal() == before) {
      Check(!record.ok() && !(*reader)->Next().ok(), "damage stays");
      break;
    }
    sound += record.ok() ? 1 : 0;
  }
  TfRecordOptions options;
  options.features = {{.name = "a", .type = TfType::kInt64, .ragged = true},
                      {.name = "b", .shape = {2}, .missing = 0},
                      {.name = "c", .steps = true}};
  options.on_corrupt = OnCorrupt::kSkip;
  options.max_corrupt = 1 << 20;
  options.files = &files;
  const auto data = TfRecords({"f"}, options);
  Check(data.ok() && data->size() == sound, "as many records as were sound");
  ReadAll(*data);
  options.on_corrupt = OnCorrupt::kError;
  const auto strict = TfRecords({"f"}, options);
  if (strict.ok()) {
    ReadAll(*strict);
  }
}

void TfExampleMessage(std::string_view bytes) {
  // In one pass where a message is laid out as most are, and in the general way, which a field that
  // nobody knows in front takes.
  std::vector<TfFeatureSpec> specs = {
      {.name = "a", .type = TfType::kInt64, .missing = 7},
      {.name = "b", .shape = {2}, .missing = 0.5},
      {.name = "c", .type = TfType::kHash, .missing = 1},
      {.name = "d", .type = TfType::kBytes, .shape = {3}, .missing = 2},
      {.name = "e", .type = TfType::kInt64, .ragged = true},
      {.name = "f", .missing = 0},
  };
  const std::string unknown("\x78\x00", 2);
  for (int required = 0; required < 2; ++required) {
    Check(Decoded(specs, bytes) == Decoded(specs, unknown + std::string(bytes)),
          "both ways come to the same");
    specs.back().missing.reset();
  }
  if (const auto example = ParseTfExample(bytes); example.ok()) {
    const std::string once = EncodeTfExample(*example);
    const auto again = ParseTfExample(once);
    Check(again.ok() && EncodeTfExample(*again) == once, "what is written reads back");
  }
  if (const auto example = ParseTfSequenceExample(bytes); example.ok()) {
    const std::string once = EncodeTfSequenceExample(*example);
    const auto again = ParseTfSequenceExample(once);
    Check(again.ok() && EncodeTfSequenceExample(*again) == once, "what is written reads back");
  }
}

void CsvFile(std::string_view bytes) {
  CsvReader reader(bytes, ',', /*trim=*/true);
  std::vector<CsvField> fields;
  std::size_t end = 0;
  CsvOptions options;
  for (bool header = true;; header = false) {
    const auto more = reader.Next(fields);
    if (!more.ok() || !*more) {
      break;
    }
    Check(!fields.empty() && reader.offset() > end && reader.offset() <= bytes.size(),
          "every row takes bytes of the file");
    end = reader.offset();
    // Columns cost what their reader wants: only a few.
    for (std::size_t i = 0; header && i < std::min<std::size_t>(fields.size(), 6); ++i) {
      options.columns.push_back({.name = std::string(fields[i].text),
                                 .type = i % 3 == 0   ? CsvType::kCategory
                                         : i % 3 == 1 ? CsvType::kHash
                                                      : CsvType::kFloat32,
                                 .missing = -1});
    }
  }
  MemoryFiles files = One(bytes);
  options.files = &files;
  if (const auto csv = Csv({"f"}, options); csv.ok()) {
    ReadAll(csv->dataset);
  }
}

void IdxFile(std::string_view bytes) {
  MemoryFiles files = One(bytes);
  if (const auto tensor = ReadIdx(files, "f"); tensor.ok()) {
    Check(tensor->bytes() <= bytes.size() * 2000, "no more than the file, unpacked, holds");
  }
}

void TarFile(std::string_view bytes) {
  MemoryFiles files = One(bytes);
  const BytesFile file{std::string(bytes)};
  if (const auto members = IndexTar(file, "f"); members.ok()) {
    for (const TarMember& member : *members) {
      Check(member.begin <= bytes.size() && member.size <= bytes.size() - member.begin,
            "every member lies in the archive");
    }
  }
  const auto data = WebDataset(
      {"f"},
      {.features = {{.name = "cls", .extensions = {"cls"}, .decoder = IntegerText(), .missing = 0},
                    {.name = "npy",
                     .extensions = {"npy"},
                     .decoder = NpyElements(DType::kInt32, {2}),
                     .missing = 0}},
       .files = &files});
  if (data.ok()) {
    ReadAll(*data);
  }
}

void NpyFile(std::string_view bytes) {
  MemoryFiles files = One(bytes);
  if (const auto tensor = ReadNpy(files, "f"); tensor.ok()) {
    Check(tensor->bytes() <= bytes.size() * 8, "no more than the file holds");
  }
  if (const auto data = Arrays({{.name = "x", .path = "f"}}, {.files = &files}); data.ok()) {
    if (data->size() < 1000) {
      ReadAll(*data);
    }
  }
}

void SafetensorsFile(std::string_view bytes) {
  MemoryFiles files = One(bytes);
  if (const auto data = Safetensors("f", {.files = &files}); data.ok() && data->size() < 1000) {
    ReadAll(*data);
  }
}

void IndexFile(std::string_view bytes) {
  static const std::string records = [] {
    std::string frames;  // three empty records
    for (int i = 0; i < 3; ++i) {
      frames += std::string("\0\0\0\0\0\0\0\0\x29\x03\x98\x07\xd8\xea\x82\xa2", 16);
    }
    return frames;
  }();
  MemoryFiles files = One(records);
  files.Put("f.idx", bytes);
  const auto data =
      TfRecords({"f"}, {.features = {{.name = "a", .missing = 0}}, .index = true, .files = &files});
  if (data.ok()) {
    bool all = true;
    for (std::int64_t i = 0; i < data->size(); ++i) {
      all = data->source().Read(i).ok() && all;
    }
    Check(!all || data->size() == 3, "only the right index reads to the end");
  }
}

void CriteoLines(std::string_view bytes) {
  MemoryFiles files = One(bytes);
  const auto data = TextLines({"f"}, {.decoder = CriteoLine({.buckets = 100}), .files = &files});
  if (data.ok()) {
    ReadAll(*data);
  }
}

}  // namespace cohort::fuzz
