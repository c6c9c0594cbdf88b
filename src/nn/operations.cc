#include <cohort/nn/operations.h>

#include <cohort/core/random.h>

#include <algorithm>

#include "checks.h"

namespace cohort::nn {
namespace {

void RequireSameShape(const char* operation, const Variable& a, const Variable& b) {
  RequireShape(a.shape() == b.shape(), operation, b.shape(),
               a.shape().ToString() + " like the first operand");
}

}  // namespace

Variable Cast(const Variable& x, DType type) {
  if (x.tensor().dtype() == type) {
    return x;
  }
  Tape& tape = x.tape();
  const Tensor y = tape.Buffer(x.shape(), type);
  tape.kernels().Copy(tape.stream(), ElementsOf(x.tensor()), ElementsOf(y));
  return tape.Record(y, {x}, {}, [&tape](BackwardPass& pass) {
    pass.Input(
        0, [&](Elements dx) { tape.kernels().Copy(tape.stream(), pass.output_gradient(), dx); });
  });
}

Variable Activate(const Variable& x, Activation f) {
  if (f == Activation::kNone) {
    return x;
  }
  Tape& tape = x.tape();
  const Tensor y = tape.Buffer(x.shape(), x.tensor().dtype());
  tape.kernels().Activate(tape.stream(), f, ElementsOf(x.tensor()), ElementsOf(y));
  // Gelu's derivative is a function of x, the others' of y; what is not needed is not kept.
  const Tensor kept = f == Activation::kGelu ? x.tensor() : y;
  return tape.Record(y, {x}, {}, [&tape, f, kept](BackwardPass& pass) {
    pass.Input(0, [&](Elements dx) {
      tape.kernels().ActivateBackward(tape.stream(), f, ElementsOf(kept), ElementsOf(kept),
                                      pass.output_gradient(), dx);
    });
  });
}

Variable Relu(const Variable& x) { return Activate(x, Activation::kRelu); }
Variable Gelu(const Variable& x) { return Activate(x, Activation::kGelu); }
Variable Sigmoid(const Variable& x) { return Activate(x, Activation::kSigmoid); }
Variable Tanh(const Variable& x) { return Activate(x, Activation::kTanh); }

Variable Softmax(const Variable& given) {
  const Variable x = Cast(given, DType::kFloat32);
  RequireShape(x.shape().rank() >= 1, "Softmax", x.shape(), "[..., classes]");
  Tape& tape = x.tape();
  const RowsOf size{RowsBeforeLast(x.shape()), Last(x.shape())};
  const Tensor y = tape.Buffer(x.shape());
  tape.kernels().Softmax(tape.stream(), size, Floats(x.tensor()), Floats(y));
  return tape.Record(y, {x}, {}, [&tape, size, y](BackwardPass& pass) {
    pass.Input(0, [&](FloatSpan dx) {
      tape.kernels().SoftmaxBackward(tape.stream(), size, Floats(y), pass.output_gradient(), dx);
    });
  });
}

Variable Add(const Variable& a, const Variable& b) {
  RequireSameShape("Add", a, b);
  Tape& tape = a.tape();
  const bool second = IsHalf(a.tensor().dtype()) && b.tensor().dtype() == DType::kFloat32;
  const Variable& x = second ? b : a;  // of the sum's type
  const Variable& more = second ? a : b;
  const Tensor y = tape.Buffer(a.shape(), x.tensor().dtype());
  tape.kernels().Add(tape.stream(), ElementsOf(x.tensor()), ElementsOf(more.tensor()),
                     ElementsOf(y));
  return tape.Record(y, {x, more}, {}, [&tape](BackwardPass& pass) {
    pass.Input(
        1, [&](Elements db) { tape.kernels().Copy(tape.stream(), pass.output_gradient(), db); });
    pass.PassOn(0);
  });
}

Variable Multiply(const Variable& first, const Variable& second) {
  RequireSameShape("Multiply", first, second);
  const Variable a = Cast(first, DType::kFloat32);
  const Variable b = Cast(second, DType::kFloat32);
  Tape& tape = a.tape();
  const Tensor y = tape.Buffer(a.shape());
  tape.kernels().Multiply(tape.stream(), Floats(a.tensor()), Floats(b.tensor()), Floats(y));
  return tape.Record(y, {a, b}, {}, [&tape, a = a.tensor(), b = b.tensor()](BackwardPass& pass) {
    const ConstFloatSpan dy = pass.output_gradient();
    pass.Input(0, [&](FloatSpan da) { tape.kernels().Multiply(tape.stream(), dy, Floats(b), da); });
    pass.Input(1, [&](FloatSpan db) { tape.kernels().Multiply(tape.stream(), dy, Floats(a), db); });
  });
}

Variable DotInteraction(const Variable& one, const Variable& others) {
  const Variable first = Cast(one, DType::kFloat32);
  const Variable rest = Cast(others, DType::kFloat32);
  RequireShape(first.shape().rank() == 2, "DotInteraction", first.shape(), "[batch, width]");
  const std::int64_t batch = first.shape()[0];
  const std::int64_t width = first.shape()[1];
  RequireShape(rest.shape().rank() == 3 && rest.shape()[0] == batch && rest.shape()[2] == width,
               "DotInteraction", rest.shape(),
               "[" + std::to_string(batch) + ", features, " + std::to_string(width) + "]");
  Tape& tape = first.tape();
  const RowsOf size{1 + rest.shape()[1], width};
  const Tensor y = tape.Buffer(Shape{batch, width + size.rows * (size.rows - 1) / 2});
  tape.kernels().Interaction(tape.stream(), batch, size, Floats(first.tensor()),
                             Floats(rest.tensor()), Floats(y));
  return tape.Record(
      y, {first, rest}, {},
      [&tape, batch, size, first = first.tensor(), rest = rest.tensor()](BackwardPass& pass) {
        const auto backward = [&](FloatSpan dfirst, FloatSpan drest) {
          tape.kernels().InteractionBackward(tape.stream(), batch, size, Floats(first),
                                             Floats(rest), pass.output_gradient(), dfirst, drest);
        };
        pass.Input(0, [&](FloatSpan dfirst) { backward(dfirst, {}); });
        pass.Input(1, [&](FloatSpan drest) { backward({}, drest); });
      });
}

Variable Concat(const std::vector<Variable>& given, int axis) {
  Require(!given.empty(), "Concat of at least one part");
  std::vector<Variable> parts;
  for (const Variable& part : given) {
    parts.push_back(Cast(part, DType::kFloat32));
  }
  const Shape& first = parts[0].shape();
  axis += axis < 0 ? first.rank() : 0;
  Require(0 <= axis && axis < first.rank(), "Concat along an axis of its parts");
  std::int64_t rows = 1;   // product of the axes before
  std::int64_t inner = 1;  // and of those behind
  for (int i = 0; i < first.rank(); ++i) {
    (i < axis ? rows : inner) *= i == axis ? 1 : first[i];
  }
  std::vector<std::int64_t> dims = first.dims();
  dims[static_cast<std::size_t>(axis)] = 0;
  std::vector<std::int64_t> widths;
  for (const Variable& part : parts) {
    std::vector<std::int64_t> same = first.dims();
    bool fits = part.shape().rank() == first.rank();
    if (fits) {
      same[static_cast<std::size_t>(axis)] = part.shape()[axis];
      fits = part.shape() == Shape(same);
    }
    RequireShape(fits, "Concat", part.shape(),
                 first.ToString() + " but for axis " + std::to_string(axis));
    dims[static_cast<std::size_t>(axis)] += part.shape()[axis];
    widths.push_back(part.shape()[axis] * inner);
  }
  Tape& tape = parts[0].tape();
  const Tensor y = tape.Buffer(Shape(dims));
  const std::int64_t stride = dims[static_cast<std::size_t>(axis)] * inner;
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    tape.kernels().CopyRows(tape.stream(), {rows, widths[i]},
                            {Floats(parts[i].tensor()).data(), widths[i]},
                            {Floats(y).data() + offset, stride});
    offset += widths[i];
  }
  return tape.Record(y, parts, {}, [&tape, rows, widths, stride](BackwardPass& pass) {
    std::int64_t from = 0;
    for (std::size_t i = 0; i < widths.size(); ++i) {
      pass.Input(static_cast<int>(i), [&](FloatSpan dx) {
        tape.kernels().CopyRows(tape.stream(), {rows, widths[i]},
                                {pass.output_gradient().floats() + from, stride},
                                {dx.data(), widths[i]});
      });
      from += widths[i];
    }
  });
}

