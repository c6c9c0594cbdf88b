// Tape: gradients of the rows that lookups on a device had, which are added up there.

#include <cohort/nn/tape.h>
#include <cohort/optim/id_index.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "looked_up.h"

namespace cohort::nn {

void BackwardPass::Rows(std::shared_ptr<const LookedUp> rows) {
  if (rows->asked() == 0) {
    return;
  }
  const int output = tape_.operations_[static_cast<std::size_t>(operation_)].output;
  tape_.row_gradients_.push_back(
      {std::move(rows), tape_.nodes_[static_cast<std::size_t>(output)].gradient});
}

// Several of one table as one, so that the gradients of an id are added up in the order in which a
// sink would have been given them.
Tape::RowGradient Tape::AsOne(const std::vector<RowGradient>& parts) {
  std::int64_t asked = 0;
  std::size_t ids = 0;
  for (const RowGradient& part : parts) {
    asked += part.rows->asked();
    ids += part.rows->ids.size();
  }
  const auto all = std::make_shared<LookedUp>();
  all->table = parts[0].rows->table;
  all->width = parts[0].rows->width;
  all->places = workspace_.TakeHost(DType::kInt32, {asked});
  const Tensor gradient = Buffer({asked, all->width});
  IdIndex index(ids);
  std::size_t place = 0;
  std::size_t at = 0;  // in the gradient
  for (const RowGradient& part : parts) {
    std::vector<std::int32_t> in_all;
    for (const std::uint64_t id : part.rows->ids) {
      in_all.push_back(static_cast<std::int32_t>(index.Add(id)));
    }
    for (const std::int32_t in_part : part.rows->places.data<std::int32_t>()) {
      all->places.data<std::int32_t>()[place++] = in_all[static_cast<std::size_t>(in_part)];
    }
    const FloatSpan from = Floats(part.gradient);
    kernels_.Copy(stream_, from, Floats(gradient).subspan(at, from.size()));
    at += from.size();
  }
  all->ids = std::move(index).TakeIds();
  all->placed = Place(all->places);
  return {all, gradient};
}

// [ids, width] in the host's memory, once the stream has run.
Tensor Tape::SumOfRows(const RowGradient& gradient) {
  const LookedUp& rows = *gradient.rows;
  const Shape room = {rows.asked(), rows.width};  // of one size, however many ids are different
  const Tensor sums = Buffer(room);
  kernels_.ScatterAdd(stream_, rows.indices(), rows.rows(), Floats(gradient.gradient),
                      Floats(sums).first(rows.floats()));
  Tensor here = workspace_.TakeHost(DType::kFloat32, room);
  workspace_.device().Copy(stream_, sums.raw(), here.raw(), rows.floats() * sizeof(float));
  Keep(here);
  return here;
}

void Tape::SendRows() {
  std::map<int, std::vector<RowGradient>> by_table;
  for (RowGradient& gradient : row_gradients_) {
    by_table[gradient.rows->table].push_back(std::move(gradient));
  }
  row_gradients_.clear();
  std::vector<RowGradient> sums;
  for (const auto& [table, parts] : by_table) {
    const RowGradient all = parts.size() == 1 ? parts[0] : AsOne(parts);
    sums.push_back({all.rows, SumOfRows(all)});
  }
  if (sums.empty() || !Drain()) {
    return;
  }
  for (const auto& [rows, values] : sums) {
    std::vector<std::uint32_t> counts(rows->ids.size(), 0);
    for (const std::int32_t place : rows->places.data<std::int32_t>()) {
      ++counts[static_cast<std::size_t>(place)];
    }
    sink_->AddRows({.table = rows->table,
                    .ids = rows->ids,
                    .values = Floats(values).first(rows->floats()),
                    .counts = counts});
  }
}

}  // namespace cohort::nn
