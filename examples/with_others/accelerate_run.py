"""Under Accelerate's launcher: each process is a rank of one run.

    accelerate launch --multi_gpu --num_processes 2 examples/with_others/accelerate_run.py

Without GPUs that starts as many processes on the CPU (Accelerate's --cpu alone starts one).
fastgan finds the process group that Accelerator() has made, or makes it from what the launcher has
set: data, networks and optimisers are not to be prepared.
"""

import argparse

import torch
from accelerate import Accelerator

import fastgan


def main():
    """Train the reference pair on the bundled digits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", default="runs/accelerate")
    chosen = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    trainer = fastgan.Trainer(
        None, None, "digits", batch_size=chosen.batch_size, engine="eager",
        device=accelerator.device.type, out=chosen.out, if_exists="count", console="none",
    )  # fmt: skip
    summary = trainer.fit(steps=chosen.steps)
    accelerator.print(f"{accelerator.num_processes} processes: {summary}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
