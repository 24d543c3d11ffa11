"""Places and identities."""

from __future__ import annotations

import logging
import os

import pytest
import torch
from data_kit import noise

from fastgan import data
from fastgan.data import data as data_room


def test_device_and_budget(caplog):
    opened = data.open(torch.from_numpy(noise(8, 4, 4)))
    assert opened.to("cpu") is opened and opened.nbytes == 128
    there = opened.to("meta")
    assert there.resident and there.samples.device.type == "meta"
    assert not caplog.records
    crossing = opened.to("meta", budget_bytes=127)
    assert len(caplog.records) == 1 and "batch by batch" in caplog.text
    assert crossing.samples.device.type == "cpu" and not crossing.resident
    assert crossing.batch_indices(0, 0, 4).device.type == "cpu"
    assert crossing.batch(0, 0, 4).images.device.type == "meta"
    assert crossing.to("meta") is crossing and len(caplog.records) == 1
    assert opened.to("meta", budget_bytes=128).resident


def test_default_budget_is_a_share_of_free_memory():
    budget = data_room.default_budget(torch.device("cpu"))
    assert 1 << 20 < budget < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4
    assert data_room.default_budget(torch.device("meta")) == 2 << 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("budget", [None, 0])
def test_cuda_batches_are_those_of_the_cpu(folder, budget):
    for here in (data.open("digits"), data.open(folder, budget_bytes=0)):
        there = here.to("cuda", budget_bytes=budget)
        assert there.resident == (budget is None) and there.to("cuda") is there
        for update in (0, 1, 2, 9):
            batch = there.batch(3, update, 4).images
            assert batch.is_cuda and torch.equal(batch.cpu(), here.batch(3, update, 4).images)
        assert there.identity() == here.identity()
        here.close()
        there.close()


def test_identity_tells_data_apart():
    array = torch.from_numpy(noise(50, 4, 4))
    one = data.open(array).identity()
    assert one == data.open(array.clone()).identity()
    assert (one["count"], one["shape"], one["dtype"]) == (50, [1, 4, 4], "uint8")
    assert data.open(array).differs(one) is None
    # one byte of one image, not one of those that a sample would take
    changed = array.clone()
    changed[1, 3, 3] ^= 1
    for other in (changed, array[:49], array.reshape(50, 2, 8), array.float() / 255):
        message = data.open(other).differs(one)
        assert "data_changed=True" in message and "--data-changed" in message
        assert "\n" not in message
    assert data.open(array[:1]).identity()


def test_repr_and_log_names_are_for_people(folder):
    assert (
        repr(data.open("digits")) == "Data('digits', 5000 x (1, 28, 28), uint8 on cpu, 10 classes)"
    )
    assert "as needed" in repr(data.open(folder, budget_bytes=0))
    assert logging.getLogger("fastgan").level == logging.NOTSET
