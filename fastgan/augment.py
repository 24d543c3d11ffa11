"""What images go through before the discriminator sees them, real and fake alike.

With few images D learns them by heart. Transformations that are applied to whatever D is given, and
through which gradients flow to G, make them more without showing in what G makes. "diffaugment"
applies its own to every image; "ada" each of its own with a probability that follows how sure D is
of real images.

S. Zhao, Z. Liu, J. Lin, J.-Y. Zhu and S. Han, "Differentiable Augmentation for Data-Efficient GAN
Training", NeurIPS 2020. T. Karras, M. Aittala, J. Hellsten, S. Laine, J. Lehtinen and T. Aila,
"Training Generative Adversarial Networks with Limited Data", NeurIPS 2020; the geometric ones are
sampled bilinearly here, without the paper's filters.

Every value is a function of a table of standard normals, [b, columns], one row an image. All are
differentiable twice, as penalties on D's slope need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.plain import in_words, real
from fastgan.words import nearest

__all__ = ["EXPECTED", "Augment", "Augmentation", "check", "read"]

TARGET = 0.6
ADA_IMAGES = 500_000
"""Images in which ADA's probability goes from 0 to 1 if all of D's verdicts are on one side."""
ADA_UPDATES = 4
"""D's updates from one change of ADA's probability to the next."""


class _Draws(NamedTuple):
    """The normals of one transformation, and which images it is for."""

    normals: Tensor
    given: Callable[..., Tensor]
    """(values, what leaves an image as it is) -> the values of the images that it is for; with
    halved=True, as often as makes one of two likely as often as one of the others."""

    def uniform(self, column: int) -> Tensor:
        return torch.special.ndtr(self.normals[:, column])

    def whole(self, column: int, low: int, high: int) -> Tensor:
        """Whole numbers from low to high, each as likely."""
        n = high - low + 1
        return low + (self.uniform(column) * n).long().clamp_max(n - 1)


# --- the transformations --------------------------------------------------------------------------


def _spread(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _color(x: Tensor, d: _Draws, channels: int) -> Tensor:
    image, rest = x[:, :channels], x[:, channels:]
    brightness, saturation, contrast = (d.uniform(i).to(x.dtype) for i in range(3))
    image = image + _spread(brightness - 0.5)
    mean = image.mean(1, keepdim=True)
    image = (image - mean) * _spread(2 * saturation) + mean
    mean = image.mean((1, 2, 3), keepdim=True)
    return _joined((image - mean) * _spread(contrast + 0.5) + mean, rest)


def _translation(x: Tensor, d: _Draws, channels: int) -> Tensor:
    height, width = x.shape[2:]
    down, right = (d.whole(i, -round(n / 8), round(n / 8)) for i, n in enumerate((height, width)))
    ys, xs = _pixels(x)
    return _taken(x, ys - down.view(-1, 1, 1), xs - right.view(-1, 1, 1))


def _cutout(x: Tensor, d: _Draws, channels: int) -> Tensor:
    inside = None
    for i, (at, n) in enumerate(zip(_pixels(x), x.shape[2:], strict=True)):
        side = round(n / 2)
        # The middle of the square may lie anywhere, so that less of it is in the image at its rim.
        first = d.whole(i, 0, n - side % 2).view(-1, 1, 1) - side // 2
        within = (at >= first) & (at < first + side)
        inside = within if inside is None else inside & within
    return x * ~inside[:, None]


def _blit(x: Tensor, d: _Draws, channels: int) -> Tensor:
    height, width = x.shape[2:]
    ys, xs = _pixels(x)
    flip = d.given(d.whole(0, 0, 1), 0).view(-1, 1, 1)
    xs = torch.where(flip == 1, width - 1 - xs, xs)
    # A quarter turn changes the sides of an image that is not square.
    turns = d.given(d.whole(1, 0, 3), 0).view(-1, 1, 1)
    turns = turns if height == width else turns // 2 * 2
    ys, xs = ys.expand(len(x), -1, -1), xs.expand(len(x), height, width)
    around = [(ys, xs), (xs, width - 1 - ys), (height - 1 - ys, width - 1 - xs)]
    around.append((height - 1 - xs, ys))
    if height != width:
        around[1] = around[3] = around[0]
    ys, xs = (
        torch.where(
            turns < 2,
            torch.where(turns == 0, around[0][i], around[1][i]),
            torch.where(turns == 2, around[2][i], around[3][i]),
        )
        for i in (0, 1)
    )
    for column, n in ((2, height), (3, width)):
        shift = d.given(((2 * d.uniform(column) - 1) * n / 8).round().long(), 0).view(-1, 1, 1)
        ys, xs = (ys - shift, xs) if column == 2 else (ys, xs - shift)
    return _taken(x, _mirrored(ys, height), _mirrored(xs, width))


def _geom(x: Tensor, d: _Draws, channels: int) -> Tensor:
    """One inverse affine map of scalings, turns and a shift, sampled bilinearly."""
    height, width = x.shape[2:]
    n = d.normals
    scale = d.given(torch.exp2(0.2 * n[:, 0]), 1.0)
    stretch = d.given(torch.exp2(0.2 * n[:, 1]), 1.0)
    angle = d.given((2 * d.uniform(2) - 1) * math.pi, 0.0, halved=True)
    again = d.given((2 * d.uniform(3) - 1) * math.pi, 0.0, halved=True)
    shift = [d.given(0.125 * n[:, i] * side, 0.0) for i, side in ((4, height), (5, width))]
    y, x_ = _pixels(x)
    y = y - (height - 1) / 2 - shift[0].view(-1, 1, 1)
    x_ = x_ - (width - 1) / 2 - shift[1].view(-1, 1, 1)
    y, x_ = _turned(y, x_, again)
    y, x_ = y * stretch.view(-1, 1, 1), x_ / stretch.view(-1, 1, 1)
    y, x_ = _turned(y, x_, angle)
    y = y / scale.view(-1, 1, 1) + (height - 1) / 2
    x_ = x_ / scale.view(-1, 1, 1) + (width - 1) / 2
    top, left = y.floor(), x_.floor()
    low, near = (y - top)[:, None].to(x.dtype), (x_ - left)[:, None].to(x.dtype)
    out = None
    for dy, of_y in ((0, 1 - low), (1, low)):
        for dx, of_x in ((0, 1 - near), (1, near)):
            ys, xs = _mirrored(top.long() + dy, height), _mirrored(left.long() + dx, width)
            part = _taken(x, ys, xs) * (of_y * of_x)
            out = part if out is None else out + part
    return out


def _ada_color(x: Tensor, d: _Draws, channels: int) -> Tensor:
    n, image, rest = d.normals, x[:, :channels], x[:, channels:]
    brightness = d.given(0.2 * n[:, 0], 0.0)
    contrast = d.given(torch.exp2(0.5 * n[:, 1]), 1.0)
    flip = d.given(d.whole(2, 0, 1), 0).to(n.dtype)
    image = (image + _spread(brightness).to(x.dtype)) * _spread(contrast).to(x.dtype)
    if channels != 3:  # without colours, a flip of the luma is one of the sign
        return _joined(image * _spread(1 - 2 * flip).to(x.dtype), rest)
    hue = d.given((2 * d.uniform(3) - 1) * math.pi, 0.0).view(-1, 1, 1)
    saturation = d.given(torch.exp2(n[:, 4]), 1.0).view(-1, 1, 1)
    one = torch.eye(3, device=x.device)
    luma = torch.full((3, 3), 1 / 3, device=x.device)
    cross = (one.roll(1, 0) - one.roll(1, 1)) / math.sqrt(3.0)
    turn = luma + hue.cos() * (one - luma) + hue.sin() * cross
    matrix = (luma + saturation * (one - luma)) @ turn @ (one - 2 * flip.view(-1, 1, 1) * luma)
    return _joined(torch.einsum("bij,bjhw->bihw", matrix.to(x.dtype), image), rest)


def _joined(image: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([image, rest], 1) if rest.shape[1] else image


def _pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [1, h, 1] and columns [1, 1, w] of the pixels."""
    height, width = x.shape[2:]
    ys, xs = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    return ys.view(1, -1, 1), xs.view(1, 1, -1)


