"""Where images come from: data.open gives Images, which the engines draw their batches from."""

from .errors import DataError
from .images import Batch, Images
from .sources import NAMES, open

Data = Images

__all__ = ["NAMES", "Batch", "Data", "DataError", "Images", "open"]
