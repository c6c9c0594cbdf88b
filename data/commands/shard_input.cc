#include "shard_input.h"

#include <algorithm>
#include <span>
#include <utility>

#include <cohort/data/webdataset.h>
#include <cohort/io/compression.h>
#include <cohort/io/record_file.h>

#include "../sources/content.h"
#include "../sources/csv_reader.h"
#include "../sources/record_store.h"
#include "../sources/sample_name.h"
#include "../sources/tar.h"
#include "files.h"

namespace cohort::data {
namespace {

// Packed records, one after the other: nothing of the file is kept.
class PackedRecordInput final : public ShardInput {
 public:
  static Result<std::shared_ptr<ShardInput>> Open(const std::string& path) {
    auto input = std::make_shared<PackedRecordInput>();
    input->path_ = path;
    COHORT_ASSIGN_OR_RETURN(input->reader_, io::RecordReader::Open(CommandFiles(), path));
    return input;
  }
  bool in_order() const override { return true; }
  Result<std::vector<std::uint64_t>> Sizes() override {
    std::vector<std::uint64_t> sizes;
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto record, reader_->Next());
      if (!record.has_value()) {
        return sizes;
      }
      sizes.push_back(record->size());
    }
  }
  Status Read(std::int64_t i, ShardPiece& piece) override {
    for (std::int64_t at = reader_->ordinal();; ++at) {
      COHORT_ASSIGN_OR_RETURN(const auto record, reader_->Next());
      if (!record.has_value()) {
        return DataLoss(path_ + ": became shorter while it was read");
      }
      if (at == i) {
        piece.bytes = *record;
        return {};
      }
    }
  }

 private:
  std::string path_;
  std::unique_ptr<io::RecordReader> reader_;
};

class RecordInput final : public ShardInput {
 public:
  static Result<std::shared_ptr<ShardInput>> Open(const std::string& path) {
    auto input = std::make_shared<RecordInput>();
    CorruptRecords none;
    COHORT_ASSIGN_OR_RETURN(input->records_,
                            OpenRecordStore({.files = &CommandFiles()}, path, none));
    return input;
  }
  Result<std::vector<std::uint64_t>> Sizes() override {
    std::vector<std::uint64_t> sizes;
    for (std::int64_t i = 0; i < records_->size(); ++i) {
      sizes.push_back(records_->BytesOf(i));
    }
    return sizes;
  }
  Status Read(std::int64_t i, ShardPiece& piece) override {
    std::string buffer;
    COHORT_ASSIGN_OR_RETURN(piece.bytes, records_->Read(i, buffer));
    return {};
  }

 private:
  std::unique_ptr<RecordStore> records_;
};

class SampleInput final : public ShardInput {
 public:
  static Result<std::shared_ptr<ShardInput>> Open(const std::string& path) {
    auto input = std::make_shared<SampleInput>();
    input->path_ = path;
    COHORT_ASSIGN_OR_RETURN(input->file_, OpenMaybeGzip(CommandFiles(), path));
    COHORT_ASSIGN_OR_RETURN(input->members_, IndexTar(*input->file_, path));
    std::string key;
    SampleOrder order;
    for (std::size_t i = 0; i < input->members_.size(); ++i) {
      const std::string& member = input->members_[i].name;
      const SampleName name = SplitSampleName(member);
      if (name.key.empty()) {
        return InvalidArgument(path + ": member '" + member + "' belongs to no sample");
      }
      if (name.key != key) {
        COHORT_RETURN_IF_ERROR(order.Begin(path, name.key, input->members_[i].header));
        input->begins_.push_back(i);
        key = name.key;
      }
    }
    input->begins_.push_back(input->members_.size());
    return input;
  }
  Result<std::vector<std::uint64_t>> Sizes() override {
    std::vector<std::uint64_t> sizes;
    for (std::size_t i = 0; i + 1 < begins_.size(); ++i) {
      std::uint64_t& bytes = sizes.emplace_back(0);
      for (const TarMember& member : Members(static_cast<std::int64_t>(i))) {
        bytes += member.size;
      }
    }
    return sizes;
  }
  Status Read(std::int64_t i, ShardPiece& piece) override {
    piece = {};
    for (const TarMember& member : Members(i)) {
      const SampleName name = SplitSampleName(member.name);
      piece.key = name.key;
      std::string content(member.size, '\0');
      COHORT_RETURN_IF_ERROR(
          ReadExactly(*file_, path_, member.begin, std::as_writable_bytes(std::span(content))));
      if (!piece.members.emplace(name.extension, std::move(content)).second) {
        return DataLoss(path_ + ": sample '" + name.key + "' has member '" + name.extension +
                        "' twice");
      }
    }
    return {};
  }

