// Where the build has no libcurl.
#include "remote/http.h"

namespace cohort::data {

HttpClient::HttpClient() = default;
HttpClient::~HttpClient() = default;

Status HttpClient::Perform(const HttpRequest& /*request*/, HttpAnswer& /*answer*/) {
  return FailedPrecondition("built without libcurl [build with COHORT_HTTP=ON]");
}

}  // namespace cohort::data
