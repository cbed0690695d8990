"""TLS to the database: the server is verified, a client certificate is a login, and each fault is a sentence."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings, Settings
from esp_ingest.daemon import certificate_files
from esp_ingest.store.connection import connect
from esp_ingest.store.schema import check_database, migrate
from tests.support.certificates import Authority
from tests.support.databases import Postgres15

ROLE = "esp_ingest_owner"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("tls") / "certificates")
    made.issue("server", names="IP:127.0.0.1")
    made.issue(ROLE)
    made.issue("stranger")
    return made


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Postgres15]:
    """Whoever is not postgres itself needs TLS and a certificate of the role's name."""
    with Postgres15.start() as started:
        owner = started.folder.stat()
        for name in ("server.crt", "server.key", "ca.crt"):
            copy = started.folder / name
            shutil.copy(authority.path(name), copy)
            os.chown(copy, owner.st_uid, owner.st_gid)
            copy.chmod(0o600)
        database = started.create_database("esp")
        database.run(
            f"CREATE ROLE {ROLE} LOGIN; ALTER DATABASE esp OWNER TO {ROLE}; ALTER SCHEMA public OWNER TO {ROLE}"
        )
        database.run("ALTER SYSTEM SET ssl_ca_file = 'ca.crt'")
        database.run("ALTER SYSTEM SET ssl = on")
        access = f"hostssl all {ROLE} 127.0.0.1/32 cert\nhost all postgres 127.0.0.1/32 trust\n"
        (started.folder / "pg_hba.conf").write_text(access, encoding="ascii")
        started.restart()
        yield started


def settings(server: Postgres15, authority: Authority, certificate: str = ROLE, **more: str) -> DatabaseSettings:
    for name in (certificate, "server"):
        Path(authority.path(f"{name}.key")).chmod(0o600)
    said = {
        "host": "127.0.0.1",
        "port": str(server.port),
        "dbname": "esp",
        "user": ROLE,
        "sslmode": "verify-full",
        "sslrootcert": authority.path("ca.crt"),
        "sslcert": authority.path(f"{certificate}.crt"),
        "sslkey": authority.path(f"{certificate}.key"),
    }
    return DatabaseSettings(dsn=SecretStr(make_conninfo("", **(said | more))))


def detail(chosen: DatabaseSettings) -> str:
    found, _ = check_database(chosen)
    assert found.status == "unreachable"
    assert found.detail.count("\n") == 0
    return found.detail


def test_a_certificate_on_each_side_is_enough_and_no_password_is_there(
    server: Postgres15, authority: Authority
) -> None:
    chosen = settings(server, authority)
    migrate(chosen)
    assert check_database(chosen)[0].ok
    with connect(chosen, autocommit=True) as connection:
        row = connection.execute("SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert row == (True, f"/CN={ROLE}")
    assert set(certificate_files(Settings(database=chosen))) == {"database sslrootcert", "database sslcert"}


def test_each_fault_is_a_sentence_with_its_advice(server: Postgres15, authority: Authority, tmp_path: Path) -> None:
    def said(certificate: str = ROLE, **more: str) -> str:
        return detail(settings(server, authority, certificate, **more))

    other = Authority(tmp_path / "other")
    text = said(sslrootcert=other.path("ca.crt"))
    assert text.startswith("The database's certificate is not trusted (")
    assert text.endswith(
        "): renew it there if it has ended, else set sslrootcert in database.dsn to the CA that signed it."
    )
    text = said(host="localhost", hostaddr="127.0.0.1")
    assert text.startswith("The database's certificate is for another host name (")
    assert text.endswith("): set host in database.dsn to a name in the certificate.")
    for text in (said("stranger"), said(sslcert=str(tmp_path / "away.crt"), sslkey="")):
        assert text.startswith("The database does not take our certificate (")
    assert "no pg_hba.conf entry" in said(sslmode="disable")


def test_each_fault_of_a_file_names_it(server: Postgres15, authority: Authority, tmp_path: Path) -> None:
    def said(**more: str) -> str:
        text = detail(settings(server, authority, **more))
        start, _, rest = text.partition(" (")
        assert start == "A file that database.dsn or the environment names cannot be used"
        return rest

    (tmp_path / "text").write_text("no PEM")
    (tmp_path / "text").chmod(0o600)
    away, folder, text = (str(tmp_path / name) for name in ("away", "", "text"))
    assert said(sslrootcert=away) == f"sslrootcert {away}: No such file or directory)."
    assert said(sslkey=away) == f"sslkey {away}: No such file or directory)."
    assert said(sslkey=folder) == f"sslkey {folder}: Is a directory)."
    assert text in said(sslkey=text)
    assert text in said(sslcert=text)
    assert "key values mismatch" in said(sslkey=authority.path("server.key"))
    Path(text).write_text(Path(authority.path(f"{ROLE}.key")).read_text())
    Path(text).chmod(0o644)
    assert "has group or world access" in said(sslkey=text)


def test_an_expired_certificate_of_ours_is_refused_with_its_reason(server: Postgres15, authority: Authority) -> None:
    authority.issue(ROLE, days=-1)
    try:
        said = detail(settings(server, authority)).replace("_", " ")
        assert said.startswith("The database does not take our certificate (")
        assert "certificate expired" in said
    finally:
        authority.issue(ROLE)
    assert check_database(settings(server, authority))[0].ok, "the renewed file counts at the next connection"
