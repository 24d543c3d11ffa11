// Latents, images and Adam's constants of an update.
#pragma once

#include "common/adam.h"
#include "cuda/step/moment.cuh"
#include "step/passes.h"

namespace fastgan::cuda::step {

__device__ inline Adam<float> adam_of(const Optimizer& o, int64_t update, double lr) {
  return make_adam_of_powers<float>(power(o.beta1, update), power(o.beta2, update), lr, o.beta1,
                                    o.beta2, o.eps, o.weight_decay, o.rule == Rule::adamw);
}

__device__ inline void latents(const Step& s, const Moment& now, int segment, int64_t first,
                               int64_t stride) {
  const Philox g = latent_philox(s.seed, segment, now.update, now.of_g);
  float* const to = s.latents + now.copy * s.latent_copy + segment * now.batch * s.latent_stride;
  const int64_t n = now.batch * s.latent;
  for (int64_t block = first; 4 * block < n; block += stride) {
    uint32_t w[4];
    Four z;
    philox_block(g, static_cast<uint32_t>(block), w[0], w[1], w[2], w[3]);
    normals_from(w[0], w[1], z.v[0], z.v[1]);
    normals_from(w[2], w[3], z.v[2], z.v[3]);
    int64_t row = 4 * block / s.latent, column = 4 * block % s.latent;
    if (s.latent % 4 == 0) {
      *reinterpret_cast<Four*>(to + row * s.latent_stride + column) = z;
      continue;
    }
    for (int e = 0; e < 4 && 4 * block + e < n; ++e) {
      to[row * s.latent_stride + column] = z.v[e];
      if (++column == s.latent) {
        column = 0;
        ++row;
      }
    }
  }
}

// The image in row `row` of D's update number k, and whether there is one.
__device__ __forceinline__ bool image_at(const Step& s, const Clock& clock, const Moment& now,
                                         int64_t k, int64_t row, int64_t& image) {
  image = k * s.batch + row;
  if (!s.order) return true;
  const uint64_t epoch =
      static_cast<uint64_t>(now.update / s.per_epoch) - static_cast<uint64_t>(clock.epoch);
  const uint64_t at = epoch * static_cast<uint64_t>(s.count) +
                      static_cast<uint64_t>(first_row(now.update, s.batch, s.per_epoch) + row);
  const bool ordered = epoch < s.permutations && at < static_cast<uint64_t>(s.ordered);
  image = ordered ? s.order[at] : -1;
  return static_cast<uint64_t>(image) < static_cast<uint64_t>(s.stored);
}

// Asks for the images of an update, so that images() finds them in the L2 cache.
__device__ inline void fetch_images(const Step& s, const Clock& clock, const Moment& now, int64_t k,
                                    int64_t first, int64_t stride) {
  constexpr unsigned kLine = 128;
  const char* const base =
      s.bytes ? reinterpret_cast<const char*>(s.bytes) : reinterpret_cast<const char*>(s.floats);
  const unsigned size = static_cast<unsigned>(s.image) * (s.bytes ? 1 : sizeof(float));
  const unsigned lines = size / kLine + 1;
  for (int64_t item = first; item < now.batch * lines; item += stride) {
    const unsigned number = static_cast<unsigned>(item);  // a field fits into 32 bits of lines
    int64_t image;
    if (!image_at(s, clock, now, k, number / lines, image)) continue;
    prefetch(base + image * size + min(number % lines * kLine, size - 1));
  }
}

__device__ inline void images(const Step& s, const Clock& clock, const Moment& now, int64_t k,
                              int64_t first, int64_t stride) {
  const int64_t fours = tiles_along(s.image, 4);
  float* const to = s.images + now.copy * s.image_copy;
  const bool whole = s.image % 4 == 0;
  const bool vector_bytes = whole && reinterpret_cast<uintptr_t>(s.bytes) % 4 == 0;
  for (int64_t item = first; item < now.batch * fours; item += stride) {
    const int64_t row = item / fours, column = item % fours * 4;
    int64_t image;
    const bool there = image_at(s, clock, now, k, row, image);
    const int64_t from = image * s.image + column;
    Four x{};
    if (!there) {
      const float nan = math::from_bits(0x7fc00000u);
      for (int e = 0; e < 4 && column + e < s.image; ++e) x.v[e] = nan;
    } else if (s.bytes) {
      uchar4 b{};
      if (vector_bytes) {
        b = *reinterpret_cast<const uchar4*>(s.bytes + from);
      } else {
        b.x = s.bytes[from];
        if (column + 1 < s.image) b.y = s.bytes[from + 1];
        if (column + 2 < s.image) b.z = s.bytes[from + 2];
        if (column + 3 < s.image) b.w = s.bytes[from + 3];
      }
      constexpr float kScale = static_cast<float>(2.0 / 255.0);
      x = {static_cast<float>(b.x) * kScale - 1.f, static_cast<float>(b.y) * kScale - 1.f,
           static_cast<float>(b.z) * kScale - 1.f, static_cast<float>(b.w) * kScale - 1.f};
    } else {
      for (int e = 0; e < 4 && column + e < s.image; ++e) x.v[e] = s.floats[from + e];
    }
    *reinterpret_cast<Four*>(to + row * s.image_stride + column) = x;
  }
}

// Adam's constants of D's update number k, and with `last` of G's: by threads that have the fewest
// items of anything else, the last of two warps.
__device__ inline void constants(const Step& s, const Clock& clock, const Moment& now, int64_t k,
                                 bool last, int64_t first, int64_t stride) {
  const auto rate = [&](int column) {
    return now.known ? s.rates[2 * now.row + column] : static_cast<double>(NAN);
  };
  if (now.more == 0 && first + 1 == stride) {
    s.adam[2 * now.copy] =
        adam_of(s.d_optimizer, wrapped_sum(clock.d_updates, now.row * s.d_steps + k + 1), rate(0));
  }
  if (last && first + 33 == stride) {
    const int64_t before = now.row * s.g_steps + now.more;
    s.adam[2 * now.copy + 1] =
        adam_of(s.g_optimizer, wrapped_sum(clock.g_updates, before + 1), rate(1));
  }
}

// What is random in one of G's further updates, and its constants.
__device__ inline void more_inputs(const Step& s, const Clock& clock, const Moment& now, int64_t k,
                                   int64_t first, int64_t stride) {
  constants(s, clock, now, k, true, first, stride);
  latents(s, now, 1, first, stride);
}

// Everything random or read from outside that D's update number k needs, and with `last` what G's
// update needs: items first, first + stride, ...
__device__ inline void inputs(const Step& s, const Clock& clock, const Moment& now, int64_t k,
                              bool last, int64_t first, int64_t stride) {
  constants(s, clock, now, k, last, first, stride);
  latents(s, now, 0, first, stride);
  if (last) latents(s, now, 1, first, stride);
  images(s, clock, now, k, first, stride);
}

}  // namespace fastgan::cuda::step
