#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>

#include "checks.h"

namespace cohort::nn {

Embedding::Embedding(ParameterSet& parameters, const std::string& name, std::int64_t rows,
                     std::int64_t width, const EmbeddingOptions& options)
    : name_(name), rows_(rows), width_(width), sparse_(options.sparse_gradient) {
  table_ =
      parameters.Add(name + "/table", {rows, width},
                     options.initializer ? options.initializer
                                         : Uniform(-0.05F, 0.05F, options.seed, name + "/table"));
}

Variable Embedding::operator()(Tape& tape, const Tensor& ids) const {
  Require(ids.dtype() == DType::kInt64 || ids.dtype() == DType::kInt32,
          "Embedding " + name_ + ": ids are int64 or int32, not " +
              std::string(DTypeName(ids.dtype())));
  tape.Keep(ids);
  const Indices indices{ids.raw(), ids.elements(), ids.dtype() == DType::kInt64};
  const RowsOf table{rows_, width_};
  std::vector<std::int64_t> dims = ids.shape().dims();
  dims.push_back(width_);
  const Tensor y = tape.Buffer(Shape(std::move(dims)));
  tape.kernels().Gather(tape.stream(), indices, table, tape.Value(table_, {rows_, width_}),
                        Floats(y));
  return tape.Record(y, {}, {table_},
                     [&tape, indices, table, sparse = sparse_](BackwardPass& pass) {
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

}  // namespace cohort::nn
