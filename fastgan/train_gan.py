"""The call of the reference program: train_gan(), which prints, saves and returns the pair."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import nn

from fastgan import data as data_room
from fastgan.callbacks import Callback
from fastgan.config import takes_settings
from fastgan.config.kinds import integer
from fastgan.trainer import Trainer

logger = logging.getLogger("fastgan")


class _PrintedLines(Callback):
    """The reference program's own log lines."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def start(self, trainer: Trainer) -> None:
        total = trainer.steps_per_epoch * self.epochs
        if total < trainer.config.log_every:
            logger.warning(
                "train_gan: all %d steps are fewer than log_every=%d, so one line comes at the end",
                total,
                trainer.config.log_every,
            )

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        step = (trainer.step - 1) % trainer.steps_per_epoch + 1
        print(
            f"Epoch [{line['epoch']}/{self.epochs}], Step [{step}/{trainer.steps_per_epoch}], "
            f"D_loss: {line['d_loss']:.4f}, G_loss: {line['g_loss']:.4f}",
            flush=True,
        )


@takes_settings("data")
def train_gan(
    epochs: int = 100,
    batch_size: int = 64,
    latent_dim: int = 100,
    *,
    data: Any = None,
    directory: str | os.PathLike = ".",
    **overrides: Any,
) -> tuple[nn.Module, nn.Module]:
    """Train the reference pair, print the losses, save both networks and return them.

    Prints ``Epoch [1/100], Step [100/938], D_loss: 1.2345, G_loss: 0.6789`` every 100 steps, and at
    the end. Ctrl-C saves the networks as they are.

    Args:
        epochs: passes over the data. Default 100.
        batch_size: samples in a batch. Default 64.
        latent_dim: length of a latent vector. Default 100.
        data: as for `Trainer`. Default: MNIST, found on this machine or downloaded; if it cannot be
            had, the bundled digits, which a line on stderr says.
        directory: where generator.pth and discriminator.pth (state dicts) are saved. Default: the
            current directory.
        **overrides: any other setting of `Trainer`: lr, loss, precision, engine, device, seed, ...

    Returns:
        (generator, discriminator), on the device they were trained on.
    """
    # Before any data are fetched, and so that a wrong number never exports untrained networks.
    epochs = integer(1).take("epochs", epochs)
    directory = os.path.abspath(os.path.expanduser(directory))
    if data is None:
        try:
            data = data_room.open("mnist")
        except data_room.DataError as error:
            logger.warning(
                "train_gan: NO MNIST, training on the 5,000 bundled digits instead (%s). Pass "
                "data= a folder that holds MNIST's four files, or connect and call again",
                error,
            )
            data = "digits"
    trainer = Trainer(
        None,
        None,
        data,
        batch_size=batch_size,
        latent_dim=latent_dim,
        callbacks=_PrintedLines(epochs),
        **{"console": "none", **overrides},
    )
    try:
        trainer.fit(epochs=epochs)
    finally:
        trainer.export(directory)
    return trainer.generator, trainer.discriminator
