"""Every command that stands in the documents is run as a reader would run it, or is in ELSEWHERE with the reason."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.brokers import Mosquitto
from tests.support.databases import TRIXIE, Database, NativeTimescale, Postgres15, free_port, start_server
from tests.support.documents import PAGES, Terminal, blocks, fences
from tests.support.shipped import ROOT, linter, text_of

# What is run below: block (from 0) of a page.
RUN = {
    ("README.md", 1),
    ("config/kubernetes/README.md", 0),
    ("config/mosquitto/README.md", 0),
    ("docs/api.md", 0),
    ("docs/api.md", 1),
    ("docs/backup.md", 0),
    ("docs/backup.md", 2),
    ("docs/diagnostics.md", 0),
    ("docs/lifecycle.md", 0),
    ("docs/lifecycle.md", 1),
    ("docs/operations.md", 0),
    ("docs/operations.md", 1),
    ("docs/operations.md", 2),
    ("docs/operations.md", 3),
    ("docs/operations.md", 4),
    ("docs/quickstart.md", 2),
    ("docs/quickstart.md", 3),
    ("docs/quickstart.md", 4),
    ("docs/rules.md", 0),
    ("docs/simulator.md", 0),
}
# Commands that are not run here: (pattern, why not, what runs it or looks at it).
ELSEWHERE = [
    (r"make (setup|lint types unit|test)$", "it is the suite itself", ".ci/test.sh"),
    (r"make demo", "a minute each", "tests/integration/test_demo.py"),
    (r"make evaluate", "needs recordings", "tests/integration/test_evaluation.py"),
    (
        r"pip install pre-commit",
        "another program's; its hooks are looked at",
        "tests/integration/test_audit.py",
    ),
    (r"pip install \.$", "half a minute", "tests/integration/test_wheel.py"),
    (r"apt-get install", "the machine has it, by the same command", ".ci/parts.sh"),
    (r"docker run", "needs a Docker engine; the command in it is run below", "tests/integration/test_documents_run.py"),
    (r"setpriv .* pgbackrest", "needs a server that archives its WAL", "tests/integration/test_backup.py"),
    (r"esp-ingest lifecycle drill", "needs a backup", "tests/integration/test_backup.py"),
]


def _key(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_command_is_run_below_or_has_a_reason_why_not() -> None:
    left_out = set()
    found = set()
    for page in PAGES:
        for number, commands in enumerate(blocks(_key(page))):
            others = {command: _elsewhere(command) for command in commands}
            left_out |= {pattern for pattern in others.values() if pattern}
            missing = [command for command, pattern in others.items() if pattern is None]
            if missing:
                found.add((_key(page), number))
                assert (_key(page), number) in RUN, f"{_key(page)}: nothing runs {missing}"
    assert found == RUN, "these have no commands of their own any more"
    assert left_out == {pattern for pattern, _, _ in ELSEWHERE}
    for _, _, where in ELSEWHERE:
        assert (ROOT / where).exists()


def _elsewhere(command: str) -> str | None:
    return next((pattern for pattern, _, _ in ELSEWHERE if re.match(pattern, command)), None)


def commands_of(page: str, *numbers: int) -> list[str]:
    """What is run here of these blocks."""
    assert all((page, number) in RUN for number in numbers)
    found = blocks(page)
    return [command for number in numbers for command in found[number] if not _elsewhere(command)]


# -- A database, a broker and a folder for each.


@pytest.fixture
def server() -> Iterator[Postgres15]:
    """Of its own: roles are the server's, and the documents make them."""
    with start_server(Postgres15) as found:
        assert isinstance(found, Postgres15)
        yield found


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """With the simulator's login, whose lines the shipped acl has as a comment."""
    found = Mosquitto(tmp_path / "mosquitto", users=("simulator",))
    acl = found.folder / "acl"
    text = acl.read_text(encoding="utf-8")
    assert "#user simulator\n#topic write" in text
    acl.write_text(text.replace("#user simulator\n#topic write", "user simulator\ntopic write"), encoding="utf-8")
    with found:
        yield found


def environment(server: Postgres15, broker: Mosquitto | None, folder: Path) -> dict[str, str]:
    """What these documents leave to the machine: where things are, and ports that are free here."""
    found = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "ESP_INGEST_SPOOL__PATH": str(folder / "spool"),
        "ESP_INGEST_HTTP__PORT": str(free_port()),
        "ESP_INGEST_API__PORT": str(free_port()),
        "ESP_INGEST_ARCHIVE__URL": str(folder / "archive"),
    }
    if broker is not None:
        found |= {"ESP_INGEST_MQTT__PORT": str(broker.port), "ESP_INGEST_MQTT__USERNAME": "esp-ingest"}
        found |= {"ESP_INGEST_MQTT__PASSWORD": broker.password_of("esp-ingest")}
    return found


