"""Crosscoders: sparse dictionaries shared by several sources, trained and judged as a reproducible study."""

__version__ = "0.1.0"
