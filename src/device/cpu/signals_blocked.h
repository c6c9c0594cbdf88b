// SignalsBlocked: while it lives, no signal handler runs on this thread.
//
// Some matrix kernels of oneDNN 2.6 keep their stack pointer in a workspace on the heap. A handler
// that interrupts one has its frame written over whatever lies below. So signals are held back
// while oneDNN computes: the kernel delivers them to another thread, or a moment later. Those that
// the thread raises itself (SIGSEGV, ...) are not. Threads started meanwhile (OpenMP's) never run
// handlers. Cost: two system calls, 0.2 us.

#pragma once

#include <csignal>

namespace cohort::cpu {

class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t held;
    sigfillset(&held);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) {
      sigdelset(&held, own);
    }
    ::pthread_sigmask(SIG_BLOCK, &held, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace cohort::cpu
