"""Networks that fully_shard has divided over ranks train, save and resume as whole ones do."""

import atexit

import pytest
import torch
from test_ranks import start, wait_for_lines
from torch import nn

from fastgan import Config, Trainer, data, sharded
from fastgan.config import ConfigError
from fastgan.distributed import World
from fastgan.live import Live
from fastgan.run import checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
HERE = __name__
KINDS = {
    "plain": {"optimizer": "sgd", "lr": 0.05},
    "adam, bounded": {"grad_clip": 0.3, "grad_clip_value": 0.2, "lr": 0.01, "loss": "hinge"},
    "penalised": {"penalties": "r1:1:2", "optimizer": "sgd", "lr": 0.05, "d_steps": 2},
    "shared fakes": {"shared_fakes": True, "optimizer": "sgd", "lr": 0.05, "d_steps": 2},
    "in parts": {"accumulate": 2, "weight_clip": 0.2, "loss": "wasserstein", "lr": 0.01},
}


class FullyShardedDataParallel(nn.Module):
    """The name by which the older wrapper is known."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside


Old = FullyShardedDataParallel


def pair(kind="plain"):
    torch.manual_seed(1)
    # Parts of a batch are normalised by themselves, and are others on two ranks.
    norm = nn.Identity() if kind == "in parts" else nn.BatchNorm1d(24)
    g = nn.Sequential(
        nn.Linear(5, 24, bias=False), norm, nn.ReLU(), nn.Linear(24, 36),
        nn.Unflatten(1, (1, 6, 6)), nn.Tanh(),
    )  # fmt: skip
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 17), nn.Tanh(), nn.Dropout(0.3), nn.Linear(17, 1))
    return g, d


def divided_pair(kind="plain", which=("g", "d")):
    """Each Linear by itself, and the rest at the root."""
    from torch.distributed.fsdp import fully_shard

    size = torch.distributed.get_world_size()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (size,))
    g, d = pair(kind)
    for name, network in (("g", g), ("d", d)):
        if name in which:
            for m in network:
                if isinstance(m, nn.Linear):
                    fully_shard(m, mesh=mesh)
            fully_shard(network, mesh=mesh)
    return g, d


def samples():
    return data.open(torch.rand(43, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def run(out, networks, steps, **settings):
    settings = {"engine": "eager", "batch_size": 9, **settings}
    trainer = Trainer(
        *networks, samples(), out=out, latent_dim=5, device="cpu", log_every=5,
        checkpoint_every=10, console="none", **settings,
    )  # fmt: skip
    trainer.fit(steps=steps)
    return trainer


def resume(out, networks, steps):
    trainer = Trainer.resume(out, *networks, samples())
    trainer.fit(steps=steps)
    return trainer


def told_at_exit():
    """Says at the very end whether the group that this program has made still stands."""
    atexit.register(lambda: print(f"standing: {torch.distributed.is_initialized()}"))


def ended(ranks, code=0):
    told = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code] * len(ranks), told
    return told


def two_ranks(out):
    torch.distributed.init_process_group("gloo")
    for name, settings in KINDS.items():
        run(f"{out}/{name}", divided_pair(name), 10, **settings)
    run(f"{out}/one of them", divided_pair(which="d"), 10, **KINDS["plain"])
    for name, steps in (("cut", 5), ("whole", 10)):
        trainer = run(f"{out}/{name}", divided_pair(), steps, **KINDS["adam, bounded"])
    resume(f"{out}/cut", divided_pair(), 10)
    with pytest.raises(ConfigError, match="features of samples are not made where networks are"):
        trainer.evaluate("swd", 8)
    half = run(None, divided_pair(), 2, precision="bf16", loss="hinge")
    assert all(w.dtype == torch.float32 for w in half.generator.parameters())
    with pytest.raises(ConfigError, match="Live draws on the first rank"):
        run(None, divided_pair(), 1, callbacks=Live())
    with pytest.raises(ConfigError, match="a batch has 1 samples, and each of 2 ranks must have"):
        run(None, divided_pair(), 1, batch_size=42)
    tuned = Trainer.from_checkpoint(
        f"{out}/plain", *divided_pair(), samples(), lr=0.1, console="none"
    )
    saved = checkpoint.load(checkpoint.find(f"{out}/plain"))
    for name in ("generator", "discriminator"):
        for key, value in sharded.state_dict(getattr(tuned, name)).items():
            assert torch.equal(value, saved[name][key])
    assert trainer.sample(3).shape == (3, 1, 6, 6)
    for network in (trainer.generator, trainer.discriminator):
        held = sum(w.to_local().numel() for w in network.parameters())
        assert held < 0.6 * sum(w.numel() for w in network.parameters())


def three_ranks(out, steps):
    told_at_exit()
    torch.distributed.init_process_group("gloo")
    resume(out, divided_pair(), steps)


def test_divided_networks_train_as_those_of_one_process_and_go_on_anywhere(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    ranks = start(2, f"import {HERE} as m; m.two_ranks({str(two)!r})", tmp_path)
    kinds = {**KINDS, "one of them": KINDS["plain"], "cut": KINDS["adam, bounded"]}
    for name, settings in kinds.items():
        run(one / name, pair(name), 10, **settings)
    ended(ranks)
    for name in kinds:
        a, b = (checkpoint.load(checkpoint.find(run / name)) for run in (one, two))
        for network in ("generator", "discriminator"):
            torch.testing.assert_close(a[network], b[network], rtol=0, atol=1e-5, msg=name)
            torch.testing.assert_close(
                torch.load(two / name / f"{network}.pth"), b[network], rtol=0, atol=0
            )
        assert (two / name / "samples.png").exists()
    cut, whole = (checkpoint.load(checkpoint.find(two / name)) for name in ("cut", "whole"))
    for part in ("generator", "discriminator", "optimizer_g", "optimizer_d"):
        torch.testing.assert_close(cut[part], whole[part], rtol=0, atol=0)

    # Three ranks go on where two were, and at last one process with networks that are whole.
    out = two / "plain"
    told = ended(start(3, f"import {HERE} as m; m.three_ranks({str(out)!r}, 15)", tmp_path))
    assert ["standing: False" in said for said, _ in told] == [True] * 3, told
    resume(out, pair(), 20)
    again = resume(one / "plain", pair(), 20)
    state = checkpoint.load(checkpoint.find(out))
    for network in ("generator", "discriminator"):
        own = getattr(again, network).state_dict()
        torch.testing.assert_close(state[network], dict(own), rtol=0, atol=1e-5)


def until_lost(out):
    torch.distributed.init_process_group("gloo")
    run(out, divided_pair(), 10**6, **KINDS["plain"])


def test_a_rank_that_dies_ends_the_other_and_its_part_is_in_the_checkpoint(tmp_path):
    out = tmp_path / "run"
    ranks = start(2, f"import {HERE} as m; m.until_lost({str(out)!r})", tmp_path)
    wait_for_lines(out, ranks)
    ranks[1].kill()
    assert "rank 0 of 2 has lost another one" in ranks[0].communicate(timeout=60)[1]
    assert ranks[0].returncode not in (0, None)
    ranks[1].wait()
    step = checkpoint.load(checkpoint.find(out))["step"]
    assert step >= 10 and resume(out, pair(), step + 2).step == step + 2


def refused(message, networks, **settings):
    with pytest.raises(ValueError, match=message):
        run(None, networks, 1, **settings)


def test_what_divided_networks_cannot_do_is_refused_by_name():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        g, d = divided_pair()
        of_both = "is not for a divided generator and discriminator: "
        refused(f"ema=0.9 {of_both}it would need a whole copy", (g, d), ema=0.9)
        refused("ema_half_life=50.0 is not for a divided gen", (g, d), ema_half_life=50.0)
        refused(f"precision='fp16' {of_both}scaled gradients", (g, d), precision="fp16")
        refused(f"channels_last=True {of_both}the format", (g, d), channels_last=True)
        terms = {"l1": ("adaptive", lambda step: step.fake.abs().mean())}
        refused("an adaptive weight needs a gradient at G's last", (g, d), terms=terms)
        refused("fully_shard gathers and frees weights within a pass", (g, d), engine="compile")
        refused("divided by fully_shard, and it wants whole weights", (g, d), engine="fused")
        refused("FullyShardedDataParallel, which is not supported", (pair()[0], Old(d)))
        reason = sharded.unsuited({"generator": g}, Config(), 43, World(0, 2), torch.device("cpu"))
        assert "divided over a mesh of (1,), and the run has 2 ranks" in reason
        reason = sharded.unsuited({"generator": g}, Config(), 43, World(), torch.device("cuda"))
        assert "divided over cpu devices, and the run is on cuda" in reason
        run(None, (g, d), 2, engine="auto")
    finally:
        torch.distributed.destroy_process_group()
