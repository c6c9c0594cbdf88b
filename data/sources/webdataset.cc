#include <cohort/data/webdataset.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>

#include <cohort/core/random.h>

#include "sources/content.h"
#include "sources/exact_text.h"
#include "sources/file_table.h"
#include "sources/guarded.h"
#include "sources/image_codecs.h"
#include "sources/npy.h"
#include "sources/sample_name.h"
#include "sources/sizes.h"
#include "sources/tar.h"
#include "sources/text_hash.h"

namespace cohort::data {
namespace {

// Where a feature of a sample lies.
struct Part {
  std::uint64_t begin = 0;  // byte of the archive
  std::uint64_t size = 0;
  int extension = -1;  // of WebFeature.extensions; -1: the sample has none of them
};

struct Sample {
  std::string key;
  std::vector<Part> parts;  // one for each feature
};

struct Shard {
  std::shared_ptr<const RandomAccessFile> file;  // owner: the source
  std::vector<Sample> samples;
};

// Members in the order of the archive to samples.
class Grouping {
 public:
  Grouping(const std::string& path, const std::vector<WebFeature>& features)
      : path_(path), features_(features) {}

  Status Add(const TarMember& member) {
    auto [key, extension] = SplitSampleName(member.name);
    if (key.empty()) {
      return {};
    }
    if (members_.empty() || key != key_) {
      COHORT_RETURN_IF_ERROR(Finish());
      COHORT_RETURN_IF_ERROR(order_.Begin(path_, key, member.header));
      key_ = std::move(key);
    }
    const auto [it, is_new] = members_.emplace(std::move(extension), member);
    if (!is_new) {
      return DataLoss(path_ + ": sample '" + key_ + "' has member '" + it->first +
                      "' twice, at bytes " + std::to_string(it->second.header) + " and " +
                      std::to_string(member.header));
    }
    return {};
  }

  // The sample whose members were added is complete.
  Status Finish() {
    if (members_.empty()) {
      return {};
    }
    Sample sample{.key = key_, .parts = std::vector<Part>(features_.size())};
    for (std::size_t f = 0; f < features_.size(); ++f) {
      const auto& extensions = features_[f].extensions;
      for (std::size_t e = 0; e < extensions.size() && sample.parts[f].extension < 0; ++e) {
        const auto it = members_.find(extensions[e]);
        if (it != members_.end()) {
          sample.parts[f] = {it->second.begin, it->second.size, static_cast<int>(e)};
        }
      }
      if (sample.parts[f].extension < 0 && !features_[f].missing.has_value()) {
        return Lacks(features_[f]);
      }
    }
    samples_.push_back(std::move(sample));
    members_.clear();
    return {};
  }

  std::vector<Sample> TakeSamples() { return std::move(samples_); }

 private:
  Status Lacks(const WebFeature& feature) const {
    std::string wanted;
    for (const std::string& extension : feature.extensions) {
      wanted += (wanted.empty() ? "" : ", ") + extension;
    }
    std::string there;
    std::uint64_t at = UINT64_MAX;
    for (const auto& [extension, member] : members_) {
      there += (there.empty() ? "" : ", ") + extension;
      at = std::min(at, member.header);
    }
    return DataLoss(path_ + ": sample '" + key_ + "' at byte " + std::to_string(at) +
                    " has no member for feature '" + feature.name + "' (" + wanted +
                    "); it has: " + there + " [set the feature's `missing` to accept that]");
  }

  const std::string& path_;
  const std::vector<WebFeature>& features_;
  SampleOrder order_;
  std::string key_;                           // of members_
  std::map<std::string, TarMember> members_;  // by extension
  std::vector<Sample> samples_;
};

template <typename T>
void FillAs(double value, std::size_t n, std::byte* row) {
  std::fill_n(reinterpret_cast<T*>(row), n, static_cast<T>(value));
}

void Fill(const MemberDecoder& decoder, double value, std::byte* row) {
  const auto n = static_cast<std::size_t>(decoder.shape.elements());
  switch (decoder.dtype) {
    case DType::kFloat32:
      return FillAs<float>(value, n, row);
    case DType::kFloat64:
      return FillAs<double>(value, n, row);
    case DType::kInt32:
      return FillAs<std::int32_t>(value, n, row);
    case DType::kInt64:
      return FillAs<std::int64_t>(value, n, row);
    case DType::kUInt8:
      return FillAs<std::uint8_t>(value, n, row);
    case DType::kFloat16:
      std::fill_n(reinterpret_cast<Float16*>(row), n, Float16(static_cast<float>(value)));
      return;
    case DType::kBFloat16:
      std::fill_n(reinterpret_cast<BFloat16*>(row), n, BFloat16(static_cast<float>(value)));
      return;
  }
}

class WebDatasetSource final : public Source {
 public:
  explicit WebDatasetSource(const WebDatasetOptions& options) : options_(options) {
    for (const WebFeature& feature : options_.features) {
      features_.push_back({feature.name, feature.decoder.dtype, feature.decoder.shape});
    }
  }

