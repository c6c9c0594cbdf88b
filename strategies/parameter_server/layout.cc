#include "parameter_server/layout.h"

#include <algorithm>
#include <numeric>

#include <cohort/core/random.h>

namespace cohort::ps {

std::string ParameterSpec::ToString() const {
  return name + " " + shape.ToString() + (trainable ? "" : " (not trainable)");
}

ModelSpec ModelSpec::Of(const ParameterSet& parameters, std::string optimizer,
                        const Consistency& consistency, int servers) {
  ModelSpec spec;
  for (int p = 0; p < parameters.size(); ++p) {
    const ParameterSet::Parameter& from = parameters[p];
    spec.parameters.push_back({from.name, from.shape, from.trainable, from.offset});
  }
  spec.optimizer = std::move(optimizer);
  spec.consistency = consistency;
  spec.servers = servers;
  spec.tables = parameters.tables();
  for (TableSpec& table : spec.tables) {
    if (table.optimizer.empty()) {
      table.optimizer = spec.optimizer;
    }
  }
  return spec;
}

ModelSpec ModelSpec::OfTables(const ParameterSet& parameters, std::string optimizer, int servers) {
  ModelSpec spec =
      Of(parameters, std::move(optimizer), {.mode = Consistency::Mode::kSynchronous}, servers);
  spec.parameters.clear();
  return spec;
}

std::uint64_t ModelSpec::Fingerprint() const {
  std::uint64_t digest = Hash64(optimizer + ' ' + consistency.ToString());
  digest = Hash64(std::to_string(servers), digest);
  for (const ParameterSpec& parameter : parameters) {
    digest = Hash64(parameter.ToString(), digest);
  }
  for (const TableSpec& table : tables) {
    digest = Hash64(std::to_string(table.Fingerprint()), digest);
  }
  return digest;
}

Status ModelSpec::Compare(const ModelSpec& other, const std::string& who) const {
  const std::string hint = " [start every process with the same model and options]";
  const std::size_t common = std::min(parameters.size(), other.parameters.size());
  for (std::size_t p = 0; p < common; ++p) {
    const std::string mine = parameters[p].ToString();
    const std::string theirs = other.parameters[p].ToString();
    if (mine != theirs) {
      return FailedPrecondition("parameter " + std::to_string(p) + " differs: declared " + mine +
                                ", " + who + " has " + theirs + hint);
    }
  }
  if (parameters.size() != other.parameters.size()) {
    const bool more = other.parameters.size() > parameters.size();
    return FailedPrecondition(
        "parameter " + std::to_string(common) + " differs: " +
        (more ? who + " has " + other.parameters[common].ToString() + ", which was not declared"
              : "declared " + parameters[common].ToString() + ", which " + who + " does not have") +
        hint);
  }
  for (std::size_t t = 0; t < std::min(tables.size(), other.tables.size()); ++t) {
    COHORT_RETURN_IF_ERROR(tables[t].Compare(other.tables[t], who));
  }
  if (tables.size() != other.tables.size()) {
    return FailedPrecondition("tables differ: declared " + std::to_string(tables.size()) + ", " +
                              who + " has " + std::to_string(other.tables.size()) + hint);
  }
  if (optimizer != other.optimizer) {
    return FailedPrecondition("optimizer differs: declared " + optimizer + ", " + who + " has " +
                              other.optimizer + hint);
  }
  if (consistency != other.consistency || servers != other.servers) {
    return FailedPrecondition("mode differs: declared " + std::to_string(servers) + " servers, " +
                              consistency.ToString() + "; " + who + " has " +
                              std::to_string(other.servers) + ", " + other.consistency.ToString() +
                              hint);
  }
  return {};
}

std::vector<Chunk> MakeChunks(const ModelSpec& spec, std::int64_t max_elements) {
  Require(spec.servers >= 1 && max_elements >= 1, "chunks need a server and a size");
  std::vector<Chunk> chunks;
  for (std::size_t p = 0; p < spec.parameters.size(); ++p) {
    const ParameterSpec& parameter = spec.parameters[p];
    const std::int64_t elements = parameter.shape.elements();
    const std::int64_t pieces = (elements + max_elements - 1) / max_elements;
    for (std::int64_t i = 0; i < pieces; ++i) {
      const std::int64_t begin = elements / pieces * i + std::min(i, elements % pieces);
      const std::int64_t end = elements / pieces * (i + 1) + std::min(i + 1, elements % pieces);
      chunks.push_back({.parameter = static_cast<int>(p),
                        .begin = begin,
                        .elements = end - begin,
                        .offset = parameter.offset + begin,
                        .trainable = parameter.trainable});
    }
  }
  std::vector<std::size_t> order(chunks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return chunks[a].elements > chunks[b].elements;
  });
  std::vector<std::int64_t> load(static_cast<std::size_t>(spec.servers), 0);
  for (const std::size_t c : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += chunks[c].elements;
    chunks[c].server = static_cast<int>(least - load.begin());
  }
  return chunks;
}

std::vector<std::vector<int>> PackFrames(const std::vector<Chunk>& chunks, int server,
                                         std::int64_t max_bytes, int floats_per_element) {
  std::vector<std::vector<int>> frames;
  std::int64_t bytes = 0;
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    if (chunks[c].server != server) {
      continue;
    }
    const std::int64_t size =
        chunks[c].elements * floats_per_element * static_cast<std::int64_t>(sizeof(float));
    if (frames.empty() || bytes + size > max_bytes) {
      frames.emplace_back();
      bytes = 0;
    }
    frames.back().push_back(static_cast<int>(c));
    bytes += size;
  }
  return frames;
}

}  // namespace cohort::ps
