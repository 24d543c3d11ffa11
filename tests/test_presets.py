"""Every preset makes a pair that trains."""

import pytest
import torch

from fastgan import Config, Trainer, config, models


@pytest.mark.parametrize("name", list(config.PRESETS))
def test_a_preset_is_a_config_whose_pair_trains(name):
    c = config.preset(name)
    assert c == Config(**config.PRESETS[name].values) and config.PRESETS[name].help
    assert any(getattr(c, limit) for limit in config.LIMITS), "it says when to stop"
    shape = (1, c.image_size or 28, c.image_size or 28)
    samples = torch.randint(0, 256, (8, *shape), dtype=torch.uint8)
    small = {"width": 2, "batch_size": 4, "latent_dim": 3, "device": "cpu", "console": "none"}
    if c.model == "ctgan":
        rows = {"x": range(30), "y": ["a", "b", "c"] * 10}
        samples, shape = pytest.importorskip("pandas").DataFrame(rows), None
        small["batch_size"] = 20
    t = Trainer(None, None, samples, c, engine="eager", **small)
    assert t.fit(steps=1)["steps"] == 1
    assert t.sample(2).shape == (2, *(shape or t.data.shape))


def test_every_model_has_a_preset():
    for name, model in models.MODELS.items():
        assert config.preset(model.preset).model == name and model.help


@pytest.mark.parametrize(
    ("name", "hint"), [("dcgan64", "did you mean 'dcgan-64'"), ("mnist", "did you mean"), (3, "3")]
)
def test_a_preset_that_is_none(name, hint):
    with pytest.raises(
        ValueError, match=f"preset is .*expected one of mnist-mlp.*{hint}|is {hint}"
    ):
        config.preset(name)