def _turned(y: Tensor, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    return y * cos + x * sin, x * cos - y * sin


def _mirrored(at: Tensor, n: int) -> Tensor:
    """Places beyond the rim are those that a mirror at the rim shows."""
    if n == 1:
        return torch.zeros_like(at)
    at = at.remainder(2 * n - 2)
    return torch.where(at < n, at, 2 * n - 2 - at)


def _taken(x: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """The pixels at these places of each image, zeros beyond its rim.

    By a gather, which torch differentiates any number of times, as it does not its grid_sample.
    """
    height, width = x.shape[2:]
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    at = ys.clamp(0, height - 1) * width + xs.clamp(0, width - 1)
    at = at.expand(len(x), height, width).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, at).view(x.shape) * inside[:, None]


class _Transformation(NamedTuple):
    columns: int
    """Of normals that it takes."""
    of: Callable[[Tensor, _Draws, int], Tensor]
    """(images, draws, how many of their channels are the sample's) -> images."""


_DIFFAUGMENT = {
    "color": _Transformation(3, _color),
    "translation": _Transformation(2, _translation),
    "cutout": _Transformation(2, _cutout),
}
_ADA = {
    "blit": _Transformation(4, _blit),
    "geom": _Transformation(6, _geom),
    "color": _Transformation(5, _ada_color),
}
_KINDS = {"diffaugment": _DIFFAUGMENT, "ada": _ADA}
EXPECTED = (
    f"diffaugment[:PARTS] with parts of {','.join(_DIFFAUGMENT)}, or ada[:PARTS][:TARGET] with "
    f"parts of {','.join(_ADA)} and a target in (-1, 1), {TARGET} unless said otherwise"
)

# --- the setting ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """What was asked for.

    Attributes:
        kind: "diffaugment" or "ada".
        parts: which of its transformations, in this order.
        target: of ADA: what the mean sign of D's scores of real images should be.
    """

    kind: str
    parts: tuple[str, ...]
    target: float = TARGET

    def __str__(self) -> str:
        """As `read` takes it."""
        given = self.kind == "ada" and self.target != TARGET
        end = f":{in_words(self.target)}" if given else ""
        return f"{self.kind}:{','.join(self.parts)}{end}"


def read(given: Any) -> Augment | None:
    """What a text asks for; None for nothing.

    Raises:
        ValueError: it is no such text.
    """
    if given is None or isinstance(given, Augment):
        return given
    if not isinstance(given, str):
        raise ValueError(f"expected {EXPECTED}")
    kind, *rest = given.split(":")
    if kind not in _KINDS:
        raise ValueError(f"expected {EXPECTED}{nearest(kind, _KINDS, {'diffaug': 'diffaugment'})}")
    target = TARGET
    if kind == "ada" and rest and _number(rest[-1]) is not None:
        target = _number(rest.pop())
    parts = rest.pop().replace(" ", "").split(",") if rest else [*_KINDS[kind]]
    wrong = [part for part in parts if part not in _KINDS[kind]]
    if rest or wrong or not -1 < target < 1:
        near = nearest(wrong[0], _KINDS[kind]) if wrong else ""
        raise ValueError(f"expected {EXPECTED}{near}")
    return Augment(kind, tuple(part for part in _KINDS[kind] if part in parts), target)


def _number(text: str) -> float | None:
    try:
        return real(float(text))
    except ValueError:
        return None


def check(given: Augment | None, loss: Any) -> None:
    """ValueError where ADA is asked for with a loss that gives the sign of a score no meaning."""
    name = getattr(loss, "name", loss)
    if given is not None and given.kind == "ada" and name in ("wasserstein", *_RELATIVISTIC):
        raise ValueError(
            f"augment is {str(given)!r}, which looks at the sign of D's scores of real images, and "
            f"with loss {name!r} that says nothing; use 'diffaugment', or another loss"
        )


_RELATIVISTIC = (
    "relativistic", "relativistic-average", "relativistic-average-hinge",
    "relativistic-average-least-squares",
)  # fmt: skip

# --- at work --------------------------------------------------------------------------------------


class Augmentation:
    """The transformations of a run, and ADA's controller.

    Attributes:
        given: what was asked for.
        columns: normals that an image takes.
        state: of ADA, float32 [3]: the probability, the sum of the mean signs since it was changed,
            and of how many updates they are. None of "diffaugment".
    """

    def __init__(self, given: Augment, device: torch.device, batch: int, middle: float = 0.0):
        """Begin with nothing seen.

        Args:
            given: what was asked for.
            device: of the images.
            batch: images in an update of D.
            middle: the score at which D is undecided.
        """
        self.given = given
        self._parts = [_KINDS[given.kind][name] for name in given.parts]
        adapts = given.kind == "ada"
        # Every number that ADA's transformations draw has a gate of its own.
        self.columns = sum(part.columns * (1 + adapts) for part in self._parts)
        self.state = torch.zeros(3, device=device) if adapts else None
        self._batch, self._middle = batch, middle

    def __call__(self, x: Tensor, normals: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Transform images.

        Args:
            x: [b, c, h, w], differentiable.
            normals: float32 [b, columns].
            others: images of the same size that belong to them, [b, any, h, w]: they are moved and
                cut as x is, and keep their colours.
        """
        channels = [x.shape[1], *(other.shape[1] for other in others)]
        out = torch.cat([x, *(o.to(x.dtype) for o in others)], 1) if others else x
        at = 0
        for part in self._parts:
            own = normals[:, at : at + part.columns]
            at += part.columns
            if self.state is None:
                draws = _Draws(own, lambda values, neutral, halved=False: values)
            else:
                gates = torch.special.ndtr(normals[:, at : at + part.columns])
                at += part.columns
                draws = _Draws(own, _gated(gates, self.state[0]))
            out = part.of(out, draws, channels[0])
        return out.split(channels, 1) if others else (out,)

    @property
    def adapts(self) -> bool:
        """Whether it has a probability that follows D."""
        return self.state is not None

    def of_arguments(
        self, args: tuple, shape: tuple[int, ...], size: int, normals: Callable[[tuple], Tensor]
    ) -> tuple:
        """What D is called with, transformed if it begins with images like the samples.

        Images among the rest that are of the same size belong to them.

        Args:
            args: D's arguments.
            shape: of a sample.
            size: rows of the whole batch.
            normals: draws those of a shape for the whole batch, and gives the rows at hand.
        """
        if not args or not isinstance(args[0], Tensor) or tuple(args[0].shape[1:]) != shape:
            return args
        where = [
            i
            for i, arg in enumerate(args)
            if i == 0
            or (isinstance(arg, Tensor) and arg.dim() == 4 and tuple(arg.shape[2:]) == shape[1:])
        ]
        first, *others = (args[i] for i in where)
        made = dict(zip(where, self(first, normals((size, self.columns)), *others), strict=True))
        return tuple(made.get(i, arg) for i, arg in enumerate(args))

    @torch.no_grad()
    def look(self, mean_sign: Tensor) -> None:
        """Take in what D made of the real images of an update; every few, change the probability.

        Args:
            mean_sign: the mean of `sign`, over all ranks.
        """
        p, total, count = self.state.unbind()
        total = total + mean_sign
        count = count + 1
        due = (count >= ADA_UPDATES).float()
        move = torch.sign(total / count - self.given.target) * self._batch * count / ADA_IMAGES
        p = (p + due * move).clamp(0, 1)
        self.state.copy_(torch.stack([p, total * (1 - due), count * (1 - due)]))

    def sign(self, scores: Tensor | None, of: str) -> Tensor:
        """The mean sign of D's scores of real images: 1 where it takes all of them for real.

        Args:
            scores: what D made of the real batch; None if it was not called on that.
            of: whose loss it was, for the message that says so.
        """
        if scores is None:
            raise ValueError(
                f"augment='ada' looks at D's scores of the real batch, and {of} has not called "
                "step.D on step.real; use 'diffaugment'"
            )
        return torch.sign(scores.float() - self._middle).mean()


def _gated(gates: Tensor, p: Tensor) -> Callable[..., Tensor]:
    """Values for images whose gate is open; each call takes the next column of gates."""
    columns = iter(gates.unbind(1))

    def given(values: Tensor, neutral: float, halved: bool = False) -> Tensor:
        limit = 1 - (1 - p).sqrt() if halved else p
        return torch.where(next(columns) < limit, values, neutral)

    return given
