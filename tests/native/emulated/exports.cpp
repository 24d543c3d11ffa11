// What a library of emulated kernels offers to Python beside them.
#include "cuda_emulator.h"

extern "C" {

// 0: threads and blocks in order; any other number: that shuffle of them.
void emulator_seed(uint64_t seed) { fastgan::emulator::state.seed = seed; }

// Why the last launch failed; empty if it did not.
const char* emulator_error() { return fastgan::emulator::state.error.c_str(); }

// Launches since the library was loaded.
uint64_t emulator_launches() { return fastgan::emulator::state.launches; }

// Makes the device one of `multiprocessors` with compute capability major.minor and so much shared
// memory for a block, in KiB; a multiprocessor has one more.
void emulator_device(int64_t multiprocessors, int64_t major, int64_t minor, int64_t shared) {
  auto& device = fastgan::emulator::device;
  device.multiprocessors = static_cast<int>(multiprocessors);
  device.major = static_cast<int>(major);
  device.minor = static_cast<int>(minor);
  device.shared_per_block = static_cast<size_t>(shared) * 1024;
  device.shared_per_multiprocessor = device.shared_per_block + 1024;
}

}  // extern "C"
