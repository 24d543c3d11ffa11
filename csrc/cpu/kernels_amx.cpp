// The convolutions on AMX tiles.
#include "cpu/kernels.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#  include <immintrin.h>
FASTGAN_BEGIN_TARGET(FASTGAN_AMX)

#  define FASTGAN_VARIANT amx
#  define FASTGAN_VECTOR_BYTES 64
#  define FASTGAN_TILES
#  include "ops/linear/cpu_kernel.h"
#  include "ops/conv/cpu_kernel.h"

namespace fastgan::cpu::amx {

namespace {
template <class F, int Stride, int Phases>
constexpr ConvKernels conv = ConvolutionKernels<Convolution<F, Stride, Phases>>::table();
}  // namespace

extern constexpr ConvKernels tiled[static_cast<int>(ConvAlgorithm::count)] = {
    conv<F22, 2, 2>, conv<F42, 2, 2>, {}, conv<F23, 1, 1>, conv<F43, 1, 1>, {}, {}};

}  // namespace fastgan::cpu::amx

FASTGAN_END_TARGET
#endif
