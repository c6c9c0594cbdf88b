// Arena: the memory of one set of gradients.
//
// The first elements are the header, in which the replica's weight travels: always in the host's
// memory, also where the gradients are in a device's, which only its kernels reach.
//
// Where a parameter is exchanged as rows, only the rows that a pass touched are other than zero;
// the arena knows which, so that neither zeroing nor sending it costs the whole table.
//
// Thread rules: the thread of the replica that writes here, and work on its stream.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/comm/memory.h>
#include <cohort/core/status.h>
#include <cohort/device/device.h>

namespace cohort {

// Rows of a table that were written to: each once and ascending, unless all are meant.
struct TouchedRows {
  bool all = false;
  std::vector<std::int64_t> indices;
};

class Arena {
 public:
  // Zeroed floats from `communicator`'s own kind of memory; nullptr: from this process's.
  static Result<Arena> Make(Communicator* communicator, std::int64_t elements);
  // Of a device that does not share the host's memory, with unspecified contents; or of the host's
  // memory that copies to and from that device reach at full speed. Throws StatusError.
  static Arena MakeOn(Device& device, std::int64_t elements);
  static Arena MakeFor(Device& device, std::int64_t elements);

  std::span<float> values() const { return values_; }
  std::span<float> header() const { return header_; }
  std::span<float> values(std::int64_t begin, std::int64_t elements) const {
    return values_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(elements));
  }
  // By parameter, for those exchanged as rows; the others' stay empty.
  std::vector<TouchedRows>& touched() { return touched_; }

 private:
  std::unique_ptr<Memory> memory_;
  std::shared_ptr<std::byte> device_memory_;  // owner: this; the device's allocator frees it
  std::unique_ptr<float[]> host_header_;      // where values_ are a device's
  std::span<float> values_;
  std::span<float> header_;
  std::vector<TouchedRows> touched_;
};

// Adds what lies at the same place.
void AddTo(std::span<float> to, std::span<const float> from);

// The union, ascending.
TouchedRows UnionOf(const TouchedRows& a, const TouchedRows& b);

}  // namespace cohort
