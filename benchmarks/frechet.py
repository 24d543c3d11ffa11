"""The Frechet distance between real and generated images, by the features of a small classifier.

The one of Heusel et al. 2017 (arXiv:1706.08500), between Gaussians fitted to the features of the
test images and of as many generated ones; the features are the last hidden layer of a classifier,
trained once on the same training images with their labels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastgan

CLASSIFIER_EPOCHS = 3

# --- the Frechet distance ------------------------------------------------------------------------


def frechet(a: Tensor, b: Tensor) -> float:
    """The squared Frechet distance between Gaussians fitted to two sets of features.

    |mean a - mean b|^2 + trace(A + B - 2 (A^1/2 B A^1/2)^1/2), with covariances A and B: that
    product is symmetric, so its root has the roots of its eigenvalues. All in float64.

    Args:
        a, b: features, [n, features] and [m, features], n and m at least 2.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))
    root = _root(cov_a)
    both = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return float(apart + cov_a.trace() + cov_b.trace() - 2 * both)


def _root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    # A covariance has no negative eigenvalue; rounding can give it one.
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


# --- the classifier ------------------------------------------------------------------------------


@dataclass
class Labelled:
    """Images as float32 [n, 1, 28, 28] in [-1, 1] with their classes, int64 [n]."""

    images: Tensor
    labels: Tensor


def labelled(name: str) -> tuple[Labelled, Labelled]:
    """The training and the test images of a data set, with labels."""
    if name == "digits":
        # No test set of their own: every tenth is kept for the test.
        digits = _all(fastgan.data.open("digits"))
        held_out = torch.arange(len(digits.labels)) % 10 == 9
        return tuple(
            Labelled(digits.images[rows], digits.labels[rows]) for rows in (~held_out, held_out)
        )
    return tuple(_all(fastgan.data.open(name, split=split)) for split in ("train", "test"))


def _all(data: fastgan.data.Data) -> Labelled:
    return Labelled(data.samples.float() * (2 / 255) - 1, data.condition)


class Classifier(nn.Module):
    """Two convolutions and two linear layers; its 64 features come before the last."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the ten classes, [n, 10]."""
        return self.head(self.features(images))


def train_classifier(train: Labelled, epochs: int = CLASSIFIER_EPOCHS) -> Classifier:
    """A classifier from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(train.labels)).split(128):
                loss = functional.cross_entropy(classifier(train.images[rows]), train.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return classifier.eval()


@torch.no_grad()
def features_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Float32 [n, 64]."""
    return torch.cat([classifier.features(part) for part in images.split(1000)])


@torch.no_grad()
def accuracy(classifier: Classifier, test: Labelled) -> float:
    """The share of test images whose class is found."""
    scores = torch.cat([classifier(part) for part in test.images.split(1000)])
    return float((scores.argmax(1) == test.labels).double().mean())


class FrechetDistance:
    """Between the test images of a data set and what a trainer generates."""

    def __init__(self, data: str, folder: Path):
        """Train the classifier, or read it from the folder."""
        train, test = labelled(data)
        path = folder / "classifier.pt"
        if path.is_file():
            self.classifier = Classifier().eval()
            self.classifier.load_state_dict(torch.load(path, weights_only=True))
        else:
            self.classifier = train_classifier(train)
            torch.save(self.classifier.state_dict(), path)
        weights = torch.cat([p.detach().flatten() for p in self.classifier.parameters()])
        self._real = features_of(self.classifier, test.images)
        self.about = {
            "accuracy": round(accuracy(self.classifier, test), 4),
            "crc": f"{zlib.crc32(weights.numpy().tobytes()):08x}",
            "images": len(test.images),
            # What so few images alone set apart.
            "frechet_of_halves": round(frechet(self._real[::2], self._real[1::2]), 4),
        }

    def of(self, trainer: fastgan.Trainer) -> float:
        """The distance at the trainer's step."""
        made = trainer.sample(len(self._real)).cpu()
        return frechet(self._real, features_of(self.classifier, made))
