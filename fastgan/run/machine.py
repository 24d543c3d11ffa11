"""What a run is at work on."""

import platform
from pathlib import Path

import torch


def machine(device: torch.device) -> dict[str, str]:
    """The processor, the system and, of a run on CUDA, the GPU, by name."""
    found = {"processor": _processor(), "system": f"{platform.system()} {platform.release()}"}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system than Linux
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == "model name":
            return value.strip()
    return platform.machine()
