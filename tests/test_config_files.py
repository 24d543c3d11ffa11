"""Files of settings as editors and people leave them."""

import pytest

from fastgan.config import ConfigError, files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yaml", "lr: 1e-3\nsteps: 3\nlr: 5e-3\n"),
        ("run.json", '{"lr": 1e-3, "steps": 3, "lr": 5e-3}'),
        ("run.toml", "lr = 1e-3\nsteps = 3\nlr = 5e-3\n"),
    ],
)
def test_a_setting_that_stands_twice_is_told(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"{name}: is no file of settings \(.*(twice|overwrite)"):
        files.load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.yaml", "lr: 1e-3"), ("a.toml", "lr = 1e-3"), ("a.json", '{"lr": 1e-3}')],
)
def test_a_mark_of_the_byte_order_is_none_of_the_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert files.load(tmp_path / name).lr == 1e-3


def test_a_wrong_preset_is_told_with_its_file(tmp_path):
    (tmp_path / "a.yaml").write_text("preset: nope")
    with pytest.raises(ConfigError, match=r"a.yaml: preset is 'nope'; expected one of mnist-mlp"):
        files.load(tmp_path / "a.yaml")
