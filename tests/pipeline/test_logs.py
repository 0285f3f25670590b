import logging

import pytest

from scan2twin.logs import ContextFilter, configure_logging, log_context
from scan2twin.store.transfer import parallel

log = logging.getLogger("scan2twin")


def test_ids_hold_inside_their_block_and_in_its_threads(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scan2twin")
    caplog.handler.addFilter(ContextFilter())
    with log_context(capture="mug", run="r1"):
        with log_context(stage="mask"):
            parallel(log.info, ["one", "two"])
        log.info("three")
    log.info("four")
    assert sorted((r.getMessage(), r.capture, r.run, r.stage) for r in caplog.records) == [
        ("four", "-", "-", "-"),
        ("one", "mug", "r1", "mask"),
        ("three", "mug", "r1", "-"),
        ("two", "mug", "r1", "mask"),
    ]


def test_lines_carry_the_ids_and_libraries_stay_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    levels = root.level, log.level
    try:
        configure_logging()
        with log_context(capture="mug", stage="mask"):
            log.info("hello")
        logging.getLogger("urllib3").info("chatter")
        logging.getLogger("urllib3").warning("trouble")
    finally:
        root.handlers[:] = before
        root.setLevel(levels[0])
        log.setLevel(levels[1])
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO    [mug - mask] hello")
    assert second.endswith("WARNING [- - -] trouble")


def test_the_first_error_of_parallel_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        parallel(lambda x: 1 / x, [1, 0, 2])
    assert parallel(lambda x: x * x, range(100)) == [x * x for x in range(100)]
