"""What an attempt takes along: the request that goes to its target, and what it asks of a place there.

The client's body goes up with the target's model in it, whole or as it arrives; which of its fields go with it is said
in headers.py. Of its place a call says no more than the cluster wants to know: an estimate costs more than the rest of
a start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .affinity import affinity
from .headers import AZURE, below_v1, lines_upstream, to_upstream, without_version
from .upstream.call import UpstreamRequest
from .upstream.place import Needs
from .websocket.opening import Opening

if TYPE_CHECKING:
    from .attempt import Attempt
    from .dispatch import Dispatch
    from .plan import Target
    from .run import Run


def request_of(dispatch: Dispatch, attempt: Attempt) -> UpstreamRequest:
    """The request in the words of the attempt's target. Where it is to open a session over a WebSocket, the attempt
    gets its `opening`."""
    run, operation, model = dispatch.run, dispatch.operation, attempt.target.model
    ex = run.ex
    head, facts, upload = ex.head, ex.facts, run.upload
    assert facts is not None  # noqa: S101 - narrows for the type checker: whoever dispatches has read the request
    if ex.face.websocket:
        attempt.opening = Opening(dispatch, facts)
        return attempt.opening.request(attempt.target)
    id_, own = ex.client_request_id or ex.id.encode(), ex.graph.own_fields
    if upload is None:
        body = operation.encode(facts, model)
    else:
        upload.prepare(facts.splices(model))
        body = b""
    if facts.verbatim:
        fields, lines = to_upstream(head, id_, own, verbatim=True), b""
        if operation.verbatim:
            return UpstreamRequest(head.method.encode(), below_v1(head), fields, body, upload)
    else:
        fields, lines = lines_upstream(head, id_, own)
    query = head.query
    if query and head.path.startswith(AZURE):
        query = without_version(query)
    return UpstreamRequest(b"POST", operation.target(query), fields, body, upload, lines=lines)


def needs_of(run: Run, target: Target) -> Needs:
    """What the next attempt asks of the cluster of `target`; hosts where the exchange has failed before come last."""
    ex, cluster, ledger = run.ex, target.cluster, run.engine.ledger
    tokens = ledger.estimate_tokens(ex) if cluster.counts_tokens else ledger.weigh(ex)
    key = affinity(ex) if cluster.is_sticky else None
    made = ex.attempts
    if not made:
        return Needs(tokens, key, ex.region)
    return Needs(tokens, key, ex.region, tuple([one.host for one in made if one.host and one.target is target]))


def is_repeatable_stream(run: Run) -> bool:
    """Whether it asks for a stream, by a request that can be sent twice."""
    facts = run.ex.facts
    return run.upload is None and run.ex.face.repeatable and facts is not None and facts.stream
