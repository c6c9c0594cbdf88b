// BlockRound: the parts of a synchronous round of one chunk, as far as they have arrived, and what
// they come to.
//
// A part is put where the round has its place, so that adding up is in the order of the parts,
// whatever the order of arrival. A round that is cut anew (the next attempt) begins without parts;
// the parts of an older attempt are late. A round that is complete is summed, and waits for its
// clipping factor where there is one; Finish makes room for the next one, whose parts take the
// memory of these.
//
// `version` is the chunk's: the round in progress is version + 1. Not synchronised: the chunk's
// lock. Memory: a chunk's values for each part that has arrived; where the chunk is trainable for
// one, once they are summed.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <cohort/parameter_server.pb.h>

namespace cohort::ps {

class BlockRound {
 public:
  // Nothing of the round in progress has arrived; what the last one came to is kept.
  void Clear();

  // A part of this round and attempt comes. False: it is late, the round is applied, or is being
  // cut anew without it.
  bool Enter(const Round& round, std::uint64_t version);
  // Of the round entered. A part has come when Arrived says so, not before its values are there.
  bool has(std::uint32_t part) const { return parts_[part].present; }
  std::span<float> Room(std::uint32_t part, double weight, std::size_t floats);
  bool IsLastMissing(std::uint32_t part) const;
  void Arrived(std::uint32_t part) { parts_[part].present = true; }

  // Is that round applied, or complete and waiting for its factor?
  bool Completed(std::uint64_t round, std::uint64_t version) const {
    return version >= round || (waits_ && version + 1 == round);
  }
  // Of a round that is not Completed: drops all parts but those that `commit` names, and returns
  // how many of them had come. Nothing, and nothing changes: a part that it names is not there, or
  // the round is another one.
  std::optional<std::uint64_t> Elect(const Commit& commit, std::uint64_t version);
  // All parts are there. `trainable`: they are gradients, which are added up; else each is kept.
  // `waits`: for a factor.
  void Sum(bool trainable, bool waits);
  bool waits() const { return waits_; }

  // Of the last round that was summed: of its sum, where it waited for a factor; and of its parts.
  double squares() const { return squares_; }
  double weight() const { return weight_; }
  // What Sum has left, until Finish. Of gradients: empty, where no part had one.
  std::span<const float> gradient() const;
  // Of what is not trained by gradients: the mean of the parts' values, by weight. As it is, where
  // no part had any.
  void Mean(std::span<float> values) const;
  // It is applied.
  void Finish();

  // For another server that gets the chunk: all but what the parts hold, which `pieces` says there
  // is; that; and the other way round. The values of a part are put there after Learn.
  void Tell(ChunkRound* told) const;
  void Learn(const ChunkRound& told);
  std::size_t parts() const { return parts_.size(); }
  std::span<const float> ValuesOf(std::uint32_t part) const { return parts_[part].values; }
  void SetValues(std::uint32_t part, std::span<const float> values) {
    parts_[part].values.assign(values.begin(), values.end());
  }

 private:
  struct Part {
    bool present = false;
    double weight = 0;
    std::vector<float> values;
  };

  std::uint32_t attempt_ = 0;
  std::vector<Part> parts_;
  double squares_ = 0;
  double weight_ = 0;
  bool waits_ = false;
};

}  // namespace cohort::ps
