"""The recorder's own rules, on what stands for torch.cuda."""

from contextlib import contextmanager

import pytest
import torch

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
            def replay(self):
                pass

            def reset(self):
                device.did.append("reset")

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

        def handle():
            self.pools += 1
            return self.pools

        monkeypatch.setattr(torch.cuda, "Stream", lambda *_: Stream())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(device.now))
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", handle)
        self.recorder = CudaRecorder(torch.device("cuda", 0), [])


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


def test_a_pool_is_shared_as_long_as_a_recording_lives_in_it(monkeypatch):
    device = Device(monkeypatch)
    kept = [device.recorder.capture(lambda: None) for _ in range(2)]
    kept.clear()
    device.recorder.capture(lambda: None)
    first, second, third = device.did
    assert first == second != third
