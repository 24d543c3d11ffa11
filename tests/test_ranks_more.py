"""Runs of several processes: shared weights, kinds of BatchNorm, tables, limits, draws, Ctrl-C."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from test_ranks import close, finished, start, wait_for_lines
from torch import nn

from fastgan import Callback, Trainer, metrics
from fastgan.run import checkpoint
from fastgan.tabular import Synthesizer

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
HERE = __name__


class Own(nn.BatchNorm1d):
    """A name of its own for what torch does."""


class Doubled(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


class Joint:
    """Both networks have `body`, and one loss trains both."""

    def d_loss(self, step):
        return step.D(step.real).square().mean() - step.D(step.fake).mean()

    def g_loss(self, step):
        return -step.D(step.fake).mean()

    def joint_loss(self, step):
        return (step.D(step.fake) - step.D(step.real)).square().mean()


class Counts(Callback):
    name = "counts"

    def __init__(self):
        self.lines = 0

    def line(self, trainer, line):
        self.lines += 1

    def state_dict(self):
        return {"lines": self.lines}

    def load_state_dict(self, state):
        self.lines = state["lines"]


def samples():
    return torch.rand(43, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pair(norm=nn.BatchNorm1d, shared=False):
    torch.manual_seed(1)
    body = nn.Linear(6, 6)
    g = nn.Sequential(nn.Linear(5, 6), norm(6), nn.Tanh(), *([body] if shared else []))
    d = nn.Sequential(*([body] if shared else [nn.Linear(6, 6)]), nn.Tanh(), nn.Linear(6, 1))
    return g, d


def trained(out, g, d, steps=12, **settings):
    trainer = Trainer(
        g, d, samples(), out=out, batch_size=9, latent_dim=5, device="cpu", optimizer="sgd",
        lr=0.05, ema=0.9, engine="eager", console="none", **settings,
    )  # fmt: skip
    trainer.fit(steps=steps)
    return trainer


def table():
    pandas = pytest.importorskip("pandas")
    z = torch.rand(60, generator=torch.Generator().manual_seed(3)).double()
    return pandas.DataFrame({"x": z.numpy(), "kind": ["abc"[i % 3] for i in range(60)]})


def all_kinds(out, with_table):
    trained(f"{out}/shared", *pair(shared=True), method=Joint())
    trained(f"{out}/own", *pair(Own))
    if with_table:
        Synthesizer(
            4, batch_size=24, pac=4, embedding_dim=3, width=5, out=f"{out}/table", ema=0.9,
            optimizer="sgd", weight_decay=0.0, betas=(0.5, 0.999), engine="eager", device="cpu",
        ).fit(table())  # fmt: skip


def test_shared_weights_kinds_of_norm_and_tables_take_the_course_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    try:
        import pandas  # noqa: F401

        with_table = True
    except ImportError:
        with_table = False
    all_kinds(one, with_table)
    code = f"import {HERE} as m; m.all_kinds({str(two)!r}, {with_table})"
    finished(start(2, code, tmp_path))
    for name in ("shared", "own", *(["table"] if with_table else [])):
        close(*(checkpoint.load(checkpoint.find(run / name)) for run in (one, two)))


def limits(out):
    first = trained(f"{out}/run", *pair(), steps=4, seed=None, log_every=2, callbacks=Counts())
    first.fit(seconds=first.seconds + 0.3)
    ended = first.step
    first.fit(until=lambda state: state.step >= ended + 4)
    print("ended", ended > 4, ended, first.step, first.config.seed, flush=True)
    counts = Counts()
    again = Trainer.resume(f"{out}/run", *pair(), samples(), optimizer="sgd", callbacks=counts)
    print("resumed", again.step, counts.lines, again.config.seed, flush=True)
    for run in (first, again):
        with run.random_states.in_use():
            print(torch.rand(1).item(), flush=True)
    trained(None, *pair(Doubled), steps=1)


def test_limits_a_drawn_seed_and_states_of_callbacks_are_those_of_all_ranks(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ranks = start(2, f"import {HERE} as m; m.limits({str(out)!r})", tmp_path)
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    lines = [out.splitlines() for out, _ in told]
    assert lines[0][:2] == lines[1][:2]
    ended, resumed = (line.split() for line in lines[0][:2])
    assert ended[1] == "True" and int(ended[3]) >= int(ended[2]) + 4
    assert resumed[1] == ended[3] and int(resumed[2]) > 1 and resumed[3] == ended[4] != "0"
    # What modules draw goes on on the first rank, and is new on the others.
    assert lines[0][2] == lines[0][3] and len({*lines[0][2:], *lines[1][2:]}) == 3
    assert any("each rank normalises its own rows" in err for _, err in told)


def until_stopped(out):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    g, d = pair()
    trained(f"{out}/run", nn.Sequential(g, Noisy()), d, steps=10**6, log_every=5)


def test_ctrl_c_to_all_ranks_saves_once_and_ends_all(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ranks = start(2, f"import {HERE} as m; m.until_stopped({str(out)!r})", tmp_path)
    wait_for_lines(out / "run", ranks)
    for rank in ranks:
        rank.send_signal(signal.SIGINT)
    began = time.monotonic()
    told = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert time.monotonic() - began < 30
    assert all(rank.returncode not in (0, None) for rank in ranks)
    assert all("KeyboardInterrupt" in text for text in told), told
    assert checkpoint.load(checkpoint.find(out / "run"))["step"] > 15


def evaluated(out, cache):
    os.environ["XDG_CACHE_HOME"] = cache
    t = Trainer.resume(f"{out}/own", *pair(Own), samples(), optimizer="sgd")
    # Batches of 8: the 40 samples are 5, unequal parts of two ranks.
    features = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    with torch.no_grad():
        features[1].weight.copy_(torch.arange(24.0).view(4, 6).sin())
    for _ in range(2):  # the second finds the features of the data in the cache
        found = metrics.evaluate(
            t, ("precision", "coverage", "swd"), 40, features=features, batch_size=8
        )
        print(json.dumps({k: v for k, v in found.items() if k != "seconds"}), flush=True)


def test_ranks_share_the_work_of_an_evaluation_and_find_what_one_finds(tmp_path):
    trained(f"{tmp_path}/one/own", *pair(Own), steps=4)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    finding = start(
        1, f"import {HERE} as m; m.evaluated({str(tmp_path / 'one')!r}, {str(tmp_path / 'c')!r})",
        tmp_path,
    )  # fmt: skip
    ((alone, _),) = finished(finding)
    two = finished(
        start(
            2,
            f"import {HERE} as m; m.evaluated({str(tmp_path / 'two')!r}, {str(tmp_path / 'd')!r})",
            tmp_path,
        )  # fmt: skip
    )
    told = [json.loads(line) for line in alone.splitlines()]
    assert len(told) == 2 and told[0] == told[1] and told[0]["n"] == 40
    for out, _ in two:
        for line in out.splitlines():
            found = json.loads(line)
            assert found.keys() == told[0].keys()
            for name in ("precision", "coverage", "swd"):
                assert found[name] == pytest.approx(told[0][name], rel=1e-5)
    # One rank wrote it down, and one file holds the features.
    assert len((tmp_path / "two/own/quality.jsonl").read_text().splitlines()) == 2
    assert len(list((tmp_path / "d").rglob("*.pt"))) == 1
