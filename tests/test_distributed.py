"""A rank's rows and means: two processes do the step of one."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from small_runs import plain_pair

from fastgan import data
from fastgan.distributed import World
from fastgan.engines.eager import EagerEngine
from fastgan.problem import make_problem

STEPS, SIZE = 7, 2


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 5, 6, 64])
def test_the_rows_of_the_ranks_are_the_batch(size, batch):
    rows = [World(rank, size).rows(batch) for rank in range(size)]
    assert [row for part in rows for row in part] == list(range(batch))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_place_that_is_none(rank, size):
    with pytest.raises(ValueError, match="expected 0 <= rank < size"):
        World(rank, size)


def test_alone_a_total_stays_as_it_is():
    tensor = torch.tensor([3.0, float("nan")])
    World().total_([tensor], 5)
    assert tensor[0] == 3 and tensor[1].isnan()


def trained(world=None):
    """A few steps on 11 samples in batches of 5: parts of 2 and 3 rows, and at last of 0 and 1."""
    samples = torch.rand(11, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    p = make_problem(
        *plain_pair(), data.open(samples), batch_size=5, latent_dim=5, device="cpu", lr=1e-2,
        penalties="r1:1", loss="relativistic", d_steps=2, optimizer="sgd",
    )  # fmt: skip
    if world is not None:
        p = dataclasses.replace(p, world=world)
    found = EagerEngine(p).run(STEPS)
    weights = [w.detach() for m in (p.generator, p.discriminator) for w in m.parameters()]
    return [found, *weights]


def of_a_rank(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=SIZE
    )
    world = World(rank, SIZE)
    batch = torch.arange(5.0).square()
    mean = batch[world.rows(5).start : world.rows(5).stop].mean(0, keepdim=True) * world.share(5)
    world.total_([mean], 5)
    alone = batch[:1][world.rows(1).start : world.rows(1).stop].mean(0, keepdim=True)
    world.total_([alone], 1)
    torch.save([mean, alone, *trained(world)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_do_the_steps_of_one(tmp_path):
    tests = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path.insert(0, {tests!r}); import test_distributed as t; "
    ranks = [
        subprocess.Popen([sys.executable, "-c", f"{code}t.of_a_rank({rank}, {str(tmp_path)!r})"])
        for rank in range(SIZE)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    (mean, alone, *a), (same, also, *b) = (torch.load(tmp_path / f"{r}.pt") for r in range(SIZE))
    assert mean == same and mean.item() == pytest.approx(30 / 5)
    assert alone == also == 0, "the only row is the first, whose value is 0"
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), "the ranks stay alike"
    for one, whole in zip(a, trained(), strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-6)


class Noted(torch.utils.data.Dataset):
    """Numbers, and which of them were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 11

    def __getitem__(self, i):
        self.read.append(i)
        return torch.tensor([float(i), 0.0]), i


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("held", [True, False])
def test_a_rank_reads_its_own_rows_of_each_batch_and_no_others(size, held):
    # The last batch of an epoch has two samples: of three ranks, the first has none.
    options = {"augmented": False, "workers": 0, "budget_bytes": None if held else 1}
    opened = data.open(Noted(), **options)
    whole = [opened.batch(5, update, 3) for update in range(8)]
    for rank in range(size):
        noted = Noted()
        own = data.open(noted, **options)
        assert own.resident is held
        noted.read.clear()
        rows = World(rank, size).rows
        read = []
        for update, batch in enumerate(whole):
            found = own.batch(5, update, 3, rows=rows)
            expected = [part[rows(len(part)).start : rows(len(part)).stop] for part in batch]
            assert found.images.shape[1:] == (2,) and torch.equal(found.images, expected[0])
            assert torch.equal(found.condition, expected[1])
            read.append(len(expected[1]))
        if not held:
            # A batch without rows of this rank's has its first sample read, to know their form.
            assert len(noted.read) == sum(max(n, 1) for n in read)
