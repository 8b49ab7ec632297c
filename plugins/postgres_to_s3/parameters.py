"""The rendered parameters of a query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streaming_export import impersonal


class Parameters(Mapping[str, Any]):
    """Values by name, of which Airflow's "Rendered Templates" gets those that are of nobody's person."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self.serialize())

    def serialize(self) -> dict[str, Any]:
        """What Airflow stores."""
        return {name: value if impersonal(value) else "***" for name, value in self._values.items()}
