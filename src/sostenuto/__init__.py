"""Sostenuto ranks from a user's whole history: raw behaviour log to trustworthy ranking.

Importing the package does no work and does not import torch.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sostenuto")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
