"""What `Trainer.fit` adds to its operations, and the memory of a step, beside plain loops.

    python benchmarks/trainer_cost.py                 # DCGAN 64: some four minutes on two cores
    python benchmarks/trainer_cost.py --plan "DCGAN 32" --steps 100 --turns 9

Three ways to train the pair, each in a process of its own; of two that are not at work the threads
are stopped:

- trainer: `fastgan.Trainer.fit` on engine `eager`, a call a turn, with its log lines and no files,
  whose writing is a second at the end of a run;
- bare: a loop in PyTorch whose passes call the same operators, with fastgan's Adam and none of its
  engines (peers/eager.py with `Convolutions` around its passes);
- eager: the clean loop of peers/eager.py, channels last.

The cost is the median of the turns' differences between trainer and bare, over bare. Memory is the
largest resident set that a process has had; also told is what of it came after the networks were
made.

The exit status is 0 if the cost is at most MOST_COST and memory at most MOST_MEMORY times eager's,
else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import plans
import torch

MOST_COST, MOST_MEMORY = 0.01, 1.2


def resident(which: str) -> int:
    """Bytes: of memory now (VmRSS), or of the most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(which))) * 1024


class OfTrainer:
    """`Trainer.fit`."""

    def __init__(self, plan: plans.Plan):
        """Begin a run."""
        from peers import networks

        import fastgan

        self.steps = 0
        self.trainer = fastgan.Trainer(
            *networks.build(plan, sigmoid=plan.penalty != "wgan-gp", channels_last=False),
            networks.images(plan), engine="eager",
            batch_size=plan.batch, latent_dim=plan.latent, lr=plan.lr, betas=plan.betas,
            console="none", penalties=None if plan.penalty == "none" else plan.penalty,
            loss="wasserstein" if plan.penalty == "wgan-gp" else "non-saturating",
        )  # fmt: skip

    def run(self, n: int) -> None:
        """Do n steps."""
        self.steps += n
        self.trainer.fit(steps=self.steps)


def bare(plan: plans.Plan):
    """A loop with fastgan's operators and Adam, and without its engines."""
    from peers import eager, networks

    from fastgan import data
    from fastgan.engines.convolutions import Convolutions
    from fastgan.optim import Adam
    from fastgan.problem import make_problem

    class Bare(eager.Eager):
        def run(self, n):
            for _ in range(n):
                real = networks.take(self.data, self.order.next())
                for optimizer, params, loss in (
                    (self.optimizer_d, self.d_params, lambda: self.d_loss(real)),  # noqa: B023
                    (self.optimizer_g, self.g_params, self.g_loss),
                ):
                    optimizer.zero_grad(set_to_none=True)
                    # Gradients in the strides of the weights, as this Adam wants them.
                    loss().backward(inputs=params)
                    optimizer.step()

    peer = Bare(device="cpu", channels_last=False)
    peer.setup(plan, torch.get_num_threads())
    numbers = {"lr": plan.lr, "betas": plan.betas, "eps": plan.eps}
    peer.optimizer_g = Adam(peer.g_params, **numbers)
    peer.optimizer_d = Adam(peer.d_params, **numbers)
    problem = make_problem(
        peer.generator, peer.discriminator, data.open(networks.images(plan)),
        batch_size=plan.batch, latent_dim=plan.latent, device="cpu",
        penalties=None if plan.penalty == "none" else plan.penalty,
    )  # fmt: skip
    taken = Convolutions(problem)

    def passes(network, penalised):
        return lambda x: taken.call(network, (x,), {}, penalised=penalised)

    called = passes(peer.generator, False), passes(peer.discriminator, plan.penalty != "none")
    peer.d_loss, peer.g_loss = eager.losses_of(plan, *called)
    return peer


def clean(plan: plans.Plan):
    """The loop of peers/eager.py."""
    from peers import eager

    peer = eager.Eager(device="cpu")
    peer.setup(plan, torch.get_num_threads())
    return peer


WAYS = {"trainer": OfTrainer, "bare": bare, "eager": clean}


def child(way: str, plan: plans.Plan) -> int:
    """Answer each line, a number of steps, with what they took and the most memory so far."""
    made = WAYS[way](plan)
    before = resident("VmRSS")
    for line in sys.stdin:
        since = time.perf_counter()
        made.run(int(line))
        seconds = time.perf_counter() - since
        found = [seconds / int(line), resident("VmHWM"), resident("VmHWM") - before]
        print(json.dumps(found), flush=True)
    return 0


class Process:
    """A way in a process of its own, stopped while it is not asked."""

    def __init__(self, way: str, plan: str):
        """Begin it."""
        words = [sys.executable, __file__, "--child", way, "--plan", plan]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, steps: int) -> list[float]:
        """Seconds a step, bytes, and those of them that steps have taken."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise SystemExit("a process has ended before it answered")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


def main() -> int:
    """Measure and print."""
    known = {plan.name: plan for plan in plans.CONV}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", default="DCGAN 64", choices=list(known))
    parser.add_argument("--turns", type=int, default=5, help="of each way (default: 5)")
    parser.add_argument("--steps", type=int, default=20, help="in a turn (default: 20)")
    parser.add_argument("--child", choices=[*WAYS], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        return child(chosen.child, known[chosen.plan])
    processes = {way: Process(way, chosen.plan) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    memory = {}
    try:
        for turn in range(chosen.turns + 1):
            for way in random.sample([*WAYS], len(WAYS)):
                seconds, *memory[way] = processes[way].ask(chosen.steps)
                if turn:  # the first one warms up
                    times[way].append(seconds)
    finally:
        for process in processes.values():
            process.close()
    print(f"{chosen.plan}, {torch.get_num_threads()} threads, {chosen.steps} steps a turn")
    print("\n| way | ms a step, median | least | memory, MB | of it by steps |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        middle, least = statistics.median(times[way]) * 1e3, min(times[way]) * 1e3
        whole, added = (n / 2**20 for n in memory[way])
        print(f"| {way} | {middle:.1f} | {least:.1f} | {whole:.0f} | {added:.0f} |")
    pairs = zip(times["trainer"], times["bare"], strict=True)
    cost = statistics.median(a - b for a, b in pairs) / statistics.median(times["bare"])
    more = memory["trainer"][0] / memory["eager"][0]
    print(f"\nThe trainer adds {cost:+.2%} (asked: at most {MOST_COST:.0%}).")
    print(f"It holds {more:.2f} times the memory of the clean loop (asked: at most {MOST_MEMORY}).")
    return int(cost > MOST_COST or more > MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
