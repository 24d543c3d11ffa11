// Working memory that several threads take and give back at once, as a program of its own: for the
// sanitizers. Each writes its own number over all of what it holds and must find it there.
#include "cpu/workspace.h"

#include <atomic>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

using namespace fastgan::cpu;

namespace {

constexpr int kThreads = 4, kRounds = 400;
constexpr int64_t kSizes[] = {1, 1000, 600'000, 1'100'000};

std::atomic<int> failures{0};

void fill(float* memory, int64_t floats, float value) {
  for (int64_t i = 0; i < floats; i += 509) memory[i] = value;
  memory[floats - 1] = value;
}

void expect(const float* memory, int64_t floats, float value) {
  bool same = memory[floats - 1] == value;
  for (int64_t i = 0; i + 1 < floats; i += 509) same = same && memory[i] == value;
  if (!same) ++failures;
}

void work(int thread) {
  std::mt19937 bits(thread);
  struct Held {
    float* memory;
    int64_t floats;
    float value;
  };
  std::vector<Held> held;
  for (int round = 0; round < kRounds; ++round) {
    const auto value = static_cast<float>(thread * kRounds + round);
    const int64_t floats = kSizes[bits() % 4];
    const Workspace scratch(floats);
    fill(scratch.data(), floats, value);
    held.push_back({static_cast<float*>(lend(floats)), floats, -value});
    fill(held.back().memory, floats, -value);
    if (held.size() > 3) {
      const size_t which = bits() % held.size();
      expect(held[which].memory, held[which].floats, held[which].value);
      give_back(held[which].memory);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
    }
    if (bits() % 16 == 0) release_workspaces();
    expect(scratch.data(), floats, value);
  }
  for (const Held& h : held) {
    expect(h.memory, h.floats, h.value);
    give_back(h.memory);
  }
}

}  // namespace

int main() {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
  for (std::thread& t : threads) t.join();
  release_workspaces();
  if (release_workspaces() != 0) ++failures;
  std::printf("%d failures\n", failures.load());
  return failures != 0;
}
