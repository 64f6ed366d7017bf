"""The endpoint table: every path the gateway serves as an exchange, and how.

What is not in the table is refused: a new path without a row here does not exist. A route may let the rest of `/v1/`
pass (`CatchAll`); then what no row names is a request without a model, for that route's provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .errors import MethodNotAllowedError, MissingModelError, UnknownPathError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .exchange import Exchange
    from .replies import Reply

ANY = "*"
"""As a method: all of them."""
V1 = "/v1/"
BESIDE = frozenset(("/v1/health",))
"""Answered beside the table, whatever a catch-all says."""


class Face:
    """One row. `operation` names what of the dialect is spoken; a face with a `handler` is answered by ourselves.

    `path` ending in `/` stands for everything below it; with a `*` in the middle, that part names the model.
    `streams`: the operation may want the body while it arrives. `passes`: it names no model, so it goes to the route's
    provider or the only one. `repeatable`: a failed attempt may be repeated. `metered`: each exchange leaves a record.
    `websocket`: a session, and nothing but a session. `kind`: of the objects that its answers are, where a provider
    keeps them (stateful.py).
    """

    __slots__ = (
        "handler", "kind", "metered", "method", "name", "names_model", "operation", "passes", "path", "reads_body",
        "repeatable", "streams", "websocket",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        method: str,
        path: str,
        *,
        operation: str = "",
        handler: Callable[[Exchange], Reply] | None = None,
        reads_body: bool = False,
        streams: bool = False,
        passes: bool = False,
        repeatable: bool = False,
        metered: bool = False,
        websocket: bool = False,
        kind: str = "",
    ) -> None:
        self.name = name
        self.method = method
        self.path = path
        self.operation = operation
        self.handler = handler
        self.reads_body = reads_body
        self.streams = streams
        self.passes = passes
        self.names_model = ANY in path
        self.repeatable = repeatable
        self.metered = metered
        self.websocket = websocket
        self.kind = kind

    def model_in(self, path: str) -> str:
        """The part of a request's path that stands for the `*`. Raises MissingModelError for what is no text: no JSON
        and no form could name it."""
        before, _, behind = self.path.partition(ANY)
        model = path[len(before) : len(path) - len(behind)]
        if not model.isprintable():
            raise MissingModelError("The model in the path must be printable characters in UTF-8.", param="model")
        return model

    def __repr__(self) -> str:
        return f"<Face {self.method} {self.path}>"


class CatchAll(NamedTuple):
    """`methods` serve the paths under `/v1/` that begin with one of `prefixes` and have no row for their method."""

    methods: Mapping[str, Face]
    prefixes: Sequence[str]

    def takes(self, path: str) -> bool:
        """Whether the path is one of those."""
        return path.startswith(V1) and path not in BESIDE and path.startswith(tuple(self.prefixes))


class FaceTable:
    """Finds the face of a request: one dict look-up for a plain path."""

    __slots__ = ("_below", "_between", "_exact", "_rest")

    def __init__(self, faces: Iterable[Face], rest: CatchAll | None = None) -> None:
        self._exact: dict[str, dict[str, Face]] = {}
        self._below: dict[str, dict[str, Face]] = {}
        self._between: dict[tuple[str, str], dict[str, Face]] = {}
        self._rest = rest if rest is not None and rest.prefixes else None
        for face in faces:
            before, star, behind = face.path.partition(ANY)
            if star:
                self._between.setdefault((before, behind), {})[face.method] = face
            else:
                table = self._below if face.path.endswith("/") else self._exact
                table.setdefault(face.path, {})[face.method] = face

    def serves(self, path: str) -> bool:
        """Whether the path is in the table, with any method, or caught by what catches the rest."""
        return path in self._exact or self._methods_below(path) is not None or self._caught(path)

    def opens_websocket(self, path: str) -> bool:
        """Whether a WebSocket is served there."""
        face = self._exact.get(path, {}).get("GET")
        return face is not None and face.websocket

    def find(self, method: str, path: str) -> Face:
        """The row for a request; raises UnknownPathError or MethodNotAllowedError."""
        methods = self._exact.get(path) or self._methods_below(path)
        if methods is not None:
            face = methods.get(method) or methods.get(ANY)
            if face is not None:
                return face
        if self._rest is not None and self._caught(path):
            return self._rest.methods.get(method) or self._rest.methods[ANY]
        if methods is None:
            raise UnknownPathError.of(path)
        allow = ", ".join(sorted(methods))
        raise MethodNotAllowedError(f"'{path[:128]}' takes {allow}.", allow=allow)

    def _caught(self, path: str) -> bool:
        """A row's path with a slash behind it is not taken: a provider might read it as that row's."""
        return (
            self._rest is not None
            and self._rest.takes(path)
            and (path in self._exact or path.rstrip("/") not in self._exact)
        )

    def _methods_below(self, path: str) -> dict[str, Face] | None:
        for prefix, methods in self._below.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return methods
        for (before, behind), methods in self._between.items():
            if path.startswith(before) and path.endswith(behind) and len(path) > len(before) + len(behind):
                return methods
        return None

    def rows(self) -> list[Face]:
        """Every row, in the order given."""
        tables = (self._exact, self._below, self._between)
        return [face for table in tables for methods in table.values() for face in methods.values()]
