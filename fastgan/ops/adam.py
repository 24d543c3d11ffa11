"""What moves weights: Adam, AdamW and averages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library, reference


def adam_(
    params: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    exp_avgs: Tensor | Sequence[Tensor],
    exp_avg_sqs: Tensor | Sequence[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float = 0.5,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> None:
    """One Adam update in place, of a list of tensors or of one flat buffer; torch's arithmetic.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: tensors, or lists of tensors that match one another in
            number, shape and dtype. The kernel takes float32 and float64, dense in memory in any
            order of the dimensions (contiguous, channels_last) that the four share; the reference
            takes any floating dtype and any strides.
        step: the number of this update, counted from 1.
        weight_decay: added to the gradient (Adam), or, if `decoupled`, taken from the weight
            (AdamW).

    D. Kingma and J. Ba, "Adam", ICLR 2015; I. Loshchilov and F. Hutter, "Decoupled Weight Decay",
    ICLR 2019.
    """
    lists = [
        [t] if isinstance(t, Tensor) else list(t) for t in (params, grads, exp_avgs, exp_avg_sqs)
    ]
    if step < 1:
        raise ValueError(f"step is {step}; updates are counted from 1")
    if len({len(tensors) for tensors in lists}) != 1:
        raise ValueError(
            "params, grads, exp_avgs and exp_avg_sqs must be equally many tensors; they are "
            + ", ".join(str(len(tensors)) for tensors in lists)
        )
    if not lists[0]:
        return
    options = step, lr, beta1, beta2, eps, weight_decay, decoupled
    with torch.no_grad():
        if all(why_not_fused(*tensors) is None for tensors in zip(*lists, strict=True)):
            adam_operator(*lists, *options)
        else:
            reference.adam_(*lists, *options)


def adam_operator(params, grads, exp_avgs, exp_avg_sqs, *options) -> None:
    """The operator on lists that it takes, with its options in the order of the schema."""
    torch.ops.fastgan.adam_(params, grads, exp_avgs, exp_avg_sqs, *options)
    # The stable ABI leaves this to us: a backward pass over an overwritten weight must fail, not
    # go wrong.
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs])


def why_not_fused(param: Tensor, *others: Tensor) -> str | None:
    """Why the operator does not take a parameter with its gradient and moments, or None."""
    if type(param) not in library.PLAIN:
        return f"{type(param).__name__} as a parameter has no fused form"
    if param.dtype not in _DTYPES or any(t.dtype != param.dtype for t in others):
        dtypes = sorted({str(t.dtype) for t in (param, *others)})
        return f"{' with '.join(dtypes)} has no fused form; float32 and float64 have"
    if any(t.layout != torch.strided for t in (param, *others)):
        return "a sparse parameter or gradient has no fused form"
    if not library.has_kernels(param.device):
        return f"no compiled library serves {param.device.type} (see `fastgan info`)"
    if any(t.device != param.device for t in others):
        return "a gradient or moment that is on another device than its parameter has no fused form"
    if param.is_contiguous() and all(t.is_contiguous() for t in others):
        return None
    if not (_dense(param) and all(_strides(t) == _strides(param) for t in others)):
        return (
            "a parameter, gradient or moment whose strides are not those of the others, or leave "
            "gaps, has no fused form (choose the memory format before making the optimiser)"
        )
    return None


def _strides(t: Tensor) -> list[int]:
    """What says where elements lie: the strides of dimensions of more than one."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def _dense(t: Tensor) -> bool:
    """Whether the elements fill a block of memory, in whatever order of the dimensions."""
    # torch keeps such strides, and no others.
    return t.stride() == torch.empty_like(t, device="meta").stride()


_DTYPES = frozenset((torch.float32, torch.float64))


def adam_device_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: Tensor,
    lr: Tensor,
    *,
    beta1: float = 0.5,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """:func:`adam_` for a captured step: what changes from step to step is read on the device.

    One launch for all tensors of a network on CUDA (one for each 640 tensors).

    Args:
        params, grads, exp_avgs, exp_avg_sqs: as for :func:`adam_`, on one device, as the kernel
            takes them.
        step: float32 or float64, one element: the number of this update, counted from 1, so
            already incremented.
        lr: float32 or float64, one element.
        weight_decay, decoupled: as for :func:`adam_`.
        grad_scale: float32, one element; the gradients are divided by it. Default: 1.
        found_inf: float32, one element; if it is not 0, nothing changes. Default: 0.

    Raises RuntimeError for tensors that do not match, naming the argument.
    """
    lists = [list(tensors) for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    options = beta1, beta2, eps, weight_decay, decoupled, grad_scale, found_inf
    with torch.no_grad():
        if not library.has_kernels(step.device):
            reference.adam_device_(*lists, step, lr, *options)
            return
        torch.ops.fastgan.adam_device_(*lists, step, lr, *options)
        torch.autograd.graph.increment_version([*lists[0], *lists[2], *lists[3]])


def ema_(averages: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """averages = decay * averages + (1 - decay) * values in place, with torch.lerp's arithmetic.

    Args:
        averages, values: lists of tensors that match in number, shape, strides (dense in memory, in
            any order of the dimensions), device and dtype (float32, float64, bfloat16 or float16;
            one dtype). One launch for all of them on CUDA (one for each 640).
        decay: 0 <= decay <= 1.

    Raises RuntimeError for tensors that do not match, naming the argument.
    """
    averages, values = list(averages), list(values)
    with torch.no_grad():
        if not averages or not library.has_kernels(averages[0].device):
            reference.ema_(averages, values, decay)
            return
        torch.ops.fastgan.ema_(averages, values, decay)
        torch.autograd.graph.increment_version(averages)
