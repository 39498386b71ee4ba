"""Readers of count matrices, one file a format; ``open_source`` picks by suffix."""

from .base import CountsSource
from .expand import expand_sources
from .formats import ACCEPTED, open_source

__all__ = ["ACCEPTED", "CountsSource", "expand_sources", "open_source"]
