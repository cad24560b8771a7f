"""The error of the parts beside it, in a repository: there `sit_deploy.errors` and what it imports are not."""

from __future__ import annotations


class InputError(Exception):
    """The input is wrong: an image that cannot be read or is out of bounds."""
