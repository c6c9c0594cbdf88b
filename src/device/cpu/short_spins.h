// SpinShortly: gomp's threads, which compute for this library and for oneDNN, sleep soon after a
// loop.
//
// By default they wait for the next loop by spinning for some milliseconds. On processors that
// something else could use (threads of the input, of communication, of another process) that costs
// a multiple of what it saves: a training step took 20 times as long beside one busy process. gomp
// spins a hundredth of that where its threads are more than the processors, so this has it count
// some more, which sleep. OMP_WAIT_POLICY or GOMP_SPINCOUNT in the environment are left to decide.

#pragma once

namespace cohort::cpu {

// For loops of so many threads; any number of times, from any thread. Cost: the first time a
// sleeping thread for each processor that the loops leave, and two.
void SpinShortly(int threads);

}  // namespace cohort::cpu
