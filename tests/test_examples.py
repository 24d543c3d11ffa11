"""Each program of examples/ is the plain loop beside it, number by number, and shorter."""

import ast
import copy
import re
import runpy
import sys
from collections import defaultdict, deque
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastgan.engines import eager
from fastgan.engines.draws import CONDITION_STREAM, METHOD_STREAM, PENALTY_STREAM, HostDraws
from fastgan.random import Stream

EXAMPLES = Path(__file__).parents[1] / "examples"
if not EXAMPLES.exists():
    pytest.skip("examples/ is part of a checkout only", allow_module_level=True)

from plain import programs  # noqa: E402

LATENTS = (Stream.LATENT_D, Stream.LATENT_G, Stream.LATENT_JOINT)
CONDITIONS = range(CONDITION_STREAM, CONDITION_STREAM + 3)
SIZES = {
    "mlp_batchnorm": {"width": 8},
    "dcgan": {"width": 2},
    "wgan_gp": {"width": 2},
    "cgan": {"width": 8},
    "acgan": {"width": 2},
    "infogan": {"width": 2},
    "pix2pix": {"width": 2},
    "srgan": {"width": 2, "blocks": 1},
    "sngan": {"width": 1},
    "ctgan_table": {"width": 8},
    "r3gan": {"width": 4},
    "began": {"width": 2, "latent": 64},
}
STEPS = 2


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small spend their time waiting for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorded(HostDraws):
    """What the engine draws, kept for a loop that asks for the same."""

    last = None

    def __init__(self, problem):
        super().__init__(problem)
        self.kept = defaultdict(deque)
        Recorded.last = self

    def batch(self, counter, size):
        found = super().batch(counter, size)
        self.kept["batch"].append((found.images.clone(), found.condition))
        return found

    def normal(self, stream, counter, shape):
        found = super().normal(stream, counter, shape)
        latent = self.problem.latent
        if stream in LATENTS and latent.parts:
            parts = latent.split(latent.of(found))
            self.kept["normal"].append(parts["noise"])
            self.kept["classes"].append(parts["digit"].argmax(1))
            self.kept["uniform"].append((parts["code"] + 1) / 2)
        elif stream in LATENTS:
            self.kept["normal"].append(found)
        elif stream == PENALTY_STREAM or stream >= METHOD_STREAM:
            self.kept["uniform"].append(torch.special.ndtr(found))
        else:
            assert stream in CONDITIONS
        return found

    def conditions(self, stream, counter, size):
        found = super().conditions(stream, counter, size)
        self.kept["conditions"].append(found)
        return found

    def drop(self, x, stream, counter, p, start):
        self.kept["mask"].append(super().drop(torch.ones_like(x), stream, counter, p, start))
        return super().drop(x, stream, counter, p, start)


class Replayed:
    """The same, to be asked for as the plain loops ask."""

    def __init__(self, kept):
        self.kept = kept

    def next(self, what, shape):
        return self.kept[what].popleft()[: shape[0]].view(shape)

    def normal(self, *shape):
        return self.next("normal", shape)

    def uniform(self, *shape):
        return self.next("uniform", shape)

    def classes(self, b, n):
        return self.next("classes", (b,))

    def conditions(self, b):
        return self.kept["conditions"].popleft()

    def batches(self):
        while self.kept["batch"]:
            yield self.kept["batch"].popleft()

    def mask(self, x):
        return x * self.kept["mask"].popleft()


class Gradients:
    """Those that every optimiser is about to use, in order."""

    def __enter__(self):
        self.found = []
        self.handle = register_optimizer_step_pre_hook(self.note)
        return self.found

    def note(self, optimizer, args, kwargs):
        weights = [w for group in optimizer.param_groups for w in group["params"]]
        self.found.append(
            [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]
        )

    def __exit__(self, *error):
        self.handle.remove()


def made(name):
    side = 28 if name in ("mlp_batchnorm", "cgan") else 32
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (150, 1, side, side), generator=generator, dtype=torch.uint8)
    torch.manual_seed(2)
    return programs.Program(name, images, torch.arange(150) % 10, **SIZES[name])


@pytest.mark.parametrize("name", programs.NAMES)
def test_the_first_steps_are_the_plain_loops_where_both_draw_the_same(name, monkeypatch):
    monkeypatch.setattr(eager.EagerEngine, "_host", Recorded)
    program = made(name)
    mine, theirs = copy.deepcopy(program.pair), program.pair
    run = program.trainer(mine, device="cpu", engine="eager", console="none")
    Recorded.last.kept.clear()
    torch.manual_seed(3)  # what networks draw themselves
    with Gradients() as found:
        losses = run.engine.run(STEPS)[:, :2]
    draw = Replayed(Recorded.last.kept)
    for network in theirs:
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.forward = draw.mask
    torch.manual_seed(3)
    with Gradients() as expected:
        plain = list(islice(program.losses(theirs, draw.batches(), draw), STEPS))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(losses, torch.tensor(plain), **close)
    assert len(found) == len(expected) >= 2 * STEPS and not any(draw.kept.values())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **close)
        assert any((w != 0).any() for w in b)


# As programs


def lines(nodes, text):
    """Lines of code: without empty ones, comments and docstrings."""
    found, text = 0, text.splitlines()
    for node in nodes:
        docs = {
            i
            for part in ast.walk(node)
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part)
            for i in range(part.body[0].lineno, part.body[0].end_lineno + 1)
        }
        rows = set(range(node.lineno, node.end_lineno + 1)) - docs
        found += sum(bool(text[i - 1].split("#")[0].strip()) for i in rows)
    return found


def counted(name):
    """Lines of the run and of what it minimises; lines of the loop."""
    mine, loop = (EXAMPLES / f"{name}.py").read_text(), (EXAMPLES / f"plain/{name}.py").read_text()
    parts = [
        node
        for node in ast.parse(mine).body
        if getattr(node, "name", "") in ("trainer", "bce")
        or any(getattr(part, "name", "") == "d_loss" for part in getattr(node, "body", ()))
    ]
    functions = [node for node in ast.parse(loop).body if isinstance(node, ast.FunctionDef)]
    return lines(parts, mine), lines(functions, loop)


def test_each_program_is_shorter_than_its_loop_as_the_table_says():
    table = (EXAMPLES / "README.md").read_text()
    told = re.findall(r"(?m)^\| \[(\w+)\.py\].*\| (\d+) \| (\d+) \|$", table)
    assert [name for name, *_ in told] == list(programs.NAMES)
    for name, mine, theirs in told:
        assert counted(name) == (int(mine), int(theirs)) and int(mine) < int(theirs), name
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == set(programs.NAMES)


@pytest.mark.parametrize("words", [["mlp_batchnorm.py"], ["plain", "mlp_batchnorm"]])
def test_they_run_as_programs(words, here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*words, "--epochs", "1"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(EXAMPLES / words[0]), run_name="__main__")
    assert re.search(r"step 79\b.*, D loss \d", capsys.readouterr().out)
    written = {path.name for path in here.rglob("*.pth")}
    assert len(written) == 2
