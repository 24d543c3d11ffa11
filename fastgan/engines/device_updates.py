"""Updates by optimisers whose every changing number lies on the device, so that they replay.

Between `begin` and `end` the optimiser belongs to the update; before and after, a user sees the
state that the optimiser's own step() would have left.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan import ops, optim, torch_private
from fastgan.engines.base import CannotRun
from fastgan.engines.updates import Update

if TYPE_CHECKING:
    from fastgan.problem import Problem

ADAMS = (torch.optim.Adam, torch.optim.AdamW, optim.Adam, optim.AdamW)


def unsupported(optimizer: torch.optim.Optimizer, scaled: bool) -> str | None:
    """Why an optimiser's update cannot be replayed, or None."""
    name = type(optimizer).__name__
    if torch_private.step_hooks(optimizer) or torch_private.global_step_hooks():
        return f"{name} has step hooks, which a replay would not call"
    if torch_private.replaced_step(optimizer) is not None:
        return f"the step of {name} was replaced, and a replay would not call it"
    if _is_plain_adam(optimizer):
        return None
    if "capturable" not in optimizer.defaults:
        return f"{name} has no capturable=True, so its step cannot be replayed"
    if scaled:
        return (
            "precision 'fp16' takes Adam or AdamW of float32 weights here, without amsgrad, "
            f"maximize and differentiable, and not this {name}"
        )
    return None


def device_update(
    problem: Problem, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None
) -> DeviceUpdate:
    """The update that an optimiser takes; CannotRun with the reason of `unsupported`."""
    if reason := unsupported(optimizer, scaler is not None):
        raise CannotRun(reason)
    kind = _AdamUpdate if _is_plain_adam(optimizer) else _OwnUpdate
    return kind(problem, optimizer, scaler)


def _is_plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer) in ADAMS and not any(
        group.get("amsgrad")
        or group.get("maximize")
        or group.get("differentiable")
        or any(isinstance(beta, Tensor) for beta in group["betas"])
        or any(w.dtype not in (torch.float32, torch.float64) for w in group["params"])
        for group in optimizer.param_groups
    )


class DeviceUpdate(Update):
    """An update that reads learning rates and step numbers on the device."""

    reads = False
    rate_dtype = torch.float64

    def __init__(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
    ):
        """The rates are set by `begin`."""
        super().__init__(problem, optimizer, scaler)
        device = problem.device
        if scaler is not None:
            # makes its tensors
            scaler.scale(torch.zeros((), dtype=torch.float32, device=device))
        n = len(optimizer.param_groups)
        self._base = torch.zeros(n, dtype=self.rate_dtype, device=device)
        self._rates = torch.zeros(n, dtype=self.rate_dtype, device=device)
        self._lrs = self._rates.unbind()
        self._sent: list[float] | None = None

    def scale_rates(self, factor: Tensor) -> None:
        """Multiply the learning rates of `begin` by a tensor of one element."""
        torch.mul(self._base, factor, out=self._rates)

    def begin(self) -> None:
        """Take over what the user may have changed."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if rates != self._sent:
            send(rates, self._base)
            self._sent = rates
        self._rates.copy_(self._base)

    @abstractmethod
    def end(self, updates: int) -> None:
        """Leave the optimiser as it would be after so many updates of its own."""

    @abstractmethod
    def layout(self) -> tuple:
        """What is baked into a recording of the update; a change of it asks for a new one."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Every tensor that an update writes to, besides the weights."""

    @property
    def ready(self) -> bool:
        """The optimiser's state exists, so that a recording can name it."""
        return True


@dataclass
class _Bucket:
    """Parameters of one group with one number of updates."""

    group: int
    done: float
    step: Tensor
    weights: list[Tensor] = field(default_factory=list)
    moved: list[Tensor] | None = None
    """Those that updates move; None before the first."""


