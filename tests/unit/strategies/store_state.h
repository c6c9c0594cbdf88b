// All that a store holds, to be compared.

#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "parameter_server/variables/parameter_store.h"

namespace cohort::ps {

// Of chunks, with slots and versions.
struct StoreState {
  std::vector<std::vector<float>> chunks;
  std::vector<std::uint64_t> versions;
  bool operator==(const StoreState&) const = default;
};

// Of the header's chunks, as they are (0) or were at a snapshot.
inline StoreState StateOf(ParameterStore& store, FrameHeader header, std::uint64_t snapshot) {
  header.set_slots(true);
  header.set_snapshot(snapshot);
  std::vector<ParameterStore::Reading> readings;
  EXPECT_EQ(store.Plan(header, &readings).kind(), Error::NONE);
  StoreState state;
  for (ParameterStore::Reading& reading : readings) {
    store.Copy(reading, true, state.chunks.emplace_back(reading.floats));
    state.versions.push_back(reading.version);
  }
  return state;
}

}  // namespace cohort::ps
