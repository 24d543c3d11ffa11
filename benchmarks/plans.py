"""What is timed: pairs of networks, their data, and the floating-point operations of a step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

# As many bytes of images as Fashion-MNIST has: larger than any core's own cache.
DATA_BYTES = 60_000 * 784


@dataclasses.dataclass(frozen=True)
class Plan:
    """One pair of networks and the batch it is trained with.

    G: Linear [BatchNorm] LeakyReLU(0.2) ... Linear Tanh.
    D: Linear [BatchNorm] LeakyReLU(0.2) Dropout ... Linear, and a Sigmoid where the peer needs one.
    Or the convolutional pair of fastgan.models.dcgan, or that of peers/resnet.py.
    Adam with lr 2e-4, betas (0.5, 0.999); the non-saturating loss.

    Attributes:
        network: "mlp", "dcgan" or "resnet". For the latter two, hidden is the width of the networks
            (their feature maps next to the image); depth, batchnorm and dropout say nothing.
        penalty: "none", or in every step "r1": R1_WEIGHT times the mean squared norm of D's
            gradient at the real images (Mescheder et al. 2018); or "wgan-gp": Wasserstein's loss
            with GP_WEIGHT times the mean squared distance from one of that norm between real and
            fake images (Gulrajani et al. 2017).
        d_steps: updates of D in a step, each on a batch of its own.
        depth: Linear layers in each of the two networks.
        batchnorm: "none", "g" (after G's hidden layers) or "both".
        images: size of the data set; 0 takes what DATA_BYTES allows. Rounded down to whole batches,
            so that no peer gains by dropping or loses by keeping a ragged last one.
    """

    name: str = "reference pair"
    latent: int = 100
    hidden: int = 256
    depth: int = 2
    image: tuple[int, int, int] = (1, 28, 28)
    batchnorm: str = "none"
    dropout: float = 0.3
    batch: int = 64
    images: int = 0
    network: str = "mlp"
    penalty: str = "none"
    d_steps: int = 1

    lr = 2e-4
    betas = (0.5, 0.999)
    eps = 1e-8
    slope = 0.2
    seed = 0

    def __post_init__(self):
        if self.batchnorm not in ("none", "g", "both"):
            raise ValueError(f"batchnorm must be none, g or both, not {self.batchnorm!r}")
        if self.network not in ("mlp", "dcgan", "resnet"):
            raise ValueError(f"network must be mlp, dcgan or resnet, not {self.network!r}")
        if self.penalty not in ("none", "r1", "wgan-gp"):
            raise ValueError(f"penalty must be none, r1 or wgan-gp, not {self.penalty!r}")
        _, height, width = self.image
        if self.network == "dcgan" and (height != width or height < 16 or height & (height - 1)):
            raise ValueError(f"dcgan takes square images of 16, 32, 64 ..., not {height}x{width}")
        if self.network == "resnet" and self.image != (3, 32, 32):
            raise ValueError(
                f"resnet takes images of 3x32x32, not {'x'.join(map(str, self.image))}"
            )
        for name in ("latent", "hidden", "batch", "d_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.depth < 2:
            raise ValueError(
                f"depth counts the Linear layers of a network: at least 2, not {self.depth}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")

    @property
    def title(self) -> str:
        return f"{self.name}, batch {self.batch}"

    @property
    def features(self) -> int:
        return math.prod(self.image)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, (self.images or min(60_000, DATA_BYTES // self.features)) // self.batch)

    @property
    def data_size(self) -> int:
        return self.steps_per_epoch * self.batch

    @property
    def g_widths(self) -> list[int]:
        return [self.latent, *[self.hidden] * (self.depth - 1), self.features]

    @property
    def d_widths(self) -> list[int]:
        return [self.features, *[self.hidden] * (self.depth - 1), 1]

    def has_batchnorm(self, network: str) -> bool:
        if self.network == "resnet":
            return network == "g"
        return self.network == "dcgan" or self.batchnorm in ("both", network)

    def products(self, network: str) -> list[int]:
        """Multiplications of each layer of "g" or "d", forward, for one sample.

        Those that the images enter come first in D (see `entries`).
        """
        if self.network == "mlp":
            widths = self.g_widths if network == "g" else self.d_widths
            return [a * b for a, b in zip(widths, widths[1:], strict=False)]
        if self.network == "resnet":
            m = self.hidden
            if network == "g":
                blocks = [side * side * m * m * taps for side in (8, 16, 32) for taps in (9, 9, 1)]
                return [self.latent * 16 * m, *blocks, 1024 * 9 * 3 * m]
            first = [1024 * 3 * m * taps for taps in (9, 1)]
            rest = [(1024, 9), (256, 9), (256, 9), (256, 1), *[(64, 9)] * 4]
            return [*first, *(pixels * m * m * taps for pixels, taps in rest), m]
        # Convolutions of 4 x 4; a transposed one multiplies at the positions of its input.
        channels, side, _ = self.image
        maps, at_image = self.hidden, (side // 2) ** 2 * 16 * channels * self.hidden
        between = []
        while side > 8:
            between.append((side // 4) ** 2 * 16 * maps * 2 * maps)
            maps, side = 2 * maps, side // 2
        if network == "d":
            return [at_image, *between, 16 * maps]
        return [self.latent * 16 * maps, *between[::-1], at_image]

    @property
    def entries(self) -> int:
        """How many of D's layers the images enter."""
        return 2 if self.network == "resnet" else 1

    @property
    def flops(self) -> int:
        """Operations of the matrix products of one step, counting only those that a GAN step needs.

        D's step: G forward; D forward on real and fake; D's weight gradients, and the gradients
        between its layers. G's step: G forward; D forward; the gradient through D down to the
        image; G's weight gradients, and the gradients between its layers. R1: the gradient through
        D down to the real images, and that pass's own gradients. WGAN-GP: the same and D's pass
        there, and through it, if BatchNorm bends it, the penalty's gradients.
        """
        g, d = self.products("g"), self.products("d")
        between = sum(d[self.entries :])
        d_step = sum(g) + 2 * (sum(d) + sum(d) + between)
        if self.penalty != "none":
            d_step += 3 * sum(d) - d[-1]
        if self.penalty == "wgan-gp":
            d_step += sum(d)
            if self.has_batchnorm("d"):
                d_step += sum(d) + between
        g_step = sum(g) + sum(d) + sum(d) + sum(g) + sum(g[1:])
        return 2 * self.batch * (self.d_steps * d_step + g_step)

    @property
    def chunk(self) -> int:
        """Steps that a peer compiling a loop of fixed length should put in one call.

        Long enough that the call itself costs nothing, short enough to take turns with the others.
        """
        return int(min(max(16e9 / self.flops, 4), 256, self.steps_per_epoch // self.d_steps))

    @property
    def chunk_on_gpu(self) -> int:
        """The same on a GPU, where steps of small networks take microseconds."""
        return int(min(max(1e12 / self.flops, 8), 1024, self.steps_per_epoch // self.d_steps))

    def pixels(self) -> np.ndarray:
        """The data set: uint8 ``[data_size, features]``, the same for every peer.

        Smooth random images: noise would let D win at once, and vanishing gradients end in
        denormal numbers, whose slowness is not what is to be measured.
        """
        rng = np.random.default_rng(self.seed)
        channels, height, width = self.image
        rows, columns = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
        components = []
        for _ in range(12):
            r, c, size = rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.7), rng.uniform(0.15, 0.5)
            blob = np.exp(-((rows[:, None] - r) ** 2 + (columns - c) ** 2) / size**2)
            components.append(rng.normal(size=(channels, 1, 1)) * blob)
        basis = np.asarray(components, np.float32).reshape(12, -1)
        out = np.empty((self.data_size, self.features), np.uint8)
        for start in range(0, self.data_size, 4096):
            rows_here = out[start : start + 4096]
            weights = rng.standard_normal((len(rows_here), 12), np.float32)
            rows_here[:] = 127.5 + 127 * np.tanh(1.5 * weights @ basis - 0.5)
        return out

    def to_fields(self) -> dict:
        return dataclasses.asdict(self)

    def to_json(self) -> dict:
        return self.to_fields() | {"flops": self.flops, "data_size": self.data_size}

    @classmethod
    def parse(cls, text: str) -> Plan:
        """``"hidden=512,depth=3,image=3x32x32,batchnorm=g,batch=128"``; omitted keys as in Plan."""
        values: dict = {"name": text}
        fields = {f.name: f.type for f in dataclasses.fields(cls)}
        for part in filter(None, text.split(",")):
            key, _, value = part.partition("=")
            key = key.strip()
            if key not in fields or not value:
                raise ValueError(
                    f"plan: {part!r} is not one of {', '.join(fields)} followed by =value"
                )
            try:
                if key == "image":
                    values[key] = tuple(int(n) for n in value.split("x"))
                    if len(values[key]) != 3:
                        raise ValueError
                else:
                    values[key] = {"int": int, "float": float, "str": str}[fields[key]](value)
            except ValueError:
                raise ValueError(
                    f"plan: {value!r} is no value for {key}"
                    + (" (channels x height x width, like 3x32x32)" if key == "image" else "")
                ) from None
        return cls(**values)


R1_WEIGHT = 5.0
"""gamma / 2, with the paper's gamma of 10."""
GP_WEIGHT = 10.0


def pair(batches: tuple[int, ...] = (64, 256)) -> list[Plan]:
    """The reference pair: latent 100, one hidden layer of 256, 28x28 images."""
    return [Plan(batch=batch) for batch in batches]


RGB = (3, 32, 32)

GRID = [
    Plan("narrow", hidden=64, batch=16),
    Plan("narrow, large batch", hidden=64, batch=1024),
    Plan("wide", hidden=1024, batch=64),
    Plan("three layers", hidden=512, depth=3, batch=128),
    Plan("BatchNorm in G", hidden=256, depth=3, batchnorm="g", batch=64),
    Plan("BatchNorm in both", hidden=256, depth=3, batchnorm="both", batch=128),
    Plan("four layers, no dropout", hidden=256, depth=4, dropout=0.0, batch=64),
    Plan("five layers", latent=64, hidden=512, depth=5, batch=256),
    Plan("RGB", latent=128, hidden=512, depth=3, image=RGB, batch=64),
    Plan(
        "RGB, BatchNorm in G", latent=128, hidden=1024, depth=4, image=RGB, batchnorm="g", batch=128
    ),
    Plan("widest", hidden=2048, depth=3, batch=256),
    Plan("small batch, wide", hidden=2048, depth=2, batch=16),
    Plan("reference pair", batch=1024),
]

# On a GPU: from all latency to all arithmetic.
SWEEP = [
    Plan(f"hidden {hidden}", hidden=hidden, batch=batch)
    for batch in (64, 512, 2048, 8192)
    for hidden in (256, 512, 1024, 2048)
]

DCGAN = [
    Plan(name, hidden=64, image=(3, 64, 64), batch=128, network="dcgan", penalty=penalty)
    for name, penalty in (("DCGAN", "none"), ("DCGAN with R1", "r1"))
]

CONV = [
    Plan(
        f"{name}{'' if penalty == 'none' else f' with {penalty}'}", latent=latent, hidden=hidden,
        image=(3, side, side), network=network, penalty=penalty, images=16 * 64,
    )
    for name, network, side, hidden, latent in (
        ("DCGAN 32", "dcgan", 32, 32, 100),
        ("DCGAN 64", "dcgan", 64, 64, 100),
        ("SN-ResNet 32", "resnet", 32, 64, 128),
    )
    for penalty in ("none", "r1", "wgan-gp")
]  # fmt: skip

# Many small pairs side by side (ensembles.py)
MEMBERS = 16
POINTS = Plan("points", latent=8, hidden=64, depth=3, image=(1, 1, 2), dropout=0.0, batch=128)
