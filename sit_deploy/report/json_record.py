"""A record: what a JSON file says, read into a typed value and written back whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from sit_deploy.schema import check

if TYPE_CHECKING:
    from typing_extensions import Self


class JsonRecord(Struct, dict=True):
    """Typed fields of a JSON object, which is kept as it was, so that what is not named here is written back too."""

    @classmethod
    def from_dict(
        cls,
        fields: Mapping[str, Any],
        where: object = "what was measured",
        remedy: str = "measure the bundle again",
    ) -> Self:
        """Return the record that JSON values are.

        Args:
            fields: the values.
            where: what they are of, for the start of a message: a file.
            remedy: for its end.

        Raises:
            InputError: names the first wrong field and what it must be.
        """
        record = check(fields, cls, where, remedy)
        record.__dict__["fields"] = fields
        return record

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values that the record was made from."""
        return copy.deepcopy(self.__dict__["fields"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a pickle or a deep copy makes it again; msgspec would leave out the JSON that is kept."""
        return type(self).from_dict, (self.to_dict(),)

    def __copy__(self) -> Self:
        return type(self).from_dict(self.to_dict())
