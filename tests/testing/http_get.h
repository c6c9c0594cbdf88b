// A request by hand, to a server on this host.
#pragma once

#include <string>

namespace cohort::testing {

// The whole answer, head and body, to a GET; empty where nobody answers.
std::string HttpGet(int port, const std::string& path);

}  // namespace cohort::testing
