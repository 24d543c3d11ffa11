"""The classic small pair of multilayer perceptrons (Goodfellow et al. 2014, newer activations).

The attribute names, `fc` and `model`, are those of the program that most people start from, so that
state dicts move between it and fastgan with ``strict=True`` in both directions.
"""

import math

import torch
from torch import nn


class Generator(nn.Module):
    """Latent vectors to images: Linear, LeakyReLU(0.2), Linear, Tanh.

    Args:
        latent_dim: length of a latent vector. Default 100.
        img_shape: (channels, height, width) of an image. Default (1, 28, 28).
        hidden: width of the hidden layer. Default 256.

    Shape:
        ``[batch, latent_dim] -> [batch, *img_shape]``, values in [-1, 1].
    """

    def __init__(
        self, latent_dim: int = 100, img_shape: tuple[int, ...] = (1, 28, 28), hidden: int = 256
    ):
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.latent_dim = latent_dim
        self.img_shape = tuple(img_shape)
        self.fc = nn.Sequential(
            nn.Linear(latent_dim, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, math.prod(self.img_shape)),
            nn.Tanh(),
        )

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {
            "latent_dim": self.latent_dim,
            "img_shape": list(self.img_shape),
            "hidden": self.fc[0].out_features,
        }

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Images for a batch of latent vectors."""
        return self.fc(z).view(z.size(0), *self.img_shape)


class Discriminator(nn.Module):
    """Images to the probability of being real.

    Flatten, Linear, LeakyReLU(0.2), Dropout(0.3), Linear, Sigmoid. While fastgan trains it, the
    Sigmoid is absorbed into a minimax loss (computed from logits); on its own it gives
    probabilities.

    Args:
        img_shape: (channels, height, width) of an image. Default (1, 28, 28).
        hidden: width of the hidden layer. Default 256.
        sigmoid: end in a Sigmoid; without it the scores are raw, which the hinge, least-squares
            and Wasserstein losses take. Default True.

    Shape:
        ``[batch, *img_shape] -> [batch, 1]``, values in (0, 1) with the Sigmoid.
    """

    def __init__(
        self, img_shape: tuple[int, ...] = (1, 28, 28), hidden: int = 256, sigmoid: bool = True
    ):
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.img_shape = tuple(img_shape)
        self.model = nn.Sequential(
            nn.Linear(math.prod(self.img_shape), hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(hidden, 1),
            nn.Sigmoid() if sigmoid else nn.Identity(),
        )

        self.register_load_state_dict_pre_hook(_without_flatten)

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {
            "img_shape": list(self.img_shape),
            "hidden": self.model[0].out_features,
            "sigmoid": isinstance(self.model[-1], nn.Sigmoid),
        }

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        """Probability that each image of a batch is real."""
        return self.model(img.view(img.size(0), -1))


def _without_flatten(module: nn.Module, state: dict, prefix: str, *_) -> None:
    # The program is also found with nn.Flatten as the first layer of `model`: indices are one up.
    first, last = f"{prefix}model.1.", f"{prefix}model.4."
    if (
        f"{first}weight" in state
        and f"{last}weight" in state
        and f"{prefix}model.0.weight" not in state
    ):
        for old, new in ((first, f"{prefix}model.0."), (last, f"{prefix}model.3.")):
            for name in ("weight", "bias"):
                state[new + name] = state.pop(old + name)
