"""Calls the compiled operators with hostile arguments: a call may raise, none may end the process.

python tests/fuzz.py --calls 100000                  # a minute or two; 2 for a failure
python tests/fuzz.py --only fused_run --first 70412 --calls 1 --seed 5     # a call again

Which arguments an operator takes is an entry of OPERATORS of fuzz_plans.py, or of fuzz_operators.py
or fuzz_table.py, which make them hostile themselves. A call of the first kind mutates some of the
arguments of a sound one; --sound 0.3 leaves that share of the calls as they are, so that what comes
after a caught error runs too. The calls run in a child process, and where it ends the parent says
at which.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from fuzz_operators import OPERATORS as OTHERS
from fuzz_plans import OPERATORS
from fuzz_table import OPERATORS as OF_TABLES
from torch import Tensor

PER_CASE = 40
"""Calls on the same sound arguments, which are not worth making anew each time."""

INTEGERS = (-(1 << 63), -(1 << 40), -65, -2, -1, 0, 1, 2, 3, 7, 31, 33, 64, 65535, 65537, 1 << 20)
INTEGERS += (1 << 24, (1 << 24) + 1, (1 << 31) - 1, 1 << 31, 1 << 34, 1 << 40, 1 << 62)
INTEGERS += ((1 << 63) - 1,)
REALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1.0, 2.0, 1e-300, 1e300, 1e38)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32)
DTYPES += (torch.uint8, torch.bool, torch.complex64)


HOSTILE = dict(OTHERS + OF_TABLES)
"""name: arguments that are hostile already, of a random generator."""

WEIGHTS = {"fused_run": 12, "fused_gradients": 6, "fused_cuda_run": 6}
"""How often an operator is called, against once."""


# --- Hostile ones


def hostile_values(rng: random.Random, t: Tensor) -> Tensor:
    """The same tensor with some elements replaced, moved, left out or added."""
    t = t.clone()
    flat = t.view(-1)
    if not len(flat):
        return t
    choices = REALS if t.is_floating_point() else INTEGERS
    if t.dtype not in (torch.float32, torch.float64, torch.int64):
        return torch.randint_like(t, 0, 2) if t.dtype != torch.complex64 else t
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, other = rng.randrange(len(flat)), rng.randrange(len(flat))
        what = rng.randrange(4)
        if what == 0:
            flat[at] = flat[other].clone()
        elif what == 1 and t.dtype == torch.int64:
            flat[at] += rng.choice((-1, 1))
        else:
            value = rng.choice(choices)
            flat[at] = value if t.dtype != torch.float32 or abs(value) < 3e38 else float("inf")
    if t.dim() == 1 and rng.random() < 0.2:
        return rng.choice(
            (
                flat[: rng.randrange(len(flat))],
                torch.cat([flat, flat[: rng.randrange(1, 9)]]),
                torch.ones_like(flat),
                torch.full_like(flat, rng.choice(choices)) if t.dtype != torch.float32 else flat,
            )
        )
    return t


def hostile_tensor(rng: random.Random, t: Tensor, others: list[Tensor]) -> Tensor:
    """Another dtype, shape, layout, place or content."""
    if t.is_sparse or t.is_meta or t.numel() > 1 << 22:  # it is already
        return t
    what = rng.randrange(14)
    if what < 5:
        return hostile_values(rng, t)
    if what == 5:
        return t.to(rng.choice(DTYPES))
    if what == 6:
        return t.reshape(-1)[: rng.randrange(t.numel() + 1)]
    if what == 7:
        return t.unsqueeze(rng.randrange(t.dim() + 1)) if rng.random() < 0.5 else t.reshape(-1)
    if what == 8:  # not contiguous
        return torch.stack([t, t], -1)[..., 0]
    if what == 9:  # far larger than its memory
        return t.reshape(-1)[:1].expand(rng.choice((0, 3, 1 << 20, 1 << 40)))
    if what == 10:
        return torch.empty(rng.choice(((0,), (), (2, 0), (3, 4))), dtype=t.dtype)
    if what == 11:  # not aligned
        return torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(t.shape)
    if what == 12:
        return rng.choice(others)
    odd = rng.randrange(4)
    if odd == 0:
        return t.to("meta")
    if odd == 1 and t.dim() and not t.is_sparse:
        return t.to_sparse()
    if odd == 2 and t.is_floating_point():
        return torch._neg_view(t)
    return t.clone().requires_grad_(t.is_floating_point())


def tensors_in(arguments: list) -> list[Tensor]:
    """All of them, those in lists too."""
    found = []
    for a in arguments:
        found += [a] if isinstance(a, Tensor) else tensors_in(a) if isinstance(a, list) else []
    return found


def hostile(rng: random.Random, a: object, others: list[Tensor]) -> object:
    """Something else in the place of an argument."""
    if isinstance(a, Tensor):
        try:
            return None if rng.random() < 0.03 else hostile_tensor(rng, a, others)
        except RuntimeError:  # an odd tensor that cannot be made odder
            return a
    if isinstance(a, bool):
        return not a
    if isinstance(a, int):
        return rng.choice(INTEGERS) if rng.random() < 0.7 else a + rng.choice((-1, 1))
    if isinstance(a, float):
        return rng.choice(REALS)
    if isinstance(a, str):
        return rng.choice(("", "fp16", "none", "\0", "x" * 4096))
    if isinstance(a, list):
        a, at = list(a), rng.randrange(max(1, len(a)))
        what = rng.randrange(4)
        if not a or what == 0:
            return a[:at]
        if what == 1:
            a[at] = a[rng.randrange(len(a))]
        elif what == 2:
            a.insert(at, rng.choice(others))
        else:
            a[at] = hostile(rng, a[at], others)
            a = [t for t in a if t is not None]
        return a
    return rng.choice(others) if others and a is None else a


def affordable(name: str, arguments: list) -> bool:
    """Whether a call that is accepted ends soon: sound plans may be long, and threads many."""
    at = {"fused_run": 10, "fused_wake": 0, "fused_gradients": 11, "fused_move": 7}.get(name)
    if at is not None and isinstance(arguments[at], int) and 8 < arguments[at] <= 4096:
        return False
    if not name.endswith(("_run", "_together")):
        return True
    return not any(
        plan.dtype == torch.int64
        and plan.dim() == 1
        and plan.device.type == "cpu"
        and plan.numel() > 3
        and 64 < int(plan[3]) <= 1 << 20
        for plan in tensors_in(arguments[:1])
    )


def call(name: str, arguments: list) -> str:
    """Call an operator; the kind of what came of it."""
    try:
        getattr(torch.ops.fastgan, name)(*arguments)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        return type(error).__name__
    return "done"


def work(options: argparse.Namespace) -> None:
    """Make the calls, in the child."""
    sys.path[:0] = [str(Path(__file__).parent)]
    import fastgan

    if options.emulator:
        from native import fused_cuda

        fused_cuda.load().device(4)
    torch.set_num_threads(1)
    names = [n for n in (*OPERATORS, *HOSTILE) if options.only in (None, n)]
    names = [
        n
        for n in names
        if options.emulator
        or "cuda" not in n
        or (torch.cuda.is_available() and fastgan.ops.has_kernels(torch.device("cuda")))
    ]
    names = [n for n in names for _ in range(WEIGHTS.get(n, 1))]
    cases, outcomes = {}, Counter()
    with open(options.at, "r+b", buffering=0) as at:
        for i in range(options.first, options.first + options.calls):
            rng = random.Random(f"{options.seed} {i}")
            name = rng.choice(names)
            at.seek(0)
            at.write(f"{i} {name}".ljust(80).encode())
            if name in HOSTILE:
                outcomes[f"{name} {call(name, HOSTILE[name](rng))}"] += 1
                continue
            kind, sound = OPERATORS[name]
            key = (kind, i // PER_CASE)
            if key not in cases:
                cases = {k: v for k, v in cases.items() if k[1] == i // PER_CASE}
                cases[key] = kind(random.Random(f"{options.seed} case {key[1]}"))
            arguments = sound(cases[key], rng)
            if rng.random() >= options.sound:
                others = tensors_in(arguments)
                for _ in range(rng.choice((1, 1, 1, 2, 3))):
                    k = rng.randrange(len(arguments))
                    if k > 0 and rng.random() < 0.3 and isinstance(arguments[0], Tensor):
                        k = 0  # what everything else is read by
                    arguments[k] = hostile(rng, arguments[k], others)
            if affordable(name, arguments):
                outcomes[f"{name} {call(name, arguments)}"] += 1
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8d} {outcome}")


def main() -> int:
    """The command line; 0 if no call ended the process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[*OPERATORS, *HOSTILE], help="of the operators only this")
    parser.add_argument("--sound", type=float, default=0.2, help="share of calls left sound")
    parser.add_argument("--emulator", action="store_true", help="the CUDA operators, emulated")
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.at:
        work(options)
        return 0
    with tempfile.NamedTemporaryFile() as at:
        command = [sys.executable, __file__, *sys.argv[1:], "--at", at.name]
        try:
            done = subprocess.run(command, timeout=options.timeout)
        except subprocess.TimeoutExpired:
            print(f"call {at.read().decode().strip()} did not end", file=sys.stderr)
            return 2
        if done.returncode:
            print(
                f"the process ended with {done.returncode} in call {at.read().decode().strip()}",
                file=sys.stderr,
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
