#include "cpu/team.h"

#include "cpu/clock.h"
#include <pthread.h>

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fastgan::cpu {

namespace {

// About 20 to 80 microseconds: longer than any phase is uneven, shorter than a time slice.
constexpr int kSpins = 2000;
// How long a helper stays awake after a task or a wake_team(), giving way to whoever wants its
// core: a program that calls again at once finds it there, where waking it would take 50 to 150
// microseconds. What Python does between wake_team() and run_team() takes 300 to 700.
constexpr double kAwake = 1e-3;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Task {
  Work work = nullptr;  // none: only to be awake
  void* context = nullptr;
  Barrier* barrier = nullptr;
};

// One helper thread and the mailbox through which it gets its tasks.
struct Helper {
  alignas(64) std::atomic<uint32_t> posted{0};
  alignas(64) std::atomic<uint32_t> done{0};
  Task task{};
  int number = 0;
  bool stop = false;
  std::thread thread;

  void loop() {
    for (uint32_t seen = 0;; ++seen) {
      for (int i = 0; i < kSpins && posted.load(std::memory_order_acquire) == seen; ++i) relax();
      for (const double end = seconds() + kAwake;
           posted.load(std::memory_order_acquire) == seen && seconds() < end;)
        std::this_thread::yield();
      while (posted.load(std::memory_order_acquire) == seen) {
        posted.wait(seen, std::memory_order_acquire);
      }
      if (stop) return;
      if (task.work) task.work(task.context, number, *task.barrier);
      done.store(seen + 1, std::memory_order_release);
      done.notify_one();
    }
  }

  void post(const Task& next) {
    task = next;
    posted.fetch_add(1, std::memory_order_release);
    posted.notify_one();
  }

  bool idle() const {
    return done.load(std::memory_order_acquire) == posted.load(std::memory_order_relaxed);
  }

  void wait() {
    const uint32_t wanted = posted.load(std::memory_order_relaxed);
    for (int i = 0; i < kSpins; ++i) {
      if (done.load(std::memory_order_acquire) == wanted) return;
      relax();
    }
    for (uint32_t now; (now = done.load(std::memory_order_acquire)) != wanted;) {
      done.wait(now, std::memory_order_acquire);
    }
  }
};

struct Team {
  std::mutex turn;
  std::vector<std::unique_ptr<Helper>> helpers;

  Team() = default;
  ~Team() {
    for (auto& helper : helpers) {
      helper->stop = true;
      helper->post({});
      helper->thread.join();
    }
  }

  void grow(int threads) {
    while (static_cast<int>(helpers.size()) < threads - 1) {
      auto helper = std::make_unique<Helper>();
      helper->number = static_cast<int>(helpers.size()) + 1;
      helper->thread = std::thread([raw = helper.get()] { raw->loop(); });
      helpers.push_back(std::move(helper));
    }
  }
};

// A pointer, so that a forked child can leave its parent's team behind: those threads do not exist
// in the child and must neither be joined nor waited for.
std::unique_ptr<Team> team;
std::once_flag once;

void before_fork() {
  if (team) team->turn.lock();
}
void after_fork_in_parent() {
  if (team) team->turn.unlock();
}
void after_fork_in_child() {
  if (!team) return;
  static_cast<void>(team.release());
  team = std::make_unique<Team>();
}

void start() {
  std::call_once(once, [] {
    team = std::make_unique<Team>();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  });
}

}  // namespace

void Barrier::wait() {
  if (threads_ == 1) return;
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int i = 0; round_.load(std::memory_order_acquire) == round; ++i) {
    if (i < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

void run_team(int threads, Work work, void* context) {
  if (threads == 1) {
    Barrier alone(1);
    work(context, 0, alone);
    return;
  }
  start();
  const std::lock_guard<std::mutex> lock(team->turn);
  team->grow(threads);
  Barrier barrier(threads);
  for (int i = 0; i < threads - 1; ++i) {
    team->helpers[i]->wait();  // it may be about to look at what wake_team() has posted
    team->helpers[i]->post({work, context, &barrier});
  }
  work(context, 0, barrier);
  for (int i = 0; i < threads - 1; ++i) team->helpers[i]->wait();
}

void wake_team(int threads) {
  if (threads <= 1) return;
  start();
  const std::unique_lock<std::mutex> lock(team->turn, std::try_to_lock);
  if (!lock) return;  // somebody's run is going on: they are awake
  team->grow(threads);
  for (int i = 0; i < threads - 1; ++i) {
    if (team->helpers[i]->idle()) team->helpers[i]->post({});
  }
}

}  // namespace fastgan::cpu