  Status AddShard(const std::string& path) {
    Shard shard;
    COHORT_ASSIGN_OR_RETURN(shard.file, OpenMaybeGzip(*options_.files, path));
    COHORT_ASSIGN_OR_RETURN(const auto members, IndexTar(*shard.file, path));
    Grouping grouping(path, options_.features);
    for (const TarMember& member : members) {
      COHORT_RETURN_IF_ERROR(grouping.Add(member));
    }
    COHORT_RETURN_IF_ERROR(grouping.Finish());
    shard.samples = grouping.TakeSamples();
    table_.Add(path, static_cast<std::int64_t>(shard.samples.size()), shard.file->size());
    shards_.push_back(std::move(shard));
    return {};
  }

  std::int64_t size() const override { return table_.size(); }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    const std::size_t s = table_.Find(index);
    const Sample& sample = SampleAt(index);
    std::string bytes;
    for (std::size_t f = 0; f < rows.size(); ++f) {
      const WebFeature& feature = options_.features[f];
      const Part& part = sample.parts[f];
      if (part.extension < 0) {
        Fill(feature.decoder, *feature.missing, rows[f]);
        continue;
      }
      bytes.resize(part.size);
      Status status = ReadExactly(*shards_[s].file, table_.ranges()[s].name, part.begin,
                                  std::as_writable_bytes(std::span(bytes)));
      if (status.ok()) {
        status = Guarded(feature.decoder.decode, bytes, rows[f]);
      }
      if (!status.ok()) {
        return status.Annotate(Where(index) + ", member '" +
                               feature.extensions[static_cast<std::size_t>(part.extension)] +
                               "' at byte " + std::to_string(part.begin) + ", feature '" +
                               feature.name + "'");
      }
    }
    return {};
  }

  std::string Where(std::int64_t index) const override {
    const FileRange& range = table_.ranges()[table_.Find(index)];
    return range.name + ", sample " + std::to_string(index - range.begin) + " '" +
           SampleAt(index).key + "'";
  }
  std::vector<FileRange> files() const override { return table_.ranges(); }

  // Of the members' names, sizes and contents: times and owners in the archive do not count.
  std::uint64_t Fingerprint() const override {
    std::uint64_t digest = Hash64("webdataset");
    for (const WebFeature& feature : options_.features) {
      digest = Hash64(feature.name + "/" + feature.decoder.name + "/" +
                          std::string(DTypeName(feature.decoder.dtype)) +
                          feature.decoder.shape.ToString() + ExactText(feature.missing),
                      digest);
    }
    std::uint64_t total = 0;
    for (const Shard& shard : shards_) {
      for (const Sample& sample : shard.samples) {
        for (const Part& part : sample.parts) {
          total += part.size;
        }
      }
    }
    // Of large data, the content of every so many samples.
    const std::uint64_t every = total / kDigestBytes + 1;
    std::uint64_t i = 0;
    for (const Shard& shard : shards_) {
      for (const Sample& sample : shard.samples) {
        digest = Hash64(sample.key, digest);
        for (const Part& part : sample.parts) {
          const std::uint64_t content =
              i % every == 0 ? ContentDigest(*shard.file, part.begin, part.begin + part.size) : 0;
          digest = Hash64(std::to_string(part.extension) + "/" + std::to_string(part.size) + "/" +
                              std::to_string(content),
                          digest);
        }
        ++i;
      }
    }
    return digest;
  }

 private:
  const Sample& SampleAt(std::int64_t index) const {
    const std::size_t s = table_.Find(index);
    return shards_[s].samples[static_cast<std::size_t>(index - table_.ranges()[s].begin)];
  }