_ALARM = (
    "INSERT INTO diagnostic_results (timestamp, well_id, diagnosis, severity, state, occurrences, message, actions, "
    "telemetry_snapshot) VALUES (now(), 'sim-00000', 'vibration', 'high', 'unacknowledged', 1, 'it shakes', '[]', '{}')"
)
_SUDO = 'while [[ $1 == -* ]]; do [[ $1 == -u ]] && shift; shift; done\nexec "$@"'


def test_the_quickstart(tmp_path: Path, server: Postgres15, broker: Mosquitto) -> None:
    given = environment(server, None, tmp_path)
    http = given["ESP_INGEST_HTTP__PORT"]
    terminal = Terminal(tmp_path, given, {"sudo": _SUDO})
    seen = terminal.run(
        [
            *commands_of("docs/quickstart.md", 2, 3),
            f'psql "$ESP_INGEST_DATABASE__DSN" -c "{_ALARM}"',  # it comes two minutes after the start of the vibration
            *commands_of("docs/quickstart.md", 4),
        ],
        {
            "@localhost/esp": f"@127.0.0.1:{server.port}/esp",
            "ESP_INGEST_MQTT__HOST=localhost": "ESP_INGEST_MQTT__HOST=127.0.0.1",
            "PORT=1884": f"PORT={broker.port}",
            "PORT=1883": f"PORT={broker.port}",
            "esp-ingest ESP_INGEST_MQTT__PASSWORD=…": "esp-ingest ESP_INGEST_MQTT__PASSWORD='secret of esp-ingest'",
            "simulator ESP_INGEST_MQTT__PASSWORD=…": "simulator ESP_INGEST_MQTT__PASSWORD='secret of simulator'",
            "DATABASE__PASSWORD=…": "DATABASE__PASSWORD=secret",
            "--duration 240": "--duration 5",
            "--fault-after 30": "--fault-after 1",
            "curl -s localhost:8080": f"curl -s --fail --retry 30 --retry-delay 1 --retry-connrefused 127.0.0.1:{http}",
        },
    )
    assert re.search(r'"status": ?"ok"', seen)
    assert re.search(r"^esp_ingest_readings_written_total [1-9]", seen, re.MULTILINE)
    assert "sim-00009" in seen
    assert "gas_lock" in seen.partition("rules explain gas_lock")[2]


_OLD_ROWS = """
INSERT INTO esp_telemetry (timestamp, well_id, received_at, pip, motor_current)
SELECT day + n * interval '1 minute', 'ESP-01', day + n * interval '1 minute', 1900, 50
FROM generate_series(1, 100) n,
unnest(ARRAY['2026-08-03', '2026-08-04', '2026-08-05', '2026-10-05']::timestamptz[]) day;
INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered)
VALUES ('2026-08-03 10:00Z', md5('a')::uuid, 0, 'esp/x/telemetry', 'invalid_json', 'not JSON', 'a', false);
"""
_RECORDING = "timestamp,well_id,pip,motor_current\n" + "".join(
    f"2026-08-03T10:{minute:02d}:00Z,ESP-104,{1900 + minute},50.5\n" for minute in range(60)
)


