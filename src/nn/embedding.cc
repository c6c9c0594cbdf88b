#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>
#include <cohort/optim/row_source.h>

#include <memory>
#include <utility>
#include <vector>

#include "checks.h"

namespace cohort::nn {
namespace {

using Ids = std::vector<std::uint64_t>;

}  // namespace

Embedding::Embedding(ParameterSet& parameters, const std::string& name, std::int64_t rows,
                     std::int64_t width, const EmbeddingOptions& options)
    : name_(name),
      rows_(rows),
      width_(width),
      sparse_(options.sparse_gradient),
      is_table_(options.table.has_value()) {
  if (is_table_) {
    TableSpec spec = *options.table;
    spec.name = name + "/table";
    spec.dim = width;
    spec.seed = spec.seed == 0 ? options.seed : spec.seed;
    table_ = parameters.AddTable(std::move(spec));
    return;
  }
  table_ =
      parameters.Add(name + "/table", {rows, width},
                     options.initializer ? options.initializer
                                         : Uniform(-0.05F, 0.05F, options.seed, name + "/table"));
}

Variable Embedding::operator()(Tape& tape, const Tensor& ids) const {
  Require(ids.dtype() == DType::kInt64 || ids.dtype() == DType::kInt32,
          "Embedding " + name_ + ": ids are int64 or int32, not " +
              std::string(DTypeName(ids.dtype())));
  if (is_table_) {
    return LookUp(tape, ids);
  }
  const Tensor placed = tape.Place(ids);
  const Indices indices{placed.raw(), ids.elements(), ids.dtype() == DType::kInt64};
  const RowsOf table{rows_, width_};
  std::vector<std::int64_t> dims = ids.shape().dims();
  dims.push_back(width_);
  const Tensor y = tape.Buffer(Shape(std::move(dims)));
  tape.kernels().Gather(tape.stream(), indices, table, tape.Value(table_, {rows_, width_}),
                        Floats(y));
  // A sink takes rows from the host's memory.
  const bool sparse = sparse_ && placed.space() == MemorySpace::kHost;
  return tape.Record(y, {}, {table_}, [&tape, indices, table, sparse](BackwardPass& pass) {
    const ConstFloatSpan dy = pass.output_gradient();
    if (!sparse) {
      pass.Parameter(0, [&](FloatSpan dtable) {
        tape.kernels().ScatterAdd(tape.stream(), indices, table, dy, dtable);
      });
      return;
    }
    // The ids came from the host, where the sink will read them.
    std::vector<std::int64_t> rows(static_cast<std::size_t>(indices.size));
    for (std::int64_t i = 0; i < indices.size; ++i) {
      rows[static_cast<std::size_t>(i)] = indices.At(i);
    }
    pass.ParameterSlices(0, {.indices = rows, .values = dy});
  });
}

// Of a sparse table: its rows come from where the strategy has them, on the stream.
Variable Embedding::LookUp(Tape& tape, const Tensor& ids) const {
  const Indices indices{ids.raw(), ids.elements(), ids.dtype() == DType::kInt64};
  const auto wanted = std::make_shared<Ids>(static_cast<std::size_t>(indices.size));
  Status outside;
  for (std::int64_t i = 0; i < indices.size; ++i) {
    const std::int64_t id = indices.At(i);
    if (rows_ > 0 && (id < 0 || id >= rows_) && outside.ok()) {
      outside =
          InvalidArgument("Embedding " + name_ + ": id " + std::to_string(id) + " at place " +
                          std::to_string(i) + " is not in [0, " + std::to_string(rows_) + ")");
    }
    (*wanted)[static_cast<std::size_t>(i)] = static_cast<std::uint64_t>(id);
  }
  std::vector<std::int64_t> dims = ids.shape().dims();
  dims.push_back(width_);
  const Tensor y = tape.Buffer(Shape(std::move(dims)));
  tape.NotReplayable();
  const bool on_host = y.space() == MemorySpace::kHost;
  const Tensor found = on_host ? y : tape.workspace().TakeHost(y.dtype(), y.shape());
  const auto look_up = [&rows = tape.parameters().rows(), table = table_, wanted, found, outside,
                        training = tape.options().training]() -> Status {
    COHORT_RETURN_IF_ERROR(outside);
    return rows.Lookup(table, *wanted, training, Floats(found));
  };
  if (on_host) {
    tape.stream().Enqueue(look_up);
  } else {
    // Now: a device's stream is no place to wait for servers.
    if (Status status = look_up(); !status.ok()) {
      tape.stream().Enqueue([status] { return status; });
    }
    tape.workspace().device().Copy(tape.stream(), found.raw(), y.raw(), y.bytes());
    tape.Keep(found);
  }
  return tape.Record(
      y, {}, {}, [table = table_, wanted](BackwardPass& pass) { pass.Rows(table, *wanted); },
      /*trains_rows=*/true);
}

}  // namespace cohort::nn
