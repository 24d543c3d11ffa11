"""What a timing on a GPU must be read with: the chip, its clocks as found, and its two ceilings.

    python benchmarks/gpu.py [FILE]    # as JSON; exit status 1 and the reason without a GPU

Nothing here changes a setting of the card. `state()` is a query of nvidia-smi; `facts()` measures
in a process of its own, so that the harness holds no context on the device.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from machine import Missing

STATE = (
    *("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu"),
    *("power.draw", "power.limit", "utilization.gpu", "memory.used", "pstate"),
)
SIZE = 8192  # of the square matrices: large enough for the best rate of every library
COPY_BYTES = 1 << 30  # far beyond the L2
NODES = 200


def facts(file: Path | None = None) -> dict:
    """name, capability, sms, l2_mib, memory_gib, driver, cuda, cudnn, ceilings, two states.

    Ceilings, each the median of repeated measurements on random data: ``copy_gbs`` (GB/s read plus
    written), ``matmul_tflops`` {precision: TFLOP/s}, ``launch_us`` (one tiny kernel after another
    from Python), ``node_us`` (the same as nodes of a replayed graph, each waiting for the one
    before it).

    Args:
        file: where an earlier call wrote its answer; if there is none, this one does.

    Raises:
        Missing: there is no GPU, or PyTorch cannot use it; the text says why.
    """
    if file and file.exists():
        return json.loads(file.read_text())
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *([str(file)] if file else [])],
            capture_output=True,
            text=True,
            timeout=180,
        )
    except subprocess.TimeoutExpired:
        raise Missing("the GPU could not be measured within three minutes") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Missing(f"the GPU could not be measured: {last}") from None
    if "missing" in answer:
        raise Missing(answer["missing"])
    return answer


def state() -> dict:
    """Clocks (MHz), temperature (C), power (W), utilisation (%) and memory (MiB) at this moment.

    Raises:
        Missing: nvidia-smi is absent or does not answer.
    """
    values = _query(*STATE)
    return {key: _number(value) for key, value in zip(STATE, values, strict=True)}


def capability() -> tuple[int, int]:
    """The compute capability of the first card.

    Raises:
        Missing: there is none.
    """
    try:
        said = _query("compute_cap")[0]
    except Missing as reason:
        ask = "import torch; print('%d.%d' % torch.cuda.get_device_capability(0))"
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
        if done.returncode:
            raise reason
        said = done.stdout
    major, _, minor = said.strip().partition(".")
    return int(major), int(minor)


def _query(*fields: str) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise Missing("nvidia-smi is not on the path")
    query = f"--query-gpu={','.join(fields)}"
    command = [program, query, "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        raise Missing("nvidia-smi does not answer") from None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(fields):
        said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        raise Missing(f"nvidia-smi said: {said[0]}")
    return values


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _measure() -> dict:
    try:
        import torch
    except ImportError as error:
        raise Missing(str(error)) from None
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        raise Missing(f"torch {torch.__version__} (built for CUDA: {built}) finds no GPU")
    properties = torch.cuda.get_device_properties(0)
    out = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sms": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size / 2**20,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "missing": {},
    }
    for key, measure in (
        ("driver", lambda: _query("driver_version")[0]),
        ("before", state),
    ):
        try:
            out[key] = measure()
        except Missing as reason:
            out["missing"][key] = str(reason)
    out["copy_gbs"] = _copy()
    out["matmul_tflops"] = {kind: _matmul(kind) for kind in ("fp32", "tf32", "bf16")}
    out["launch_us"], out["node_us"] = _launches()
    try:
        out["after"] = state()
    except Missing as reason:
        out["missing"]["after"] = str(reason)
    if not out["missing"]:
        del out["missing"]
    return out


def between_events(call, times: int) -> float:
    """Seconds between two events of the current stream around ``times`` calls."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _seconds(call, times: int, repeats: int = 5) -> float:
    """The median over the repeats of one call's time, after a first one."""
    call()
    return statistics.median(between_events(call, times) / times for _ in range(repeats))


def _copy() -> float:
    import torch

    source = torch.randn(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return round(2 * COPY_BYTES / _seconds(lambda: target.copy_(source), 10) / 1e9, 1)


def _matmul(precision: str) -> float:
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = _seconds(lambda: torch.mm(a, b, out=out), 3 if precision == "fp32" else 10)
    return round(2 * SIZE**3 / seconds / 1e12, 1)


def _launches() -> tuple[float, float]:
    import torch

    x = torch.zeros(1, device="cuda")
    eager = _seconds(lambda: x.add_(1), 2000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NODES):
            x.add_(1)
    replayed = _seconds(graph.replay, 20) / NODES
    return round(eager * 1e6, 3), round(replayed * 1e6, 3)


def main(file: str | None = None) -> int:
    try:
        measured = json.dumps(_measure(), indent=1)
    except Missing as reason:
        print(json.dumps({"missing": str(reason)}))
        return 1
    print(measured)
    if file:
        Path(file).write_text(measured + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
