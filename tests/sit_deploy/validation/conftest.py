"""Models are exported once."""

from tests.helpers.exports import exported_once

__all__ = ["exported_once"]
