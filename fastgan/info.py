"""What this installation has, what it lacks, and what that costs."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgan import config as config_room
from fastgan import engines, ops
from fastgan.config import Config, takes_settings
from fastgan.data import Data
from fastgan.problem import Problem, choose_device, copy_of, make_problem
from fastgan.run import torch_rng
from fastgan.version import __version__

COSTS = {
    "cpu": "plain PyTorch replaces the fused operators and the fused engine: same numbers, slower",
    "cuda": "on a GPU, plain PyTorch operations replace the fused ones",
}


@takes_settings("data", "epochs", "steps", "seconds", "out", "if_exists", "console")
def info(
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    config: Config | None = None,
    **overrides: Any,
) -> dict:
    """Facts about this installation, and the engine that a pair of networks would get.

    Args:
        generator: latents to samples. Default: that of the setting `model`, for images of 28 x 28.
        discriminator: samples to one score each. Default: likewise.
        config: the settings that it would be trained with, a `fastgan.Config`.
        **overrides: settings by name, laid over `config`, as for `Trainer`.

    Returns:
        A dict of plain values: versions, the record of the build, whether each compiled library is
        loaded (or the reason why not), the instruction set in use, CUDA devices, and under
        ``"engines"`` one entry per engine, fastest first: ``None`` if it can run this pair, or the
        reason why not. ``"engine"`` names the one that ``engine="auto"`` takes, and
        ``"engine_memory_bytes"`` is the memory it works in besides the networks, their optimisers
        and the samples: ``None`` where PyTorch allocates it step by step.

    Raises:
        ValueError: only one of the two networks is given, or a setting is none.
    """
    if (generator is None) != (discriminator is None):
        raise ValueError("info() needs both networks or none: pass generator and discriminator")
    config = config_room.settings_of(config, overrides)
    device = choose_device(config.device)
    shape = (1, 28, 28)
    if generator is not None:
        # Copies: asking a question must not move or touch the caller's networks.
        pair = nn.ModuleList([generator, discriminator])  # together: they may share layers
        generator, discriminator = copy_of(pair, "generator or discriminator", "info()").to(device)
        latents = torch.zeros(2, *config.latent.shape, device=device)
        with torch.no_grad(), torch_rng.seeded(0, device):
            shape = copy_of(generator, "generator", "info()")(latents).shape[1:]
    # Not data.open, which must guess from the sides of a tensor where its channels are.
    samples = torch.zeros(config.batch_size, *shape, dtype=torch.uint8, device=device)
    stand_in = Data("stand-in", "samples of nothing, to ask with", samples=samples)
    with _threads_kept():
        problem = make_problem(generator, discriminator, stand_in, config)
        return _facts(problem)


def _facts(problem: Problem) -> dict:
    names, behind = engines.order(problem)
    reasons = {name: engines.load(name).unsupported(problem) for name in names}
    for chosen in [name for name, reason in reasons.items() if reason is None]:
        try:
            engine = engines.load(chosen)(problem)
        except engines.CannotRun as reason:  # only trying told
            reasons[chosen] = str(reason)
            continue
        memory = engine.memory_bytes()
        engine.close()
        for name, reason in behind.items():
            if name != chosen:
                reasons[name] = reasons[name] or reason
        break
    record = Path(__file__).with_name("_build.json")
    return {
        "fastgan": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "built": json.loads(record.read_text()) if record.exists() else None,
        "libraries": ops.library_status(),
        "isa": ops.isa(),
        "threads": torch.get_num_threads(),
        "cuda_devices": [
            torch.cuda.get_device_name(i)
            for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
        "device": str(problem.device),
        "engine": chosen,
        "engine_memory_bytes": memory,
        "engines": reasons,
    }


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Torch's number of threads is put back afterwards."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def report(facts: dict | None = None) -> str:
    """The same facts as lines for a person: what is there, what is missing, and what that costs.

    Args:
        facts: what :func:`info` returned. Default: a fresh call.
    """
    facts = info() if facts is None else facts
    built = facts["built"]
    lines = [
        f"fastgan {facts['fastgan']}, torch {facts['torch']}, Python {facts['python']}",
        f"platform      {facts['platform']}, {facts['threads']} threads",
        f"instructions  {facts['isa'] or 'none (no compiled kernels)'}",
        f"CUDA devices  {', '.join(facts['cuda_devices']) or 'none'}",
    ]
    for part, status in facts["libraries"].items():
        skipped = (built or {}).get("skipped", {}).get(part)
        why = f"{status}; left out of the build because {skipped}" if skipped else status
        lines.append(f"{part + ' library':<14}{why}")
        if status != "loaded" and (part == "cpu" or facts["cuda_devices"]):
            lines.append(f"{'':<14}what that costs: {COSTS[part]}")
    if built:
        cuda = f", CUDA {built['cuda']} for {built['archs']}" if built["cuda"] else ""
        lines.append(f"built with    torch {built['torch']}{cuda}, FASTGAN_BUILD={built['choice']}")
    lines.append(f"engine        {facts['engine']} for these networks on {facts['device']}")
    if facts["engine_memory_bytes"] is not None:
        lines.append(f"engine memory {facts['engine_memory_bytes'] / 2**20:.1f} MB of workspace")
    for name, reason in facts["engines"].items():
        if reason is not None:
            lines.append(f"{'':<14}not {name}: {reason}")
    return "\n".join(lines)
