// ParameterSet: the one home of a process's parameters.
//
// A model declares its parameters in order (Add), then Build allocates one arena in which they lie
// in declaration order, each aligned to 64 bytes. After Build nothing moves or is added. Broadcast,
// checkpoints, gradient buckets and parameter-server sharding are all spans of this arena, so
// names, order and offsets must be equal in every process: Fingerprint() is what strategies compare
// before step 1.
//
// Beside parameters a model may declare sparse tables, whose rows are not in the arena: they are
// where the strategy keeps them, and looked up by id.
//
// A copy of a set may lie in a device's memory (CopyOn): its spans are for that device's kernels.
//
// Thread rules: declare from one thread. After Build, values may be read from any thread; who may
// write, and when, is the strategy's business (between steps, or where a step's contract says).

#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/tensor.h>
#include <cohort/device/device.h>
#include <cohort/optim/table_spec.h>

namespace cohort {

class RowSource;  // <cohort/optim/row_source.h>

// How an element gets its first value: a pure function of the element's index, so that any
// partitioning of a parameter over servers starts from the same bits.
using Initializer = std::function<float(std::uint64_t element)>;

class ParameterSet {
 public:
  struct Parameter {
    std::string name;
    Shape shape;
    Initializer initializer;
    bool trainable =
        true;             // false: kept and broadcast, never given a gradient (batch-norm averages)
    bool frozen = false;  // then not trainable either, and never written: nothing is broadcast
    std::int64_t offset = 0;  // in elements from the start of the arena; multiple of 16
  };

  ParameterSet() = default;
  // Moving keeps every span valid; a copy would alias the arena, so there is none.
  ParameterSet(ParameterSet&&) = default;
  ParameterSet& operator=(ParameterSet&&) = default;

  // Declares a parameter, and returns its index. ContractError after Build, or if the name is
  // empty or taken. Without an initializer the values start as zeros.
  int Add(std::string name, Shape shape, Initializer initializer, bool trainable = true);
  // Declares a sparse table, and returns its index among the tables. ContractError after Build, or
  // if the name is empty or taken. What else is wrong with `spec` is an error of Bind.
  int AddTable(TableSpec spec);
  // From now on the parameter is a constant: it gets no gradient, and its value is not written
  // during training, by the step function either, so that no step sends it to other processes.
  // Before the set is given to a strategy, which sends it once.
  void Freeze(int parameter);
  // Allocates the arena and fills it from the initialisers. ContractError the second time.
  void Build();
  bool built() const { return built_; }

  int size() const { return static_cast<int>(parameters_.size()); }
  const Parameter& operator[](int parameter) const {
    return parameters_.at(static_cast<std::size_t>(parameter));
  }
  int FindTable(std::string_view name) const;  // -1 if there is none
  const std::vector<TableSpec>& tables() const { return tables_; }
  // Where the rows are: set by the strategy that the set is bound to, which outlives its use.
  void SetRows(RowSource* rows) { rows_ = rows; }
  RowSource& rows() const;  // ContractError before Bind

  int Find(std::string_view name) const;  // -1 if there is none
  std::int64_t elements() const;          // of all parameters, without padding

  // The values; ContractError before Build.
  std::span<float> value(int parameter);
  std::span<const float> value(int parameter) const;
  std::span<float> all();  // the arena, padding (zeros) included
  std::span<const float> all() const;
  // The same declarations over memory of that device, with the same values once the stream has got
  // so far; this set must keep its until then. Rows of tables stay where SetRows of either says.
  ParameterSet CopyOn(Device& device, Stream& stream) const;
  MemorySpace memory_space() const { return arena_.space(); }
  // Of names, shapes, order, which are trainable, and the tables.
  std::uint64_t Fingerprint() const;

 private:
  std::vector<Parameter> parameters_;
  std::vector<TableSpec> tables_;
  RowSource* rows_ = nullptr;
  std::int64_t arena_elements_ = 0;
  Tensor arena_;
  bool built_ = false;
};

}  // namespace cohort
