"""Settings that each are possible, and do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastgan import augment, losses
from fastgan.config.kinds import ConfigError


def check(config: Any, defaults: Mapping[str, Any]) -> None:
    """ConfigError for the first two settings of a Config that do not go together.

    Args:
        config: its settings, each read by its kind.
        defaults: of the settings.
    """
    try:
        losses.loss(config.loss, config.label_smoothing)
        augment.check(config.augment, config.loss if config.method is None else None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.method is not None:
        _check_method(config, defaults)
    if config.ema is not None and config.ema_half_life is not None:
        raise ConfigError("ema and ema_half_life both say how long the average is; give one")
    if config.ema_warmup is not None and not config.averages:
        raise ConfigError(
            "ema_warmup is given, but no average is kept; give ema= or ema_half_life= as well"
        )
    if config.accumulate > config.batch_size:
        raise ConfigError(
            f"accumulate is {config.accumulate}, more parts than the {config.batch_size} samples "
            "of a batch; batch_size is that of all parts together"
        )
    if isinstance(config.method, str) and config.shared_fakes:
        raise ConfigError(
            f"shared_fakes is given, and method {config.method!r} makes the samples of each update "
            "by itself; leave one of them out"
        )
    if config.accumulate > 1 and config.shared_fakes:
        raise ConfigError(
            f"accumulate is {config.accumulate}, to hold a part of a batch at a time, and "
            "shared_fakes has G hold all of it during D's update; give one of them"
        )
    if config.d_start and config.g_start:
        raise ConfigError("d_start and g_start are both given; one network waits for the other")
    if config.d_start and not config.terms:
        raise ConfigError(
            f"d_start is {config.d_start}, and until then G minimises its terms alone, of which "
            "there are none; give terms="
        )


def _check_method(config: Any, defaults: Mapping[str, Any]) -> None:
    for name in ("loss", "penalties", "label_smoothing"):
        if getattr(config, name) != defaults[name]:
            raise ConfigError(
                f"{name} is given beside a method, which has its own losses; add penalties in "
                "its d_loss: step.penalty('r1:10')"
            )
    joint = hasattr(config.method, "joint_loss")
    if joint and config.precision == "fp16":
        raise ConfigError(
            "precision is 'fp16', which scales each network's loss by itself, and the method "
            "has a joint_loss; use 'bf16' or 'fp32'"
        )
    if joint and (config.d_start or config.g_start):
        name = "d_start" if config.d_start else "g_start"
        raise ConfigError(
            f"{name} is given, and the method has a joint_loss, which trains both networks in "
            "every step; have it ask for step.number instead"
        )
