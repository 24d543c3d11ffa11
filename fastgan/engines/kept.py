"""What the engine `compile` keeps between runs: compiled code, and how much faster it was.

It lies in the user's cache (``$XDG_CACHE_HOME/fastgan/compile``, else ``~/.cache/fastgan/compile``)
and may be deleted at any time: what is missing or damaged is made anew, without a word.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastgan import torch_graphs
from fastgan.version import __version__

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")


class Measured(NamedTuple):
    """What a run on `compile` has found out about a problem."""

    eager_ms: float
    """A step's losses and gradients in PyTorch's operations, best of a few."""
    compiled_ms: float
    """The same compiled."""
    seconds: float
    """What it takes to begin with code that was kept."""


def folder() -> Path:
    """Where it lies."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fastgan" / "compile"


def processor(device: torch.device) -> str:
    """What code is compiled for."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        # Hypervisors hide flags: two machines of one name may differ.
        parts = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        name = "".join(sorted(set(parts))) or name
    except OSError:
        pass
    return f"{name} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"


# --- code ---------------------------------------------------------------------------------------


def code_of(
    graph: torch.fx.GraphModule,
    inputs: list[Tensor],
    compiler: Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., list[Tensor]]],
) -> tuple[Callable[..., list[Tensor]], bool]:
    """A graph's compiled code: kept from an earlier run, or compiled now and kept.

    Args:
        graph: operations of torch.
        inputs: tensors like those that it will be called with.
        compiler: makes the code.

    Returns:
        the code, and whether it had been kept.
    """
    try:
        where = folder()
        where.mkdir(parents=True, exist_ok=True)
        path = where / f"{_key_of(graph, inputs)}.code"
    except (OSError, RuntimeError) as error:  # no home, or one that cannot be written to
        logger.debug("nothing is kept between runs: %s", error)
        return compiler(graph, inputs), False
    with torch_graphs.compiler_cache(str(where / "inductor")):
        try:
            if path.exists():
                return torch_graphs.compiled_before(str(path)), True
        except Exception as error:
            logger.debug("%s cannot be used: %s", path, error)
        code = compiler(graph, inputs)
        try:
            if save := getattr(code, "save", None):
                save(path=str(path))
        except Exception as error:
            logger.debug("%s cannot be written: %s", path, error)
    return code, False


def _key_of(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> str:
    shapes = [(t.shape, t.stride(), t.dtype, t.device) for t in inputs]
    settings = (
        torch_graphs.compiler_settings(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
    )
    return _digest((graph.code, shapes, settings, *_here(inputs[0].device)))


# --- measurements -------------------------------------------------------------------------------


def remember(problem: Problem, found: Measured) -> None:
    """Keep a measurement for later runs of the same problem."""
    try:
        path = _measured_of(problem)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found._asdict()))
    except (OSError, RuntimeError) as error:
        logger.debug("the measurement is not kept: %s", error)


def measured(problem: Problem) -> Measured | None:
    """What an earlier run of the same problem has found out, on this processor."""
    try:
        found = Measured(**json.loads(_measured_of(problem).read_text()))
        return found if all(value > 0 for value in found) else None
    except (OSError, RuntimeError, ValueError, TypeError):
        return None


def why_not(problem: Problem) -> str | None:
    """Why `auto` does not take `compile` for a problem; None if it does.

    It does where an earlier run with engine='compile' has measured, for the same networks and
    settings on the same processor, that steps are faster by so much that the run, whose length
    must be known (`steps`, `epochs`), wins back the time in which compiled code is prepared. A run
    that is continued goes on as it was, whatever was measured since: the bits depend on it.
    """
    if problem.continued is not None:
        return None if problem.continued == "compile" else "the run was begun without it"
    found = measured(problem)
    if found is None:
        return "whether compiling pays here is not known; engine='compile' finds out"
    config = problem.config
    epochs = None if config.epochs is None else config.epochs * problem.steps_per_epoch
    steps = min((n for n in (config.steps, epochs) if n is not None), default=None)
    gain = found.eager_ms - found.compiled_ms
    said = f"a step took {found.compiled_ms:.3g} ms compiled and {found.eager_ms:.3g} in eager"
    if gain <= 0:
        return said
    if steps is None:
        return f"{said}, but the run's length (steps or epochs) is not known"
    if gain * steps <= 1e3 * found.seconds:
        return f"{said}, which {steps} steps do not win back {found.seconds:.3g} s with"
    return None


def _measured_of(problem: Problem) -> Path:
    p, config = problem, problem.config
    networks = [
        (repr(m), [(name, t.shape, t.stride(), t.dtype) for name, t in m.named_parameters()])
        for m in (p.generator, p.discriminator)
    ]
    trained = (
        type(p.method).__qualname__, getattr(p.loss, "name", None), [*map(str, p.penalties)],
        [t.name for t in p.terms], str(config.augment), p.latent.shape, tuple(p.data.shape),
        p.world.size,
    )  # fmt: skip
    sizes = (
        config.batch_size, config.d_steps, config.g_steps, config.shared_fakes, p.precision,
    )  # fmt: skip
    key = _digest((networks, trained, sizes, *_here(p.device)))
    return folder() / f"{key}.json"


def _here(device: torch.device) -> tuple[str, ...]:
    return __version__, torch.__version__, processor(device)


def _digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
