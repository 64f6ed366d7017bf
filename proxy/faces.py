"""The endpoint table: every path the gateway serves as an exchange, and how.

What is not in the table is refused: a new path without a row here does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import MethodNotAllowedError, UnknownPathError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .exchange import Exchange
    from .replies import Reply


class Face:
    """One row. `operation` names what of the dialect is spoken; a face with a `handler` is answered by ourselves.

    `path` ending in `/` stands for everything below it. `repeatable`: a failed attempt may be repeated. `metered`: each
    exchange leaves a record.
    """

    __slots__ = ("handler", "metered", "method", "name", "operation", "path", "reads_body", "repeatable")

    def __init__(
        self,
        name: str,
        method: str,
        path: str,
        *,
        operation: str = "",
        handler: Callable[[Exchange], Reply] | None = None,
        reads_body: bool = False,
        repeatable: bool = False,
        metered: bool = False,
    ) -> None:
        self.name = name
        self.method = method
        self.path = path
        self.operation = operation
        self.handler = handler
        self.reads_body = reads_body
        self.repeatable = repeatable
        self.metered = metered

    def __repr__(self) -> str:
        return f"<Face {self.method} {self.path}>"


class FaceTable:
    """Finds the face of a request: one dict look-up for a plain path."""

    __slots__ = ("_below", "_exact")

    def __init__(self, faces: Iterable[Face]) -> None:
        self._exact: dict[str, dict[str, Face]] = {}
        self._below: dict[str, dict[str, Face]] = {}
        for face in faces:
            table = self._below if face.path.endswith("/") else self._exact
            table.setdefault(face.path, {})[face.method] = face

    def serves(self, path: str) -> bool:
        """Whether the path is in the table, with any method."""
        return path in self._exact or self._methods_below(path) is not None

    def find(self, method: str, path: str) -> Face:
        """The row for a request; raises UnknownPathError or MethodNotAllowedError."""
        methods = self._exact.get(path) or self._methods_below(path)
        if methods is None:
            raise UnknownPathError(f"Unknown path '{path[:128]}'.")
        face = methods.get(method)
        if face is None:
            allow = ", ".join(sorted(methods))
            raise MethodNotAllowedError(f"'{path[:128]}' takes {allow}.", allow=allow)
        return face

    def _methods_below(self, path: str) -> dict[str, Face] | None:
        for prefix, methods in self._below.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return methods
        return None

    def rows(self) -> list[Face]:
        """Every row, in the order given."""
        return [face for table in (self._exact, self._below) for methods in table.values() for face in methods.values()]
