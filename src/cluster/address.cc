#include "address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "problems.h"

namespace cohort {
namespace {

bool HostCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
}

std::string Lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return result;
}

// The canonical text of an IPv6 address, its zone ("%eth0") kept; empty if it is none.
std::string CanonicalIpv6(const std::string& text) {
  const std::size_t percent = text.find('%');
  in6_addr bytes = {};
  if (::inet_pton(AF_INET6, text.substr(0, percent).c_str(), &bytes) != 1) {
    return "";
  }
  std::array<char, INET6_ADDRSTRLEN> canonical = {};
  ::inet_ntop(AF_INET6, &bytes, canonical.data(), canonical.size());
  std::string result = canonical.data();
  if (percent != std::string::npos) {
    const std::string zone = text.substr(percent + 1);
    if (zone.empty() || !std::all_of(zone.begin(), zone.end(), HostCharacter)) {
      return "";
    }
    result += "%" + zone;
  }
  return result;
}

// Splits off "grpc://" and its kin; an unknown scheme is an error.
std::string_view WithoutScheme(std::string_view text, AddressCheck& check) {
  const std::size_t mark = text.find("://");
  if (mark == std::string_view::npos) {
    return text;
  }
  const std::string scheme = Lower(text.substr(0, mark));
  constexpr std::array kKnown = {"grpc", "grpcs", "http", "https", "tcp", "dns"};
  if (std::find(kKnown.begin(), kKnown.end(), scheme) == kKnown.end()) {
    check.error = fmt::format("'{}' has an unknown scheme [write host:port]", text);
    return text;
  }
  check.warning = fmt::format("'{}': the scheme is ignored [write host:port]", text);
  std::string_view rest = text.substr(mark + 3);
  return scheme == "dns" && rest.starts_with('/') ? rest.substr(1) : rest;  // dns:///host:port
}

// "[::1]:2222" to ("::1", ":2222"), "a:2222" to ("a", ":2222").
void SplitHost(std::string_view text, AddressCheck& check, std::string_view& port) {
  if (text.starts_with('[')) {
    const std::size_t close = text.find(']');
    check.host = CanonicalIpv6(Lower(text.substr(1, close == text.npos ? close : close - 1)));
    if (close == text.npos || check.host.empty()) {
      check.error = fmt::format("'{}' is no IPv6 address in brackets [write [::1]:2222]", text);
      return;
    }
    port = text.substr(close + 1);
    return;
  }
  const std::size_t colon = text.find(':');
  if (colon != text.npos && text.find(':', colon + 1) != text.npos) {
    check.error = fmt::format(
        "'{}' has more than one colon [an IPv6 address needs brackets: "
        "[::1]:2222]",
        text);
    return;
  }
  check.host = Lower(text.substr(0, colon));
  port = colon == text.npos ? std::string_view() : text.substr(colon);
  if (check.host.empty() || !std::all_of(check.host.begin(), check.host.end(), HostCharacter)) {
    check.error = fmt::format("'{}' has no valid host name [write host:port]", text);
  }
}

}  // namespace

std::string JoinHostPort(std::string_view host, int port) {
  return host.find(':') == host.npos ? fmt::format("{}:{}", host, port)
                                     : fmt::format("[{}]:{}", host, port);
}

AddressCheck CheckAddress(std::string_view text) {
  AddressCheck check;
  check.address = text;
  if (text.empty()) {
    check.error = "the address is empty [write host:port]";
    return check;
  }
  if (std::any_of(text.begin(), text.end(), [](char c) { return c >= 0 && c <= ' '; })) {
    check.error = fmt::format("'{}' has spaces in or around it [write host:port]", text);
    return check;
  }
  text = WithoutScheme(text, check);
  std::string_view port;
  if (check.error.empty()) {
    SplitHost(text, check, port);
  }
  if (!check.error.empty()) {
    return check;
  }
  if (port.empty()) {
    check.error = fmt::format("'{}' has no port [write {}:2222]", text, text);
    return check;
  }
  const std::optional<int> number = port[0] == ':' ? ParseNumber(port.substr(1)) : std::nullopt;
  if (!number || *number > 65535) {
    check.error = fmt::format("'{}': the port must be a number from 1 to 65535", text);
    return check;
  }
  check.port = *number;
  check.address = text[0] == '[' ? JoinHostPort(check.host, check.port) : std::string(text);
  return check;
}

}  // namespace cohort
