#include <algorithm>
#include <array>
#include <set>

#include <cohort/data/webdataset.h>
#include <cohort/io/compression.h>

#include "sources/atomic_file.h"
#include "sources/tar.h"

namespace cohort::data {
namespace {

// `digits` octal digits and a zero.
void PutOctal(char* at, std::size_t digits, std::uint64_t value) {
  for (std::size_t i = digits; i-- > 0; value >>= 3) {
    at[i] = static_cast<char>('0' + (value & 7));
  }
  at[digits] = '\0';
}

// A header block; the name must fit into 100 bytes, the size into 33 bits.
std::array<char, kTarBlock> Header(std::string_view name, std::uint64_t size, char type) {
  std::array<char, kTarBlock> block{};
  std::copy(name.begin(), name.end(), block.begin());
  PutOctal(&block[100], 7, 0644);    // mode
  PutOctal(&block[108], 7, 0);       // user
  PutOctal(&block[116], 7, 0);       // group
  PutOctal(&block[124], 11, size);   // size
  PutOctal(&block[136], 11, 0);      // time
  std::fill_n(&block[148], 8, ' ');  // checksum, while it is computed
  block[156] = type;
  constexpr std::string_view kMagic("ustar\00000", 8);
  std::copy(kMagic.begin(), kMagic.end(), &block[257]);
  std::uint64_t sum = 0;
  for (const char byte : block) {
    sum += static_cast<unsigned char>(byte);
  }
  PutOctal(&block[148], 6, sum);
  return block;
}

// "LENGTH key=value\n", LENGTH counting itself.
std::string PaxRecord(const std::string& key, const std::string& value) {
  const std::string rest = " " + key + "=" + value + "\n";
  std::size_t length = rest.size();
  while (length != rest.size() + std::to_string(length).size()) {
    length = rest.size() + std::to_string(length).size();
  }
  return std::to_string(length) + rest;
}

class FileTarWriter final : public TarWriter {
 public:
  FileTarWriter(std::string path, std::unique_ptr<AtomicFile> file)
      : path_(std::move(path)), gzip_(path_.ends_with(".gz")), file_(std::move(file)) {}

  Status Add(const std::string& name, std::string_view content) override {
    Require(file_->open(), "nothing is added after Close");
    if (name.empty() || name.ends_with('/') || name.find('\0') != std::string::npos) {
      return InvalidArgument(path_ + ": '" + name + "' is no name of a member");
    }
    constexpr std::size_t kNameBytes = 100;
    constexpr std::uint64_t kMaxSize = (std::uint64_t{1} << 33) - 1;
    std::string pax;
    if (name.size() > kNameBytes) {
      pax += PaxRecord("path", name);
    }
    if (content.size() > kMaxSize) {
      pax += PaxRecord("size", std::to_string(content.size()));
    }
    if (!pax.empty()) {
      COHORT_RETURN_IF_ERROR(Put(Header("././@PaxHeader", pax.size(), 'x'), pax));
    }
    const std::uint64_t size = content.size() > kMaxSize ? 0 : content.size();
    return Put(Header(std::string_view(name).substr(0, kNameBytes), size, '0'), content);
  }

  Status AddSample(const std::string& key,
                   const std::map<std::string, std::string>& members) override {
    const std::size_t base = key.rfind('/') == std::string::npos ? 0 : key.rfind('/') + 1;
    if (base == key.size() || key.find('.', base) != std::string::npos) {
      return InvalidArgument(path_ + ": '" + key +
                             "' is no key of a sample [no dot in its last component]");
    }
    for (const auto& [extension, content] : members) {
      if (extension.empty() || extension.find('/') != std::string::npos ||
          std::any_of(extension.begin(), extension.end(),
                      [](char c) { return c >= 'A' && c <= 'Z'; })) {
        return InvalidArgument(path_ + ": sample '" + key + "': '" + extension +
                               "' is no extension [lower case, without '/']");
      }
    }
    if (!keys_.insert(key).second) {
      return InvalidArgument(path_ + ": sample '" + key + "' was written before");
    }
    for (const auto& [extension, content] : members) {
      COHORT_RETURN_IF_ERROR(Add(key + "." + extension, content));
    }
    return {};
  }

  Status Close() override {
    Require(file_->open(), "Close is called once");
    constexpr std::size_t kRecord = 20 * kTarBlock;  // what tar reads at once
    const std::size_t end = buffer_.size() + 2 * kTarBlock;
    const std::size_t total = written_ % kRecord + end;
    buffer_.resize(end + (total + kRecord - 1) / kRecord * kRecord - total, '\0');
    static_cast<void>(Drain());  // Close returns its error
    return file_->Close();
  }

 private:
  static constexpr std::size_t kBufferBytes = std::size_t{1} << 20;

  Status Put(const std::array<char, kTarBlock>& header, std::string_view content) {
    buffer_.append(header.data(), header.size());
    buffer_.append(content);
    buffer_.resize((buffer_.size() + kTarBlock - 1) / kTarBlock * kTarBlock, '\0');
    return buffer_.size() < kBufferBytes ? Status() : Drain();
  }

  // gzip: a member of its own for each buffer; readers take them for one stream.
  Status Drain() {
    written_ += buffer_.size();
    const std::string bytes = std::exchange(buffer_, {});
    return file_->Append(AsBytes(gzip_ ? io::Gzip(bytes) : bytes));
  }

  std::string path_;
  bool gzip_;
  std::unique_ptr<AtomicFile> file_;
  std::string buffer_;         // whole blocks
  std::uint64_t written_ = 0;  // bytes of the archive before buffer_
  std::set<std::string> keys_;
};

}  // namespace

Result<std::unique_ptr<TarWriter>> TarWriter::Create(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(files, path));
  return std::make_unique<FileTarWriter>(path, std::move(file));
}

}  // namespace cohort::data