def test_what_operators_and_engineers_type(tmp_path: Path, server: Postgres15, broker: Mosquitto) -> None:
    """README, rules, diagnostics, simulator, lifecycle and API, in one database."""
    database = server.create_database("esp")
    given = environment(server, broker, tmp_path)
    api = given["ESP_INGEST_API__PORT"]
    terminal = Terminal(tmp_path, given)
    (terminal.folder / "recording.csv").write_text(_RECORDING, encoding="utf-8")
    (terminal.folder / "mine.toml").write_text(text_of("config/rules.toml"), encoding="utf-8")
    readme = commands_of("README.md", 1)
    ready = "curl -s --fail --retry 30 --retry-delay 1 --retry-connrefused 127.0.0.1:%s/health/ready"
    terminal.run(
        [
            *readme[: readme.index("esp-ingest run") + 1],
            ready % given["ESP_INGEST_HTTP__PORT"],
            f'psql {database.dsn} -c "$OLD_ROWS"',
            *readme[readme.index("esp-ingest run") + 1 :],
            *commands_of("docs/rules.md", 0),
            *commands_of("docs/diagnostics.md", 0),
            *commands_of("docs/lifecycle.md", 1),
            "export ESP_INGEST_MQTT__USERNAME=simulator ESP_INGEST_MQTT__PASSWORD='secret of simulator'",
            *commands_of("docs/simulator.md", 0),
            *commands_of("docs/api.md", 0),
            ready % api,
        ],
        {
            "postgresql://user@host/database": database.dsn,
            "MQTT__HOST=broker": "MQTT__HOST=127.0.0.1",
            "--duration 600": "--duration 2",
            "--fault-after 120": "--fault-after 1",
            "--wells 20 ": "--wells 20 --duration 2 ",
        },
        before=f"OLD_ROWS={_quoted(_OLD_ROWS)}",
    )
    assert database.value("SELECT count(*) FROM august") == 300
    assert database.value("SELECT count(*) FROM ingest_rejects WHERE received_at < '2026-09-01'") == 1
    assert database.value("SELECT count(*) FROM esp_telemetry WHERE well_id LIKE 'sim-%'") > 20
    assert database.value("SELECT role FROM api_users WHERE name = 'ada'") == "admin"
    _statements_of_the_documents(database)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _statements_of_the_documents(database: Database) -> None:
    """The blocks of SQL, on the schema as it is: each statement is taken, and undone."""
    count = 0
    for page in PAGES:
        for language, text in fences(page):
            if language == "sql":
                with database.connect(autocommit=False) as connection:
                    for statement in text.split(";\n"):
                        if statement.strip():
                            connection.execute(statement.encode())
                            count += 1
                    connection.rollback()
    assert count >= 4


def test_roles_of_the_database(tmp_path: Path, server: Postgres15) -> None:
    database = server.create_database("esp")
    terminal = Terminal(tmp_path, environment(server, None, tmp_path))
    owner, writer = commands_of("docs/operations.md", 2)
    terminal.run(
        [owner, "esp-ingest migrate", writer, *commands_of("docs/api.md", 1)],
        before=f"SUPERUSER_DSN={database.dsn}\n"
        f"export ESP_INGEST_DATABASE__DSN={database.dsn.replace('postgres@', 'esp_ingest_owner@')}",
    )
    for role in ("esp_ingest_owner", "esp_ingest", "esp_ingest_api"):
        with psycopg.connect(database.dsn, user=role) as connection:
            assert connection.execute("SELECT count(*) FROM esp_telemetry").fetchone() == (0,)


def test_passwords_and_a_session_that_is_ended(tmp_path: Path, server: Postgres15, broker: Mosquitto) -> None:
    terminal = Terminal(tmp_path, environment(server, None, tmp_path))
    (ended,) = commands_of("docs/operations.md", 3)
    terminal.run(
        [*commands_of("config/mosquitto/README.md", 0), ended],
        {
            "-h BROKER": f"-h 127.0.0.1 -p {broker.port}",
            "-P …": f"-P '{broker.password_of('esp-ingest')}'",
            "CLIENT_ID": "gone",
        },
    )
    users = (terminal.folder / "passwords").read_text() + (terminal.folder / "passwords-daemons").read_text()
    assert re.findall(r"^([\w-]+):\$7\$", users, re.MULTILINE) == ["viewer", "ESP01", "ESP02", "esp-ingest"]
    assert "as gone (" in broker.log()


def test_the_logs_of_a_unit_are_filtered(tmp_path: Path, server: Postgres15) -> None:
    linter("jq", "jq")
    lines = 'echo \'{"level": "info", "event": "one"}\'\necho \'{"level": "warning", "event": "two"}\''
    terminal = Terminal(tmp_path, environment(server, None, tmp_path), {"journalctl": lines})
    seen = terminal.run(commands_of("docs/operations.md", 4))
    assert '{"level":"warning","event":"two"}' in seen
    assert '"one"' not in seen


# systemctl of a machine that runs no systemd: units have to be there, and systemd's own checker has to take them.
_SYSTEMCTL = """
verb=$1; shift
for unit in "$@"; do
  case $unit in -*|postgresql) continue ;; esac
  file=/etc/systemd/system/${unit/@*/@.service}
  [[ $file == *.* ]] || file=$file.service
  systemd-analyze verify --recursive-errors=no "${file/@./@full.}" || { echo "$unit is no unit"; exit 1; }
done
"""


_DSN_OF = "$(sed -n s/^LoadCredential=database_dsn://p /etc/systemd/system/%s.service)"
_A_DRILL = "INSERT INTO backup_drills (seconds, problem, days, rows) VALUES (1, 'none', 0, 0)"
_AS_UNIT = f"ESP_INGEST_DATABASE__DSN_FILE={_DSN_OF} /opt/esp-ingest/bin/esp-ingest"


