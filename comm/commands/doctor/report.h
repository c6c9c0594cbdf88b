// `cohort doctor`'s facts and findings as people and programs read them.

#pragma once

#include <string>
#include <vector>

#include "findings.h"

namespace cohort::doctor {

std::string ToText(const Facts& facts, const std::vector<Finding>& findings);
std::string ToJson(const Facts& facts, const std::vector<Finding>& findings);

}  // namespace cohort::doctor
