"""Methods as users write them, and networks and data for them."""

import torch
import torch.nn.functional as F
from small_runs import SHAPE, pixels
from torch import nn

from fastgan import data
from fastgan.latents import OneHot, Uniform
from fastgan.problem import make_problem

LABELS = torch.arange(50) % 3


class G(nn.Module):
    """Latents and a class to images."""

    def __init__(self, width=5, classes=3):
        super().__init__()
        self.of_class = nn.Embedding(classes, 4)
        self.body = nn.Sequential(
            nn.Linear(width + 4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 36), nn.Tanh()
        )

    def forward(self, z, y):
        return self.body(torch.cat([z, self.of_class(y)], 1)).view(-1, *SHAPE)


class D(nn.Module):
    """Images and a class to a score."""

    def __init__(self, classes=3):
        super().__init__()
        self.of_class = nn.Embedding(classes, 36)
        self.body = nn.Sequential(
            nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1)
        )

    def forward(self, x, labels):
        return self.body(x.flatten(1) + self.of_class(labels))


class Heads(nn.Module):
    """Images to a score and to logits of classes."""

    def __init__(self, classes=3, more=0):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2))
        self.score, self.classes = nn.Linear(16, 1), nn.Linear(16, classes)
        self.more = nn.Linear(16, more) if more else None

    def forward(self, x):
        h = self.body(x)
        return (self.score(h), self.classes(h), *([self.more(h)] if self.more else []))


class Patches(nn.Module):
    """Images and condition images to a map of scores."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(2, 1, 3)

    def forward(self, x, condition):
        return self.body(torch.cat([x, condition], 1))


def plain_g(width=5):
    return nn.Sequential(nn.Linear(width, 36), nn.Tanh(), nn.Unflatten(1, SHAPE))


def plain_d():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


def labelled():
    return data.open((pixels(), LABELS))


def bce(scores, value):
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


class Conditional:
    def d_loss(self, step):
        real, fake = step.D(step.real, step.cond), step.D(step.fake, step.fake_cond)
        return bce(real, 1.0) + bce(fake, 0.0)

    def g_loss(self, step):
        return bce(step.D(step.fake, step.fake_cond), 1.0)


class Counting(Conditional):
    def g_loss(self, step):
        return super().g_loss(step) * (1.0 if step.number < 3 else 0.5)


class Auxiliary:
    def d_loss(self, step):
        (r, of_real), (f, of_fake) = step.D(step.real), step.D(step.fake)
        step.log("accuracy", (of_real.argmax(1) == step.cond).float().mean())
        classes = F.cross_entropy(of_real, step.cond) + F.cross_entropy(of_fake, step.fake_cond)
        return bce(r, 1.0) + bce(f, 0.0) + classes

    def g_loss(self, step):
        f, of_fake = step.D(step.fake)
        return bce(f, 1.0) + F.cross_entropy(of_fake, step.fake_cond)


class Info:
    def d_loss(self, step):
        return bce(step.D(step.real)[0], 1.0) + bce(step.D(step.fake)[0], 0.0)

    def g_loss(self, step):
        return bce(step.D(step.fake)[0], 1.0)

    def joint_loss(self, step):
        _, digit, code = step.D(step.fake)
        classes = F.cross_entropy(digit, step.parts["digit"].argmax(1))
        return classes + 0.1 * F.mse_loss(code, step.parts["code"])


class Boundary:
    """BEGAN: D returns an image, and the method keeps k."""

    def __init__(self):
        self.k = 0.0

    def d_loss(self, step):
        real = (step.D(step.real) - step.real).abs().mean()
        fake = (step.D(step.fake) - step.fake).abs().mean()
        loss = real - self.k * fake
        self.k = min(max(self.k + 0.05 * (0.75 * real - fake).item(), 0.0), 1.0)
        return loss

    def g_loss(self, step):
        return (step.D(step.fake) - step.fake).abs().mean()


class Slope:
    """A penalty of the method's own choice, and dropout in a third pass."""

    def d_loss(self, step):
        loss = step.D(step.fake).mean() - step.D(step.real).mean()
        return loss + step.penalty("wgan-gp:2") + step.penalty("r1:0.1")

    def g_loss(self, step):
        return -step.D(step.fake).mean()


class Noisy:
    """Draws of its own."""

    def d_loss(self, step):
        noise = 0.1 * step.normal(*SHAPE), step.uniform(1)
        real = step.D(step.real + noise[0])
        return bce(real, 1.0) * noise[1].mean() + bce(step.D(step.fake), 0.0)

    def g_loss(self, step):
        return bce(step.D(step.fake + 0.1 * step.normal(*SHAPE)), 1.0)


NAMED = {"noise": 3, "digit": OneHot(3), "code": Uniform(2)}


def autoencoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 36), nn.Unflatten(1, SHAPE))


CASES = {
    "conditional": (lambda: (G(), D()), Conditional, {}),
    "auxiliary": (lambda: (G(), Heads()), Auxiliary, {}),
    "information": (lambda: (plain_g(8), Heads(more=2)), Info, {"latent_dim": NAMED}),
    "boundary": (lambda: (plain_g(), autoencoder()), Boundary, {}),
    "slope": (
        lambda: (plain_g(), plain_d()),
        Slope,
        {"d_steps": 3, "g_steps": 2, "grad_clip": 1.0, "weight_clip": 0.5},
    ),
    "counting": (lambda: (G(), D()), Counting, {}),
    "noisy": (lambda: (plain_g(), plain_d()), Noisy, {}),
}


def case(name, **options):
    make, method, more = CASES[name]
    torch.manual_seed(3)
    options = {"latent_dim": 5, "batch_size": 8, "device": "cpu", **more, **options}
    return make_problem(*make(), labelled(), method=method(), **options)
