"""Server-sent events."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

PING = ": ping\n\n"
PING_SECONDS = 15.0
DESCRIPTION: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def event(kind: str, data: dict[str, Any]) -> str:
    """One event."""
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    """The streaming response that sends events as they occur."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
