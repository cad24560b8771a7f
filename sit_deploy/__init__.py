"""sit-deploy: from a SiT checkpoint to an engine that serves. See README.md; the command is `sit-deploy`."""

from __future__ import annotations

__version__ = "0.1.0"
