"""How many bytes data may take on a device, and what a message calls them."""

from __future__ import annotations

from pathlib import Path

import torch

_FALLBACK_BUDGET = 2 << 30


def default_budget(device: torch.device) -> int:
    """Bytes data may take on a device: a quarter of its free memory; 2 GiB where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    if device.type != "cpu":
        return _FALLBACK_BUDGET
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        # a container's own limit is not in /proc/meminfo
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(free)) // 4 if free else _FALLBACK_BUDGET


def megabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 2**20:,.1f} MB"
