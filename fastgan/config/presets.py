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
}


def preset(name: Any) -> Config:
    """The settings of that preset; ConfigError for a name that is none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"preset is {name!r}; expected one of {', '.join(PRESETS)}{nearest(name, PRESETS)}"
        )
    return Config(**PRESETS[name].values)
