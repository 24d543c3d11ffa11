"""The CUDA emulator itself: right kernels come out right, wrong ones are caught."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from native import building, emulator

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def kernels():
    return emulator.load("selftest", "tests/native/cuda_selftest.cpp")


def test_a_missing_barrier_moves_the_result(kernels):
    given, right = torch.randn(256), set()
    for seed in SEEDS:
        kernels.seed(seed)
        out = torch.zeros(256)
        kernels.reverse(given, out, False)
        assert torch.equal(out, given.flip(0))
        kernels.reverse(given, out, True)
        right.add(torch.equal(out, given.flip(0)))
    assert right == {False}


@pytest.mark.parametrize("threads", [32, 64, 512])
def test_shuffles_and_shared_arrays(kernels, threads):
    given, out = torch.randn(1000), torch.zeros(1)
    for seed in SEEDS:
        kernels.seed(seed)
        kernels.sum(given, 1000, out, threads)
        torch.testing.assert_close(out[0], given.sum())


def test_blocks_that_wait_without_a_cooperative_launch(kernels):
    flag, values = torch.zeros(1, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(emulator.EmulationError, match="never comes"):
        kernels.ring(flag, values, 2, 3, False)


def test_too_many_cooperative_blocks(kernels):
    flag, values = torch.zeros(1, dtype=torch.int32), torch.zeros(200, dtype=torch.int32)
    kernels.device(multiprocessors=2)
    try:
        with pytest.raises(emulator.EmulationError, match="more cooperative blocks"):
            kernels.ring(flag, values, 1, 100, True)
    finally:
        kernels.device()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (1, "outside of shared memory"),
        (2, "a thread ends while others|after a thread of the block has ended"),
        (3, "lanes of one warp do"),
        (5, "never comes"),
        (6, "lane that has ended|ends while others wait"),
        (7, "not aligned"),
        (8, "__trap"),
    ],
)
def test_wrong_kernels_are_caught(kernels, what, message):
    for seed in SEEDS:
        kernels.seed(seed)
        with pytest.raises(emulator.EmulationError, match=message):
            kernels.wrong(what, torch.zeros(72), 256)


@pytest.mark.parametrize("what", [0, 4])
def test_what_was_not_written_is_nan(kernels, what):
    out = torch.zeros(64)
    kernels.wrong(what, out, 256)
    assert out.isnan().all()


def test_large_shared_memory_has_to_be_asked_for(kernels):
    out = torch.zeros(64)
    with pytest.raises(emulator.EmulationError, match="cudaFuncSetAttribute"):
        kernels.wrong(0, out, 100_000)
    kernels.allow_shared(227 * 1024)
    kernels.wrong(0, out, 227 * 1024)
    with pytest.raises(emulator.EmulationError):
        kernels.allow_shared(228 * 1024)


def bits(t):
    """What a register holds: 16-bit values widened to int32, float32 as it is."""
    return t.view(torch.int32) if t.dtype == torch.float32 else t.view(torch.int16).int() & 0xFFFF


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu(nvcc=True))])
def device(request):
    return request.param


@pytest.fixture
def either(kernels, device):
    """The emulator, or the GPU, which must agree on how a warp's registers form a matrix."""
    source = "tests/native/cuda_selftest.cpp"
    return kernels if device == "cpu" else emulator.on_gpu("selftest", source)


@pytest.mark.parametrize(
    ("kind", "dtype", "k"), [(0, torch.float32, 8), (1, torch.bfloat16, 16), (2, torch.float16, 16)]
)
def test_products_of_a_warp(either, device, kind, dtype, k):
    torch.manual_seed(kind)
    a, b, d = torch.randn(16, k).to(dtype), torch.randn(k, 8).to(dtype), torch.randn(16, 8)
    if kind == 0:  # what tf32 keeps
        a, b = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b))
    else:
        a[0, 0] = 2.0**-24  # a subnormal of float16
    expected = d.double() + a.double() @ b.double()
    for seed in SEEDS:
        either.seed(seed)
        found = d.to(device, copy=True)
        either.mma(kind, *(bits(t).contiguous().to(device) for t in (a, b)), found)
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_fragments_from_shared_memory(either, device):
    a, b = torch.randn(16, 16).bfloat16().to(device), torch.randn(16, 8).bfloat16().to(device)
    d = torch.zeros(16, 8, device=device)
    for seed in SEEDS:
        either.seed(seed)
        either.tile(a, b, d)
        torch.testing.assert_close(d, a.float() @ b.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_a_barrier_over_the_grid(either, device, blocks):
    rounds, expected = 5, torch.zeros(2, blocks, dtype=torch.int32)
    for r in range(rounds):
        expected[r % 2] = expected[(r + 1) % 2].roll(-1) + torch.arange(blocks)
    for seed in SEEDS:
        either.seed(seed)
        flag = torch.zeros(1, dtype=torch.int32, device=device)
        values = torch.zeros(2, blocks, dtype=torch.int32, device=device)
        either.ring(flag, values, rounds, blocks, True)
        assert torch.equal(values.cpu(), expected)


# Files that compilers make


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(building, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("how", ["object", "library", "program"])
def test_a_file_has_its_name_when_it_is_whole(monkeypatch, folder, how):
    """Several workers build the same one: none may load what another has half written."""
    wrote = []

    def half(command):
        wrote.append(Path(command[command.index("-o") + 1]))
        wrote[-1].write_text("half")
        raise RuntimeError("stopped in the middle of it")

    monkeypatch.setattr(building, "_run", half)
    build = {
        "object": lambda: building.objects(["tests/native/cuda_selftest.cpp"], []),
        "library": lambda: building.library("selftest", ["a.o"]),
        "program": lambda: building.program("selftest", ["a.o"]),
    }[how]
    for attempt in (1, 2):
        with pytest.raises(RuntimeError, match="in the middle"):
            build()
        assert len(wrote) == attempt
    name = wrote[0].name.removesuffix(f".{os.getpid()}")
    assert name != wrote[0].name and not (folder / name).exists()


def test_one_worker_builds_what_several_want(monkeypatch, folder):
    wrote = []

    def slowly(command):
        wrote.append(command)
        time.sleep(0.3)  # long enough for all to have come
        Path(command[command.index("-o") + 1]).write_text("whole")

    monkeypatch.setattr(building, "_run", slowly)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: building.program("selftest", ["a.o"]), range(4)))
    assert len(wrote) == 1 and {path.read_text() for path in made} == {"whole"}


@pytest.mark.parametrize("what", ["source", "header", "flag", "compiler", "also"])
def test_a_new_object_is_made_for_whatever_changes(monkeypatch, folder, what):
    given = {"sources": ["csrc/a.cpp"], "flags": ["-O1"], "compiler": "g++", "also": "2.13"}
    (folder / "csrc").mkdir()
    (folder / "csrc/a.cpp").write_text("int a;")
    (folder / "csrc/a.h").write_text("int b;")
    monkeypatch.setattr(building, "ROOT", folder)
    monkeypatch.setattr(building, "_headers", building._headers.__wrapped__)
    monkeypatch.setattr(building, "_run", lambda command: Path(command[-1]).write_text("made"))
    (before,) = building.objects(**given)
    assert building.objects(**given) == [before]
    if what in ("source", "header"):
        (folder / "csrc" / {"source": "a.cpp", "header": "a.h"}[what]).write_text("int c;")
    else:
        given |= {
            "flag": {"flags": ["-O2"]}, "compiler": {"compiler": "c++"}, "also": {"also": "2.14"},
        }[what]  # fmt: skip
    assert building.objects(**given) != [before]
