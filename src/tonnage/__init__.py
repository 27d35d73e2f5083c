"""Tonnage delivers LLM weights to private clouds as OCI artifacts and serves them there."""

__version__ = "0.1.0"