def test_a_host_with_systemd(tmp_path: Path, server: Postgres15) -> None:
    """On /etc, /opt, /usr and /var of its own; pip asks PyPI."""
    database = server.create_database("esp")
    logins = {
        role: f"postgresql://{role}@127.0.0.1:{server.port}/esp"
        for role in ("esp_ingest_owner", "esp_ingest", "esp_ingest_api")
    }
    given = environment(server, None, tmp_path) | {
        "OWNER_DSN": logins["esp_ingest_owner"],
        "SUPERUSER_DSN": database.dsn,
        "MQTT_PASSWORD": "secret",
    }
    terminal = Terminal(tmp_path, given, {"systemctl": _SYSTEMCTL})
    for page in ("config/backup", "config/systemd"):
        assert (terminal.folder / page).is_dir()
    seen = terminal.run(
        [
            *commands_of("docs/operations.md", 0),
            'psql "$SUPERUSER_DSN" -f sql/roles/api.sql',
            *commands_of("docs/operations.md", 1),
            *commands_of("docs/lifecycle.md", 0),
            *commands_of("docs/backup.md", 0),
            # What each unit logs in with is enough for what it runs.
            f"({_AS_UNIT % 'esp-ingest'} check || :) | grep '^schema *ok'",  # there is no broker
            f"{_AS_UNIT % 'esp-ingest-lifecycle'} lifecycle run --once",
            f'psql "$(cat {_DSN_OF % "esp-ingest-drill"})" -c "{_A_DRILL}"',
            "ls -l /etc/esp-ingest/secrets /etc/pgbackrest",
        ],
        {f'"postgresql://{role}:…@127.0.0.1/esp"': login for role, login in logins.items()},
        before="mkdir -p /etc/postgresql/17/main/conf.d",
        own_root=True,
        timeout_seconds=600,
    )
    assert database.value("SELECT name FROM api_users") == "ada"
    assert re.search(r"-rw------- .* mqtt_password$", seen, re.MULTILINE)
    assert re.search(r"-rw-r----- .* postgres postgres .* pgbackrest.conf$", seen, re.MULTILINE)


def test_a_dump_of_timescaledb_is_restored(tmp_path: Path) -> None:
    """With the programs of Debian 13, whose server it is."""
    with start_server(NativeTimescale) as server:
        database = server.create_database("esp")
        names = ("pg_dump", "pg_restore", "psql", "createdb")
        stubs = {
            name: f"exec chroot {TRIXIE} /bin/sh -c 'cd {NativeTimescale.data_folder(server.folder)} && exec "
            f'/usr/lib/postgresql/17/bin/{name} "$@"\' {name} "$@"'
            for name in names
        }
        given = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres"}
        terminal = Terminal(tmp_path, given | {"ESP_INGEST_DATABASE__DSN": database.dsn}, stubs)
        old = _OLD_ROWS
        seen = terminal.run(
            ["esp-ingest migrate", f"psql esp -c {_quoted(old)}", *commands_of("docs/backup.md", 2)],
            timeout_seconds=200,
        )
        copy = Database(server.dsn_of("new"), server)
        for table in ("esp_telemetry", "ingest_rejects", "esp_ingest_migrations"):
            count = f"SELECT count(*) FROM {table}"
            assert copy.value(count) == database.value(count) > 0
        assert copy.value("SELECT count(*) FROM timescaledb_information.chunks") > 1
        assert seen.rstrip().rpartition("restoring")[2].split()[1] == "off"


def test_kubernetes(tmp_path: Path, server: Postgres15) -> None:
    """kubectl makes what it would send; there is no cluster to send it to."""
    kubectl = linter("kubectl", "kubectl")
    stub = f"""
if [[ $1 == apply ]]; then exec {kubectl} kustomize "$3"; fi
exec {kubectl} "$@" --dry-run=client --output=name"""
    terminal = Terminal(tmp_path, environment(server, None, tmp_path), {"kubectl": stub})
    names = ("mqtt_password", "writer_password", "owner_password", "api_key", "api_password")
    before = "mkdir secrets\n" + "\n".join(f"echo x > secrets/{name}" for name in names)
    seen = terminal.run(commands_of("config/kubernetes/README.md", 0), before=before)
    assert re.findall(r"^(?:namespace|secret)/\S+$", seen, re.MULTILINE) == [
        "namespace/esp",
        "secret/esp-ingest",
        "secret/esp-ingest-owner",
        "secret/esp-ingest-api",
    ]
    assert "kind: StatefulSet" in seen