Variable Sum(const Variable& given, int axis) {
  const Variable x = Cast(given, DType::kFloat32);
  axis += axis < 0 ? x.shape().rank() : 0;
  Require(0 <= axis && axis < x.shape().rank(), "Sum over an axis of its operand");
  MiddleOf size{.outer = 1, .middle = x.shape()[axis], .inner = 1};
  std::vector<std::int64_t> dims;
  for (int i = 0; i < x.shape().rank(); ++i) {
    if (i != axis) {
      (i < axis ? size.outer : size.inner) *= x.shape()[i];
      dims.push_back(x.shape()[i]);
    }
  }
  Tape& tape = x.tape();
  const Tensor y = tape.Buffer(Shape(std::move(dims)));
  tape.kernels().SumMiddle(tape.stream(), size, 1.0F, Floats(x.tensor()), Floats(y));
  return tape.Record(y, {x}, {}, [&tape, size](BackwardPass& pass) {
    pass.Input(0, [&](FloatSpan dx) {
      tape.kernels().SumMiddleBackward(tape.stream(), size, 1.0F, pass.output_gradient(), dx);
    });
  });
}

Variable Reshape(const Variable& x, const Shape& shape) {
  RequireShape(x.shape().elements() == shape.elements(), "Reshape to " + shape.ToString(),
               x.shape(), std::to_string(shape.elements()) + " elements");
  return x.tape().Record(x.tensor().Reshaped(shape), {x}, {},
                         [](BackwardPass& pass) { pass.PassOn(0); });
}

