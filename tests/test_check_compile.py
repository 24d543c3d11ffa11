"""tools/check_compile.py finds what it says of a network (the compiler apart: it takes minutes)."""

import time

import check_compile
import pytest

from fastgan.engines.compiled_step import CompiledStep


@pytest.mark.parametrize("name", ["mlp, wgan-gp", "dcgan"])
def test_a_network_is_compared_in_both_precisions(name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(CompiledStep, "compiler", staticmethod(lambda graph, inputs: graph))
    monkeypatch.setattr(check_compile, "MOST", -1.0)  # so that all are looked at in float64
    found = check_compile.one(name, time.time() - 60)
    assert found["network"] == name and found["finite"] and "losses and gradients" in found["said"]
    rounding, exact = found["float64"]
    assert 0 <= found["off"] <= 1e-5 and 0 < rounding <= 1e-4 and 0 <= exact <= 1e-12
    assert (
        found["ready"] > 60
        and found["eager_ms"] > 0
        and found["compiled_ms"] > 0
        and found["seconds"] > 0
    )
