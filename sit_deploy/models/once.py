"""Weights under new names, each of which is given once."""

from __future__ import annotations

from sit_deploy.errors import InputError
from sit_deploy.models.torch_file import Stored


class Renamed(dict[str, Stored]):
    """Weights by their new names; of two that come to one name, which one is meant cannot be told."""

    def __setitem__(self, name: str, value: Stored) -> None:
        """Take a weight.

        Raises:
            InputError: there is one of this name already.
        """
        if name in self:
            raise InputError(
                f"it has {name} twice, under its own and under another name of the same weight; remove one of them"
            )
        super().__setitem__(name, value)
