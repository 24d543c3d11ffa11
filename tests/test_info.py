"""What an installation says about itself."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastgan
from fastgan import engines
from fastgan.info import report


def test_facts_are_plain_values_and_name_an_engine():
    facts = fastgan.info()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__ and facts["fastgan"] == fastgan.__version__
    assert set(facts["engines"]) == set(engines.ORDER)
    # The engine named is the first that gives no reason against itself.
    assert facts["engine"] == next(n for n in engines.ORDER if facts["engines"][n] is None)


def test_a_convolutional_pair_is_told_why_not_the_fused_engine():
    generator = nn.Sequential(nn.Linear(16, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())
    discriminator = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 1))
    before = {k: v.clone() for k, v in discriminator.state_dict().items()}
    facts = fastgan.info(generator, discriminator, latent_dim=16, device="cpu")
    assert facts["engine"] == "eager"
    reason = facts["engines"]["fused"]
    if fastgan.ops.library_status()["cpu"] == "loaded":
        assert "Conv2d" in reason and "discriminator" in reason
    assert reason in report(facts)
    assert all(torch.equal(v, before[k]) for k, v in discriminator.state_dict().items())


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 3, 3), (3, 1, 1), (3, 3, 3), (1, 28, 3), (4, 3, 3), (2, 5, 4)]
)
def test_images_of_any_sides_and_channels(shape):
    size = torch.Size(shape).numel()
    generator = nn.Sequential(nn.Linear(4, size), nn.Unflatten(1, shape))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(size, 1))
    facts = fastgan.info(generator, discriminator, latent_dim=4, device="cpu")
    if fastgan.ops.library_status()["cpu"] == "loaded":
        assert facts["engine"] == "fused" and facts["engine_memory_bytes"] > 0
    # Its sides in their order, whatever they are: only then do these kernels fit.
    generator = nn.Sequential(nn.ConvTranspose2d(4, shape[0], shape[1:]), nn.Tanh())
    discriminator = nn.Sequential(nn.Conv2d(shape[0], 2, shape[1:]), nn.Flatten(), nn.Linear(2, 1))
    facts = fastgan.info(generator, discriminator, latent_dim=(4, 1, 1), device="cpu")
    assert facts["engine"] == next(n for n in engines.ORDER if facts["engines"][n] is None)
    assert facts["engine"] != "fused"


def test_the_memory_of_the_engine_is_stated_where_it_is_known():
    facts = fastgan.info(device="cpu")
    if facts["engine"] == "fused":
        smaller = fastgan.info(device="cpu", batch_size=8)
        assert facts["engine_memory_bytes"] > smaller["engine_memory_bytes"] > 0
    facts["engine_memory_bytes"] = 3 * 2**20
    assert "\nengine memory 3.0 MB of workspace\n" in report(facts) + "\n"
    facts["engine_memory_bytes"] = None
    assert "engine memory" not in report(facts)
    generator = nn.Sequential(nn.Linear(4, 16), nn.Unflatten(1, (1, 4, 4)))
    discriminator = nn.Sequential(nn.Conv2d(1, 9, 4), nn.Flatten(), nn.Linear(9, 1))
    state = torch.get_rng_state()
    facts = fastgan.info(generator, discriminator, latent_dim=4, device="cpu")
    assert facts["engine"] == "eager" and facts["engine_memory_bytes"] is None
    fastgan.info(device="cpu")
    assert torch.equal(state, torch.get_rng_state())


def test_the_settings_decide_too():
    if fastgan.ops.library_status()["cpu"] == "loaded":
        assert fastgan.info(device="cpu")["engine"] == "fused"
        reason = fastgan.info(device="cpu", loss="relativistic")["engines"]["fused"]
        assert "relativistic" in reason
    threads = torch.get_num_threads()
    facts = fastgan.info(config=fastgan.Config(threads=threads + 1), device="cpu")
    assert facts["threads"] == threads + 1 and torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="no setting 'bs'; 'bs' is 'batch_size' here"):
        fastgan.info(bs=3)


def test_asking_leaves_no_trace_in_the_networks():
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    pair = (
        Counting(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Unflatten(1, (1, 3, 3))),
        Counting(nn.Flatten(), nn.Dropout(), nn.Linear(9, 1)),
    )
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in pair]
    fastgan.info(*pair, latent_dim=4, device="cpu")
    for network, state in zip(pair, before, strict=True):
        assert network.calls == 0 and network.training
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_one_network_alone_is_refused():
    with pytest.raises(ValueError, match="both networks or none"):
        fastgan.info(nn.Linear(1, 1))


def test_a_missing_library_says_why_and_what_it_costs():
    facts = fastgan.info()
    facts["libraries"] = {"cpu": "not built", "cuda": "not built"}
    facts["built"] = {
        "choice": "auto", "torch": "2.15.0", "cuda": None, "archs": None,
        "skipped": {"cpu": "no C++ compiler", "cuda": "no nvcc"},
    }  # fmt: skip
    text = report(facts)
    assert "no C++ compiler" in text and "what that costs: plain PyTorch" in text


def test_the_command_prints_the_same_facts(tmp_path):
    command = [sys.executable, "-m", "fastgan", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    out = done.stdout
    assert set(json.loads(out)) == set(fastgan.info())


def test_an_engine_that_only_trying_judges_is_passed_over(monkeypatch):
    class Tried:
        @classmethod
        def unsupported(cls, problem):
            return None

        def __init__(self, problem):
            raise engines.CannotRun("a step cannot be recorded")

    load = engines.load
    monkeypatch.setattr(engines, "load", lambda name: load(name) if name == "eager" else Tried)
    facts = fastgan.info(device="cpu")
    assert facts["engine"] == "eager"
    assert "not graph: a step cannot be recorded" in report(facts)


@pytest.mark.parametrize("state", ["enable", "disable"])
def test_importing_leaves_the_garbage_collector_as_it_was(state):
    code = (
        f"import gc; gc.{state}(); import fastgan; assert gc.isenabled() == ({state!r} == 'enable')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
