#include "parameter_server/model/layout.h"

#include <algorithm>

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
  digest = Hash64(std::to_string(servers) + ' ' + partitioner.ToString() +
                      (copies ? " copies" : "") + (counts_steps ? " steps" : ""),
                  digest);
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
  if (partitioner != other.partitioner) {
    return FailedPrecondition("partitioner differs: declared " + partitioner.ToString() + ", " +
                              who + " has " + other.partitioner.ToString() + hint);
  }
  if (copies != other.copies) {
    const auto name = [](bool has) { return has ? "kReplica" : "none that keeps copies"; };
    return FailedPrecondition(std::string("server_loss differs: declared ") + name(copies) + ", " +
                              who + " has " + name(other.copies) + hint);
  }
  if (counts_steps != other.counts_steps) {
    const auto name = [](bool counts) {
      return counts ? "with the variables" : "that hold tables alone";
    };
    return FailedPrecondition(std::string("strategy differs: declared servers ") +
                              name(counts_steps) + ", " + who + " has servers " +
                              name(other.counts_steps) + hint);
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
  // What goes to one server as a whole: chunks [first, end).
  struct Shard {
    std::size_t first;
    std::size_t end;
    std::int64_t elements;
  };
  std::vector<Shard> shards;
  // Part i of n as equal ones, of which the first are larger by one.
  const auto part = [](std::int64_t all, std::int64_t n, std::int64_t i) {
    return all / n * i + std::min(i, all % n);
  };
  for (std::size_t p = 0; p < spec.parameters.size(); ++p) {
    const ParameterSpec& parameter = spec.parameters[p];
    const std::int64_t elements = parameter.shape.elements();
    const std::int64_t rows = parameter.shape.rank() == 0 ? 1 : parameter.shape[0];
    const std::int64_t of_row = rows == 0 ? 0 : elements / rows;
    const std::int64_t count = spec.partitioner.ShardsOf(parameter.shape, spec.servers);
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int64_t first = part(rows, count, s) * of_row;
      const std::int64_t all = part(rows, count, s + 1) * of_row - first;
      const std::int64_t pieces = (all + max_elements - 1) / max_elements;
      const bool together = spec.partitioner.kind != Partitioner::Kind::kPieces;
      for (std::int64_t i = 0; i < pieces; ++i) {
        const std::int64_t begin = first + part(all, pieces, i);
        const std::int64_t end = first + part(all, pieces, i + 1);
        if (i == 0 || !together) {
          shards.push_back({chunks.size(), chunks.size(), 0});
        }
        chunks.push_back({.parameter = static_cast<int>(p),
                          .begin = begin,
                          .elements = end - begin,
                          .offset = parameter.offset + begin,
                          .trainable = parameter.trainable});
        shards.back().end = chunks.size();
        shards.back().elements += end - begin;
      }
    }
  }
  std::stable_sort(shards.begin(), shards.end(),
                   [](const Shard& a, const Shard& b) { return a.elements > b.elements; });
  std::vector<std::int64_t> load(static_cast<std::size_t>(spec.servers), 0);
  for (const Shard& shard : shards) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += shard.elements;
    for (std::size_t c = shard.first; c < shard.end; ++c) {
      chunks[c].server = static_cast<int>(least - load.begin());
    }
  }
  for (int s = 0; spec.counts_steps && s < spec.servers; ++s) {
    if (load[static_cast<std::size_t>(s)] == 0) {
      chunks.push_back({.parameter = kNoParameter, .server = s, .trainable = false});
    }
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
