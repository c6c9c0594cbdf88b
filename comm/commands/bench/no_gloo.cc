// Where Gloo was not found at configure time.
#include "subject.h"

namespace cohort::bench {
namespace {

Status Missing() {
  return Unimplemented("this build has no Gloo [install libgloo-dev and configure again]");
}

}  // namespace

Status GlooHas(const Options& /*options*/) { return Missing(); }

Result<std::unique_ptr<Subject>> MakeGlooSubject(const Options& /*options*/,
                                                 const std::string& /*configuration*/) {
  return Missing();
}

}  // namespace cohort::bench
