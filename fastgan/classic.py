"""The call of the reference program: train_gan(), which prints, saves and returns the pair."""

import logging
import os
from typing import Any

from torch import nn

from fastgan import data as data_room
from fastgan.trainer import State, Trainer

logger = logging.getLogger("fastgan")


def train_gan(
    epochs: int = 100,
    batch_size: int = 64,
    latent_dim: int = 100,
    *,
    data: Any = None,
    directory: str | os.PathLike = ".",
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """Train the reference pair, print the losses, save both networks and return them.

    Prints ``Epoch [1/100], Step [100/938], D_loss: 1.2345, G_loss: 0.6789`` every 100 steps. Ctrl-C
    saves the networks as they are.

    Args:
        epochs: passes over the data. Default 100.
        batch_size: images in a batch. Default 64.
        latent_dim: length of a latent vector. Default 100.
        data: as for `Trainer`. Default: MNIST, found on this machine or downloaded; if it cannot be
            had, the bundled digits, which a line on stderr says.
        directory: where generator.pth and discriminator.pth (state dicts) are saved. Default: the
            current directory.
        **options: any other argument of `Trainer`: lr, loss, precision, engine, device, seed, ...

    Returns:
        (generator, discriminator), on the device they were trained on.
    """
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
    trainer = Trainer(None, None, data, batch_size=batch_size, latent_dim=latent_dim, **options)

    def tell(state: State) -> None:
        if state.logged:
            step = (state.step - 1) % state.steps_per_epoch + 1
            print(
                f"Epoch [{state.epoch}/{epochs}], Step [{step}/{state.steps_per_epoch}], "
                f"D_loss: {state.d_loss:.4f}, G_loss: {state.g_loss:.4f}",
                flush=True,
            )

    try:
        trainer.fit(epochs=epochs, report=tell)
    except (KeyboardInterrupt, SystemExit):
        trainer.export(directory)
        raise
    trainer.export(directory)
    return trainer.generator, trainer.discriminator
