"""The ``fedgh`` command."""

from fedgh_app.cli.command import main

__all__ = ["main"]
