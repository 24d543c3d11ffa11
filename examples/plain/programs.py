"""The programs of examples/ and the loops beside them, made alike."""

import importlib

import torch

NAMES = (
    *("mlp_batchnorm", "dcgan", "wgan_gp", "cgan", "acgan", "infogan", "pix2pix", "srgan"),
    *("sngan", "ctgan_table", "r3gan", "began"),
)


class Program:
    """One program: its networks and data, its trainer, its plain loop.

    Attributes:
        name: one of NAMES.
        pair: G and D, with new weights from torch's generator.
        data: what the trainer takes.
        more: what both ways are told besides.
    """

    def __init__(self, name, images=None, labels=None, **sizes):
        """Of that name.

        Args:
            name: one of NAMES.
            images: uint8 [n, 1, side, side], and their labels, in place of the bundled digits.
            labels: int64 [n].
            **sizes: as its `networks` takes them.
        """
        self.name = name
        self.module = module = importlib.import_module(name)
        self.loop = importlib.import_module(f"plain.{name}")
        self.data, self.more, needed = "digits" if images is None else (images, labels), {}, ()
        if name in ("pix2pix", "srgan"):
            self.data = module.pairs(None if images is None else images / 127.5 - 1)
        if name == "srgan":
            self.more["features"] = module.classifier(steps=300 if images is None else 0)
        if name == "ctgan_table":
            numbers, choices, columns = module.table()
            self.data, self.more["sizes"] = module.rows(numbers, choices, columns), columns
            needed = (numbers.shape[1], columns)
        self.pair = module.networks(*needed, **sizes)

    def trainer(self, pair, **settings):
        """The run by fastgan."""
        return self.module.trainer(*pair, self.data, **self.more, **settings)

    def losses(self, pair, batches, draw):
        """The losses of each step of the plain loop, as it goes on."""
        return self.loop.train(*pair, batches, draw, **self.more)


class Draws:
    """Random numbers from torch's generator, on a device."""

    def __init__(self, conditions=None, device="cpu"):
        """Conditions are drawn from these, which lie on the device."""
        self.all, self.device = conditions, device

    def normal(self, *shape):
        """Standard normals."""
        return torch.randn(shape, device=self.device)

    def uniform(self, *shape):
        """Numbers in [0, 1)."""
        return torch.rand(shape, device=self.device)

    def classes(self, b, n):
        """Classes, each as likely."""
        return torch.randint(n, (b,), device=self.device)

    def conditions(self, b):
        """Conditions as often as the data have them."""
        return self.all[self.classes(b, len(self.all))]


def batches(data, size, drop_last=False):
    """Batches of samples, float in [-1, 1], and their conditions, in another order in every epoch.

    Args:
        data: opened by fastgan, in memory.
        size: of a batch.
        drop_last: leave out an epoch's last one if it is smaller.
    """
    while True:
        for rows in torch.randperm(len(data), device=data.samples.device).split(size):
            if len(rows) < size and drop_last:
                continue
            real = data.samples[rows]
            real = real.float() / 127.5 - 1 if real.dtype == torch.uint8 else real
            yield real, None if data.condition is None else data.condition[rows]
