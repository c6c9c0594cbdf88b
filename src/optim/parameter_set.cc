#include <cohort/core/random.h>
#include <cohort/optim/parameter_set.h>

#include <utility>

namespace cohort {
namespace {

constexpr std::int64_t kAlignmentElements = 16;  // 64 bytes of float

std::int64_t Align(std::int64_t elements) {
  return (elements + kAlignmentElements - 1) / kAlignmentElements * kAlignmentElements;
}

}  // namespace

int ParameterSet::Add(std::string name, Shape shape, Initializer initializer, bool trainable) {
  Require(!built_, "parameters are added before Build");
  Require(!name.empty(), "a parameter has a name");
  Require(Find(name) < 0 && FindTable(name) < 0, "parameter names are unique: " + name);
  Parameter& added = parameters_.emplace_back();
  added.name = std::move(name);
  added.shape = std::move(shape);
  added.initializer = std::move(initializer);
  added.trainable = trainable;
  added.offset = arena_elements_;
  arena_elements_ = Align(arena_elements_ + added.shape.elements());
  return size() - 1;
}

int ParameterSet::AddTable(TableSpec spec) {
  Require(!built_, "tables are added before Build");
  Require(!spec.name.empty(), "a table has a name");
  Require(Find(spec.name) < 0 && FindTable(spec.name) < 0,
          "names of tables and parameters are unique: " + spec.name);
  tables_.push_back(std::move(spec));
  return static_cast<int>(tables_.size()) - 1;
}

int ParameterSet::FindTable(std::string_view name) const {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    if (tables_[t].name == name) {
      return static_cast<int>(t);
    }
  }
  return -1;
}

RowSource& ParameterSet::rows() const {
  Require(rows_ != nullptr, "rows of a table are read after the set was given to Bind");
  return *rows_;
}

void ParameterSet::Freeze(int parameter) {
  Parameter& frozen = parameters_.at(static_cast<std::size_t>(parameter));
  frozen.trainable = false;
  frozen.frozen = true;
}

void ParameterSet::Build() {
  Require(!built_, "Build is called once");
  arena_ = Tensor(DType::kFloat32, {arena_elements_});
  built_ = true;
  for (int p = 0; p < size(); ++p) {
    if (const Initializer& initial = (*this)[p].initializer) {
      std::uint64_t element = 0;
      for (float& x : value(p)) {
        x = initial(element++);
      }
    }
  }
}

int ParameterSet::Find(std::string_view name) const {
  for (int p = 0; p < size(); ++p) {
    if ((*this)[p].name == name) {
      return p;
    }
  }
  return -1;
}

std::int64_t ParameterSet::elements() const {
  std::int64_t total = 0;
  for (const Parameter& parameter : parameters_) {
    total += parameter.shape.elements();
  }
  return total;
}

std::span<float> ParameterSet::value(int parameter) {
  const Parameter& p = (*this)[parameter];
  return all().subspan(static_cast<std::size_t>(p.offset),
                       static_cast<std::size_t>(p.shape.elements()));
}

std::span<const float> ParameterSet::value(int parameter) const {
  const Parameter& p = (*this)[parameter];
  return all().subspan(static_cast<std::size_t>(p.offset),
                       static_cast<std::size_t>(p.shape.elements()));
}

std::span<float> ParameterSet::all() {
  Require(built_, "values are read after Build");
  return arena_.data<float>();
}

std::span<const float> ParameterSet::all() const {
  Require(built_, "values are read after Build");
  return arena_.data<float>();
}

ParameterSet ParameterSet::CopyOn(Device& device, Stream& stream) const {
  Require(built_, "a copy of a set after Build");
  ParameterSet copy;
  copy.parameters_ = parameters_;
  copy.tables_ = tables_;
  copy.rows_ = rows_;
  copy.arena_elements_ = arena_elements_;
  copy.arena_ = Tensor(DType::kFloat32, arena_.shape(),
                       device.Allocate(arena_.bytes(), "parameters"), device.memory_space());
  copy.built_ = true;
  device.Copy(stream, arena_.raw(), copy.arena_.raw(), arena_.bytes());
  return copy;
}

std::uint64_t ParameterSet::Fingerprint() const {
  std::uint64_t hash = Hash64("parameters");
  for (const Parameter& p : parameters_) {
    // A length before the name keeps ("a","bc") and ("ab","c") apart.
    hash = Hash64(std::to_string(p.name.size()) + ":" + p.name + p.shape.ToString() +
                      (p.trainable ? "t"
                       : p.frozen  ? "c"
                                   : "f"),
                  hash);
  }
  for (const TableSpec& table : tables_) {
    hash = Hash64(std::to_string(table.Fingerprint()), hash);
  }
  return hash;
}

}  // namespace cohort
