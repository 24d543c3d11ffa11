"""Adam and AdamW whose step is one fused operator; torch's values and state dicts.

D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from .ops.adam import adam_operator, why_not_fused
from .torch_private import add_to_all, uncompiled, unhooked

__all__ = ["OPTIMIZERS", "Adam", "AdamW"]

_told: set[str] = set()


def _tell_once(reason: str) -> None:
    if reason not in _told:
        _told.add(reason)
        warnings.warn(f"fastgan.optim: {reason}; torch.optim's own step is used", stacklevel=6)


def _without_compiler(name: str):
    """A method of torch's optimisers that does not import torch's compiler when first called.

    They do so to keep themselves out of it, at the price of 0.8 s for every program that never
    compiles anything.
    """
    hidden = getattr(torch.optim.Optimizer, name)
    plain = uncompiled(hidden)

    @functools.wraps(hidden)
    def method(self, *args, **kwargs):
        chosen = hidden if torch.compiler.is_compiling() else plain
        return chosen(self, *args, **kwargs)

    return method


class _FusedStep:
    """The step shared by Adam and AdamW, which differ in one flag of the operator."""

    add_param_group = _without_compiler("add_param_group")
    zero_grad = _without_compiler("zero_grad")
    state_dict = _without_compiler("state_dict")
    load_state_dict = _without_compiler("load_state_dict")

    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options,
    ):
        """See the class."""
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)

    @torch.no_grad()
    def step(self, closure=None):
        """One update. Returns the closure's loss if a closure is given.

        Groups with amsgrad, maximize, capturable, differentiable, a forced foreach or fused, or a
        tensor as learning rate take torch's own step; so do parameters that the kernel does not
        serve: other dtypes, other devices, sparse gradients, and memory with gaps or in another
        order than that of the gradient or the moments (channels_last is fine, where all are). The
        values are the same. A warning says why, once for each reason.
        """
        if self._falls_to_torch():
            return self._torch_step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if self._falls_to_torch():  # the gradients are new
                self._torch_step()
                return loss
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _torch_step(self, closure=None):
        step = unhooked(self._torch_class.step)  # ours has run the hooks already
        return step(self, closure) if closure is not None else step(self)

    def _falls_to_torch(self) -> bool:
        """Whether torch's own step is to be taken; the user is told why, once."""
        if torch.compiler.is_compiling():
            return True
        reason = self._why_not_fused()
        if reason is not None:
            _tell_once(reason)
        return reason is not None

    def _why_not_fused(self) -> str | None:
        for group in self.param_groups:
            for option in (
                "amsgrad",
                "maximize",
                "capturable",
                "differentiable",
                "foreach",
                "fused",
            ):
                if group.get(option):
                    return f"{option}=True has no fused form"
            if isinstance(group["lr"], Tensor) or any(
                isinstance(b, Tensor) for b in group["betas"]
            ):
                return "a tensor as lr or betas has no fused form"
            with_gradient = [p for p in group["params"] if p.grad is not None]
            for p in with_gradient:
                state = self.state.get(p)
                moments = (state["exp_avg"], state["exp_avg_sq"]) if state else ()
                reason = why_not_fused(p, p.grad, *moments)
                if reason is not None:
                    return reason
            places = [p.data_ptr() for p in with_gradient if p.numel()]
            if len(set(places)) < len(places):
                return "a list of parameters that share memory has no fused form"
        return None

    def _step_group(self, group: dict) -> None:
        buckets: dict[tuple, tuple[list[Tensor], ...]] = {}
        steps: list[Tensor] = []
        found: list[tuple[Tensor, dict]] = []
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            steps.append(state["step"])
            found.append((p, state))
        if not found:
            return
        add_to_all(steps, 1.0)
        for p, state in found:
            params, grads, exp_avgs, exp_avg_sqs = buckets.setdefault(
                (p.device, p.dtype, state["step"].item()), ([], [], [], [])
            )
            params.append(p)
            grads.append(p.grad)
            exp_avgs.append(state["exp_avg"])
            exp_avg_sqs.append(state["exp_avg_sq"])
        beta1, beta2 = group["betas"]
        for (_, _, step), lists in buckets.items():
            adam_operator(
                *lists,
                int(step),
                group["lr"],
                beta1,
                beta2,
                group["eps"],
                group["weight_decay"],
                self._decoupled,
            )


class Adam(_FusedStep, torch.optim.Adam):
    """torch.optim.Adam with a fused step and a GAN's defaults: lr 2e-4, betas (0.5, 0.999).

    Args:
        params: tensors or parameter groups.
        weight_decay: L2, added to the gradient.
        **options: torch.optim.Adam's other arguments. amsgrad, maximize, capturable,
            differentiable, foreach and fused are honoured by torch's own step, which a warning says
            once.
    """

    _torch_class = torch.optim.Adam
    _decoupled = False


class AdamW(_FusedStep, torch.optim.AdamW):
    """torch.optim.AdamW with a fused step: as :class:`Adam`, but with decoupled decay."""

    _torch_class = torch.optim.AdamW
    _decoupled = True


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
"""The optimisers by name. The first two have a fused step; weight_decay is an L2 penalty for all
but the second."""