 private:
  std::span<const TarMember> Members(std::int64_t i) const {
    const auto at = static_cast<std::size_t>(i);
    return std::span(members_).subspan(begins_[at], begins_[at + 1] - begins_[at]);
  }

  std::string path_;
  std::shared_ptr<const RandomAccessFile> file_;  // owner: this
  std::vector<TarMember> members_;
  std::vector<std::size_t> begins_;  // of each sample, among the members, and the end
};

// Lines of text, or rows of CSV as they stand in the file. The file is in memory, whole.
class TextInput final : public ShardInput {
 public:
  static Result<std::shared_ptr<ShardInput>> OpenLines(const std::string& path) {
    auto input = std::make_shared<TextInput>();
    COHORT_ASSIGN_OR_RETURN(input->content_, io::ReadMaybeCompressed(CommandFiles(), path));
    const std::string& content = input->content_;
    for (std::size_t begin = 0; begin < content.size();) {
      const std::size_t end = std::min(content.find('\n', begin), content.size() - 1) + 1;
      input->places_.emplace_back(begin, end);
      begin = end;
    }
    return input;
  }

  static Result<std::shared_ptr<ShardInput>> OpenCsv(const std::string& path, char delimiter) {
    auto input = std::make_shared<TextInput>();
    COHORT_ASSIGN_OR_RETURN(input->content_, io::ReadMaybeCompressed(CommandFiles(), path));
    const std::string& content = input->content_;
    CsvReader reader(content, delimiter, /*trim=*/true);
    std::vector<CsvField> fields;
    std::size_t columns = 0;
    std::size_t begin = 0;
    for (;;) {
      Result<bool> more = reader.Next(fields);
      if (!more.ok()) {
        return more.status().Annotate(path);
      }
      if (!*more) {
        return input;
      }
      begin = content.find_first_not_of("\r\n", begin);  // blank lines before it
      const std::size_t end = reader.offset();
      if (columns == 0) {
        columns = fields.size();
        input->header_ = input->Text({begin, end});
      } else if (fields.size() != columns) {
        return DataLoss(path + ", line " + std::to_string(reader.line()) + ": " +
                        std::to_string(fields.size()) + " fields, the header has " +
                        std::to_string(columns));
      } else {
        input->places_.emplace_back(begin, end);
      }
      begin = end;
    }
  }

  Result<std::vector<std::uint64_t>> Sizes() override {
    std::vector<std::uint64_t> sizes;
    for (const auto& [begin, end] : places_) {
      sizes.push_back(end - begin + (content_[end - 1] == '\n' ? 0 : 1));
    }
    return sizes;
  }
  Status Read(std::int64_t i, ShardPiece& piece) override {
    piece.bytes = Text(places_[static_cast<std::size_t>(i)]);
    return {};
  }
  std::string header() const override { return header_; }

 private:
  // With a line end, also where the file's last line has none.
  std::string Text(std::pair<std::size_t, std::size_t> place) const {
    std::string text = content_.substr(place.first, place.second - place.first);
    if (!text.ends_with('\n')) {
      text += '\n';
    }
    return text;
  }

  std::string content_;
  std::string header_;
  std::vector<std::pair<std::size_t, std::size_t>> places_;  // of each record: begin and end
};

Result<std::shared_ptr<ShardInput>> OpenRecords(const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(CommandFiles(), path));
  return reader->compression() == io::Compression::kNone ? RecordInput::Open(path)
                                                         : PackedRecordInput::Open(path);
}

}  // namespace

std::uint64_t ShardPiece::size() const {
  std::uint64_t total = bytes.size();
  for (const auto& [extension, content] : members) {
    total += content.size();
  }
  return total;
}

Result<std::shared_ptr<ShardInput>> OpenShardInput(const std::string& path, const FileKind& kind) {
  return kind.format == Format::kTfRecord ? OpenRecords(path)
         : kind.format == Format::kTar    ? SampleInput::Open(path)
         : kind.format == Format::kCsv    ? TextInput::OpenCsv(path, kind.delimiter)
                                          : TextInput::OpenLines(path);
}

}  // namespace cohort::data
