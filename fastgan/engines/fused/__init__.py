"""The fused engine: whole steps of two multilayer perceptrons in C++ or CUDA."""

from fastgan.engines.fused.cpu import FusedEngine

__all__ = ["FusedEngine"]
