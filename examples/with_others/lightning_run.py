"""In a LightningModule: python examples/with_others/lightning_run.py --epochs 2

Lightning has the loop, the loggers, the callbacks and the checkpoints; each of its training steps
is one of fastgan's, with its engine, its data and its randomness. One process: under Lightning's
DDP each would train a pair of its own.
"""

import argparse

import lightning
import torch

import fastgan
from fastgan.statistics import NAMES


class GAN(lightning.LightningModule):
    """What Lightning is to know of a `fastgan.Trainer`."""

    def __init__(self, gan: fastgan.Trainer):
        """The networks become part of the module, and so of its checkpoints."""
        super().__init__()
        self.automatic_optimization = False
        self.gan = gan
        self.generator, self.discriminator, self.ema = gan.generator, gan.discriminator, gan.ema

    def configure_optimizers(self):
        """Both optimisers, whose states are then in the checkpoints, too."""
        return [self.gan.optimizer_g, self.gan.optimizer_d]

    def train_dataloader(self):
        """The numbers of an epoch's steps: the samples are read by fastgan."""
        return torch.utils.data.DataLoader(range(self.gan.steps_per_epoch), batch_size=None)

    def training_step(self, batch, index):
        """One step of both networks."""
        (statistics,) = self.gan.engine.run(1)
        self.log_dict(dict(zip(NAMES, statistics, strict=True)), prog_bar=True)

    def on_save_checkpoint(self, checkpoint):
        """Where the run stands: with the seed it is all of its randomness."""
        checkpoint["gan_step"] = self.gan.step

    def on_load_checkpoint(self, checkpoint):
        """Go on from there."""
        self.gan.engine.step = checkpoint["gan_step"]


def main():
    """Train the reference pair on the bundled digits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    chosen = parser.parse_args()
    gan = fastgan.Trainer(None, None, "digits", batch_size=64, ema=0.999, device="cpu")
    lightning.Trainer(max_epochs=chosen.epochs, accelerator="cpu").fit(GAN(gan))


if __name__ == "__main__":
    main()
