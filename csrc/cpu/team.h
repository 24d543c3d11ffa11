// The threads of the process that run whole training steps together.
#pragma once

#include <stdint.h>

#include <atomic>

namespace fastgan::cpu {

// Where the threads of one run wait for each other. A wait spins first, because the others are
// usually less than a microsecond away, and then yields: a thread that has lost its core to
// another process would otherwise hold up everybody for a whole time slice.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// Calls work(context, thread, barrier) on `threads` threads, of which the caller is number 0, and
// returns when all are done. The other threads persist between calls and sleep when idle. Calls
// from several threads take turns. After a fork the child starts threads of its own.
using Work = void (*)(void* context, int thread, Barrier& barrier);
void run_team(int threads, Work work, void* context);

// Wakes the threads that a run_team() soon to come will take, and returns at once: what the caller
// has to do until then hides the 50 to 150 microseconds that waking takes.
void wake_team(int threads);

}  // namespace fastgan::cpu
