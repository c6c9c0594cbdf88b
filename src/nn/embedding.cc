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

Variable Embedding::Scores(const Variable& x) const {
  Require(!is_table_ && !sparse_, "Embedding " + name_ + ": scores of a dense table and gradient");
  RequireShape(x.shape().rank() >= 1 && Last(x.shape()) == width_, "Embedding " + name_, x.shape(),
               "[..., " + std::to_string(width_) + "]");
  Tape& tape = x.tape();
  const std::int64_t count = RowsBeforeLast(x.shape());
  const ConstFloatSpan table = tape.Value(table_, {rows_, width_});
  const Tensor y = tape.Buffer(WithLast(x.shape(), rows_));
  tape.kernels()
      .MatMul({.m = count, .n = rows_, .k = width_, .transpose_b = true})
      .Run(tape.stream(), Floats(x.tensor()).data(), table.data(), nullptr, Floats(y).data());
  return tape.Record(
      y, {x}, {table_},
      [&tape, count, rows = rows_, width = width_, table, x = x.tensor()](BackwardPass& pass) {
        Kernels& kernels = tape.kernels();
        const ConstFloatSpan dy = pass.output_gradient();
        pass.Parameter(0, [&](FloatSpan dtable) {
          kernels.MatMul({.m = rows, .n = width, .k = count, .transpose_a = true})
              .Run(tape.stream(), dy.data(), Floats(x).data(), nullptr, dtable.data());
        });
        pass.Input(0, [&](FloatSpan dx) {
          kernels.MatMul({.m = count, .n = width, .k = rows})
              .Run(tape.stream(), dy.data(), table.data(), nullptr, dx.data());
        });
      });
}

PositionEmbedding::PositionEmbedding(ParameterSet& parameters, const std::string& name,
                                     std::int64_t length, std::int64_t width,
                                     const PositionEmbeddingOptions& options)
    : name_(name), length_(length), width_(width) {
  table_ =
      parameters.Add(name + "/table", {length, width},
                     options.initializer ? options.initializer
                                         : Uniform(-0.05F, 0.05F, options.seed, name + "/table"));
}

Variable PositionEmbedding::operator()(const Variable& x) const {
  RequireShape(x.shape().rank() == 3 && x.shape()[1] <= length_ && x.shape()[2] == width_,
               "PositionEmbedding " + name_, x.shape(),
               "[batch, up to " + std::to_string(length_) + ", " + std::to_string(width_) + "]");
  Tape& tape = x.tape();
  // Of every example one row, of which the table's beginning is another.
  const MiddleOf rows{.outer = 1, .middle = x.shape()[0], .inner = x.shape()[1] * width_};
  const auto used = static_cast<std::size_t>(rows.inner);
  const Tensor y = tape.Buffer(x.shape());
  tape.kernels().SumMiddleBackward(tape.stream(), rows, 1.0F,
                                   tape.Value(table_, {length_, width_}).first(used), Floats(y));
  tape.kernels().Add(tape.stream(), Floats(x.tensor()), Floats(y), Floats(y));
  return tape.Record(y, {x}, {table_}, [&tape, rows, used](BackwardPass& pass) {
    pass.Parameter(0, [&](FloatSpan dtable) {
      tape.kernels().SumRows(tape.stream(), {rows.middle, rows.inner}, pass.output_gradient(),
                             dtable.first(used));
      tape.kernels().Fill(tape.stream(), dtable.subspan(used), 0.0F);
    });
    pass.PassOn(0);
  });
}

}  // namespace cohort::nn
