"""Structured logs: one JSON object per line on standard error."""

import json
import logging
import sys
import time


class JsonLines(logging.Formatter):
    """The time, level and event of a record with its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {"time": round(time.time(), 3), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def start_logging() -> None:
    """Write the log records of this package and of uvicorn to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("latentdiff", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
