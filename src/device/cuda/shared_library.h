// Libraries of CUDA's that are opened when they are needed, and their functions.

#pragma once

#include <dlfcn.h>

#include <cohort/core/status.h>

#include <initializer_list>
#include <string>

namespace cohort::cuda {

// Where the loader looks, or else in one of `folders`. It stays open. `user`: "a GPU".
inline Result<void*> OpenLibrary(const std::string& name, const std::string& user,
                                 std::initializer_list<std::string> folders) {
  if (void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); library != nullptr) {
    return library;
  }
  const char* const reason = dlerror();
  const std::string text = reason == nullptr ? name : reason;
  for (const std::string& folder : folders) {
    void* const library = dlopen((folder + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) {
      return library;
    }
  }
  return FailedPrecondition(user + " needs " + name + ": " + text +
                            " [install it, or put its folder into LD_LIBRARY_PATH]");
}

template <typename Call>
Status FindCall(void* library, const std::string& from, const char* name, Call& call) {
  call = reinterpret_cast<Call>(dlsym(library, name));
  if (call == nullptr) {
    return FailedPrecondition(from + " has no " + name + " [install a newer one]");
  }
  return {};
}

}  // namespace cohort::cuda
