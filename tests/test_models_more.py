"""The residual and the tabular pairs: sizes as in their papers, what a class does, whole runs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_runs import assert_same_bits, every_bit
from torch import nn

import fastgan
from fastgan import Trainer, cli, data, models
from fastgan.models import (
    CTGANDiscriminator,
    CTGANGenerator,
    R3GANDiscriminator,
    R3GANGenerator,
    SNResNetDiscriminator,
    SNResNetGenerator,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small spend their time waiting for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def count(network):
    return sum(p.numel() for p in network.parameters())


def conv(i, o, k):
    return i * o * k * k + o


def test_the_sn_resnet_pair_at_32_has_the_papers_parameters():
    """ICLR 2018, the networks for CIFAR-10: G a dense layer to 4 x 4 x 256, three blocks of 256
    maps, BatchNorm, a convolution; D four blocks of 128 and a dense layer."""
    up = 2 * 256 + conv(256, 256, 3) + 2 * 256 + conv(256, 256, 3) + conv(256, 256, 1)
    g = 129 * 4 * 4 * 256 + 3 * up + 2 * 256 + conv(256, 3, 3)
    assert count(SNResNetGenerator()) == g == 4_276_739
    first = conv(3, 128, 3) + conv(128, 128, 3) + conv(3, 128, 1)
    second = 2 * conv(128, 128, 3) + conv(128, 128, 1)
    d = first + second + 2 * 2 * conv(128, 128, 3) + 129
    assert count(SNResNetDiscriminator()) == d == 1_053_825
    # A class: a scale and a shift for each map of six BatchNorms in place of one for all; a vector.
    assert count(SNResNetGenerator(classes=10)) == g + 6 * 2 * 256 * (10 - 1)
    assert count(SNResNetDiscriminator(classes=10)) == d + 10 * 128


def test_the_sn_resnet_pair_at_64_has_the_papers_maps():
    def up(i, o):
        return 2 * i + conv(i, o, 3) + 2 * o + conv(o, o, 3) + conv(i, o, 1)

    def down(i, o, first=False):
        return conv(i, o, 3) + conv(o, o, 3) + conv(i, o, 1)

    g = 129 * 16 * 1024 + up(1024, 512) + up(512, 256) + up(256, 128) + up(128, 64)
    assert count(SNResNetGenerator(image_size=64)) == g + 2 * 64 + conv(64, 3, 3)
    d = down(3, 64) + down(64, 128) + down(128, 256) + down(256, 512) + down(512, 1024)
    assert count(SNResNetDiscriminator(image_size=64)) == d + 1025


def test_the_r3gan_pair_has_the_papers_block():
    """768 maps at four sides, two blocks each: 1 x 1 to 1536, 3 x 3 in 96 groups, 1 x 1 back."""
    block = 2 * 768 * 1536 + 1536 * 16 * 9 + 2 * 1536
    g = 64 * 768 + 768 * 16 + 8 * block + 768 * 3
    d = 3 * 768 + 8 * block + 768 * 16 + 768
    assert count(R3GANGenerator()) == g and count(R3GANDiscriminator()) == d


def test_an_r3gan_pair_begins_with_blocks_that_change_nothing():
    g = R3GANGenerator(5, 16, 3, width=8)
    z = torch.randn(2, 5)
    x = g.basis * g.linear(z)[..., None, None]
    for _ in range(2):
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(g(z), g.to_image(x))


def test_an_r3gan_discriminator_ends_with_a_convolution_of_each_map():
    torch.manual_seed(0)
    d = R3GANDiscriminator(16, 3, width=8).double()
    x, seen = torch.randn(4, 3, 16, 16).double(), []
    d.stages[-1].register_forward_hook(lambda module, given, out: seen.append(out))
    scores = d(x)
    torch.testing.assert_close(scores, d.linear(d.basis(seen[0]).flatten(1)))


def test_the_ctgan_pair_has_the_papers_parameters():
    """NeurIPS 2019: 128 latents, residual layers of 256 and 256 in G, 256 and 256 in D, packs of
    ten; a table of 6 numbers and of choices among 3 and 5, of which one is asked for."""
    heads, row, asked = (("tanh", 6), ("softmax", 3), ("softmax", 5)), 14, 8
    g = CTGANGenerator(heads, condition_dim=asked)
    first, second = 128 + asked, 128 + asked + 256
    assert count(g) == (
        (first + 1) * 256 + 512 + (second + 1) * 256 + 512 + (second + 256 + 1) * row
    )
    d = CTGANDiscriminator(row, condition_dim=asked, pack=10)
    assert count(d) == (10 * (row + asked) + 1) * 256 + 257 * 256 + 257


def test_a_row_is_what_its_heads_say():
    heads = (("tanh", 2), ("softmax", 3), ("softmax", 2))
    g = CTGANGenerator(heads, 5, 8)
    rows = g(torch.randn(200, 5))
    assert rows.shape == (200, 7) and (rows[:, :2].abs() < 1).all()
    for part in (rows[:, 2:5], rows[:, 5:]):
        torch.testing.assert_close(part.sum(1), torch.ones(200))
        assert (part.max(1).values > 0.9).float().mean() > 0.6, "nearly one-hot"
    logits = g.eval().logits(torch.zeros(1, 5)).expand(4000, -1)
    share = g.activated(logits)[:, 2:5].argmax(1).bincount(minlength=3) / 4000
    torch.testing.assert_close(share, logits[0, 2:5].softmax(0), atol=0.04, rtol=0)
    packed = CTGANDiscriminator(7, 8, pack=10)
    assert packed(rows).shape == (20, 1)
    with pytest.raises(ValueError, match="given 195 rows; use a batch_size that is a multiple"):
        packed(rows[:195])
    with pytest.raises(ValueError, match="'onehot' is no kind"):
        CTGANGenerator([("onehot", 3)])
    with pytest.raises(ValueError, match="width of a head 'tanh' is 0"):
        CTGANGenerator([("tanh", 0)])


def test_spectral_norm_holds_every_layer_of_d():
    torch.manual_seed(0)
    d = SNResNetDiscriminator(32, 1, 4, classes=3)
    x, y = torch.randn(4, 1, 32, 32), torch.arange(4) % 3
    for _ in range(60):
        d(x, y)
    layers = [m for m in d.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    norms = [torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() for m in layers]
    assert len(norms) == 12 and norms == pytest.approx([1.0] * 12, abs=0.05)


def test_each_file_of_a_model_is_short():
    for path in Path(models.__file__).parent.glob("*.py"):
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(lines) < 150, path.name


OPTIONS = {
    "sn-resnet": {"width": 2, "d_steps": 2},
    "r3gan": {"width": 4, "latent_dim": 6},
    "ctgan": {"width": 8},
    "dcgan": {"width": 2, "image_size": 16},
    "mlp": {"width": 8},
}


def samples(name, labelled):
    generator = torch.Generator().manual_seed(0)
    if name == "ctgan":
        rows = {"x": range(40), **({"y": list("abcd") * 10} if labelled else {})}
        return data.open(pytest.importorskip("pandas").DataFrame(rows), by_category=True)
    side = 16 if name == "dcgan" else 32
    images = torch.randint(0, 256, (40, 1, side, side), generator=generator, dtype=torch.uint8)
    return data.open((images, torch.arange(40) % 3) if labelled else images)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["sn-resnet", "r3gan", "ctgan"])
def test_a_run_of_every_model_is_continued_to_the_bit(name, labelled, tmp_path):
    c = fastgan.config.preset(models.MODELS[name].preset)
    options = {"batch_size": 8, "device": "cpu", "console": "none", **OPTIONS[name]}
    options |= {"batch_size": 10} if name == "ctgan" else {}
    source = samples(name, labelled)
    options["image_size"] = None
    whole = Trainer(None, None, source, c, out=tmp_path / "whole", **options)
    before = every_bit(whole)
    whole.fit(steps=4)
    moved = [k for k, v in every_bit(whole).items() if k in before and (v != before[k]).any()]
    assert len(moved) > len(before) / 2
    Trainer(None, None, source, c, out=tmp_path / "half", **options).fit(steps=2)
    half = Trainer.resume(tmp_path / "half", data=source)
    half.fit(steps=4)
    assert_same_bits(every_bit(half), every_bit(whole))
    assert whole.sample(7).shape == (7, *source.shape)
    by_class = labelled and name != "r3gan"
    assert whole.problem.conditioned == (by_class, by_class)
    if by_class and name != "ctgan":
        assert torch.equal(whole.sample(6), whole.sample(6, condition=[0, 1, 2] * 2))
        assert not torch.equal(whole.sample(6), whole.sample(6, condition=1))


@pytest.mark.parametrize("name", ["sn-resnet", "r3gan"])
def test_the_command_line_trains_continues_and_samples(name, here, capsys):
    words = [f"--{key.replace('_', '-')}={value}" for key, value in OPTIONS[name].items()]
    train = ["train", "--model", name, "--batch-size", "8", "--device", "cpu", "--quiet"]
    assert cli.main([*train, *words, "--steps", "2", "--out", "run", "--precision", "fp32"]) == 0
    assert cli.main(["train", "--resume", "run", "--steps", "3", "--quiet"]) == 0
    assert cli.main(["sample", "run", "--n", "12", "--device", "cpu"]) == 0
    assert (here / "run" / "grid.png").stat().st_size > 100
    capsys.readouterr()


def test_labels_without_names_in_memory_are_counted():
    labels = torch.tensor([0, 4] * 20)
    source = data.open((torch.rand(40, 5), labels))
    assert fastgan.conditions.class_count(source) == 5
    assert fastgan.conditions.class_count(data.open(torch.rand(40, 5))) is None
    assert fastgan.conditions.class_count(data.open((torch.rand(40, 5), torch.rand(40)))) is None
    assert fastgan.conditions.class_count(data.open("digits")) == 10
