"""The error format of each API."""

from typing import Any

from latentdiff.serving.errors import ServingError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(path: str, error: ServingError) -> dict[str, Any]:
    """A1111's shape below /sdapi and /internal, OpenAI's elsewhere."""
    if path.startswith(("/sdapi/", "/internal/")):
        return {"error": type(error).__name__, "detail": str(error), "body": "", "errors": str(error)}
    return {"error": openai_error(error)}


def openai_error(error: ServingError) -> dict[str, Any]:
    """The error object of OpenAI's API."""
    kind = TYPES.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    return {"message": str(error), "type": kind, "param": error.param, "code": error.code}
