"""The error format of each API."""

from typing import Any

from latentdiff.serving.errors import ServingError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
FIELDS = {  # names of fields where they differ from ours
    "/v1/": {"images": "n", "steps": "num_inference_steps", "width*height": "size"},
    "/sdapi/": {"images": "batch_size*n_iter"},
}


def error_body(path: str, error: ServingError) -> dict[str, Any]:
    """A1111's shape below /sdapi and /internal, OpenAI's elsewhere, with the names of the fields there."""
    fields = next((names for prefix, names in FIELDS.items() if path.startswith(prefix)), {})
    param = fields.get(error.param or "", error.param)
    message = str(error).replace(f"{error.param}=", f"{param}=", 1)
    if path.startswith(("/sdapi/", "/internal/")):
        return {"error": type(error).__name__, "detail": message, "body": "", "errors": message}
    return {"error": openai_error(error) | {"message": message, "param": param}}


def openai_error(error: ServingError) -> dict[str, Any]:
    """The error object of OpenAI's API."""
    kind = TYPES.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    return {"message": str(error), "type": kind, "param": error.param, "code": error.code}
