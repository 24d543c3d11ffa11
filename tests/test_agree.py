"""What compiled code may be off by."""

import pytest
import torch

from fastgan.engines import agree
from fastgan.engines.base import CannotRun


def gradients(off):
    """Eager's, and the same that far from them, as a part of their length."""
    torch.manual_seed(0)
    of = [torch.randn(40, 30), torch.randn(30)]
    return of, [
        t
        + off
        * t.norm()
        * torch.nn.functional.normalize(torch.randn(t.shape).flatten(), dim=0).view(t.shape)
        for t in of
    ]


def compare(off, otherwise=None):
    expected, found = gradients(off)
    return agree.compare("it", "fp32", 2, (expected, found), ([], []), otherwise)


def test_rounding_is_allowed_and_told():
    assert compare(5e-5) == pytest.approx(5e-5, rel=0.01)


@pytest.mark.parametrize("off", [2e-4, 0.5])
def test_more_is_refused(off):
    with pytest.raises(CannotRun, match="gradients of the compiled function are off by"):
        compare(off)


@pytest.mark.parametrize(
    ("eagers", "off", "taken"),
    [
        (1e-3, 3.5e-3, True),
        (1e-3, 4.5e-3, False),
        (1e-5, 2e-4, False),
        (0.2, 5e-3, True),
        (0.2, 2e-2, False),
    ],
)
def test_ill_conditioned_gradients_may_be_off_by_four_times_eagers_rounding(eagers, off, taken):
    asked = []

    def otherwise():
        asked.append(eagers)
        return gradients(eagers)[1]

    if taken:
        assert compare(off, otherwise) == pytest.approx(off, rel=0.01)
    else:
        with pytest.raises(CannotRun, match="off by"):
            compare(off, otherwise)
    assert asked


def test_eager_is_not_asked_again_where_rounding_is_usual():
    def otherwise():
        raise AssertionError

    assert compare(5e-5, otherwise) < 1e-4


def test_losses_have_no_more_room():
    of = [torch.ones(3), torch.ones(())]
    off = [of[0], of[1] * 1.001]
    with pytest.raises(CannotRun, match="losses"):
        agree.compare("it", "fp32", 1, (of, off), ([], []), lambda: [of[0] * 2, of[1]])
