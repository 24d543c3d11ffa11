"""tools/check_compile.py finds what it says of a network (the compiler apart: it takes minutes)."""

import check_compile
import pytest

from fastgan.engines.compiled_step import CompiledStep


@pytest.mark.parametrize("name", ["mlp, wgan-gp", "dcgan"])
def test_a_network_is_compared_and_its_own_rounding_found(name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(CompiledStep, "compiler", staticmethod(lambda graph, inputs: graph))
    monkeypatch.setattr(check_compile, "MOST", -1.0)  # so that all are looked at in float64
    found = check_compile.one(name)
    assert found["network"] == name and found["finite"] and "losses and gradients" in found["said"]
    assert 0 <= found["off"] <= 1e-5 and 0 < found["rounding"] <= 1e-4
    assert found["eager_ms"] > 0 and found["compiled_ms"] > 0 and found["seconds"] > 0
