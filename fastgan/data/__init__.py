"""Where samples come from: data.open gives Data, which the engines draw their batches from."""

from .batch import Batch
from .data import Data
from .errors import DataError
from .named import NAMES
from .sources import open

__all__ = ["NAMES", "Batch", "Data", "DataError", "open"]
