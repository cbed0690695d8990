"""A live database with WAL archiving and backups by pgBackRest: a local repository, and one in Azurite over TLS."""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.databases import TRIXIE, Missing, NativeTimescale, Postgres15, Server, unavailable
from tests.support.lifecycle_data import fill, fill_diagnostics, migrated, run, settings_for
from tests.support.storages import ACCOUNT, KEY, Azurite


class Backups:
    """``folder`` holds configuration, repository 1, archive and logs, and belongs to the user postgres."""

    kind: ClassVar[type[Server]] = Postgres15
    # The user postgres may read our virtual environment wherever it lies.
    capabilities: ClassVar[str] = "+dac_override"

    def __init__(self, azurite: Azurite | None) -> None:
        self.require()
        self.kind.require()
        self.folder = self._new_folder()
        self.folder.chmod(0o755)
        for name in ("repo1", "log", "lock", "sockets", "archive", "place", "conf"):
            (self.folder / name).mkdir()
        self.own(self.folder)
        self.config = self.folder / "conf" / "pgbackrest.conf"
        self.server = self.kind.start(
            settings={
                "archive_mode": "on",
                "archive_command": f"pgbackrest --config={self.config} --stanza=esp archive-push %p",
                "unix_socket_directories": str(self.folder / "sockets"),
                "full_page_writes": "on",
            }
        )
        self.config.write_text(self._text(azurite))
        self.database = migrated(self.server.create_database("esp"))

    def require(self) -> None:
        if shutil.which("pgbackrest") is None:
            raise Missing("apt-get install pgbackrest")

    def _new_folder(self) -> Path:
        # In memory where there is such a place: each of the 1 300 files of a cluster is synced, and removed again.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        return Path(tempfile.mkdtemp(prefix="esp-backup-", dir=memory))

    def ids(self) -> tuple[int, int]:
        """User and group of the database."""
        user = pwd.getpwnam("postgres")
        return user.pw_uid, user.pw_gid

    def as_postgres(self) -> list[str]:
        """What makes a command run as the user postgres."""
        uid, gid = self.ids()
        capabilities = [f"--{kind}-caps={self.capabilities}" for kind in ("inh", "ambient")]
        return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *capabilities]

    def _text(self, azurite: Azurite | None) -> str:
        """config/backup/pgbackrest.conf as it ships, with the places of this test."""
        shipped = (Path(__file__).parents[2] / "config/backup/pgbackrest.conf").read_text(encoding="utf-8")
        mine = {
            "pg1-path": self.kind.data_folder(self.server.folder),
            "pg1-port": self.server.port,
            "pg1-socket-path": self.folder / "sockets",
            "repo1-path": self.folder / "repo1",
            "log-path": self.folder / "log",
            "lock-path": self.folder / "lock",
            "spool-path": self.folder / "spool",
            "archive-async": "n",
            "job-retry": 0,  # a damaged file is read again after 15 s otherwise
        }
        if azurite is None:
            shipped = re.sub(r"^repo2-.*\n", "", shipped, flags=re.MULTILINE)
        else:
            mine |= {"repo2-azure-account": ACCOUNT, "repo2-azure-key": KEY, "repo2-azure-container": "backup"}
            mine |= {"repo2-storage-host": "127.0.0.1", "repo2-storage-port": azurite.port}
            mine |= {"repo2-azure-uri-style": "path", "repo2-storage-verify-tls": "n"}
            mine |= {"repo2-cipher-pass": "tests, no secret"}
            azurite.container("backup")
        for key, value in mine.items():
            line = f"{key}={value}"
            shipped, count = re.subn(rf"^#? ?{key}=.*$", line.replace("\\", "\\\\"), shipped, flags=re.MULTILINE)
            if not count:
                shipped = shipped.replace(
                    "[global]\n" if not key.startswith("pg1") else "[esp]\n",
                    f"[{'esp' if key.startswith('pg1') else 'global'}]\n{line}\n",
                )
        return shipped

    def own(self, folder: Path) -> None:
        """Give the folder and all in it to the user postgres."""
        for path in (folder, *folder.rglob("*")):
            os.chown(path, *self.ids(), follow_symlinks=False)

    def pgbackrest(self, *arguments: str) -> str:
        """Run it as an operator would."""
        command = [
            *self.as_postgres(),
            self.program("pgbackrest"),
            f"--config={self.config}",
            "--stanza=esp",
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def program(self, name: str) -> str:
        """The path of a program that runs beside the database."""
        return name

    def archive_wal(self) -> None:
        """Wait until all that was committed lies in the repositories."""
        segment = self.database.value("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + 60
        while self.database.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") < segment:
            assert time.monotonic() < deadline, self.server.log()
            time.sleep(0.05)

    def environment(self, folder: Path, **more: str) -> dict[str, str]:
        """For `esp-ingest lifecycle drill`, which restores into ``folder``."""
        return os.environ | {
            "HOME": str(self.folder),
            "ESP_INGEST_DATABASE__DSN": self.database.dsn,
            "ESP_INGEST_ARCHIVE__URL": str(self.folder / "archive"),
            "ESP_INGEST_BACKUP__CONFIG": str(self.config),
            "ESP_INGEST_BACKUP__DRILL_FOLDER": str(folder),
            **more,
        }

    def command(self, *arguments: str) -> list[str]:
        return [*self.as_postgres(), sys.executable, "-m", "esp_ingest", "lifecycle", "drill", *arguments]

    def stop(self) -> None:
        self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class TimescaleBackups(Backups):
    """As Backups, on native TimescaleDB in its Debian 13 folder: only the drill itself runs outside. The folder has
    one path inside and outside, and what the drill starts goes through scripts that change the root."""

    kind = NativeTimescale
    capabilities = "+dac_override,+sys_chroot"
    _SCRIPT = '#!/bin/sh\n[ ! -d {root} ] || exec chroot {root} {program} "$@"\nexec {program} "$@"\n'

    def require(self) -> None:
        if not (TRIXIE / "usr/bin/pgbackrest").exists():
            raise Missing(f"no pgbackrest in {TRIXIE}: run `make test-machine`")

    def _new_folder(self) -> Path:
        inside = Path(tempfile.mkdtemp(prefix="esp-backup-", dir=TRIXIE / "tmp"))
        outside = Path("/tmp") / inside.name
        outside.symlink_to(inside)
        (outside / "bin").mkdir()
        (outside / "lib").symlink_to(TRIXIE / "usr/lib/postgresql/17/lib")
        for program in (
            "/usr/lib/postgresql/17/bin/postgres",
            "/usr/lib/postgresql/17/bin/pg_controldata",
            "/usr/bin/pgbackrest",
        ):
            script = outside / "bin" / Path(program).name
            script.write_text(self._SCRIPT.format(root=TRIXIE, program=program))
            script.chmod(0o755)
        return outside

    def ids(self) -> tuple[int, int]:
        return NativeTimescale.ids()

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def environment(self, folder: Path, **more: str) -> dict[str, str]:
        ours = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(self.folder / "sockets"),
            "ESP_INGEST_BACKUP__POSTGRES_BIN": str(self.folder / "bin"),
        }
        return super().environment(folder, **(ours | more))

    def stop(self) -> None:
        inside = self.folder.resolve()
        self.folder.unlink()
        self.folder = inside
        super().stop()


def fill_and_back_up(backups: Backups) -> None:
    """Two archived days, a full backup in each repository, and rows that came after it."""
    database = backups.database
    place = backups.folder / "place"
    database.run(f"CREATE TABLESPACE beside LOCATION '{place}'")
    database.run("CREATE TABLE beside (n integer) TABLESPACE beside")
    database.run("INSERT INTO beside SELECT generate_series(1, 100)")
    fill(database, 2)
    fill_diagnostics(database, 2)
    backups.pgbackrest("stanza-create")
    backups.pgbackrest("--repo=1", "--type=full", "backup")
    fill(database, 1)
    outcome, _ = run(settings_for(database, backups.folder / "archive"))
    assert outcome.ok, outcome.problems
    backups.own(backups.folder / "archive")


@pytest.fixture(scope="session")
def azurite_tls() -> Iterator[Azurite]:
    """Azurite over TLS, with a certificate that nobody vouches for: pgBackRest speaks nothing else to Azure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {folder}/key.pem -out {folder}/cert.pem"
        subprocess.run([*command.split(), "-subj", "/CN=localhost"], check=True, capture_output=True)
        try:
            server = Azurite(tls=folder)
        except Missing as missing:
            unavailable(str(missing))
            raise
        yield server
        server.stop()


@pytest.fixture(scope="module")
def backups(azurite_tls: Azurite) -> Iterator[Backups]:
    """A database with two archived days and a backup in each repository."""
    try:
        found = Backups(azurite_tls)
    except Missing as missing:
        unavailable(str(missing))
        raise
    try:
        fill_and_back_up(found)
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def timescale_backups() -> Iterator[TimescaleBackups]:
    """As ``backups``, on native TimescaleDB and with the local repository alone."""
    try:
        found = TimescaleBackups(None)
    except Missing as missing:
        unavailable(str(missing))
        raise
    try:
        fill_and_back_up(found)
        yield found
    finally:
        found.stop()


def drill(backups: Backups, folder: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """One drill to its end."""
    environment = backups.environment(folder, **more)
    return subprocess.run(
        backups.command(*arguments), env=environment, cwd="/", capture_output=True, text=True, timeout=120
    )
