"""Everything that can go wrong with an exchange, as types.

Four questions are answered by the class alone: whose fault (`DownstreamError`: the caller's, `UpstreamError`: the
provider's, `OverloadError`: ours), what to answer (`status`, `code`, `type`), what the record calls it (`outcome`), and
may another attempt help (`condition`: the word of the `retry` filter's `on:` list, None for never). The message is read
by the client: it says what to do and holds no host name and no secret; `detail` is for the log alone.

Turning an error into an answer happens in replies.py and nowhere else. Any other exception is a bug of ours: 500.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .accounting.record import Outcome


class GatewayError(Exception):
    """An exchange cannot go on. `retry_after` is in seconds and goes to the client as a header."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    outcome: ClassVar[Outcome] = "failed"
    condition: ClassVar[str | None] = None
    hopeless: ClassVar[bool] = False
    """The same request will fail until somebody changes the gateway's config: no client should retry it."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None, detail: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.detail = detail


class DownstreamError(GatewayError):
    """The caller's fault: the same request would be refused again."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"
    outcome = "refused"


class InvalidRequestError(DownstreamError):
    """A request whose framing or content cannot be accepted."""


class InvalidJsonError(DownstreamError):
    """The body is not the JSON object the endpoint takes."""

    code = "invalid_json"


class JsonTooDeepError(DownstreamError):
    """Nested deeper than `limits.json_depth`."""

    code = "json_too_deep"


class MissingModelError(DownstreamError):
    """No `model`, or not a string."""

    code = "missing_model"


class DuplicateFieldError(DownstreamError):
    """Two top-level `model`s: the one that was checked might not be the one that is called."""

    code = "duplicate_field"


class UnauthorizedError(DownstreamError):
    """No key, or one that does not match."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class ExpiredKeyError(UnauthorizedError):
    """A key that was good until it expired."""

    code = "expired_api_key"


class PermissionDeniedError(DownstreamError):
    """A good key that may not do this."""

    status = 403
    code = "permission_denied"
    type = "permission_error"


class PathNotAllowedError(PermissionDeniedError):
    """The key's `paths` do not name this one."""

    code = "path_not_allowed"


class NotIssuedError(PermissionDeniedError):
    """A list, or an id that no team is known to have made: it may be another team's."""

    code = "not_issued"


class AdminKeyRequiredError(PermissionDeniedError):
    """A change asked for without the admin role."""

    code = "admin_key_required"


class OriginNotAllowedError(PermissionDeniedError):
    """A web page of another origin: it must not be able to spend the user's keys."""

    code = "origin_not_allowed"


class HostNotAllowedError(PermissionDeniedError):
    """A Host that is not this machine's, while no key guards the listener (DNS rebinding)."""

    code = "host_not_allowed"


class ModelNotAllowedError(PermissionDeniedError):
    """Policy leaves no target for this model."""

    code = "model_not_allowed"


class GuardBlockedError(DownstreamError):
    """The request holds what a rule of the guard blocks."""

    code = "guard_blocked"


class GuardUnreadableError(DownstreamError):
    """The guard cannot look into the request, so it does not pass."""

    code = "guard_unreadable"


class GuardTooLargeError(GuardUnreadableError):
    """More text than the guard looks through."""

    status = 413
    code = "guard_text_too_large"


class AnswerRefusedError(PermissionDeniedError):
    """A filter does not let an answer pass, whole or from here on."""

    code = "guard_blocked"


class AnswerUnjudgedError(AnswerRefusedError):
    """Nobody can say whether an answer may pass: the guard's service is away, and its rule fails closed."""

    status = 503
    code = "guard_unavailable"
    type = "server_error"


class UnknownPathError(DownstreamError):
    """Not in the endpoint table; `of` says what is probably wrong with it."""

    status = 404
    code = "unknown_path"

    @classmethod
    def of(cls, path: str) -> UnknownPathError:
        """For a path of a client. Most of them come from a `base_url` that is too short or too long."""
        hint = ""
        if path.startswith("/v1/v1/"):
            hint = " '/v1' is in it twice: end the base_url with a single one."
        elif not path.startswith("/v1/"):
            hint = " The API is below '/v1': end the base_url with it."
        return cls(f"Unknown path '{path[:128]}'.{hint}")


class ModelNotFoundError(DownstreamError):
    """No entry of `models` and no provider answers to this name."""

    status = 404
    code = "model_not_found"


class ObjectNotFoundError(DownstreamError):
    """What was made for another team does not exist for this one."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(DownstreamError):
    """A known path, another method; `allow` are those it takes."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class BodyTimeoutError(DownstreamError):
    """The body stopped arriving."""

    status = 408
    code = "body_timeout"


class BodyTooLargeError(DownstreamError):
    """More than `limits.body`."""

    status = 413
    code = "body_too_large"


