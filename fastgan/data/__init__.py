"""Where images come from: data.open gives Images, which the engines draw their batches from."""

from .errors import DataError
from .images import Images
from .sources import NAMES, open

__all__ = ["NAMES", "DataError", "Images", "open"]