class _AdamUpdate(DeviceUpdate):
    """Adam and AdamW, one launch for all parameters that have had equally many updates.

    It stands for its optimiser before a GradScaler, as torch's fused Adam does.
    """

    _step_supports_amp_scaling = True

    def __init__(self, problem, optimizer, scaler):
        """Make the state of parameters that have none, as the first step() would."""
        super().__init__(problem, optimizer, scaler)
        self._buckets: list[_Bucket] = []
        self._used: set[Tensor] = set()
        self._made: set[Tensor] = set()
        buckets: dict[tuple, _Bucket] = {}
        for i, group in enumerate(optimizer.param_groups):
            for w in group["params"]:
                if not w.requires_grad:
                    continue
                state = optimizer.state[w]
                if not state:
                    self._made.add(w)
                    state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                    for key in ("exp_avg", "exp_avg_sq"):
                        state[key] = torch.zeros_like(w, memory_format=torch.preserve_format)
                done = float(state["step"])
                key = (i, done, w.dtype)
                if key not in buckets:
                    step = torch.full((), done, dtype=torch.float32, device=problem.device)
                    buckets[key] = _Bucket(i, done, step)
                buckets[key].weights.append(w)
        self._buckets = list(buckets.values())

    @property
    def param_groups(self) -> list[dict]:
        """The optimiser's, for the scaler."""
        return self.optimizer.param_groups

    def begin(self) -> None:
        """Take over what the user may have changed."""
        super().begin()
        for bucket in self._buckets:
            done = next(
                (float(self.optimizer.state[w]["step"]) for w in bucket.weights if w in self._used),
                bucket.done,
            )
            if done != bucket.done:
                bucket.done = done
                bucket.step.fill_(done)

    def scaled_step(self) -> None:
        """Use gradients that the scaler has scaled, unless one of them is not finite."""
        self.scaler.step(self)

    @torch.no_grad()
    def step(self) -> None:
        """Use the gradients."""
        found_inf = getattr(self, "found_inf", None)
        for bucket in self._buckets:
            weights = [w for w in bucket.weights if w.grad is not None]
            if not weights:
                continue
            if bucket.moved is not None and list(map(id, weights)) != list(map(id, bucket.moved)):
                raise CannotRun(
                    "some weights have a gradient in some updates only, so that their numbers of "
                    "updates differ"
                )
            bucket.moved = weights
            self._used.update(weights)
            states = [self.optimizer.state[w] for w in weights]
            group = self.optimizer.param_groups[bucket.group]
            bucket.step.add_(1)
            ops.adam_device_(
                *zip(
                    *(
                        _in_memory_order(w, w.grad, state["exp_avg"], state["exp_avg_sq"])
                        for w, state in zip(weights, states, strict=True)
                    ),
                    strict=True,
                ),
                bucket.step,
                self._lrs[bucket.group],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                decoupled=isinstance(self.optimizer, torch.optim.AdamW),
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=found_inf,
            )
            if found_inf is not None:
                bucket.step.sub_(found_inf)

    def end(self, updates: int) -> None:
        """Write the numbers of updates back; with a scaler this waits for the device."""
        for bucket in self._buckets:
            used = [w for w in bucket.weights if w in self._used]
            if not used:
                continue
            if self.scaler is None:
                bucket.done += updates
            else:
                bucket.done = bucket.step.item()
            for w in used:
                self.optimizer.state[w]["step"].fill_(bucket.done)
        # step() makes no state for what has no gradient.
        for w in self._made - self._used:
            self.optimizer.state.pop(w, None)
        self._made.clear()

    def layout(self) -> tuple:
        """Options, and which parameters have had equally many updates."""
        states = [
            self.optimizer.state.get(w) for g in self.optimizer.param_groups for w in g["params"]
        ]
        done = [state["step"] for state in states if state]
        first = float(done[0]) if done else 0.0
        return (
            [
                (g["betas"], g["eps"], g["weight_decay"], len(g["params"]))
                for g in self.optimizer.param_groups
            ],
            [float(step) - first for step in done],
        )

    def tensors(self) -> list[Tensor]:
        """Every tensor that an update writes to, besides the weights."""
        found = [bucket.step for bucket in self._buckets]
        for state in self.optimizer.state.values():
            found += [state[key] for key in ("exp_avg", "exp_avg_sq") if key in state]
        if self.scaler is not None:
            found += torch_private.scaler_tensors(self.scaler)
        return found


class _OwnUpdate(DeviceUpdate):
    """Any other optimiser of torch with a capturable step, by that step."""

    rate_dtype = torch.float32

    def __init__(self, problem, optimizer, scaler):
        """Nothing is touched before `begin`."""
        super().__init__(problem, optimizer, scaler)
        self._before: list[tuple] = []
        # Of the numbers that a user finds on the CPU (steps, products of rates), those that count.
        self._numbers: dict[tuple[Tensor, str], Tensor] = {}

    @property
    def ready(self) -> bool:
        """Its first step has made its state: only the optimiser knows what it starts from."""
        return bool(self.optimizer.state)

    def begin(self) -> None:
        """Make it capturable, with its numbers on the device."""
        super().begin()
        self._before = [(g["capturable"], g["lr"]) for g in self.optimizer.param_groups]
        for group, lr in zip(self.optimizer.param_groups, self._lrs, strict=True):
            group["capturable"], group["lr"] = True, lr
        for w, state in self.optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.device != w.device:
                    number = self._numbers.setdefault(
                        (w, key), torch.empty_like(value, device=w.device)
                    )
                    state[key] = number.copy_(value)

    def end(self, updates: int) -> None:
        """Make it what it was; its numbers wait for the device."""
        for group, (capturable, lr) in zip(self.optimizer.param_groups, self._before, strict=True):
            group["capturable"], group["lr"] = capturable, lr
            for w in () if capturable else group["params"]:
                state = self.optimizer.state.get(w, {})
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.dim() == 0 < w.dim():
                        self._numbers[w, key] = value
                        state[key] = value.cpu()

    def tensors(self) -> list[Tensor]:
        """Every tensor that an update writes to, besides the weights."""
        return [
            self._numbers.get((w, key), value)
            for w, state in self.optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        ]

    def layout(self) -> tuple:
        """Options, other than what `begin` sends."""
        return tuple(
            (key, value)
            for group in self.optimizer.param_groups
            for key, value in group.items()
            if key not in ("params", "lr", "capturable")
        )


def send(values: list[float], to: Tensor) -> None:
    """Copy numbers of the host to a tensor without waiting for its device."""
    on_cuda = to.device.type == "cuda"
    to.copy_(
        torch.tensor(values, dtype=to.dtype, device="cpu", pin_memory=on_cuda), non_blocking=on_cuda
    )


def _in_memory_order(weight: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The tensors as they lie in memory, where they all lie as the weight does.

    A weight in the channels-last format is not contiguous, and its update need not know.
    """
    if weight.is_contiguous() and all(t.is_contiguous() for t in others):
        return weight, *others
    found = [weight]
    for t in others:
        if t.stride() != weight.stride():
            t = torch.empty_like(weight).copy_(t)
        found.append(t)
    return tuple(t.as_strided((t.numel(),), (1,), t.storage_offset()) for t in found)
