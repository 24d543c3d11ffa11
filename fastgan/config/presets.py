"""Settings that go together, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastgan.config.config import Config
from fastgan.config.kinds import ConfigError
from fastgan.words import nearest


@dataclass(frozen=True)
class Preset:
    """Settings that suit a pair of networks, and where they come from."""

    help: str
    values: Mapping[str, Any]


def _sn_resnet(side: int) -> Preset:
    return Preset(
        f"SN-ResNet on {side}x{side} images, by classes if there are any",
        {
            "model": "sn-resnet",
            "image_size": side,
            "latent_dim": 128,
            "batch_size": 64,
            "loss": "hinge",
            "d_steps": 5,
            "betas": (0.0, 0.9),
            "ema": 0.999,
            "epochs": 50,
            "channels_last": True,
        },
    )


PRESETS: dict[str, Preset] = {
    # The learning rates, the average and the number of steps are those that gave the best digits of
    # half a dozen tried on the bundled set, within about a minute of the eager engine. After 10
    # epochs of Fashion-MNIST the Frechet distance (as in benchmarks/agreement.py) of these is 11;
    # that of Config's own is 37.
    "mnist-mlp": Preset(
        "the reference pair on small grey images",
        {"lr": (1e-3, 5e-4), "ema": 0.9995, "steps": 20_000, "precision": "auto"},
    ),
    # A. Radford, L. Metz and S. Chintala, "Unsupervised Representation Learning with Deep
    # Convolutional Generative Adversarial Networks", ICLR 2016.
    "dcgan-32": Preset(
        "DCGAN on 32x32 images",
        {
            "model": "dcgan",
            "image_size": 32,
            "batch_size": 128,
            "epochs": 25,
            "precision": "auto",
            "channels_last": True,
        },
    ),
    "dcgan-64": Preset(
        "DCGAN on 64x64 images, as in its paper",
        {
            "model": "dcgan",
            "image_size": 64,
            "batch_size": 128,
            "epochs": 25,
            "precision": "auto",
            "channels_last": True,
        },
    ),
    # T. Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018:
    # five updates of D, Adam with lr 2e-4 and no momentum. The average is from A. Brock, J. Donahue
    # and K. Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR
    # 2019.
    "sn-resnet-32": _sn_resnet(32),
    "sn-resnet-64": _sn_resnet(64),
    # N. Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", NeurIPS 2024:
    # relativistic pairing with R1 and R2. Their rates and weights change along the run; these are
    # constant.
    "r3gan-32": Preset(
        "R3GAN-like on 32x32 images: relativistic, R1 and R2",
        {
            "model": "r3gan",
            "image_size": 32,
            "latent_dim": 64,
            "batch_size": 64,
            "loss": "relativistic",
            "penalties": ("r1:0.5", "r2:0.5"),
            "betas": (0.0, 0.99),
            "ema": 0.999,
            "epochs": 50,
        },
    ),
    # L. Xu et al., "Modeling Tabular Data using Conditional GAN", NeurIPS 2019.
    "ctgan": Preset(
        "a table, as CTGAN learns one",
        {
            "model": "ctgan",
            "method": "ctgan",
            "by_category": True,
            "latent_dim": 128,
            "batch_size": 500,
            "betas": (0.5, 0.9),
            "weight_decay": 1e-6,
            "epochs": 300,
        },
    ),
    # All eight modes of ring8, and two samples of three within three deviations of one, after 1,500
    # steps.
    "points": Preset(
        "points of a plane, such as --data ring8",
        {
            "model": "points",
            "latent_dim": 8,
            "batch_size": 128,
            "lr": 1e-3,
            "ema": 0.995,
            "steps": 5_000,
            "precision": "auto",
        },
    ),
}


def preset(name: Any) -> Config:
    """The settings of that preset; ConfigError for a name that is none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"preset is {name!r}; expected one of {', '.join(PRESETS)}{nearest(name, PRESETS)}"
        )
    return Config(**PRESETS[name].values)
