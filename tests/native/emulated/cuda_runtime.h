// Found instead of CUDA's where kernels are compiled for the emulator.
#pragma once

#include "cuda_emulator.h"
