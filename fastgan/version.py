"""The version, which is read without importing anything."""

__version__ = "0.1.0"
