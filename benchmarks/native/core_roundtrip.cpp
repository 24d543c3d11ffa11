// How long a cache line takes from one core to another and back, in nanoseconds.
//
// On virtual machines the two cores may be neighbours or far apart, and it changes from day to day.
// A step made of short parallel phases feels it, so the harness measures it before and after every
// run.
//
//   core_roundtrip CPU_A CPU_B      prints {"best": ns, "median": ns}

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#ifdef __linux__
#  include <pthread.h>
#  include <sched.h>
#endif

namespace {

constexpr int kRounds = 60;
constexpr int kTrips = 2000;
constexpr double kBudgetSeconds =
    1.0;  // a busy machine deschedules one side for milliseconds at a time

using Clock = std::chrono::steady_clock;

bool pin(int cpu) {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
#else
  (void)cpu;
  return true;
#endif
}

// A line of its own, so that nothing else moves with it.
alignas(256) std::atomic<long> ball{0};
alignas(256) std::atomic<bool> pinned{false};
alignas(256) std::atomic<bool> lost{false};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: core_roundtrip CPU_A CPU_B\n");
    return 2;
  }
  const int cpu_a = std::atoi(argv[1]);
  const int cpu_b = std::atoi(argv[2]);

  std::thread other([cpu_b] {
    if (!pin(cpu_b)) lost = true;
    pinned = true;
    for (long seen = 0;;) {
      const long now = ball.load(std::memory_order_acquire);
      if (now < 0) return;
      if (now > seen && (now & 1)) {
        seen = now;
        ball.store(now + 1, std::memory_order_release);
      }
    }
  });
  if (!pin(cpu_a)) lost = true;
  while (!pinned) std::this_thread::yield();
  if (lost) {
    ball = -1;
    other.join();
    std::fprintf(stderr, "cannot pin to cpus %d and %d\n", cpu_a, cpu_b);
    return 1;
  }

  std::vector<double> rounds;
  long value = 0;
  const auto begin = Clock::now();
  for (int round = 0; round < kRounds; ++round) {
    const auto start = Clock::now();
    for (int trip = 0; trip < kTrips; ++trip) {
      ball.store(value + 1, std::memory_order_release);
      value += 2;
      while (ball.load(std::memory_order_acquire) != value) {
      }
    }
    const auto end = Clock::now();
    rounds.push_back(std::chrono::duration<double>(end - start).count() * 1e9 / kTrips);
    if (std::chrono::duration<double>(end - begin).count() > kBudgetSeconds) break;
  }
  ball = -1;
  other.join();

  std::sort(rounds.begin(), rounds.end());
  std::printf("{\"best\": %.1f, \"median\": %.1f}\n", rounds.front(), rounds[rounds.size() / 2]);
}
