#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>
#include <cohort/optim/row_source.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "checks.h"
#include "looked_up.h"

namespace cohort::nn {
namespace {

using Ids = std::vector<std::uint64_t>;

// Of what tensor cores take at full speed, 16 bytes of 16-bit elements.
constexpr std::int64_t kAligned = 8;

// An output layer's operands for more columns than its table has rows.
struct PaddedTable {
  Tensor table;  // with rows of zeros behind
  Tensor bias;   // 0, and for those -infinity
};

PaddedTable Pad(Tape& tape, ConstElements table, RowsOf size, std::int64_t columns) {
  Kernels& kernels = tape.kernels();
  Stream& stream = tape.stream();
  const DType type = table.dtype();
  PaddedTable padded{tape.Buffer({columns, size.columns}, type), tape.Buffer({columns}, type)};
  const auto rows = static_cast<std::size_t>(size.rows);
  const auto more = static_cast<std::size_t>((columns - size.rows) * size.columns);
  const Tensor zeros = tape.Buffer({static_cast<std::int64_t>(more)});
  kernels.Fill(stream, Floats(zeros), 0.0F);
  std::byte* const end = padded.table.raw() + table.bytes();
  kernels.Copy(stream, table, Elements(padded.table.raw(), table.size(), type));
  kernels.Copy(stream, Floats(zeros), Elements(end, more, type));
  const Tensor bias = tape.Buffer({columns});
  kernels.Fill(stream, Floats(bias).first(rows), 0.0F);
  kernels.Fill(stream, Floats(bias).subspan(rows), -std::numeric_limits<float>::infinity());
  kernels.Copy(stream, Floats(bias), ElementsOf(padded.bias));
  return padded;
}

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
  const Shape shape(std::move(dims));
  tape.NotReplayable();
  if (tape.workspace().device().memory_space() != MemorySpace::kHost) {
    return LookUpOnce(tape, *wanted, outside, shape);
  }
  const Tensor y = tape.Buffer(shape);
  tape.stream().Enqueue([&rows = tape.parameters().rows(), table = table_, wanted, y, outside,
                         training = tape.options().training]() -> Status {
    COHORT_RETURN_IF_ERROR(outside);
    return rows.Lookup(table, *wanted, training, Floats(y));
  });
  return tape.Record(
      y, {}, {}, [table = table_, wanted](BackwardPass& pass) { pass.Rows(table, *wanted); },
      /*trains_rows=*/true);
}

// On a device with memory of its own, to which each row goes once, to be repeated there.
Variable Embedding::LookUpOnce(Tape& tape, std::span<const std::uint64_t> wanted, Status status,
                               const Shape& shape) const {
  const auto asked = static_cast<std::int64_t>(wanted.size());
  Workspace& workspace = tape.workspace();
  const Tensor found = workspace.TakeHost(DType::kFloat32, {asked, width_});
  const auto rows = std::make_shared<LookedUp>();
  rows->table = table_;
  rows->width = width_;
  rows->places = workspace.TakeHost(DType::kInt32, {asked});
  RowsOnce once{.rows = Floats(found), .places = rows->places.data<std::int32_t>(), .ids = Ids()};
  if (status.ok()) {
    // Now: a device's stream is no place to wait for servers.
    status = tape.parameters().rows().LookupOnce(table_, wanted, tape.options().training, once);
  }
  if (!status.ok()) {
    tape.stream().Enqueue([status] { return status; });
    // What kernels are given behind that is within bounds.
    once.ids.assign(std::min<std::size_t>(1, wanted.size()), 0);
    std::ranges::fill(once.places, 0);
    std::ranges::fill(once.rows, 0.0F);
  }
  rows->ids = std::move(once.ids);
  rows->placed = tape.Place(rows->places);
  // Of one size, however many ids are different.
  const Tensor there = tape.Buffer({asked, width_});
  workspace.device().Copy(tape.stream(), found.raw(), there.raw(), rows->floats() * sizeof(float));
  tape.Keep(found);
  const Tensor y = tape.Buffer(shape);
  tape.kernels().Gather(tape.stream(), rows->indices(), rows->rows(),
                        Floats(there).first(rows->floats()), Floats(y));
  return tape.Record(
      y, {}, {}, [rows](BackwardPass& pass) { pass.Rows(rows); }, /*trains_rows=*/true);
}

Variable Embedding::Scores(const Variable& x) const { return ScoresOf(x, rows_); }

Variable Embedding::ScoresLoss(const Variable& x, const Tensor& labels) const {
  const bool half = IsHalf(x.tape().compute_type());
  const std::int64_t columns = half ? (rows_ + kAligned - 1) / kAligned * kAligned : rows_;
  const Variable scores = ScoresOf(x, columns);
  return SoftmaxCrossEntropy(Reshape(scores, {RowsBeforeLast(scores.shape()), columns}), labels, {},
                             rows_);
}

Variable Embedding::ScoresOf(const Variable& given, std::int64_t columns) const {
  Require(!is_table_ && !sparse_, "Embedding " + name_ + ": scores of a dense table and gradient");
  RequireShape(given.shape().rank() >= 1 && Last(given.shape()) == width_, "Embedding " + name_,
               given.shape(), "[..., " + std::to_string(width_) + "]");
  Tape& tape = given.tape();
  const DType type = tape.compute_type();
  const Variable x = Cast(given, type);
  const std::int64_t count = RowsBeforeLast(x.shape());
  ConstElements table = tape.Operand(table_, {rows_, width_});
  PaddedTable padded;
  if (columns > rows_) {
    padded = Pad(tape, table, {rows_, width_}, columns);
    table = ElementsOf(padded.table);
  }
  const Tensor y = tape.Buffer(WithLast(x.shape(), columns), type);
  tape.kernels()
      .MatMul({.m = count,
               .n = columns,
               .k = width_,
               .transpose_b = true,
               .bias = columns > rows_,
               .type = type,
               .out = type})
      .Run(tape.stream(), x.tensor().raw(), table.raw(), padded.bias.raw(), y.raw());
  return tape.Record(
      y, {x}, {table_},
      [&tape, type, count, columns, width = width_, table, padded,
       x = x.tensor()](BackwardPass& pass) {
        Kernels& kernels = tape.kernels();
        const ConstElements dy = pass.output_gradient();
        pass.Parameter(0, [&](FloatSpan dtable) {
          const bool direct = padded.table.raw() == nullptr;
          const Tensor more = direct ? Tensor() : tape.Buffer({columns, width});
          const FloatSpan to = direct ? dtable : Floats(more);
          kernels.MatMul({.m = columns, .n = width, .k = count, .transpose_a = true, .type = type})
              .Run(tape.stream(), dy.raw(), x.raw(), nullptr, to.data());
          if (!direct) {
            kernels.Copy(tape.stream(), to.first(dtable.size()), dtable);
          }
        });
        pass.Input(0, [&](Elements dx) {
          kernels.MatMul({.m = count, .n = width, .k = columns, .type = type, .out = type})
              .Run(tape.stream(), dy.raw(), table.raw(), nullptr, dx.raw());
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

Variable PositionEmbedding::operator()(const Variable& given) const {
  const Variable x = Cast(given, DType::kFloat32);
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
