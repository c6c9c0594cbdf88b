// Preloaded into a process of a test, sets its wall clock COHORT_TEST_CLOCK seconds wrong. The
// monotonic clocks are right, as on a host whose date is wrong.
//
// Who waits until a time of the wall clock waits in the kernel, whose clock is another one: there
// the time is put right, also where a library calls the kernel itself, as gRPC's do (with
// libfaketime, which does not, their threads wait for ever, or not at all).

#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <cstdarg>
#include <cstdint>
#include <cstdlib>

namespace {

time_t Skew() {
  static const time_t skew = [] {
    const char* const seconds = std::getenv("COHORT_TEST_CLOCK");
    return seconds == nullptr ? time_t{0} : static_cast<time_t>(std::atoll(seconds));
  }();
  return skew;
}

template <typename Function>
Function* Real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

timespec ForTheKernel(const timespec& until) { return {until.tv_sec - Skew(), until.tv_nsec}; }

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, timespec* now) noexcept {
  static auto* const real = Real<int(clockid_t, timespec*)>("clock_gettime");
  const int result = real(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    now->tv_sec += Skew();
  }
  return result;
}

__attribute__((visibility("default"))) int gettimeofday(timeval* now, void* zone) noexcept {
  static auto* const real = Real<int(timeval*, void*)>("gettimeofday");
  const int result = real(now, zone);
  if (result == 0) {
    now->tv_sec += Skew();
  }
  return result;
}

__attribute__((visibility("default"))) time_t time(time_t* now) noexcept {
  static auto* const real = Real<time_t(time_t*)>("time");
  const time_t result = real(nullptr) + Skew();
  if (now != nullptr) {
    *now = result;
  }
  return result;
}

__attribute__((visibility("default"))) int pthread_cond_clockwait(pthread_cond_t* condition,
                                                                  pthread_mutex_t* mutex,
                                                                  clockid_t clock,
                                                                  const timespec* until) {
  static auto* const real =
      Real<int(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*)>(
          "pthread_cond_clockwait");
  if (clock != CLOCK_REALTIME) {
    return real(condition, mutex, clock, until);
  }
  const timespec right = ForTheKernel(*until);
  return real(condition, mutex, clock, &right);
}

__attribute__((visibility("default"))) long syscall(long number, ...) noexcept {
  static auto* const real = Real<long(long, ...)>("syscall");
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& argument : a) {
    argument = va_arg(list, long);
  }
  va_end(list);
  timespec right = {};
  if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) != 0 && a[3] != 0) {
    right = ForTheKernel(*reinterpret_cast<const timespec*>(a[3]));
    a[3] = static_cast<long>(reinterpret_cast<std::intptr_t>(&right));
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

}  // extern "C"