class ModelTooLateError(DownstreamError):
    """A form whose `model` does not come within `limits.body`."""

    status = 413
    code = "model_field_too_late"


class ConflictError(DownstreamError):
    """A change that does not fit what is there."""

    status = 409
    code = "conflict"


class UnknownIssuerError(DownstreamError):
    """An id, or a request without a model, that one of several providers must answer, and nobody says which."""

    status = 409
    code = "unknown_issuer"
    hopeless = True


class UpgradeRequiredError(DownstreamError):
    """Not a WebSocket, or of another version, where one is served."""

    status = 426
    code = "upgrade_required"


class FrameError(DownstreamError):
    """A client whose bytes are no WebSocket frames. It reads this in a Close."""

    code = "websocket_protocol_error"


class SessionIdleError(GatewayError):
    """Neither side of a session has said anything for `timeouts.idle`. Both read this in a Close."""

    status = 408
    code = "idle_timeout"


class SlowClientError(DownstreamError):
    """Others have read far ahead in the answer they share with it."""

    status = 408
    code = "client_too_slow"


class UnsupportedMediaTypeError(DownstreamError):
    """An encoded body, or a form where JSON is taken."""

    status = 415
    code = "unsupported_media_type"


class RateLimitError(DownstreamError):
    """A limit of ours was reached. `fields` say in the answer's head how it stands with it."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(
        self, message: str, *, retry_after: float | None = None, fields: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.fields = fields


class OverLimitError(RateLimitError):
    """One call that is more than the whole limit: no waiting helps."""

    hopeless = True


class BudgetError(DownstreamError):
    """Money is counted, and this request may not be paid for. `retry_after`: until there is a new budget."""

    status = 402
    type = "insufficient_quota"


class BudgetExceededError(BudgetError):
    """It may cost more than is left."""

    code = "budget_exceeded"


class PriceUnknownError(BudgetError):
    """Nobody knows what it would cost."""

    code = "price_unknown"


class HeadersTooLargeError(DownstreamError):
    """More header bytes or fields than the listener takes."""

    status = 431
    code = "headers_too_large"


class OverloadError(GatewayError):
    """We, or a bound of ours, are at capacity: try again later."""

    status = 503
    code = "overloaded"
    outcome = "refused"


class GuardAwayError(OverloadError):
    """Nobody can say whether a request may pass: the guard's service is away, and its rule fails closed."""

    code = "guard_unavailable"


class ShuttingDownError(OverloadError):
    """Draining: no new work."""

    code = "shutting_down"


class KeysAwayError(OverloadError):
    """The keys that tokens are checked with are not known yet."""

    code = "jwks_away"


class KeysFileAwayError(OverloadError):
    """The file of keys, or their pepper, cannot be read or written."""

    code = "keys_file_away"


class IssuersAwayError(OverloadError):
    """Who made an id could not be asked in time."""

    code = "issuers_away"


class NoTargetError(OverloadError):
    """Every candidate was vetoed; the message names the reasons."""

    code = "no_target"


class ProviderNotConfiguredError(OverloadError):
    """The only candidates are providers without a credential."""

    code = "provider_not_configured"
    hopeless = True


class UpstreamRateLimitedError(OverloadError):
    """Every candidate rests after a 429."""

    status = 429
    code = "upstream_rate_limited"
    type = "rate_limit_error"


class UpstreamError(GatewayError):
    """The provider, or the way to it, failed an attempt."""

    status = 502
    code = "upstream_error"


class ConnectError(UpstreamError):
    """No connection: refused, unreachable, no such name, TLS not verified. Nothing was sent."""

    condition = "connect-failure"


class ConnectTimeoutError(ConnectError):
    """No connection in time. Nothing was sent."""

    status = 504
    code = "upstream_timeout"


class PoolOverflowError(OverloadError):
    """`providers.*.limits` reached: protects the gateway, so no attempt was made."""


class ResetError(UpstreamError):
    """The connection broke before any byte of the answer was seen."""

    condition = "reset"


class ProtocolError(UpstreamError):
    """What came back is not HTTP, or not the message it announced."""

    condition = "reset"


class BrokenAnswerError(UpstreamError):
    """The answer ended before it was whole."""

    condition = "reset"


class BadStatusError(UpstreamError):
    """The provider answered 5xx."""

    condition = "5xx"


class BusyStatusError(UpstreamError):
    """The provider answered 429."""

    condition = "429"


class ErrorEventError(UpstreamError):
    """A stream that began with an error event instead of content."""

    condition = "5xx"


class UpstreamAuthError(UpstreamError):
    """The provider refused *our* credential."""

    code = "upstream_auth_failed"
    condition = "credential"
    hopeless = True


class UpstreamTimeoutError(UpstreamError):
    """No first token, silence in mid-answer, or the whole call too long."""

    status = 504
    code = "upstream_timeout"
    condition = "timeout"
