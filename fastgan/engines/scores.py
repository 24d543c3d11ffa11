"""What D's outputs are: one score a sample or a pack of them, and logits or a probability."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgan.engines import probe
from fastgan.engines.packs import as_logits, not_scores, pack_of
from fastgan.engines.probe import dtype_of
from fastgan.engines.snapshot import Snapshot
from fastgan.losses import LOSSES

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")

SIGMOIDS = (torch.sigmoid, Tensor.sigmoid, torch.special.expit)
SIGMOIDS_IN_PLACE = (torch.sigmoid_, Tensor.sigmoid_)

_TRIALS = 6
_SLACK = 1e-3
"""How far beyond [0, 1] a probability may lie: sigmoid(x) + 1e-6 is one."""


def trained(problem: Problem) -> None:
    """ValueError unless both optimisers have a weight to train."""
    for name, optimizer in (
        ("generator", problem.optimizer_g),
        ("discriminator", problem.optimizer_d),
    ):
        if not any(w.requires_grad for group in optimizer.param_groups for w in group["params"]):
            raise ValueError(
                f"all weights of the {name} are frozen (requires_grad is False), so there is "
                "nothing to train; leave at least one of them with requires_grad=True"
            )


def check(problem: Problem) -> None:
    """Try both networks and the loss, and raise ValueError where they do not fit each other.

    The networks are tried on copies, in the mode in which they would be trained, with as many
    samples as a batch has, and as many as an epoch's last batch has. Nothing remains of it.
    """
    trained(problem)
    if problem.loss is None:
        return  # what a method calls with what is its own; the first step tells
    try:
        _try(problem, hooks=False)
    except ValueError:
        if not any(map(probe.has_hooks, (problem.generator, problem.discriminator))):
            raise
        _try(problem, hooks=True)  # a hook may be what makes the shapes fit


def _try(problem: Problem, *, hooks: bool) -> None:
    p = problem
    full, last = batch_sizes(p)
    with probe.tried(p, hooks=hooks) as (g, d):
        samples = probe.samples(p, full)
        fake, on_real, on_fake, sigmoid = _pass(p, g, d, samples, full)
        pack = pack_of(p, d, samples, on_real)
        if last != full:
            try:
                scores = _pass(p, g, d, samples, last)[1]
                if pack * len(scores) != last:
                    raise not_scores(scores, last)
            except ValueError as error:
                raise ValueError(
                    f"an epoch's last batch has {last} of {len(p.data)} samples, and that does not "
                    f"fit: {error}; use drop_last=True, or another batch_size"
                ) from error
        _check_loss(p, on_real, on_fake)
        scores = torch.cat([on_real, on_fake])
        if p.loss.scores == "probabilities":
            if not are_probabilities(scores):
                low, high = scores.aminmax()
                raise ValueError(
                    f"loss {p.loss.name!r} works on probabilities, but the discriminator returned "
                    f"scores from {low:.3g} to {high:.3g}; end it in a sigmoid, or use a loss with "
                    "scores='logits'"
                )
        else:
            _refuse_bounded(p, d, (samples, fake), scores, sigmoid)
        _warn_of_range(p, g, samples, fake)


def batch_sizes(problem: Problem) -> tuple[int, int]:
    """Samples in a batch, and in the last batch of an epoch."""
    return problem.data.batch_sizes(problem.batch_size, problem.drop_last)


def _pass(
    problem: Problem, g: nn.Module, d: nn.Module, samples: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, str | None]:
    """One pass of each network: (fake samples, scores of real, scores of fake, D's sigmoid)."""
    p, shape = problem, tuple(problem.data.shape)
    real = samples[:size]
    given = probe.given_g(p, g, size)
    try:
        fake = g(*given)
    except Exception as error:
        told = probe.first_line(error)
        if p.latent.shape is None:
            raise ValueError(f"generator failed on the condition alone: {told}") from error
        raise ValueError(
            f"generator failed on latents of shape {list(given[0].shape)}: {told}. latent_dim must "
            "be what the generator takes: a length, or the shape of one latent such as (100, 1, 1)"
            f"{_swapped(p, g, d, given[0], real)}"
        ) from error
    if not isinstance(fake, Tensor) or fake.shape != (size, *shape):
        got = list(fake.shape[1:]) if isinstance(fake, Tensor) else type(fake).__name__
        if got == list(shape):
            raise ValueError(
                f"generator makes {len(fake)} samples where {size} are asked for; it must return "
                f"a tensor [batch, {', '.join(map(str, shape))}]"
            )
        raise ValueError(
            f"generator makes {got}, but the samples of data {p.data.name!r} are {list(shape)}; it "
            f"must return a tensor [batch, {', '.join(map(str, shape))}]"
            f"{_swapped(p, g, d, given[0], real)}"
        )
    scores = []
    for images in (real, fake):
        try:
            score, sigmoid = scored(d, *probe.given_d(p, d, images))
        except Exception as error:
            raise ValueError(
                f"discriminator failed on samples of shape {list(images.shape)}: "
                f"{probe.first_line(error)}"
            ) from error
        scores.append(as_logits(score, size))
    return fake, *scores, sigmoid


def _swapped(problem: Problem, g: nn.Module, d: nn.Module, latents: Tensor, real: Tensor) -> str:
    """What a message adds where the two networks do each other's work."""
    try:
        fits = d(latents.to(dtype_of(d))).shape == real.shape
        fits = fits and g(real.to(dtype_of(g))).numel() == len(real)
    except Exception:
        return ""
    hint = "; generator and discriminator are swapped: pass Trainer(generator, discriminator, ...)"
    return hint if fits else ""


def _check_loss(problem: Problem, on_real: Tensor, on_fake: Tensor) -> None:
    """Try a user's own loss, where that cannot leave a trace."""
    loss = problem.loss
    arguments = {"d_loss": (on_real, on_fake), "g_loss": (on_fake, on_real)}
    arguments["g_loss"] = arguments["g_loss"][: 1 + loss.needs_real]
    for name, scores in arguments.items():
        function = getattr(loss, name)
        if type(function) is not FunctionType or function.__closure__:
            continue  # it may have a state; the first step will tell
        with torch.enable_grad():
            scores = [s.detach().clone().requires_grad_() for s in scores]
            try:
                value = function(*scores)
            except Exception as error:
                raise ValueError(
                    f"loss {loss.name!r}: {name} failed on scores of shape {list(on_fake.shape)}: "
                    f"{probe.first_line(error)}"
                ) from error
            require_scalar(value, f"loss {loss.name!r}", name)


def require_scalar(value: object, owner: str, name: str) -> Tensor:
    """What a loss returned, as a scalar; ValueError unless it is one number with a gradient.

    Args:
        value: what it returned.
        owner: whose loss, for messages.
        name: of the function.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
        raise ValueError(
            f"{owner}: {name} returned {got}; expected one number as a tensor, such as "
            "the mean over the batch"
        )
    if not value.requires_grad:
        raise ValueError(
            f"{owner}: {name} returned a tensor without a gradient; compute it from the "
            "scores by tensor operations, without .item(), .detach() or torch.no_grad()"
        )
    return value if value.dim() == 0 else value.reshape(())


def _refuse_bounded(
    problem: Problem,
    d: nn.Module,
    samples: tuple[Tensor, Tensor],
    scores: Tensor,
    sigmoid: str | None,
) -> None:
    """ValueError if D, a copy that is spoilt by this, returns probabilities or their logarithms."""
    if sigmoid:
        _refuse_probabilities(problem, "ends in a sigmoid", absorbed=True)
        return
    inputs = [probe.given_d(problem, d, x) for x in samples]
    low, high = scores.aminmax()
    with _Undropped() as trace:  # dropout scales probabilities beyond 1
        if low >= -_SLACK and always(are_probabilities, d, *inputs):
            ends = "returns probabilities: its scores lie in [0, 1]"
            if high > 1 + _SLACK:
                ends = "returns probabilities with dropout behind them"
            _refuse_probabilities(problem, ends)
        elif high <= _SLACK and always(_are_negative, d, *inputs):
            _refuse_logarithms(problem, trace.takes_logarithms)


def _refuse_logarithms(problem: Problem, found: bool) -> None:
    """The same of log-probabilities, `found` by their calls; else scores are never above 0.

    A loss on raw scores may be meant for such, if it is the user's own and says so.
    """
    loss = problem.loss
    ours = loss.name in LOSSES and LOSSES[loss.name] == loss
    if loss.scores != "logits" and not (found and (ours or loss.scores is None)):
        return
    takes = {"logits": "works on logits", "raw": "works on raw scores"}
    what = "log-probabilities" if found else "scores that are never above 0, as log-probabilities"
    raise ValueError(
        f"loss {loss.name!r} {takes.get(loss.scores, 'does not say what scores it works on')}, but "
        f"the discriminator returns {what}; return the logits (the input of logsigmoid, or of "
        "log_softmax over two outputs their difference), or take the scores as they are by a "
        "losses.Loss of your own with scores='raw'"
    )


def cut(what: str, untrained: str) -> ValueError:
    """What to say where no gradient reaches the weights of a network."""
    return ValueError(
        f"the {what}, so the {untrained} cannot be trained; let the gradient through, without "
        "torch.no_grad(), .detach() or .data, and without reentrant activation checkpointing of an "
        "input that needs no gradient (use_reentrant=False does it)"
    )


def _refuse_probabilities(problem: Problem, ends: str, *, absorbed: bool = False) -> None:
    loss = problem.loss
    if loss.scores == "logits":
        if not absorbed:
            raise ValueError(
                f"loss {loss.name!r} works on logits, but the discriminator {ends}, and does not "
                "end in a sigmoid that could be left out; return the logits, or use a loss with "
                "scores='probabilities'"
            )
    elif loss.scores == "raw":
        way = ", or use loss='non-saturating' or 'minimax'" if absorbed else ""
        raise ValueError(
            f"loss {loss.name!r} works on raw scores, but the discriminator {ends}; remove the "
            f"sigmoid{way}"
        )
    else:
        raise ValueError(
            f"loss {loss.name!r} does not say what scores it works on, and the discriminator "
            f"{ends}; make it a losses.Loss with scores='probabilities' (D's outputs as they are), "
            "scores='logits' (the sigmoid is left out), or scores='raw' and remove the sigmoid"
        )


def _warn_of_range(problem: Problem, g: nn.Module, samples: Tensor, fake: Tensor) -> None:
    """Say that a generator of values in [0, 1] cannot make samples below 0."""
    if samples.amin() >= 0 or not are_probabilities(fake):
        return
    if always(are_probabilities, g, probe.given_g(problem, g, len(fake))):
        logger.warning(
            "the generator's outputs lie in [0, 1], and the samples of data %r go down to %.3g; "
            "end it in tanh where the samples lie in [-1, 1]",
            problem.data.name,
            samples.amin().item(),
        )


def final_sigmoid(problem: Problem) -> tuple[nn.Sigmoid | str | None, list[tuple[str, str]]]:
    """How D's output comes out of a sigmoid, in the mode that D is in.

    Returns:
        the nn.Sigmoid module whose output is D's output, when D calls it for nothing else and no
        hook would miss it; "function" when the output comes from a call such as torch.sigmoid; None
        when it comes from something else. And the plain attributes that a pass of D changes, as
        (module, attribute).
    """
    with probe.tried(problem) as (_, d):
        before = Snapshot({"discriminator": d}, tensors=False)
        images = probe.samples(problem, min(problem.batch_size, len(problem.data)))
        _, where = scored(d, *probe.given_d(problem, d, images))
        volatile = before.changed()
    if where in (None, "function") or probe.has_hooks(problem.discriminator):
        return where and "function", volatile
    return problem.discriminator.get_submodule(where), volatile


def scored(d: nn.Module, *inputs: Any) -> tuple[object, str | None]:
    """D's output, and the sigmoid that it comes out of: a module's path, "function" or None."""
    calls: list[tuple[str, Tensor]] = []
    paths = [(path, m) for path, m in d.named_modules() if type(m) is nn.Sigmoid]
    handles = [
        m.register_forward_hook(lambda m, _, out, path=path: calls.append((path, out)))
        for path, m in paths
    ]
    try:
        with FinalSigmoid() as trace:
            score = d(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if trace.input_of(score) is None:
        return score, None
    called = [path for path, _ in calls]
    for path, out in calls:
        if out.data_ptr() == score.data_ptr() and called.count(path) == 1:
            return score, path
    return score, "function"


class FinalSigmoid(TorchFunctionMode):
    """Remembers the last sigmoid of a forward pass, so that its input can stand for its output.

    Going back from probabilities by a logarithm would lose every logit beyond about 17 in float32
    and beyond about 6 in bfloat16.
    """

    def __init__(self):
        """Start with nothing seen."""
        super().__init__()
        self.seen: tuple[Tensor, Tensor, int] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run the call; if it is a sigmoid keep its input and output."""
        x = args[0] if args else None
        if func in SIGMOIDS_IN_PLACE:
            x = x.clone()
        out = func(*args, **(kwargs or {}))
        if isinstance(x, Tensor) and (func in SIGMOIDS or func in SIGMOIDS_IN_PLACE):
            self.seen = (x, out, out._version)
        return out

    def input_of(self, output: object) -> Tensor | None:
        """The logits when `output` is what the last sigmoid returned, or a view of all of it."""
        if self.seen is None or not isinstance(output, Tensor):
            return None
        x, probability, version = self.seen
        same = output.data_ptr() == probability.data_ptr() and output.numel() == probability.numel()
        return x if same and output._version == version else None


class _Undropped(TorchFunctionMode):
    """Leaves dropout out, and notes what is called."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").removeprefix("special_")
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        self.names.add(name)
        return func(*args, **(kwargs or {}))

    @property
    def takes_logarithms(self) -> bool:
        """Whether logarithms of probabilities were computed."""
        names = self.names
        return bool(names & {"log_softmax", "log_sigmoid", "logsigmoid"}) or (
            bool(names & {"log", "log_"}) and bool(names & {"sigmoid", "sigmoid_", "softmax"})
        )


def are_probabilities(values: Tensor) -> bool:
    """Whether all values lie in [0, 1]."""
    return bool(((values >= -_SLACK) & (values <= 1 + _SLACK)).all())


def _are_negative(values: Tensor) -> bool:
    """Whether no value is above 0."""
    return bool((values <= _SLACK).all())


def always(holds: Callable[[Tensor], bool], network: nn.Module, *inputs: Tensor) -> bool:
    """Whether something holds of a network's outputs whatever its weights, as far as trying tells.

    The scores of a fresh network may all happen to lie in [0, 1], say. The weights are changed and
    not put back.

    Args:
        holds: of an output.
        network: a copy.
        inputs: batches that it takes, each a tensor or a tuple of arguments.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    with_weights = [m for m in network.modules() if _weights(m.parameters(recurse=False))]
    for trial in range(_TRIALS):
        if trial:
            for p in _weights(network.parameters()):
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float32, device="cpu")
                p.add_(noise.to(p) * (p.abs().mean() + 0.1) * 3.0**trial)
        elif with_weights:
            # The outputs of a network that ends in a linear layer change their signs by that.
            for p in _weights(with_weights[-1].parameters(recurse=False)):
                p.neg_()
        for x in inputs:
            out = network(*x) if isinstance(x, tuple) else network(x)
            if not isinstance(out, Tensor) or not holds(out):
                return False
    return True


def _weights(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that are numbers, and no indices or switches."""
    return [p for p in parameters if p.is_floating_point() or p.is_complex()]
