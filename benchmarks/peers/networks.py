"""The plan's two networks as PyTorch modules, shared by the PyTorch peers and fastgan's."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def build(
    plan, *, sigmoid: bool = False, device: str = "cpu", channels_last: bool = True
) -> tuple[nn.Module, nn.Module]:
    """(G, D) with their usual initialisation: [b, latent] -> [b, C, H, W] -> [b, 1].

    Args:
        plan: which.
        sigmoid: whether D ends in one.
        device: where.
        channels_last: of convolutional networks.
    """
    torch.manual_seed(plan.seed)
    if plan.network != "mlp":
        pair = _convolutional(plan, sigmoid)
        memory_format = torch.channels_last if channels_last else None
        return tuple(m.to(device, memory_format=memory_format) for m in pair)
    generator = _stack(plan.g_widths, plan, batchnorm=plan.has_batchnorm("g"), dropout=0.0)
    generator += [nn.Tanh(), nn.Unflatten(1, plan.image)]
    discriminator = [nn.Flatten()]
    discriminator += _stack(
        plan.d_widths, plan, batchnorm=plan.has_batchnorm("d"), dropout=plan.dropout
    )
    if sigmoid:
        discriminator.append(nn.Sigmoid())
    return nn.Sequential(*generator).to(device), nn.Sequential(*discriminator).to(device)


def _convolutional(plan, sigmoid: bool) -> tuple[nn.Module, nn.Module]:
    if plan.network == "resnet":
        from peers.resnet import ResNetDiscriminator, ResNetGenerator

        return (
            ResNetGenerator(plan.latent, plan.hidden),
            ResNetDiscriminator(plan.hidden, sigmoid),
        )
    from fastgan.models import DCGANDiscriminator, DCGANGenerator

    channels, size, _ = plan.image
    return (
        DCGANGenerator(plan.latent, size, channels, plan.hidden),
        DCGANDiscriminator(size, channels, plan.hidden, sigmoid),
    )


def _stack(widths, plan, *, batchnorm: bool, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        layers.append(nn.Linear(before, after))
        if i == len(widths) - 2:
            break
        if batchnorm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(nn.LeakyReLU(plan.slope))
        if dropout:
            layers.append(nn.Dropout(dropout))
    return layers


def images(plan, pixels: np.ndarray | None = None) -> torch.Tensor:
    """The data set in memory: uint8 [n, C, H, W]."""
    pixels = plan.pixels() if pixels is None else pixels
    return torch.from_numpy(pixels).view(-1, *plan.image)


def normalised(plan, device: str, channels_last: bool = True) -> torch.Tensor:
    """The data set on the device: float32 [n, C, H, W] in [-1, 1]; see `build`."""
    data = images(plan).to(device).float().mul_(2 / 255).sub_(1)
    if plan.network != "mlp" and channels_last:
        data = data.contiguous(memory_format=torch.channels_last)
    return data


def take(data: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of the data, channels last if it is: index_select would put channels first."""
    return data.index_select(0, index) if data.is_contiguous() else data[index]


class Order:
    """Which images come next: a fresh permutation every epoch, whole batches."""

    def __init__(self, plan, device: str = "cpu"):
        self.device = device
        self.size, self.batch, self.steps = plan.data_size, plan.batch, plan.steps_per_epoch
        self.position = self.steps

    def next(self) -> torch.Tensor:
        """Indices of the next batch, int64 [batch]."""
        if self.position == self.steps:
            self.rows = torch.randperm(self.size, device=self.device).view(-1, self.batch)
            self.position = 0
        self.position += 1
        return self.rows[self.position - 1]
