// What a push, or a part of a round, may weigh: from 0 on, and little enough for many to add up to
// something finite. Not a NaN.

#pragma once

namespace cohort::ps {

inline bool IsWeight(double weight) { return weight >= 0 && weight < 1e300; }

}  // namespace cohort::ps
