"""What the theory of GANs says of a pair of networks, computed: exactly where densities are known.

With p the density of the data and q that of the generator's samples, the value of the game is
V(D, G) = E_p log D + E_q log(1 - D). For a given G it is greatest for D* = p / (p + q), where it is
2 JSD(p, q) - log 4; the Jensen-Shannon divergence JSD, in nats, lies between 0 (p = q, D* = 1/2)
and log 2 (nothing in common).

Source: I. Goodfellow et al., "Generative Adversarial Nets", NIPS 2014.
"""

from fastgan.densities import DENSITIES, Density, Mixture, Moons, density, normal
from fastgan.theory.bound import LowerBound, critic, jsd_lower_bound
from fastgan.theory.duality import DualityGap, duality_gap
from fastgan.theory.exact import fit, jsd, optimal_discriminator, optimal_logits, value
from fastgan.theory.scores import Estimate

__all__ = [
    "DENSITIES",
    "Density",
    "DualityGap",
    "Estimate",
    "LowerBound",
    "Mixture",
    "Moons",
    "critic",
    "density",
    "duality_gap",
    "fit",
    "jsd",
    "jsd_lower_bound",
    "normal",
    "optimal_discriminator",
    "optimal_logits",
    "value",
]
