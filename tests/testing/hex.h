// Bytes written as hexadecimal text; spaces are ignored.
#pragma once

#include <string>
#include <string_view>

namespace cohort::testing {

std::string FromHex(std::string_view hex);
std::string ToHex(std::string_view bytes);

}  // namespace cohort::testing
