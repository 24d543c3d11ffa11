// What a core reads and writes in a second from each level of its caches, and what it reads of
// lines that another core has just written, GB/s.
//
// A phase of a step that moves more bytes than it multiplies is bound by this and not by the
// register peak (fma_peak.cpp).
//
//   cache_bandwidth CPU [CPU...]
//       prints {"read": {KiB: {"one": x, "all": y}}, "update": {...}, "handed": x}
//
// "read" goes through so many KiB, "update" through as many in three arrays that are read and
// written back as Adam's are (bytes both ways count); "one" is the first cpu alone, "all" the mean
// of a core when every given cpu works at once. "handed" is a quarter of a MiB that the second cpu
// wrote, read by the first; it is left out for one cpu.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#  include <pthread.h>
#  include <sched.h>
#endif

namespace {

constexpr int kRepeats = 9;
constexpr size_t kBytes = size_t{1} << 25;  // gone through in one measurement, about a millisecond
constexpr size_t kHanded = size_t{1} << 18;
constexpr size_t kSizes[] = {24, 768, 3072, 12288};  // KiB

using Clock = std::chrono::steady_clock;

#if defined(__x86_64__) && !defined(__clang__)
#  define FASTGAN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#  define FASTGAN_CLONES
#endif

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

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Four sums of a line each, so that loads wait for nothing but themselves.
FASTGAN_CLONES float read(const float* from, size_t n) {
  using Line = float __attribute__((vector_size(64)));
  Line a = {}, b = {}, c = {}, d = {};
  const Line* const lines = reinterpret_cast<const Line*>(from);
  for (size_t i = 0; i < n / 16; i += 4) {
    a += lines[i];
    b += lines[i + 1];
    c += lines[i + 2];
    d += lines[i + 3];
  }
  a += b + c + d;
  return a[0];
}

FASTGAN_CLONES void update(float* x, float* y, float* z, size_t n) {
  using Line = float __attribute__((vector_size(64)));
  Line* const a = reinterpret_cast<Line*>(x);
  Line* const b = reinterpret_cast<Line*>(y);
  Line* const c = reinterpret_cast<Line*>(z);
  for (size_t i = 0; i < n / 16; ++i) {
    b[i] = b[i] * 0.5f + 1.f;
    c[i] = c[i] * 0.5f + 1.f;
    a[i] -= b[i] + c[i];
  }
}

struct Memory {
  explicit Memory(size_t bytes)
      : data(static_cast<float*>(
            std::aligned_alloc(size_t{1} << 21, (bytes >> 21 << 21) + (1 << 21)))) {
    std::fill(data, data + bytes / sizeof(float), 1.f);
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  float* const data;
};

volatile float sink;

double read_rate(size_t bytes) {
  Memory memory(bytes);
  const size_t rounds = std::max(kBytes / bytes, size_t{2});
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto start = Clock::now();
    for (size_t i = 0; i < rounds; ++i) sink = read(memory.data, bytes / sizeof(float));
    best = std::max(best, static_cast<double>(rounds * bytes) / seconds_since(start));
  }
  return best / 1e9;
}

double update_rate(size_t bytes) {
  const size_t each = bytes / 3 / 1024 * 1024;
  Memory a(each), b(each), c(each);
  const size_t n = each / sizeof(float), rounds = std::max(kBytes / bytes, size_t{2});
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto start = Clock::now();
    for (size_t i = 0; i < rounds; ++i) update(a.data, b.data, c.data, n);
    best = std::max(best, static_cast<double>(rounds * 6 * each) / seconds_since(start));
  }
  return best / 1e9;
}

struct Rate {
  double one, all;
};

template <class Measure>
Rate measure(Measure rate, size_t bytes, const std::vector<int>& cpus) {
  Rate result{0, 0};
  std::thread([&] {
    pin(cpus[0]);
    result.one = rate(bytes);
  }).join();
  std::atomic<size_t> ready{0};
  std::vector<double> rates(cpus.size());
  std::vector<std::thread> team;
  for (size_t i = 0; i < cpus.size(); ++i)
    team.emplace_back([&, i] {
      pin(cpus[i]);
      ++ready;
      while (ready < cpus.size()) std::this_thread::yield();
      rates[i] = rate(bytes);
    });
  for (auto& member : team) member.join();
  for (const double x : rates) result.all += x / static_cast<double>(cpus.size());
  return result;
}

double handed_rate(int reader, int writer) {
  Memory memory(kHanded);
  std::atomic<int> turn{0};
  std::thread other([&] {
    pin(writer);
    for (int round = 0; round < 200; ++round) {
      while (turn.load(std::memory_order_acquire) != 2 * round) {
      }
      std::fill(memory.data, memory.data + kHanded / sizeof(float), static_cast<float>(round));
      turn.store(2 * round + 1, std::memory_order_release);
    }
  });
  double best = 0;
  std::thread([&] {
    pin(reader);
    for (int round = 0; round < 200; ++round) {
      while (turn.load(std::memory_order_acquire) != 2 * round + 1) {
      }
      const auto start = Clock::now();
      sink = read(memory.data, kHanded / sizeof(float));
      best = std::max(best, static_cast<double>(kHanded) / seconds_since(start));
      turn.store(2 * round + 2, std::memory_order_release);
    }
  }).join();
  other.join();
  return best / 1e9;
}

template <class Measure>
std::string all_sizes(Measure rate, const std::vector<int>& cpus) {
  std::string text;
  for (const size_t size : kSizes) {
    const Rate r = measure(rate, size * 1024, cpus);
    char one[96];
    std::snprintf(one, sizeof one, "%s\"%zu\": {\"one\": %.1f, \"all\": %.1f}",
                  text.empty() ? "" : ", ", size, r.one, r.all);
    text += one;
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int> cpus;
  for (int i = 1; i < argc; ++i) cpus.push_back(std::atoi(argv[i]));
  if (cpus.empty()) {
    std::fprintf(stderr, "usage: cache_bandwidth CPU [CPU...]\n");
    return 2;
  }
  std::printf("{\"read\": {%s}, \"update\": {%s}", all_sizes(read_rate, cpus).c_str(),
              all_sizes(update_rate, cpus).c_str());
  if (cpus.size() > 1) std::printf(", \"handed\": %.1f", handed_rate(cpus[0], cpus[1]));
  std::printf("}\n");
}
