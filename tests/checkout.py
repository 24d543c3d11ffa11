"""What tests of the checkout's own programs share: where those are, and a small plan."""

from pathlib import Path

from plans import Plan

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS, TOOLS = ROOT / "benchmarks", ROOT / "tools"
TINY = "hidden=16,depth=2,image=1x8x8,latent=8,batch=8,images=100"


def tiny(**changes) -> Plan:
    return Plan(
        **{
            "hidden": 16,
            "depth": 3,
            "image": (1, 8, 8),
            "latent": 8,
            "batch": 8,
            "images": 100,
            **changes,
        }
    )
