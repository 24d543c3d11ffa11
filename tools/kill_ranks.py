"""Does a run outlive its processes? python tools/kill_ranks.py --engine fused

Ten times: some gloo ranks train one pair on the CPU, and at a random moment after their first
steps one of them, drawn with it, is killed. The others must end within ten seconds, each with a
line that says so and a status that is not 0, and the run must go on from its last checkpoint with
another number of ranks, which is the number of the next trial. Prints a line a trial, and ends
with 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 10.0
ENGINES = ("eager", "compile", "fused", "divided")
"""The last: networks that fully_shard has divided over the ranks, on eager."""

_PROGRAM = """
import sys
import torch
from torch import nn
import fastgan

out, engine, first = sys.argv[1], sys.argv[2], sys.argv[3] == "first"

def pair():
    torch.manual_seed(1)
    plain = engine in ("compile", "fused")  # which do not sum a BatchNorm's
    networks = (
        nn.Sequential(
            nn.Linear(5, 24), *([] if plain else [nn.BatchNorm1d(24)]), nn.ReLU(), nn.Linear(24, 36)
        ),
        nn.Sequential(nn.Linear(36, 24), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(24, 1)),
    )
    return [divided(network) for network in networks] if engine == "divided" else networks

def divided(network):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for m in network:
        if isinstance(m, nn.Linear):
            fully_shard(m, mesh=mesh)
    return fully_shard(network, mesh=mesh)

if engine == "divided":
    torch.distributed.init_process_group("gloo")

samples = torch.rand(43, 36, generator=torch.Generator().manual_seed(0))
if first:
    run = fastgan.Trainer(
        *pair(), samples, out=out, batch_size=9, latent_dim=5, device="cpu", checkpoint_every=20,
        engine="eager" if engine == "divided" else engine, log_every=10, console="none",
    )
else:
    run = fastgan.Trainer.resume(out, *pair(), samples)
began = run.step
run.fit(steps=began + run.steps_per_epoch)  # which is when an engine compiles, if it does
assert run.engine.name == engine or engine == "divided", run.explanation
print("from", began, flush=True)
run.fit(steps=10**8)
"""


def start(out: Path, engine: str, ranks: int, first: bool) -> list[subprocess.Popen]:
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(out), engine, "first" if first else "again"],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def trial(
    out: Path, engine: str, ranks: int, first: bool, chance: random.Random
) -> tuple[str, bool]:
    """One run that loses a rank: a line on it, and whether all was as it must be."""
    processes = start(out, engine, ranks, first)
    begun = [process.stdout.readline().strip() for process in processes]
    time.sleep(chance.uniform(0, 3))
    lost = chance.randrange(ranks)
    processes[lost].send_signal(signal.SIGKILL)
    since = time.monotonic()
    sound = all(line.startswith("from ") for line in begun) and len({*begun}) == 1
    told = []
    for rank, process in enumerate(processes):
        try:
            errors = process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors = ""
        if rank != lost:
            told.append("has lost another one" in errors and process.returncode != 0)
    seconds = time.monotonic() - since
    sound = sound and all(told) and seconds <= MOST_SECONDS
    line = (
        f"{ranks} ranks {begun[0]}: rank {lost} killed, {sum(told)} of {len(told)} others said so"
    )
    return f"{line}, all ended after {seconds:.1f} s", sound


def main() -> int:
    """Do the trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, default="eager")
    chosen = parser.parse_args()
    chance, failed = random.Random(chosen.seed), 0
    with TemporaryDirectory() as folder:
        for i in range(chosen.trials):
            out, ranks = Path(folder) / "run", (2, 3, 4)[i % 3]
            line, sound = trial(out, chosen.engine, ranks, i == 0, chance)
            failed += not sound
            print(f"{i + 1}: {line}{'' if sound else '  FAILED'}", flush=True)
    print(f"{chosen.trials - failed} of {chosen.trials} as they must be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
