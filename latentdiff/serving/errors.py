"""Errors of the server with their HTTP status."""

import re

from latentdiff.errors import InputError, LatentDiffError, is_out_of_memory

ROOT = r"(?<![\w.:/\\-])(?:~?/|[A-Za-z]:[\\/])"
ABSOLUTE_PATH = re.compile(rf"""(?<=['"]){ROOT}[^'"\n]+(?=['"])|{ROOT}[^\s'"`,;:()]*[^\s'"`,;:().]""")

MESSAGE_CHARACTERS = 1000  # messages repeat values, which may be as long as the body


class ServingError(LatentDiffError):
    """A request that cannot be served. `param`: the invalid field; `headers`: those of the HTTP response."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message if len(message) <= MESSAGE_CHARACTERS else f"{message[: MESSAGE_CHARACTERS - 1]}…")
        self.param, self.headers = param and param[:80], headers or {}


class UnsupportedError(ServingError):
    """A field that requests something unsupported."""

    status = 422
    code = "unsupported"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not supported by this server; omit it", name)


class LimitError(ServingError):
    """A value above one of the server's limits."""

    code = "limit_exceeded"


class BodyTooLargeError(LimitError):
    """A request body above the limit."""

    status = 413


class NotFoundError(ServingError):
    """A job, file, model or sampler that does not exist."""

    status = 404
    code = "not_found"


class UnauthorizedError(ServingError):
    """A missing or wrong key."""

    status = 401
    code = "invalid_api_key"


class ForbiddenError(ServingError):
    """A request from a host or web page that this server does not serve."""

    status = 403
    code = "forbidden"


class QueueFullError(ServingError):
    """The queue is full."""

    status = 429
    code = "queue_full"


class CancelledError(ServingError):
    """The job was cancelled. Not a 409 or 5xx status: clients repeat such requests, and the image would be generated
    again.
    """

    code = "cancelled"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class ContentRefusedError(ServingError):
    """The content checker refused an image."""

    code = "content_policy_violation"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class DeadlineError(ServingError):
    """The job was not finished within its deadline."""

    status = 504
    code = "deadline_exceeded"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class UnavailableError(ServingError):
    """The server is starting or stopping."""

    status = 503
    code = "unavailable"


class InternalError(ServingError):
    """A failure of the server; the log has the details."""

    status = 500
    code = "internal_error"


def without_folders(text: str) -> str:
    """Text with each absolute path replaced by its last part, since clients need not know the server's folders."""
    return ABSOLUTE_PATH.sub(lambda path: re.split(r"[/\\]", path[0].rstrip("/\\"))[-1], text)


def as_serving_error(error: BaseException) -> ServingError:
    """Convert any exception: mistakes in the request get status 400, others 500."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, InputError):
        return ServingError(without_folders(str(error)))
    if isinstance(error, LatentDiffError):
        return InternalError(without_folders(str(error)))
    if is_out_of_memory(error):
        return InternalError("out of memory; request a smaller image, or fewer at once")
    return InternalError(without_folders(f"{type(error).__name__}: {error}"[:500]))
