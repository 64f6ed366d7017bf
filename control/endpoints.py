"""The rows of the endpoint table: what the gateway serves as an exchange.

Not here: how a path finds its row (proxy/faces.py), what an operation does (dialects/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..dialects.pass_through import METERED, VERBATIM
from ..proxy.faces import ANY, V1, CatchAll, Face, FaceTable
from ..proxy.model_list import PATH, list_models, retrieve_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..config import Route


def _passing(name: str, path: str) -> tuple[Face, Face, Face]:
    """Every method of a path without a model. Only what changes nothing is repeated."""
    return (
        Face(
            name, "GET", path, operation=VERBATIM, reads_body=True, streams=True, passes=True, repeatable=True,
            metered=True,
        ),
        Face(name, "POST", path, operation=METERED, reads_body=True, streams=True, passes=True, metered=True),
        Face(name, ANY, path, operation=VERBATIM, reads_body=True, streams=True, passes=True, metered=True),
    )  # fmt: skip


def _asking(operation: str, path: str, *, form: bool = False) -> Face:
    """A request with a model in it, or in its path. `form`: it may be passed on while it arrives."""
    return Face(
        operation, "POST", path, operation=operation, reads_body=True, streams=form, repeatable=True, metered=True,
        kind=_KEPT.get(operation, ""),
    )  # fmt: skip


_KEPT = {"chat": "chat/completions", "responses": "responses"}
"""Whose answers a provider keeps, and below which path."""


_JSON = {
    "chat": "chat/completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "images": "images/generations",
    "speech": "audio/speech",
}
_FORMS = {
    "transcriptions": "audio/transcriptions",
    "translations": "audio/translations",
    "image_edits": "images/edits",
}
DEPLOYMENTS = "/openai/deployments/*/"
"""Before the path of an endpoint, as Azure's clients write it; the `*` names the model."""

FACES = (
    *(_asking(operation, DEPLOYMENTS + path) for operation, path in _JSON.items()),
    *(_asking(operation, DEPLOYMENTS + path, form=True) for operation, path in _FORMS.items()),
    _asking("responses", "/openai/responses"),
    *(_asking(operation, V1 + path, form=True) for operation, path in _FORMS.items()),
    _asking("image_variations", "/v1/images/variations", form=True),
    *(
        face
        for name, path in (
            ("files", "/v1/files"),
            ("files", "/v1/files/"),
            ("uploads", "/v1/uploads"),
            ("uploads", "/v1/uploads/"),
            ("batches", "/v1/batches"),
            ("batches", "/v1/batches/"),
            ("fine_tuning", "/v1/fine_tuning/"),
            ("vector_stores", "/v1/vector_stores"),
            ("vector_stores", "/v1/vector_stores/"),
            ("containers", "/v1/containers"),
            ("containers", "/v1/containers/"),
            ("conversations", "/v1/conversations"),
            ("conversations", "/v1/conversations/"),
            ("stored_responses", "/v1/responses/"),
            ("stored_chats", "/v1/chat/completions/"),
        )
        for face in _passing(name, path)
    ),
    *(_asking(operation, V1 + path) for operation, path in _JSON.items()),
    *(_asking(operation, V1 + operation) for operation in ("responses", "moderations", "rerank")),
    *(
        Face("realtime", "GET", path, operation="realtime", repeatable=True, metered=True, websocket=True)
        for path in ("/v1/realtime", "/openai/realtime")
    ),
    Face("models", "GET", PATH, handler=list_models),
    Face("models", "GET", PATH + "/", handler=retrieve_model),
)


def endpoint_table(routes: Iterable[Route]) -> FaceTable:
    """The rows, and what these routes open."""
    return FaceTable(FACES, _catch_all(routes))


def _catch_all(routes: Iterable[Route]) -> CatchAll:
    """What the routes let pass of the paths that have no row."""
    methods = {face.method: face for face in _passing("pass_through", "/")}
    return CatchAll(methods, [(route.match.path or "").rstrip("*") for route in routes if route.catches])
