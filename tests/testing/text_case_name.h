// Names of cases whose parameter is a text.

#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace cohort::testing {

// The text itself, with underscores for the colons that names of tests cannot have.
inline std::string TextCaseName(const ::testing::TestParamInfo<std::string>& of) {
  std::string name = of.param;
  std::ranges::replace(name, ':', '_');
  return name;
}

}  // namespace cohort::testing
