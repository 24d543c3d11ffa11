"""The one exception of this room."""


class DataError(ValueError):
    """Images missing, damaged or not as asked for: one line with what, where, and the way out."""
