"""Logging for people and machines: every record knows the capture, the run and the stage it belongs to."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FIELDS = {name: ContextVar(name, default="-") for name in ("capture", "run", "stage")}
FORMAT = "%(asctime)s %(levelname)-7s [%(capture)s %(run)s %(stage)s] %(message)s"


class ContextFilter(logging.Filter):
    """Puts `capture`, `run` and `stage` on every record, `-` where unknown."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; no record is dropped."""
        for name, variable in _FIELDS.items():
            setattr(record, name, variable.get())
        return True


@contextmanager
def log_context(**ids: str) -> Iterator[None]:
    """Give records made inside the block these ids: `capture`, `run`, `stage`."""
    tokens = [(_FIELDS[name], _FIELDS[name].set(value)) for name, value in ids.items()]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


def configure_logging(level: int = logging.INFO) -> None:
    """Send scan2twin's records to standard error, once; libraries keep to warnings."""
    handler = logging.StreamHandler()
    handler.addFilter(ContextFilter())
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("scan2twin").setLevel(level)
