// What an exception in a gRPC call is to who called: an error that says what it was. gRPC itself
// makes one without a text of it.

#pragma once

#include <exception>
#include <new>
#include <string>

#include <grpcpp/grpcpp.h>

#include <cohort/core/status.h>

#include "grpc_util.h"

namespace cohort {

// ResourceExhausted: memory has ended. Else Internal. `what`: was being done, and by whom.
inline Status StatusOf(const std::exception& error, const std::string& what) {
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr
             ? ResourceExhausted(what + ": no memory is left (" + error.what() + ")")
             : Internal(what + ": " + error.what());
}

// Answers a call by `fn`, which finishes it last of all, and returns its reactor.
template <typename Fn>
grpc::ServerUnaryReactor* Guarded(grpc::CallbackServerContext* context, const std::string& what,
                                  const Fn& fn) {
  grpc::Status status;
  try {
    return fn();
  } catch (const std::exception& error) {
    status = ToGrpc(StatusOf(error, what));
  }
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

// The same on one of gRPC's threads of its own, which returns what `fn` returns.
template <typename Fn>
grpc::Status GuardedAnswer(const std::string& what, const Fn& fn) {
  try {
    return fn();
  } catch (const std::exception& error) {
    return ToGrpc(StatusOf(error, what));
  }
}

}  // namespace cohort