Variable Flatten(const Variable& x) {
  RequireShape(x.shape().rank() >= 1, "Flatten", x.shape(), "[batch, ...]");
  return Reshape(x, Shape{x.shape()[0], ElementsPerRow(x.shape())});
}

Variable Dropout(const Variable& x, float rate, const std::string& name) {
  Require(0.0F <= rate && rate < 1.0F, "a dropout rate in [0, 1)");
  RequireShape(x.shape().rank() >= 1, "Dropout " + name, x.shape(), "[batch, ...]");
  Tape& tape = x.tape();
  if (!tape.options().training || rate == 0.0F) {
    return x;
  }
  tape.NotReplayable();
  const std::int64_t per_example = ElementsPerRow(x.shape());
  const DropoutSpec spec{
      .rate = rate,
      .key = Hash64(name, tape.options().seed),
      .step = static_cast<std::uint64_t>(tape.options().step),
      .first = static_cast<std::uint64_t>(tape.options().first_example * per_example)};
  const Tensor y = tape.Buffer(x.shape(), x.tensor().dtype());
  tape.kernels().Dropout(tape.stream(), spec, ElementsOf(x.tensor()), ElementsOf(y));
  return tape.Record(y, {x}, {}, [&tape, spec](BackwardPass& pass) {
    pass.Input(0, [&](Elements dx) {
      tape.kernels().Dropout(tape.stream(), spec, pass.output_gradient(), dx);
    });
  });
}

}  // namespace cohort::nn
