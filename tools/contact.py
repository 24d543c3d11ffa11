"""The first questions to a GPU that the code has not met: does it load, capture and agree?

    python tools/contact.py load             # are both libraries there?
    python tools/contact.py capture          # do whole steps become CUDA graphs, convolutions too?
    python tools/contact.py agree chain      # do 40 steps end where those of eager end?
    python tools/contact.py agree persistent --device cpu    # the same of `fused` without a GPU

Engines that are right differ by rounding, at most some 1e-6 in a weight after so few steps. The
exit status is 0 for yes, 1 for no, 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks")]

import torch  # noqa: E402
from exercise import PLAN  # noqa: E402
from peers import CATALOGUE, Unavailable  # noqa: E402
from plans import Plan  # noqa: E402

from fastgan import ops  # noqa: E402

STEPS = 40
CALLS = (1, 2, STEPS - 3)
APART = 1e-5
"""In a weight, after STEPS steps: above it is no rounding. (1.9e-7 in the emulator.)"""
AGREE = {
    # With nothing to differ from, eager's own second run shows what the device cannot repeat.
    "eager": "fastgan-eager",
    "graph": "graph",
    "chain": "fused-chain",
    "persistent": "fused",
}
MLPS = (
    Plan(batch=64, images=500),
    Plan(**PLAN),
    Plan(**PLAN, depth=3, batchnorm="both"),
    Plan(**PLAN, depth=4, dropout=0.0),
    Plan(**PLAN, depth=3, penalty="wgan-gp", d_steps=2),
    Plan(**PLAN, depth=4, dropout=0.0, penalty="r1"),
)
CONVOLUTIONS = Plan("DCGAN", 9, 4, image=(3, 16, 16), batch=6, images=24, network="dcgan")


def load(device: str) -> bool:
    """Say which libraries are loaded; whether those for the device are."""
    status = ops.library_status()
    print(status)
    return all(how == "loaded" for name, how in status.items() if name in ("cpu", device))


def capture(device: str) -> bool:
    """Record whole steps of MLPs and of convolutions, without and with R1, and replay them."""
    name = "graph" if device == "cuda" else "fastgan-eager"
    fine = True
    for plan in (MLPS[1], CONVOLUTIONS, dataclasses.replace(CONVOLUTIONS, penalty="r1")):
        for peer_name in (name, f"{name}-bf16"):
            title = f"{peer_name}: {plan.network}, penalty {plan.penalty}"
            try:
                peer = _run(peer_name, plan, device)
                print(f"{title}: {peer.describe()}; losses {peer.check()}")
                peer.close()
            except Exception as error:  # each is an answer of its own
                fine = False
                print(f"{title}: FAILED: {type(error).__name__}: {error}")
    return fine


def agree(engine: str, device: str) -> bool:
    """Compare an engine with `eager` on the same device."""
    fine = True
    for plan in MLPS:
        title = f"{engine}: {plan.depth} layers, batch {plan.batch}, penalty {plan.penalty}"
        try:
            one, other = (_run(name, plan, device) for name in ("fastgan-eager", AGREE[engine]))
        except Unavailable as reason:
            fine = False
            print(f"{title}: does not run: {reason}")
            continue
        apart = max(
            (a - b).abs().max().item()
            for a, b in zip(_weights(one, plan), _weights(other, plan), strict=True)
        )
        fine &= apart <= APART
        print(
            f"{title}: {other.describe()}: {apart:.2g} apart after {STEPS} steps, at most "
            f"{APART:g}: {'ok' if apart <= APART else 'DIFFERS'}"
        )
        one.close()
        other.close()
    return fine


def _run(name: str, plan: Plan, device: str):
    entry = CATALOGUE[name]
    peer = entry.load(device)
    peer.setup(plan, torch.get_num_threads() if device == "cuda" else 1)
    for n in CALLS:
        peer.run(n)
    return peer


def _weights(peer, plan: Plan) -> list[torch.Tensor]:
    problem = peer.engine.problem
    both = (problem.generator, problem.discriminator)
    # The gradient of a bias before BatchNorm, or of a critic's last, is rounding, which Adam blows
    # up to whole steps.
    return [
        p.detach().double()
        for network in both
        for p in network.parameters()
        if p.ndim == 2 or plan.batchnorm == "none" and plan.penalty != "wgan-gp"
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=("load", "capture", "agree"))
    parser.add_argument("engine", nargs="?", choices=AGREE, help="of agree")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args(argv)
    if (options.engine is None) == (options.question == "agree"):
        parser.error("agree takes an engine, and the other questions none")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("SKIPPED: no GPU")
        return 3
    if options.question == "agree":
        fine = agree(options.engine, options.device)
    else:
        fine = {"load": load, "capture": capture}[options.question](options.device)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
