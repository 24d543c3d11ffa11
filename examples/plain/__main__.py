"""The loops of this folder as programs: python examples/plain cgan --epochs 1."""

import argparse
import itertools
import sys
from pathlib import Path

import torch

# Both folders have a cgan.py: the modules of this one are plain.cgan and so on.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from plain import programs  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("name", choices=programs.NAMES)
parser.add_argument("--epochs", type=int, default=20)
chosen = parser.parse_args()
torch.manual_seed(0)
program = programs.Program(chosen.name)
# It opens the data and knows the settings; it trains nothing here.
run = program.trainer(program.pair, console="none")
data, size = run.data, run.config.batch_size
draw = programs.Draws(data.condition, run.device)
steps = chosen.epochs * run.steps_per_epoch
losses = program.losses(program.pair, programs.batches(data, size, run.config.drop_last), draw)
for step, (d_loss, g_loss) in enumerate(itertools.islice(losses, steps), 1):
    if step % 100 == 0 or step == steps:
        print(f"step {step}/{steps}, D loss {d_loss:.4f}, G loss {g_loss:.4f}", flush=True)
for network, name in zip(program.pair, ("generator", "discriminator"), strict=True):
    torch.save(network.state_dict(), f"{chosen.name}-{name}.pth")
