"""The recorder's own rules, on what stands for torch.cuda."""

from contextlib import contextmanager

import pytest
import torch

from fastgan import torch_private
from fastgan.engines.capture import CudaRecorder


class Device:
    """Notes what a recorder asks of torch.cuda, in the order in which it does."""

    def __init__(self, monkeypatch):
        self.did, self.pools, self.now, self.broken = [], 0, "main", False
        device = self

        class Stream:
            def __init__(self, name="side"):
                self.name = name

            def wait_stream(self, other):
                device.did.append(f"{self.name} waits for {other.name}")

        class Graph:
            ended = False

            def replay(self):
                pass

            def pool(self):
                if not self.ended:
                    raise RuntimeError("without a preceding successful capture")

            def reset(self):
                device.did.append("reset")

            def register_generator_state(self, generator):
                device.did.append("register")

        @contextmanager
        def stream(chosen):
            before, device.now = device.now, chosen.name
            yield
            device.now = before

        @contextmanager
        def capture(graph, pool, stream, capture_error_mode):
            device.did.append(f"capture in pool {pool}")
            yield
            if device.broken:
                raise RuntimeError("the capture was invalidated")
            graph.ended = True

        def handle():
            self.pools += 1
            return self.pools

        monkeypatch.setattr(torch.cuda, "Stream", lambda *_: Stream())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(device.now))
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", handle)
        self.recorder = CudaRecorder(torch.device("cuda", 0), [torch.Generator()])


def test_what_fails_aside_is_waited_for_before_anything_is_put_back(monkeypatch):
    device = Device(monkeypatch)

    def fails():
        device.did.append(f"work on {device.now}")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        device.recorder.aside(fails)
    assert device.did == ["side waits for main", "work on side", "main waits for side"]


def test_an_interrupted_capture_is_recovered_from_and_still_an_interrupt(monkeypatch):
    device = Device(monkeypatch)
    device.broken = True
    monkeypatch.setattr(CudaRecorder, "_recover", lambda *_: device.did.append("recover"))

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.recorder.capture(interrupted)
    with pytest.raises(RuntimeError, match="invalidated"):
        device.recorder.capture(lambda: None)
    assert device.did.count("recover") == 2


@pytest.mark.parametrize(("version", "tidy"), [("2.13.1+cu130", False), ("2.14.0a0", True)])
def test_what_a_capture_needs_of_us_depends_on_the_version(monkeypatch, version, tidy):
    device = Device(monkeypatch)
    empty = torch.empty
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "empty", lambda *sizes, device: empty(*sizes))
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.Generator()])
    for name in ("end_allocation_to_pool", "release_pool"):
        note = lambda _, pool, name=name: device.did.append(f"{name} {pool}")  # noqa: E731
        monkeypatch.setattr(torch_private, name, note)
    register = [] if tidy else ["register"]
    kept = device.recorder.capture(lambda: None)
    (pool,) = {said.split()[-1] for said in device.did if "pool" in said}
    assert device.did == [*register, f"capture in pool {pool}"]
    assert kept

    def fails():
        raise ZeroDivisionError

    # The work fails and the capture ends all the same; then the capture itself breaks off.
    for broken in (False, True):
        device.broken, pool = broken, device.recorder._pool
        device.did.clear()
        with pytest.raises(ZeroDivisionError):
            device.recorder.capture(fails)
        release = [f"release_pool {pool}"] if broken and not tidy else []
        end = ["reset", f"end_allocation_to_pool {pool}", *release]
        assert device.did == [*register, f"capture in pool {pool}", *end]


def test_a_pool_is_shared_as_long_as_a_recording_lives_in_it(monkeypatch):
    device = Device(monkeypatch)
    kept = [device.recorder.capture(lambda: None) for _ in range(2)]
    kept.clear()
    device.recorder.capture(lambda: None)
    first, second, third = (said for said in device.did if "pool" in said)
    assert first == second != third
