"""The program that most people start from, as they write it: the yardstick that readers know.

Two MLPs, BCELoss on a Sigmoid, a DataLoader over an in-memory set whose items are turned into PIL
images, tensors and normalised one by one (what torchvision's MNIST with ToTensor and Normalize
does), Adam with its defaults. D's loss is not cut off from G, so its backward pass runs through G
as well, and G's backward pass computes D's gradients for nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from peers import Unavailable, networks
from peers.torchpeer import TorchPeer


class Digits(Dataset):
    """An in-memory image set with torchvision's per-item work, without needing torchvision."""

    def __init__(self, data: torch.Tensor):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image = _to_pil(self.data[index])
        return _normalize(_to_tensor(image), (0.5,), (0.5,)), 0


def _to_pil(image: torch.Tensor):
    array = image.squeeze(0).numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()
    try:
        from PIL import Image
    except ImportError:
        return array
    return Image.fromarray(array)


def _to_tensor(image) -> torch.Tensor:
    array = np.array(image, copy=True)
    tensor = torch.from_numpy(array.reshape(*array.shape[:2], -1))
    return tensor.permute(2, 0, 1).contiguous().to(torch.get_default_dtype()).div(255)


def _normalize(tensor: torch.Tensor, mean, std) -> torch.Tensor:
    tensor = tensor.clone()
    mean = torch.as_tensor(mean, dtype=tensor.dtype).view(-1, 1, 1)
    std = torch.as_tensor(std, dtype=tensor.dtype).view(-1, 1, 1)
    return tensor.sub_(mean).div_(std)


class Reference(TorchPeer):
    """One step: one batch of the loader, D's update, G's update; PyTorch's settings as they are."""

    def setup(self, plan, threads):
        if plan.penalty != "none" or plan.network == "resnet" or plan.d_steps > 1:
            raise Unavailable(
                "the beginner's program has no gradient penalty, no ResNet and one update of D"
            )
        torch.set_num_threads(threads)
        self.plan = plan
        self.generator, self.discriminator = networks.build(plan, sigmoid=True, device=self.device)
        self.criterion = nn.BCELoss()
        self.optimizer_g = torch.optim.Adam(
            self.generator.parameters(), lr=plan.lr, betas=plan.betas
        )
        self.optimizer_d = torch.optim.Adam(
            self.discriminator.parameters(), lr=plan.lr, betas=plan.betas
        )
        self.loader = DataLoader(Digits(networks.images(plan)), batch_size=plan.batch, shuffle=True)
        self.batches = iter(self.loader)
        self.step = 0

    def run(self, n):
        for _ in range(n):
            try:
                images, _ = next(self.batches)
            except StopIteration:
                self.batches = iter(self.loader)
                images, _ = next(self.batches)
            images = images.to(self.device)
            size = images.size(0)
            real_labels = torch.ones(size, 1, device=self.device)
            fake_labels = torch.zeros(size, 1, device=self.device)

            fake_images = self.generator(torch.randn(size, self.plan.latent, device=self.device))
            real_loss = self.criterion(self.discriminator(images), real_labels)
            fake_loss = self.criterion(self.discriminator(fake_images), fake_labels)
            d_loss = real_loss + fake_loss
            self.optimizer_d.zero_grad()
            d_loss.backward()
            self.optimizer_d.step()

            fake_images = self.generator(torch.randn(size, self.plan.latent, device=self.device))
            g_loss = self.criterion(self.discriminator(fake_images), real_labels)
            self.optimizer_g.zero_grad()
            g_loss.backward()
            self.optimizer_g.step()

            self.step += 1
            self.latest = d_loss, g_loss
            if self.step % 100 == 0:
                d_loss.item(), g_loss.item()  # the log line

    def losses(self):
        return tuple(loss.item() for loss in self.latest)
