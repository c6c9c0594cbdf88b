// Data sets whose examples are their own index, and what an iterator delivers of them.

#pragma once

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/data/dataset.h>
#include <cohort/data/memory.h>

namespace cohort::data {

// Feature "id" of example i is i.
inline Dataset Ids(std::int64_t size) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(size));
  std::iota(ids.begin(), ids.end(), 0);
  return OrThrow(FromTensors({{"id", Tensor::Of<std::int64_t>({size}, ids)}}));
}

// The same in files of the given sizes, and of so many bytes where that is given.
class FilesSource final : public Source {
 public:
  explicit FilesSource(const std::vector<std::int64_t>& sizes,
                       const std::vector<std::int64_t>& bytes = {}) {
    for (const std::int64_t size : sizes) {
      const std::size_t i = files_.size();
      files_.push_back(
          {"file" + std::to_string(i), size_, size_ + size, bytes.empty() ? 0 : bytes[i]});
      size_ += size;
    }
  }
  std::int64_t size() const override { return size_; }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    *reinterpret_cast<std::int64_t*>(rows[0]) = index;
    return {};
  }
  std::string Where(std::int64_t index) const override {
    for (const FileRange& file : files_) {
      if (index < file.end) {
        return file.name + ", record " + std::to_string(index - file.begin);
      }
    }
    return "nowhere";
  }
  std::vector<FileRange> files() const override { return files_; }
  std::uint64_t Fingerprint() const override { return Hash64("files"); }

 private:
  std::int64_t size_ = 0;
  std::vector<FileRange> files_;
  std::vector<FeatureSpec> features_ = {{"id", DType::kInt64, Shape()}};
};

using IdBatches = std::vector<std::vector<std::int64_t>>;

inline std::vector<std::int64_t> IdsOf(const Batch& batch) {
  const auto ids = batch["id"].data<std::int64_t>();
  if (static_cast<std::int64_t>(ids.size()) != batch.size) {
    throw std::runtime_error("a batch of " + std::to_string(batch.size) + " with " +
                             std::to_string(ids.size()) + " ids");
  }
  return {ids.begin(), ids.end()};
}

inline IdBatches Collect(const Dataset& dataset, const IterateOptions& options = {}) {
  auto iterator = OrThrow(dataset.Iterate(options));
  IdBatches batches;
  while (auto batch = OrThrow(iterator->Next())) {
    batches.push_back(IdsOf(*batch));
  }
  return batches;
}

inline std::vector<std::int64_t> Flatten(const IdBatches& batches) {
  std::vector<std::int64_t> all;
  for (const auto& batch : batches) {
    all.insert(all.end(), batch.begin(), batch.end());
  }
  return all;
}

// The global batches, put together from all workers' parts in worker order.
inline IdBatches CollectWorld(const Dataset& dataset, int workers, IterateOptions options = {}) {
  IdBatches world;
  options.num_workers = workers;
  for (options.worker = 0; options.worker < workers; ++options.worker) {
    const IdBatches mine = Collect(dataset, options);
    if (options.worker == 0) {
      world.resize(mine.size());
    }
    if (mine.size() != world.size()) {
      throw std::runtime_error("worker " + std::to_string(options.worker) + " has " +
                               std::to_string(mine.size()) + " batches, worker 0 has " +
                               std::to_string(world.size()));
    }
    for (std::size_t b = 0; b < mine.size(); ++b) {
      world[b].insert(world[b].end(), mine[b].begin(), mine[b].end());
    }
  }
  return world;
}

}  // namespace cohort::data
