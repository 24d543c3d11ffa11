"""Problems for the graph engine, what stands for a CUDA device, and ways to compare two runs."""

from contextlib import nullcontext

import torch
from pairs import Mlp, Twice, discriminator, generator, images, problem
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import data, losses
from fastgan.engines.eager import EagerEngine
from fastgan.nn import LinearLeakyReLU, Pack, fuse


class NoReading(TorchDispatchMode):
    """What a capture does to work that waits for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.name() == "aten::_local_scalar_dense":
            raise RuntimeError("operation not permitted when stream is capturing")
        return out


class Again:
    """Stands for CudaRecorder: a recording is the work, done again."""

    def __init__(self):
        self.captured, self.replayed = 0, 0

    def here(self):
        return nullcontext()

    def aside(self, work):
        work()

    def warm_up(self, work):
        work()
        self.provoke(work)

    def capture(self, work):
        self.captured += 1

        def replay():
            self.replayed += 1
            work()

        return replay

    def provoke(self, work):
        with NoReading():
            work()


def with_norms(**options):
    g = generator(nn.Dropout(0.2), nn.BatchNorm1d(16))
    d = discriminator(middle=(nn.BatchNorm1d(16), nn.Dropout(0.4), nn.Dropout(0.1, inplace=True)))
    return problem(g, d, **options)


def with_fused_layers(**options):
    """Linear, LeakyReLU and Dropout as one; one dropout that a pass calls twice, one that rests."""
    again, rests = nn.Dropout(0.2), nn.Dropout(0.5).eval()
    d = fuse(
        nn.Sequential(
            *(nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2), again, LinearLeakyReLU(16, 16)),
            *(again, nn.Linear(16, 16), nn.LeakyReLU(0.1), rests, nn.Linear(16, 1)),
        )
    )
    return problem(d=d, penalties="r1", **options)


def smooth(**options):
    """A discriminator with a curved slope: a penalty on it has a gradient everywhere."""
    d = Mlp(nn.Linear(36, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1), out_shape=(1,))
    return problem(d=d, **options)


def packed(pack=2, **options):
    """A discriminator that judges images together."""
    torch.manual_seed(2)
    d = nn.Sequential(
        Pack(pack), nn.Linear(36 * pack, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1)
    )
    return problem(d=d, **options)


def convolutions(dtype=torch.float32, **options):
    """A small DCGAN in the channels-last format, with R1."""
    g = nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    d = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, 1, 1),
        nn.BatchNorm2d(16), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 4),
    )  # fmt: skip
    for network in (g, d):
        network.to(dtype=dtype, memory_format=torch.channels_last)
    options = {"latent_dim": (8, 1, 1), "ema": 0.99, "penalties": "r1", **options}
    return problem(g, d, images(22, (3, 8, 8)), **options)


class Read(torch.utils.data.Dataset):
    """Images that are not in memory."""

    def __init__(self):
        self.samples = images().samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


def streamed(**options):
    source = data.open(Read(), workers=0, budget_bytes=1)
    assert not source.resident
    return problem(source=source, **options)


PROBLEMS = {
    **{loss: (lambda loss=loss: problem(loss=loss)) for loss in losses.LOSSES},
    "norms and dropouts": with_norms,
    "two updates of D, all at once": lambda: with_norms(
        d_steps=2, ema=0.9, lr=(1e-3, 5e-4), lr_schedule=lambda t: 1 / (1 + t), label_smoothing=0.1
    ),
    "layers with their dropout": with_fused_layers,
    "adamw": lambda: problem(optimizer="adamw", weight_decay=0.1, betas=(0.3, 0.8), eps=1e-5),
    "dropout called twice": lambda: problem(d=Twice()),
    "final sigmoid": lambda: problem(d=discriminator(nn.Sigmoid())),
    "spatial latents": lambda: problem(
        nn.Sequential(nn.ConvTranspose2d(4, 1, 6), nn.Tanh()),
        nn.Conv2d(1, 1, 6).to(memory_format=torch.channels_last),
        latent_dim=(4, 1, 1),
    ),
    "fewer images than a batch": lambda: problem(source=images(5), d_steps=2),
    "batches of one epoch in a step": lambda: problem(source=images(9), batch_size=3, d_steps=5),
    "spectral norm": lambda: problem(
        d=nn.Sequential(
            nn.Flatten(),
            nn.utils.parametrizations.spectral_norm(nn.Linear(36, 16)),
            nn.ReLU(),
            nn.utils.spectral_norm(nn.Linear(16, 1)),
        ),
        loss="hinge",
    ),
    "streamed": lambda: streamed(d_steps=2),
    "r1": lambda: smooth(penalties="r1"),
    "r1, lazy": lambda: smooth(penalties="r1:10:3", d_steps=2),
    "convolutions with r1": lambda: convolutions(torch.float64),
    "r1 and r2": lambda: smooth(penalties=["r1:10:2", "r2:5:3"], loss="relativistic", d_steps=2),
    "drop last": lambda: with_norms(drop_last=True, d_steps=2),
    "bounded": lambda: smooth(grad_clip=0.1, grad_clip_value=0.01, weight_clip=0.05),
    "approximate r1": lambda: smooth(penalties="approximate-r1:1:2:0.1", d_steps=2),
    "wgan-gp": lambda: smooth(loss="wasserstein", penalties="wgan-gp"),
    "packs": lambda: packed(loss="wasserstein", penalties=["wgan-gp", "r1:1:2"], d_steps=2),
    "packs, averages": lambda: packed(loss="relativistic-average"),
    "bf16": lambda: problem(precision="bf16"),
    "fp16": lambda: smooth(precision="fp16", penalties="r1"),
    "shared fakes": lambda: with_norms(shared_fakes=True, d_steps=2, g_steps=2, ema=0.9),
    "shared fakes, two scores": lambda: with_norms(shared_fakes=True, loss="relativistic"),
    "shared fakes, wgan-gp": lambda: smooth(
        shared_fakes=True, loss="wasserstein", penalties="wgan-gp"
    ),
    "shared fakes, convolutions with r1": lambda: convolutions(torch.float64, shared_fakes=True),
    "shared fakes, bf16": lambda: problem(shared_fakes=True, precision="bf16"),
    "double": lambda: problem(generator().double(), discriminator().double()),
}


def everything(p):
    """All that a step changes, by name."""
    found = {
        f"{name}.{key}": value
        for name in ("generator", "discriminator", "ema")
        if getattr(p, name) is not None
        for key, value in getattr(p, name).state_dict().items()
    }
    for name in ("optimizer_g", "optimizer_d"):
        for i, state in getattr(p, name).state_dict()["state"].items():
            found |= {f"{name}.{i}.{key}": value for key, value in state.items()}
    for i, scaler in enumerate(p.scalers or ()):
        found |= {
            f"scaler.{i}.{key}": torch.tensor(value) for key, value in scaler.state_dict().items()
        }
    return {key: value.detach().clone() for key, value in found.items()}


def assert_same(p, q, **tolerance):
    a, b = everything(p), everything(q)
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].device == b[key].device and a[key].dtype == b[key].dtype, key
        torch.testing.assert_close(
            a[key], b[key], msg=lambda m, key=key: f"{key}: {m}", **tolerance
        )


def assert_replayed_is_eagers(p, q, engine, recorder):
    """27 steps of p by eager, and of q by an engine that records: the same to a rounding.

    Where q is in half precision, autocast keeps no weights between two passes of a recording, so
    that gradients are summed in other types.
    """
    expected = EagerEngine(p).run(27)
    # 22 images in batches of 8: every third update of an epoch has 6.
    found = torch.cat([engine.run(1), engine.run(0), engine.run(15), engine.run(11)])
    tolerance = TIGHT if q.precision == "fp32" else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(found, expected, **tolerance)
    assert_same(p, q, **tolerance)
    assert engine.step == 27 and recorder.replayed > 0
    assert found.shape == (27, 4) and found.dtype == torch.float32
    assert all(w.grad is None for w in q.discriminator.parameters())


def twins(make):
    """The same problem twice."""
    torch.manual_seed(5)
    p = make()
    torch.manual_seed(5)
    return p, make()


TIGHT = {"rtol": 1e-5, "atol": 1e-7}


class Reads(nn.Module):
    """Reads a value from the device, from the given batch size down."""

    def __init__(self, most=100):
        super().__init__()
        self.most = most

    def forward(self, x):
        return x * (1.0 if len(x) > self.most else x.abs().max().item() / x.abs().max())
