"""What this installation has, what it lacks, and what that costs."""

from __future__ import annotations

import copy
import json
import platform
from pathlib import Path

import torch
from torch import nn

import fastgan
from fastgan import data, engines, ops
from fastgan.problem import choose_device, make_problem

COSTS = {
    "cpu": "plain PyTorch replaces the fused operators and the fused engine: same numbers, slower",
    "cuda": "on a GPU, plain PyTorch operations replace the fused ones",
}


def info(
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    *,
    latent_dim: int | tuple[int, ...] = 100,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> dict:
    """Facts about this installation, and the engine that a pair of networks would get.

    Args:
        generator: maps ``[batch, *latent_dim]`` to images. Default: the reference generator.
        discriminator: maps images to ``[batch]`` or ``[batch, 1]``. Default: the reference one.
        latent_dim: length of a latent vector, or the shape of one latent. Default 100.
        batch_size: images in a batch. Default 64.
        device: where training would run. Default: CUDA if there is one, else the CPU.

    Returns:
        A dict of plain values: versions, the record of the build, whether each compiled library is
        loaded (or the reason why not), the instruction set in use, CUDA devices, and under
        ``"engines"`` one entry per engine, fastest first: ``None`` if it can run this pair, or the
        reason why not. ``"engine"`` names the one that ``engine="auto"`` takes, and
        ``"engine_memory_bytes"`` is the memory it works in besides the networks, their optimisers
        and the images: ``None`` where PyTorch allocates it step by step.

    Raises:
        ValueError: if only one of the two networks is given.
    """
    if (generator is None) != (discriminator is None):
        raise ValueError("info() needs both networks or none: pass generator and discriminator")
    device = choose_device(device)
    shape = (1, 28, 28)
    if generator is not None:
        # Copies: asking a question must not move or touch the caller's networks.
        generator, discriminator = (
            copy.deepcopy(network).to(device) for network in (generator, discriminator)
        )
        with torch.no_grad():
            latent = (latent_dim,) if isinstance(latent_dim, int) else latent_dim
            shape = generator(torch.zeros(2, *latent, device=device)).shape[1:]
    # Not data.open, which must guess from the sides of a tensor where its channels are.
    pixels = torch.zeros(batch_size, *shape, dtype=torch.uint8, device=device)
    images = data.Images("stand-in", "images of nothing, to ask with", pixels=pixels)
    problem = make_problem(
        generator,
        discriminator,
        images,
        batch_size=batch_size,
        latent_dim=latent_dim,
        device=device,
    )
    reasons = {name: engines.load(name).unsupported(problem) for name in engines.ORDER}
    for chosen in [name for name, reason in reasons.items() if reason is None]:
        try:
            engine = engines.load(chosen)(problem)
        except engines.CannotRun as reason:  # only trying told
            reasons[chosen] = str(reason)
            continue
        memory = engine.memory_bytes()
        engine.close()
        break
    record = Path(__file__).with_name("_build.json")
    return {
        "fastgan": fastgan.__version__,
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
        "device": str(device),
        "engine": chosen,
        "engine_memory_bytes": memory,
        "engines": reasons,
    }


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
