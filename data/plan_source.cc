#include "plan_source.h"

#include <algorithm>
#include <cstring>

namespace cohort::data {

PlanSource::PlanSource(std::shared_ptr<const Source> source, std::vector<OrderStage> stages,
                       Recipe recipe, std::uint64_t fingerprint, std::int64_t epoch)
    : source_(std::move(source)),
      stages_(std::move(stages)),
      recipe_(std::move(recipe)),
      fingerprint_(fingerprint),
      order_({{0, source_->size()}}, stages_, epoch) {}

Result<std::shared_ptr<const Source>> PlanSource::Make(std::shared_ptr<const Source> source,
                                                       std::vector<OrderStage> order, Recipe recipe,
                                                       std::uint64_t fingerprint) {
  auto made = std::shared_ptr<PlanSource>(
      new PlanSource(std::move(source), std::move(order), std::move(recipe), fingerprint, 0));
  if (std::shared_ptr<const Source> at = made->source_->AtEpoch(0)) {
    made->source_ = std::move(at);
  }
  COHORT_RETURN_IF_ERROR(made->Describe());
  return std::shared_ptr<const Source>(std::move(made));
}

Status PlanSource::Describe() {
  features_ = source_->features();
  ragged_ = source_->ragged();
  if (recipe_.maps.empty() || order_.size() == 0) {
    return {};
  }
  // The first that is not damaged: SkipCorrupt leaves out those before it.
  constexpr std::int64_t kTried = 1000;
  Example example;
  for (std::int64_t i = 0;; ++i) {
    const std::int64_t index = order_.At(i);
    Result<Example> read = source_->Read(index);
    const Status status =
        read.ok() ? ApplyMaps(recipe_.maps, *source_, index, *read) : read.status();
    if (status.ok()) {
      example = std::move(read).value();
      break;
    }
    if (status.code() != StatusCode::kDataLoss || i + 1 == std::min(order_.size(), kTried)) {
      return status;
    }
  }
  for (const RaggedSpec& spec : ragged_) {
    recipe_.ragged.insert(spec.name);
  }
  features_.clear();
  ragged_.clear();
  for (const auto& [name, tensor] : example) {
    if (recipe_.ragged.contains(name)) {
      ragged_.push_back({name, tensor.dtype()});
    } else {
      features_.push_back({name, tensor.dtype(), tensor.shape()});
    }
  }
  return {};
}

Status PlanSource::ReadInto(std::int64_t index, std::span<std::byte* const> rows) const {
  std::vector<std::vector<std::byte>> values(ragged_.size());
  return ReadRagged(index, rows, values);
}

Status PlanSource::ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                              std::span<std::vector<std::byte>> values) const {
  const std::int64_t at = order_.At(index);
  if (recipe_.maps.empty()) {
    return source_->ReadRagged(at, rows, values);
  }
  COHORT_ASSIGN_OR_RETURN(Example example, source_->Read(at));
  COHORT_RETURN_IF_ERROR(ApplyMaps(recipe_.maps, *source_, at, example));
  const Status status = Store(example, rows, values);
  return status.ok() ? status : status.Annotate("map of " + source_->Where(at));
}

Status PlanSource::Store(const Example& example, std::span<std::byte* const> rows,
                         std::span<std::vector<std::byte>> values) const {
  const auto find = [&example](const std::string& name, DType dtype,
                               const Shape* shape) -> Result<Tensor> {
    const auto it = example.find(name);
    if (it == example.end()) {
      return InvalidArgument("feature '" + name + "' of the first example is missing");
    }
    const Tensor& tensor = it->second;
    if (tensor.dtype() != dtype ||
        (shape != nullptr ? tensor.shape() != *shape : tensor.shape().rank() != 1)) {
      return InvalidArgument("feature '" + name + "' is " + std::string(DTypeName(tensor.dtype())) +
                             tensor.shape().ToString() + ", in the first example " +
                             std::string(DTypeName(dtype)) +
                             (shape != nullptr ? shape->ToString() : " of one axis"));
    }
    return tensor;
  };
  for (std::size_t i = 0; i < features_.size(); ++i) {
    COHORT_ASSIGN_OR_RETURN(const Tensor tensor,
                            find(features_[i].name, features_[i].dtype, &features_[i].shape));
    if (tensor.bytes() != 0) {
      std::memcpy(rows[i], tensor.raw(), tensor.bytes());
    }
  }
  for (std::size_t i = 0; i < ragged_.size(); ++i) {
    COHORT_ASSIGN_OR_RETURN(const Tensor tensor, find(ragged_[i].name, ragged_[i].dtype, nullptr));
    values[i].insert(values[i].end(), tensor.raw(), tensor.raw() + tensor.bytes());
  }
  return example.size() == features_.size() + ragged_.size()
             ? Status()
             : InvalidArgument("there are features that the first example does not have");
}

std::vector<FileRange> PlanSource::files() const {
  return stages_.empty() ? source_->files() : std::vector<FileRange>();
}

std::shared_ptr<const Source> PlanSource::AtEpoch(std::int64_t epoch) const {
  std::shared_ptr<const Source> source = source_->AtEpoch(epoch);
  const bool drawn = std::any_of(stages_.begin(), stages_.end(), [](const OrderStage& stage) {
    return stage.reshuffle && stage.shuffles();
  });
  if (source == nullptr && !drawn) {
    return nullptr;
  }
  auto at = std::shared_ptr<PlanSource>(new PlanSource(
      source == nullptr ? source_ : std::move(source), stages_, recipe_, fingerprint_, epoch));
  at->features_ = features_;
  at->ragged_ = ragged_;
  return at;
}

}  // namespace cohort::data
