"""Code of an update by TorchInductor."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor, fx

from fastgan import torch_graphs
from fastgan.engines import probe

logger = logging.getLogger("fastgan")


def compiled(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
    """A graph's code for tensors like these.

    On the CPU it is a library that is called without Python where torch can make one: a step of
    small networks takes two thirds of the time, and a program that finds it kept never imports the
    compiler, which takes longer than all else that it does before it trains.
    """
    if all(t.device.type == "cpu" for t in inputs):
        try:
            return torch_graphs.compiled_ahead(graph, inputs)
        except Exception as error:
            logger.info(
                "an update's code is called by Python, as torch cannot make a library of it: %s",
                probe.first_line(error),
            )
    return torch_graphs.compiled(graph, inputs)
