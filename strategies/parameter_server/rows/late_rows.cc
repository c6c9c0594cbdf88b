#include "parameter_server/rows/late_rows.h"

#include <algorithm>

#include <cohort/core/status.h>
#include <cohort/optim/server_side.h>

#include "parameter_server/frames/row_codec.h"

namespace cohort::ps {

LateParts LateParts::Of(const RowOptimizer& rule) {
  const ServerSideOptions* const options = rule.server_side();
  LateParts parts;
  if (options != nullptr) {
    parts.pulled = options->delay_compensation > 0;
    parts.updates = parts.pulled || options->staleness_scaling;
  }
  return parts;
}

LateParts LateParts::Of(const TableSpec& spec) {
  const auto rule = RowOptimizer::Make(spec.optimizer);
  return rule.ok() ? Of(**rule) : LateParts();
}

std::uint64_t LateParts::PushBytes(TableSpec::Wire wire, std::size_t dim,
                                   std::uint64_t rows) const {
  return PullBytes(rows) + (pulled ? EncodedBytes(wire, dim, rows) : 0);
}

void LateRows::Take(std::size_t to, const LateRows& other, std::size_t from, std::size_t dim) {
  if (parts.updates) {
    updates[to] = other.updates[from];
  }
  if (parts.pulled) {
    std::ranges::copy(std::span(other.pulled).subspan(from * dim, dim),
                      std::span(pulled).subspan(to * dim, dim).begin());
  }
}

void LateRows::AddTo(std::size_t begin, std::size_t end, TableSpec::Wire wire, std::size_t dim,
                     FloatBuffer& encoded, std::vector<std::span<const float>>* payload) const {
  if (parts.updates) {
    static_assert(sizeof(std::uint32_t) == sizeof(float));
    payload->emplace_back(reinterpret_cast<const float*>(updates.data() + begin), end - begin);
  }
  if (!parts.pulled) {
    return;
  }
  const auto rows = std::span(pulled).subspan(begin * dim, (end - begin) * dim);
  if (wire == TableSpec::Wire::kFloat32) {
    payload->push_back(rows);
    return;
  }
  const std::span<float> to = encoded.Resize(EncodedBytes(wire, dim, end - begin) / sizeof(float));
  Require(!EncodeRows(wire, dim, rows, std::as_writable_bytes(to)).has_value(),
          "rows that were decoded from their format fit in it");
  payload->push_back(to);
}

}  // namespace cohort::ps
