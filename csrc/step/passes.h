// Which batch a segment of a field is, and where its random numbers come from. No torch here.
#pragma once

#include "common/philox.h"
#include "step/enums.h"

namespace fastgan {

// D's fields and the images: 0 real, 1 fake for D's update, 2 fake for G's update; before them, for
// penalties, points between real and fake. G's fields and the latents: 0 for D's update, 1 for G's.
// A layer's segments are those of the field below it.
constexpr int kSegments = 3;
enum Segment { kBetween = -1, kReal = 0, kFake = 1, kFakeForG = 2 };
constexpr int segment_of(Place place) { return static_cast<int>(place) - 1; }

constexpr uint32_t kPassesOfDropout = 8;  // streams of one dropout, in use or kept for later

FASTGAN_HD Pass pass_of(bool in_g, int segment) {
  if (segment == kBetween) return Pass::D_BETWEEN;
  return static_cast<Pass>((in_g ? static_cast<uint32_t>(Pass::G_FOR_D) : 0u) +
                           static_cast<uint32_t>(segment));
}

// What is drawn for an update of D is numbered by it, over all steps; for one of G likewise.
FASTGAN_HD uint64_t number_of(bool for_g, int64_t update, int64_t g_update) {
  return static_cast<uint64_t>(for_g ? g_update : update);
}

FASTGAN_HD Philox mask_philox(uint64_t seed, uint32_t drop_index, bool in_g, int segment,
                              int64_t update, int64_t g_update) {
  const Pass pass = pass_of(in_g, segment);
  return make_philox(seed,
                     static_cast<uint32_t>(Stream::DROPOUT) + kPassesOfDropout * drop_index +
                         static_cast<uint32_t>(pass),
                     number_of(pass == Pass::D_FOR_G || pass == Pass::G_FOR_G, update, g_update));
}
FASTGAN_HD Philox choice_philox(uint64_t seed, uint32_t heads_index, int segment, int64_t update,
                                int64_t g_update) {
  const Pass pass = pass_of(true, segment);
  return make_philox(seed,
                     static_cast<uint32_t>(Stream::CHOICE) + kPassesOfDropout * heads_index +
                         static_cast<uint32_t>(pass),
                     number_of(pass == Pass::G_FOR_G, update, g_update));
}
FASTGAN_HD Philox between_philox(uint64_t seed, int64_t update) {
  return make_philox(seed, static_cast<uint32_t>(Stream::PENALTY), static_cast<uint64_t>(update));
}
FASTGAN_HD Philox latent_philox(uint64_t seed, int segment, int64_t update, int64_t g_update) {
  return make_philox(seed, static_cast<uint32_t>(segment ? Stream::LATENT_G : Stream::LATENT_D),
                     number_of(segment != 0, update, g_update));
}

}  // namespace fastgan
