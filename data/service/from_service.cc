// A pipeline of the data service as a data set.

#include <memory>
#include <utility>

#include <cohort/data/bulk_source.h>
#include <cohort/data_service/data_service.h>

#include "connection.h"

namespace cohort::data {
namespace {

class ServiceSource final : public BulkSource {
 public:
  ServiceSource(std::shared_ptr<Connection> connection, std::int64_t epoch)
      : connection_(std::move(connection)), epoch_(epoch) {}

  std::int64_t size() const override { return info().examples; }
  const std::vector<FeatureSpec>& features() const override { return info().features; }
  const std::vector<RaggedSpec>& ragged() const override { return info().ragged; }
  std::uint64_t Fingerprint() const override { return info().fingerprint; }
  std::string Where(std::int64_t index) const override {
    return connection_->Name() + ", example " + std::to_string(index);
  }
  std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const override {
    return info().by_epoch ? std::make_shared<ServiceSource>(connection_, epoch) : nullptr;
  }
  Status ReadMany(std::span<const std::int64_t> indexes, std::span<std::byte* const> rows,
                  std::span<std::vector<std::byte>> values,
                  std::span<std::vector<std::int64_t>> ends) const override {
    return connection_->Read(epoch_, indexes, rows, values, ends);
  }

 private:
  const PipelineInfo& info() const { return connection_->pipeline(); }

  const std::shared_ptr<Connection> connection_;  // owners: the sources of one FromService
  const std::int64_t epoch_;
};

}  // namespace

Result<Dataset> FromService(const std::string& dispatcher, const std::string& pipeline,
                            const FromServiceOptions& options) {
  if (options.piece_bytes < 1 || options.max_bytes < 1) {
    return InvalidArgument("FromService with piece_bytes and max_bytes of at least 1");
  }
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Connection> connection,
                          Connection::Open(dispatcher, pipeline, options));
  if (!options.features.empty() || !options.ragged.empty()) {
    const PipelineInfo expected{.features = options.features, .ragged = options.ragged};
    if (const std::string difference = FeatureDifference(connection->pipeline(), expected);
        !difference.empty()) {
      return FailedPrecondition(connection->Name() + ": " + difference);
    }
  }
  return Dataset(
      std::make_shared<ServiceSource>(std::shared_ptr<Connection>(std::move(connection)), 0));
}

}  // namespace cohort::data
