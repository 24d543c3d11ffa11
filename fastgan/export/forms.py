"""The forms in which a generator is handed on, each read back and held against the module."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.export.network import Network
from fastgan.run import checkpoint, files
from fastgan.run.checkpoint import first_line

TOLERANCE = 1e-4
"""Of the largest sample: how far a program's samples may be from those of the module."""
SIZES = (1, 2, 5)
"""Batches that they are compared on."""
EXTRA = "pip install 'fastgan[export]'"


class LeftOut(Exception):
    """A form that this run, or this installation, cannot be written in; the reason."""


def write_weights(weights: Mapping[str, Any], file: Path) -> str:
    """A state dict for torch.load."""
    checkpoint.save_weights(file, weights)
    return f"a state dict for torch.load, {_count(weights):,} weights"


def write_safetensors(weights: Mapping[str, Any], file: Path) -> str:
    """A state dict for safetensors."""
    library = _library("safetensors.torch")
    plain = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if len(plain) < len(weights):
        others = ", ".join(sorted(weights.keys() - plain.keys()))
        raise LeftOut(f"it holds tensors only, and the state dict has {others}")
    # Two names of one storage, which it refuses, become two tensors.
    content = library.save(
        {name: value.cpu().clone().contiguous() for name, value in plain.items()}
    )
    files.write(file, lambda out: out.write(content))
    return "the same state dict in safetensors"


def write_program(network: Network, file: Path) -> str:
    """A program of torch.export with any batch."""
    with _quiet(), _reason():
        content = io.BytesIO()
        torch.export.save(_exported(network), content)
        content.seek(0)
        program = torch.export.load(content).module()
    far = _compared(network, lambda *given: program(*given))
    files.write(file, lambda out: out.write(content.getvalue()))
    return f"a program of torch.export for any batch, {far}"


def write_onnx(network: Network, file: Path) -> str:
    """A graph of ONNX with any batch."""
    onnxruntime = [_library(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    with tempfile.TemporaryDirectory() as folder:
        draft = os.path.join(folder, file.name)
        with _quiet(), _reason():
            torch.onnx.export(
                _exported(network), (), draft, dynamo=True, input_names=network.names,
                output_names=["samples"], external_data=False, verbose=False,
            )  # fmt: skip
            session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
        content = Path(draft).read_bytes()

    def run(*given: Tensor) -> Tensor:
        named = zip(network.names, (x.numpy() for x in given), strict=True)
        return torch.from_numpy(np.asarray(session.run(None, dict(named))[0]))

    far = _compared(network, run)
    files.write(file, lambda out: out.write(content))
    return f"a graph of ONNX for any batch, {far}"


def _exported(network: Network) -> torch.export.ExportedProgram:
    # Not 1, which would be taken for a constant.
    examples = network.inputs(3)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(
            network.module, examples, dynamic_shapes={"given": tuple({0: batch} for _ in examples)}
        )


def _compared(network: Network, program: Callable[..., Tensor]) -> str:
    if not network.constant:
        for n in SIZES:
            with torch.no_grad():
                program(*network.inputs(n))
        return "not compared with the network, which draws numbers of its own in every call"
    most = 0.0
    for n in SIZES:
        given = network.inputs(n)
        expected = network(*given).float()
        with torch.no_grad():
            found = program(*given).float()
        if found.shape != expected.shape:
            raise LeftOut(f"it gave {list(found.shape)}, and the network {list(expected.shape)}")
        size = max(float(expected.abs().max()), 1e-12)
        most = max(most, float((found - expected).abs().max()) / size)
    if not most <= TOLERANCE:
        raise LeftOut(
            f"its samples are off by {most:.1e} of the largest, and {TOLERANCE:.0e} is allowed"
        )
    batches = ", ".join(map(str, SIZES))
    return f"within {most:.1e} of the network's samples in batches of {batches}"


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LeftOut(f"it needs {name.split('.')[0]} ({first_line(error)}): {EXTRA}") from error


@contextmanager
def _reason() -> Iterator[None]:
    """What a compiler says of a network it cannot take, as the reason in one line."""
    try:
        yield
    except Exception as error:  # they raise errors of many kinds
        raise LeftOut(f"{type(error).__name__}: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print and warn of, which is for their developers."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _count(weights: Mapping[str, Any]) -> int:
    return sum(value.numel() for value in weights.values() if isinstance(value, Tensor))