  WebDatasetOptions options_;
  std::vector<FeatureSpec> features_;
  FileTable table_;
  std::vector<Shard> shards_;
};

Status CheckFeatures(const std::vector<WebFeature>& features) {
  if (features.empty()) {
    return InvalidArgument(
        "WebDataset: no features to read [name them in WebDatasetOptions.features]");
  }
  std::set<std::string> names;
  for (const WebFeature& feature : features) {
    const std::string what = "WebDataset: feature '" + feature.name + "'";
    if (!names.insert(feature.name).second) {
      return InvalidArgument(what + " is asked for twice");
    }
    if (feature.extensions.empty() || !feature.decoder.decode) {
      return InvalidArgument(what + " has no extensions or no decoder");
    }
    for (const std::string& extension : feature.extensions) {
      if (extension.empty() || SplitSampleName("k." + extension).extension != extension) {
        return InvalidArgument(what + ": '" + extension +
                               "' is no extension [lower case, without the dot before]");
      }
    }
    if (feature.missing.has_value() && !std::isfinite(*feature.missing)) {
      return InvalidArgument(what + ": `missing` is finite");
    }
    if (!CheckedBytes(feature.decoder.shape.dims(), SizeOf(feature.decoder.dtype)).has_value()) {
      return InvalidArgument(
          what + " has a shape that no memory holds: " + feature.decoder.shape.ToString());
    }
  }
  return {};
}

Status DecodeInteger(std::string_view text, std::byte* row) {
  constexpr std::string_view kBlank = " \t\r\n";
  std::string_view digits = text;
  digits.remove_prefix(std::min(digits.find_first_not_of(kBlank), digits.size()));
  digits = digits.substr(0, digits.find_last_not_of(kBlank) + 1);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    return DataLoss("'" + std::string(text.substr(0, 80)) + "' is not a 64-bit integer");
  }
  std::memcpy(row, &value, sizeof(value));
  return {};
}

Status DecodeNpy(DType dtype, const Shape& shape, std::string_view bytes, std::byte* row) {
  const BytesFile file{std::string(bytes)};
  COHORT_ASSIGN_OR_RETURN(const NpyHeader header, ReadNpyHeader(file, ".npy"));
  if (header.type->dtype != dtype || header.shape != shape) {
    return InvalidArgument("holds " + std::string(DTypeName(header.type->dtype)) +
                           header.shape.ToString() + ", " + std::string(DTypeName(dtype)) +
                           shape.ToString() + " is asked for");
  }
  const auto* const data = reinterpret_cast<const std::byte*>(bytes.data()) + header.data_begin;
  const auto elements = static_cast<std::size_t>(shape.elements());
  if (header.type->widen != nullptr) {
    header.type->widen(data, elements, row);
  } else if (elements != 0) {
    std::memcpy(row, data, elements * header.type->stored_bytes);
  }
  return {};
}

}  // namespace

MemberDecoder IntegerText() {
  return {.dtype = DType::kInt64, .shape = Shape(), .decode = DecodeInteger, .name = "integer"};
}

MemberDecoder HashedText(std::int64_t buckets) {
  Require(buckets >= 0, "the buckets of hashed text are not negative");
  return {.dtype = DType::kInt64,
          .shape = Shape(),
          .decode =
              [buckets](std::string_view bytes, std::byte* row) {
                const std::int64_t hash = TextHash(bytes, buckets);
                std::memcpy(row, &hash, sizeof(hash));
                return Status();
              },
          .name = "hash " + std::to_string(buckets)};
}

MemberDecoder RawElements(DType dtype, Shape shape) {
  const auto checked = CheckedBytes(shape.dims(), SizeOf(dtype));
  Require(checked.has_value(), "raw elements have a shape that memory holds");
  return {.dtype = dtype,
          .shape = std::move(shape),
          .decode =
              [wanted = *checked](std::string_view bytes, std::byte* row) {
                if (bytes.size() != wanted) {
                  return InvalidArgument("holds " + std::to_string(bytes.size()) + " bytes, " +
                                         std::to_string(wanted) + " are asked for");
                }
                std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(row));
                return Status();
              },
          .name = "raw"};
}

MemberDecoder NpyElements(DType dtype, Shape shape) {
  return {.dtype = dtype,
          .shape = shape,
          .decode = [dtype, shape](std::string_view bytes,
                                   std::byte* row) { return DecodeNpy(dtype, shape, bytes, row); },
          .name = "npy"};
}

MemberDecoder ImageElements(const ImageSpec& spec) {
  Require(spec.height >= 1 && spec.width >= 1, "an image has at least one pixel");
  return {.dtype = spec.unit_range ? DType::kFloat32 : DType::kUInt8,
          .shape = {spec.height, spec.width, spec.decode.channels},
          .decode = [spec](std::string_view bytes,
                           std::byte* row) { return DecodeAndFit(bytes, spec, row); },
          .name = "image " + std::to_string(static_cast<int>(spec.fit))};
}

Result<Dataset> WebDataset(const std::vector<std::string>& shards,
                           const WebDatasetOptions& options) {
  if (shards.empty()) {
    return InvalidArgument("WebDataset: no shards");
  }
  COHORT_RETURN_IF_ERROR(CheckFeatures(options.features));
  auto source = std::make_shared<WebDatasetSource>(options);
  for (const std::string& shard : shards) {
    COHORT_RETURN_IF_ERROR(source->AddShard(shard));
  }
  return Dataset(std::move(source));
}

}  // namespace cohort::data
