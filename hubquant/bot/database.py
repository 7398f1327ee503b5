"""Where the queue lives: DBOS on SQLite in the state folder, or on PostgreSQL by URL. Nothing secret is written there."""

import logging
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer

from hubquant.config import Settings
from hubquant.errors import HubquantError

APPLICATION = "hubquant"
QUEUE = "models"
WORKFLOW = "make_variants"
# Recovery and dequeue match it exactly: raise it only when the order of the workflow's steps changes, after the queue is empty.
APPLICATION_VERSION = "1"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def url(settings: Settings) -> str:
    return settings.database_url or f"sqlite:///{_file(settings)}"


def exists(settings: Settings) -> bool:
    """Whether anybody has set the database up. True for a PostgreSQL URL, which somebody else looks after."""
    return bool(settings.database_url) or _file(settings).is_file()


def prepare(settings: Settings) -> None:
    """Creates what is missing: the state folder, the database, its tables. Any process may do it, several at once."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with _quiet():
        if settings.database_url:
            DBOS.migrate(settings.database_url)
        elif not _file(settings).exists():
            _create(_file(settings))


def _create(file: Path) -> None:
    """Appears with all its tables or not at all. WAL mode: twice as fast, and readable while it is written."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="database-") as folder:
        new = Path(folder) / file.name
        connection = sqlite3.connect(new)
        connection.execute("PRAGMA journal_mode=wal")
        connection.close()
        DBOS.migrate(f"sqlite:///{new}")
        with suppress(FileExistsError):  # another process was faster
            file.hardlink_to(new)


@contextmanager
def client(settings: Settings) -> Iterator[DBOSClient]:
    """Access from any process, beside the worker's. The database must exist."""
    with _quiet():
        opened = DBOSClient(
            system_database_url=url(settings), application_name=APPLICATION, serializer=DBOSPortableJSONSerializer()
        )
        try:
            yield opened
        finally:
            opened.destroy()


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """This process takes work from the queue, one job at a time, and first of all what it left unfinished."""
    prepare(settings)
    config: DBOSConfig = {
        "name": APPLICATION,
        "system_database_url": url(settings),
        "executor_id": _executor(settings),
        "application_version": APPLICATION_VERSION,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
    }
    DBOS(config=config)
    try:
        DBOS.listen_queues([QUEUE])
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=0.2)
        yield
    finally:
        DBOS.destroy()


@contextmanager
def logged(settings: Settings) -> Iterator[None]:
    """What hubquant and DBOS log goes to bot.log in the state folder, not to the console."""
    settings.state.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(settings.state / "bot.log", delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    handler.addFilter(_news)
    loggers = [logging.getLogger("dbos"), logging.getLogger("hubquant")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger, level in zip(loggers, (logging.WARNING, logging.INFO), strict=True):
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


def _news(record: logging.LogRecord) -> bool:
    """Not DBOS's traceback of a job that failed with one of our sentences: the sentence is in the log already."""
    return not (record.name == "dbos" and record.exc_info and isinstance(record.exc_info[1], HubquantError))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps DBOS's notices off the console where no log file takes them."""
    logger = logging.getLogger("dbos")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _executor(settings: Settings) -> str:
    """The same after every restart, so that this worker finds its own unfinished jobs; with a shared database one per machine
    and state folder."""
    return f"{socket.gethostname()}:{settings.state.resolve()}" if settings.database_url else "worker"


def _file(settings: Settings) -> Path:
    return settings.state.resolve() / "bot.sqlite"
