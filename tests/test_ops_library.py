"""Loading the compiled library, and doing without it."""

import pytest
import torch
from operator_cases import needs_library, run

from fastgan import ops
from fastgan.ops import library


def test_library_status_is_a_sentence():
    status = ops.library_status()
    assert set(status) == {"cpu", "cuda"}
    for value in status.values():
        assert value == "loaded" or value.startswith(("not ", "failed to load: "))
    status["cpu"] = "changed"
    assert ops.library_status()["cpu"] != "changed"


@needs_library
@pytest.mark.parametrize("isa", ["baseline", ops.isa()])
def test_isa_can_be_forced(isa):
    done = run("from fastgan import ops; print(ops.isa())", FASTGAN_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


@needs_library
def test_unknown_isa_is_an_error_that_lists_the_choices():
    done = run("from fastgan import ops; ops.isa()", FASTGAN_ISA="sse9")
    assert done.returncode != 0
    assert "FASTGAN_ISA is 'sse9'" in done.stderr and "baseline" in done.stderr


def test_without_the_library_everything_still_works():
    code = """
import sys
sys.modules["fastgan._C"] = None  # import fails
import torch
from fastgan import ops, random
from fastgan.ops import library, reference
assert ops.library_status()["cpu"] != "loaded" and ops.isa() is None
x, w = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
loss = ops.discriminator_loss(ops.linear_leaky_relu(x, w), ops.linear_leaky_relu(x, w))
(loss + ops.generator_loss(x)).backward()
assert random.normal(0, 0, 0, (2, 3)).shape == (2, 3)
t = [torch.rand(3) for _ in range(4)]
ops.adam_(*t, step=1, lr=0.1)
ops.adam_device_(*[[x] for x in t], torch.ones(()), torch.ones(()))
ops.ema_(t[:1], t[1:2], 0.5)
at = torch.tensor([2])
assert torch.equal(ops.philox_normal_at(torch.empty(5), 1, 2, at, 3), random.normal(1, 2, 6, 5))
mask = ops.keep_mask_at(torch.empty(5, dtype=torch.bool), 1, 2, at, 3, 0, 0.5)
assert torch.equal(mask, random.keep_mask(1, 2, 6, 5, 0.5))
assert torch.equal(ops.dropout_at(torch.ones(5), 0.5, 1, 2, at, 3), 2.0 * mask)
batch = ops.gather_normalize(torch.eye(4), torch.arange(4), at, batch=2, batches_per_epoch=2)
assert torch.equal(batch, torch.eye(4)[:2])
print("fine")
"""
    done = run(code)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize(
    ("products", "vendor", "fast"),
    [
        ("amx", "GenuineIntel", True),
        ("avx512_bf16", "AuthenticAMD", True),
        ("avx512_bf16", "GenuineIntel", False),
        ("avx512_bf16", None, False),
        ("emulated", "AuthenticAMD", False),
    ],
)
@needs_library
def test_bf16_is_taken_where_it_was_measured_faster(products, vendor, fast, monkeypatch):
    monkeypatch.setattr(library, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.ops.fastgan, "fused_products", lambda precision: products)
    assert ops.has_fast_bf16(torch.device("cpu")) is fast
    assert not ops.has_fast_bf16(torch.device("meta"))
