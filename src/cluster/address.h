// Addresses of tasks: "host:port", "[::1]:port".

#pragma once

#include <string>
#include <string_view>

namespace cohort {

struct AddressCheck {
  std::string address;  // as the engine uses it: without scheme, IPv6 canonical
  std::string host;     // without brackets, in lower case: equal for equal hosts
  int port = 0;
  std::string error;    // why it is none
  std::string warning;  // what was accepted all the same
};

AddressCheck CheckAddress(std::string_view text);

// "host:port", with brackets where the host is an IPv6 address.
std::string JoinHostPort(std::string_view host, int port);

}  // namespace cohort
