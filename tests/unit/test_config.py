"""Settings: precedence, secrets, errors that name the key; and the files that are made from them."""

import os
import pwd
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_ingest.commands import check
from esp_ingest.config.load import load
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.diagnostics.language import rules, rules_file
from esp_ingest.resources import config_file
from tools import docs


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ESP_INGEST_")]:
        monkeypatch.delenv(name)


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "esp_ingest.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_holds_every_setting_at_its_default() -> None:
    path = config_file("esp_ingest.toml")
    assert load(path).model_dump() == load().model_dump()
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, section in docs.sections():
        scalar = {
            key
            for key, field in section.model_fields.items()
            if not isinstance(field.get_default(call_default_factory=True, validated_data={}), dict)
        }
        assert set(written[name]) == scalar


@pytest.mark.parametrize("name", sorted(docs.FILES))
def test_what_is_made_from_the_code_is_up_to_date(name: str) -> None:
    made = docs.FILES[name]()
    assert (docs.CHECKOUT / name).read_text(encoding="utf-8") == made, f"run: {docs.COMMAND}"


def test_the_check_sees_a_file_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "CHECKOUT", tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "docs").mkdir()
    assert docs.main(["--check"]) == 1
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    (tmp_path / "docs/metrics.md").write_text("old")
    assert docs.main(["--check"]) == 1


def test_every_setting_has_a_meaning() -> None:
    for name, section in docs.sections():
        assert section.__doc__
        for key, field in section.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_the_examples_in_the_file_are_valid(tmp_path: Path) -> None:
    lines = docs.toml().splitlines()
    examples = [line.removeprefix("# ") for line in lines if line.removeprefix("# ") in docs.EXAMPLES.values()]
    assert len(examples) == len(docs.EXAMPLES)
    of_api = [line for line in examples if line.startswith("oidc_")]
    of_pumps = [line for line in examples if line.startswith("by_well")]
    of_telemetry = [line for line in examples if line not in (*of_api, *of_pumps)]
    read = load(toml(tmp_path, "\n".join(["[telemetry]", *of_telemetry, "[api]", *of_api, "[pumps]", *of_pumps])))
    assert read.pumps.by_well["ESP-01"].curve[1] == (1_500, 44)
    assert read.telemetry.wells["ESP-01"]["pip"].low == 50
    assert read.api.oidc_roles["esp-admins"] == "admin"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml(tmp_path, "[mqtt]\nhost = 'from-file'\nport = 2000\n")
    monkeypatch.setenv("ESP_INGEST_MQTT__PORT", "3000")
    read = load(path).mqtt
    assert (read.host, read.port, read.keepalive_seconds) == ("from-file", 3000, 30)
    assert load(path, mqtt={"port": 4000}).mqtt.port == 4000


@pytest.mark.parametrize("key", ["mqtt.password", "database.password", "database.dsn"])
def test_a_secret_can_be_a_file_and_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    section, name = key.split(".")
    monkeypatch.setenv(f"ESP_INGEST_{section}__{name}_FILE".upper(), str(secret))
    monkeypatch.setenv("ESP_INGEST_MQTT__USERNAME", "user")
    read = load()
    assert getattr(getattr(read, section), name).get_secret_value() == "hunter2"
    assert "hunter2" not in repr(read)
    monkeypatch.setenv(f"ESP_INGEST_{section}__{name}_FILE".upper(), str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=rf"{name}_file \(from ESP_INGEST_\w+_FILE\) cannot be read"):
        load()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mqtt]\nhots = 'x'", r"mqtt\.hots: did you mean mqtt\.host\?"),
        ("[mqt]\nhost = 'x'", r"Unknown section \[mqt\]: did you mean mqtt\?"),
        ("[mqtt]\nport = 70000", r"mqtt\.port: must be at most 65535\."),
        ("[mqtt]\nport = 'many'", r"mqtt\.port: must be a whole number\."),
        ("[mqtt]\ntls = 'perhaps'", r"mqtt\.tls: must be true or false\."),
        ("[mqtt]\nhost = ''", r"mqtt\.host: must not be empty\."),
        ("[mqtt]\nshare_group = 'a/b'", r"mqtt\.share_group: must not contain"),
        ("[mqtt]\nconnect_timeout_seconds = 0", r"mqtt\.connect_timeout_seconds: must be more than 0\."),
        ("[telemetry]\nmax_ahead_seconds = 1e300", r"telemetry\.max_ahead_seconds: must be at most"),
        ("[telemetry]\nmax_age_days = 36501", r"telemetry\.max_age_days: must be at most 36500\."),
        (
            "[database]\nstatement_timeout_seconds = 1e10",
            r"database\.statement_timeout_seconds: must be at most 86400\.",
        ),
        ("[database]\nlock_timeout_seconds = 0.0001", r"database\.lock_timeout_seconds: must be at least 0\.1\."),
        ("mqtt = 1", r"mqtt: must be a table\."),
        ("[telemetry.extra_signals.x]\nlow = 1", r"telemetry\.extra_signals\.x\.high: is missing\."),
        ("[mqtt]\nport = 70000", r"mqtt\.port"),
        ("[mqtt]\nport = 'many'", r"mqtt\.port"),
        ("[mqtt]\nreceive_maximum = 9999", r"mqtt\.receive_maximum \(9999\) must be at least twice batch\.max_rows"),
        ("[mqtt]\nreconnect_min_seconds = 40", r"reconnect_min_seconds must not exceed"),
        ("[mqtt]\nshare_group = 'g'\nprotocol = '3.1.1'", r"share_group needs MQTT 5"),
        ("[mqtt]\ncert_file = 'c'", r"cert_file and key_file belong together"),
        ("[mqtt]\ntopic_root = 'a/b'", r"mqtt\.topic_root"),
        ("[telemetry.limits]\nmoter_temp = {low = 1}", r"moter_temp is no signal: did you mean motor_temp"),
        ("[telemetry.wells.'a b']\npip = {low = 1}", r"is no well id"),
        ("[telemetry.extra_signals.pip]\nlow = 1\nhigh = 2", r"extra_signals\.pip is built in"),
        ("[telemetry.limits.pip]\nlow = 5\nhigh = 5", r"low must be below high"),
        ("[batch]\nmax_age_seconds = nan", r"batch\.max_age_seconds"),
        ("not toml at all", r"is not valid TOML"),
        ("[log]\nlevel = 'loud'", r"log\.level: must be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(toml(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ESP_INGEST_MQTT__HOTS", r"mqtt\.hots \(from ESP_INGEST_MQTT__HOTS\): did you mean mqtt\.host"),
        ("ESP_INGEST_MQQT__HOST", r"ESP_INGEST_MQQT__HOST: did you mean mqtt"),
    ],
)
def test_a_typing_error_in_the_environment_is_found(monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError, match=says):
        load()


def test_variables_that_kubernetes_sets_by_itself_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESP_INGEST_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("ESP_INGEST_PORT", "tcp://10.0.0.1:8080")
    assert load().model_dump() == Settings().model_dump()


@pytest.mark.parametrize("key", ["database.dsn", "mqtt.password"])
def test_a_secret_of_the_environment_wins_over_a_file_that_the_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    section, name = key.split(".")
    monkeypatch.setenv("ESP_INGEST_MQTT__USERNAME", "user")
    (tmp_path / "secret").write_text("of-the-file", encoding="utf-8")
    path = toml(tmp_path, f'[{section}]\n{name}_file = "{tmp_path / "secret"}"\n')
    assert getattr(getattr(load(path), section), name).get_secret_value() == "of-the-file"
    monkeypatch.setenv(f"ESP_INGEST_{section.upper()}__{name.upper()}", "of-the-environment")
    assert getattr(getattr(load(path), section), name).get_secret_value() == "of-the-environment"


@pytest.mark.parametrize("name", ["ESP_INGEST_MQTT_HOST", "ESP_INGEST_DATABASE_DSN", "ESP_INGEST_HTTP_PORT"])
def test_one_underscore_in_place_of_two_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    section, key = name.removeprefix("ESP_INGEST_").split("_")
    with pytest.raises(ConfigError, match=f"^Unknown environment variable {name}: .*ESP_INGEST_{section}__{key}"):
        load()
    monkeypatch.setenv(name, "tcp://10.0.0.1:80")  # what Kubernetes says of a service that happens to have this name
    load()


def test_a_missing_file_and_a_folder_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="is a folder: give the path of a TOML file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ESP_INGEST_MQTT__PORT", "hunter2", r"Setting mqtt\.port \(from ESP_INGEST_MQTT__PORT\): must be a whole"),
        ("ESP_INGEST_MQTT", "hunter2", r"variable ESP_INGEST_MQTT cannot be used"),
        (
            "ESP_INGEST_TELEMETRY__LIMITS",
            "{hunter2",
            r"ESP_INGEST_TELEMETRY__LIMITS\b.*(cannot be used|must be a table)",
        ),
        (
            "ESP_INGEST_DATABASE__PASSWORD_FILE",
            "hunter2",  # the secret itself, by mistake
            r"password_file \(from ESP_INGEST_DATABASE\w+\) cannot be",
        ),
    ],
)
def test_what_is_wrong_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says) as caught:
        load()
    assert "hunter2" not in str(caught.value)


def test_a_secret_file_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESP_INGEST_MQTT__PASSWORD_FILE", "/run/secrets/nothing")
    with pytest.raises(
        ConfigError, match=r"^Setting mqtt.password_file .* cannot be read: /run/secrets/nothing: No such"
    ):
        load()


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfhunter2\r\n", b"hunter2\n", b"hunter2"])
def test_a_secret_file_may_have_a_mark_and_a_line_end(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    found = load(mqtt={"password_file": str(tmp_path / "secret"), "username": "u"}).mqtt.password
    assert found.get_secret_value() == "hunter2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("hunter2\n".encode("utf-16"), "it is not UTF-8 text, save it as UTF-8"),
        ("hunter2\n".encode("utf-16-le"), "it is not UTF-8 text, save it as UTF-8"),
        ("hünter2\n".encode("latin-1"), "it is not UTF-8 text, save it as UTF-8"),
        (b"hunter2\n# of the broker\n", "it has more than one line"),
    ],
)
def test_a_secret_file_that_would_fail_later_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"^Setting mqtt.password_file cannot be read: {tmp_path}/secret: {says}"
    ) as caught:
        load(mqtt={"password_file": str(tmp_path / "secret"), "username": "u"})
    assert "nter2" not in str(caught.value)


@pytest.mark.parametrize("quoted", ['"{}"', "'{}'"])
@pytest.mark.parametrize(
    ("key", "value"), [("MQTT__HOST", "b"), ("HTTP__PORT", "1"), ("DATABASE__PASSWORD", "hunter2")]
)
def test_quotes_of_a_file_of_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, quoted: str, key: str, value: str
) -> None:
    monkeypatch.setenv(f"ESP_INGEST_{key}", quoted.format(value))
    with pytest.raises(ConfigError, match=f"ESP_INGEST_{key} stands in quotes, .*: leave them out") as caught:
        load()
    assert "hunter2" not in str(caught.value)


def test_carriage_returns_of_a_file_of_variables_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"MQTT__HOST": "b\r", "MQTT__TLS": "true\r", "HTTP__PORT": "0\r", "DATABASE__PASSWORD": "hunter2\r\n"}
    for name, value in (given | {"TELEMETRY__LIMITS": '{"pip": {"high": 1}}\r'}).items():
        monkeypatch.setenv(f"ESP_INGEST_{name}", value)
    found = load()
    assert (found.mqtt.host, found.mqtt.tls, found.http.port) == ("b", True, 0)
    assert found.database.password.get_secret_value() == "hunter2"
    assert found.telemetry.limits["pip"].high == 1


PATHS = [
    ("mqtt", "ca_file"), ("mqtt", "cert_file"), ("mqtt", "key_file"), ("spool", "path"), ("diagnostics", "rules_file"),
    ("api", "cert_file"), ("api", "tls_key_file"),
    ("lifecycle", "metrics_file"),
]  # fmt: skip


def test_every_setting_that_is_a_path_is_tried_here() -> None:
    paths = {
        (section, name)
        for section, field in Settings.model_fields.items()
        for name in getattr(field.annotation, "model_fields", {})
        if name == "path" or name.endswith("_file")
    }
    secrets = {
        (section, name)
        for section, name in paths
        if "password" in name or "dsn" in name or "secret" in name or (section, name) == ("archive", "key_file")
    }
    several = {("api", "key_file")}  # a list of paths
    assert paths - secrets - several == set(PATHS)


@pytest.mark.parametrize(("section", "key"), PATHS)
def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, section: str, key: str) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    key_of_cert = "tls_key_file" if section == "api" else "key_file"
    with_pair = {"cert_file": {key_of_cert: "k"}, key_of_cert: {"cert_file": "c"}}.get(key, {})
    found = load(**{section: {key: "~/x/y", **with_pair}})
    assert getattr(getattr(found, section), key) == "/home/somebody/x/y"
    with pytest.raises(ConfigError, match=rf"^Setting {section}.{key}: begins with \"~\", but there is no home folder"):
        load(**{section: {key: "~nobody-of-that-name/x", **with_pair}})
    for wrong in (" /x", "/x ", "/x\0", "file:///x"):
        with pytest.raises(ConfigError, match=rf"^Setting {section}.{key}: must be a path"):
            load(**{section: {key: wrong, **with_pair}})


def test_a_tilde_before_a_secret_file_and_the_settings_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret").write_text("hunter2")
    toml(tmp_path, '[database]\npassword_file = "~/secret"\n')
    assert load("~/esp_ingest.toml").database.password.get_secret_value() == "hunter2"


def test_a_user_without_a_home_is_told_which_setting_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_uid: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        ConfigError, match=r"^Setting spool\.path is empty, .* set spool\.path \(ESP_INGEST_SPOOL__PATH\)"
    ):
        load().spool.folder()
    assert not check.spool(load()).ok
    assert check.spool(load(spool={"enabled": False})).ok


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("MQTT__CONNECT_TIMEOUT_SECONDS", "5s", "must be a number of seconds, written without a unit"),
        ("MQTT__KEEPALIVE_SECONDS", "1 min", "must be a whole number of seconds, written without a unit"),
        ("SPOOL__MAX_BYTES", "1GB", "must be a whole number of bytes, written without a unit"),
        ("TELEMETRY__MAX_AGE_DAYS", "30d", "must be a number of days, written without a unit"),
        ("BATCH__MAX_ROWS", "5k", "must be a whole number"),
    ],
)
def test_a_number_with_a_unit_is_refused_with_its_unit(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"ESP_INGEST_{key}", value)
    setting = key.lower().replace("__", ".")
    with pytest.raises(ConfigError, match=rf"^Setting {setting} \(from ESP_INGEST_{key}\): {says}\.$"):
        load()


def test_true_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Setting batch\.max_age_seconds must be a number"):
        load(toml(tmp_path, "[batch]\nmax_age_seconds = true\n"))


def test_a_wrong_secret_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml(tmp_path, "[database]\npassword = ['hunter2']\n"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:first@second@h/d",
        "postgres://u:first@sec:ond@127.0.0.1:1/d?sslmode=require",
        "postgresql://u:fir/second@h/d",
        "postgresql://u:@second@h",
    ],
)
def test_a_bare_at_in_a_password_is_refused_and_no_part_of_it_shown(dsn: str) -> None:
    with pytest.raises(ConfigError, match=r"database\.dsn has a user or password with a bare .* as %40") as caught:
        load(database={"dsn": dsn})
    assert not any(part in str(caught.value) for part in ("first", "fir/", "second", "sec:ond"))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:se%40cret@h1:1,h2:2/d?options=-c%20a&application_name=a@b",
        "postgresql:///d?user=a@b&host=@abstract",
        "host=@abstract user=a@b dbname=d",
        "postgresql://u:se?cr#t@h/d",
        "",
    ],
)
def test_other_connection_strings_are_left_to_libpq(dsn: str) -> None:
    assert load(database={"dsn": dsn}).database.dsn.get_secret_value() == dsn


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf[mqtt]\r\nhost = 'h'\r\n")
    assert load(path).mqtt.host == "h"


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_bytes_as_a_file_are_settings_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_bytes(content)
    said = ""
    try:
        load(path)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said


def test_the_spool_lives_where_systemd_says_else_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/esp-ingest:/other")
    assert load().spool.folder() == Path("/var/lib/esp-ingest/spool")
    monkeypatch.delenv("STATE_DIRECTORY")
    assert load().spool.folder().parts[-3:] == ("state", "esp-ingest", "spool")
    assert load(spool={"path": "/elsewhere"}).spool.folder() == Path("/elsewhere")


def test_a_slow_statement_must_not_look_like_a_stuck_daemon() -> None:
    with pytest.raises(ConfigError, match=r"service\.stuck_after_seconds .*database\.statement_timeout_seconds"):
        load(service={"stuck_after_seconds": 60}, database={"statement_timeout_seconds": 60})


def test_what_may_be_taken_apart_must_be_let_in() -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.max_packet_bytes .* at least 10004096"):
        load(telemetry={"max_payload_bytes": 10_000_000})
    load(telemetry={"max_payload_bytes": 10_000_000}, mqtt={"max_packet_bytes": 10_004_096})
    load(telemetry={"max_payload_bytes": 268_435_455}, mqtt={"max_packet_bytes": 268_435_460})


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("mqtt://x:1883", 'write host = "x", port = 1883'),
        ("mqtts://user:secret@x:8883/path", 'write host = "x", port = 8883, tls = true'),
        ("wss://x/ws/mqtt", 'host = "x", tls = true, transport = "websockets", websocket_path = "/ws/mqtt"'),
        ("x:1883", 'write host = "x", port = 1883'),
        ("[::1]:1883", 'write host = "::1", port = 1883'),
        ("[::1]", 'write host = "::1"'),
        ("user@x", 'write host = "x"'),
        (" x", "without white space"),
        ("x y", "without white space"),
        ("x\n", "without white space"),
        ("a..b", "a part of it is empty or too long"),
        ("mqtt://", "must be a host name or address alone"),
        ("", "must not be empty"),
    ],
)
def test_a_host_that_is_more_than_a_host_says_what_to_write(
    monkeypatch: pytest.MonkeyPatch, host: str, says: str
) -> None:
    monkeypatch.setenv("ESP_INGEST_MQTT__HOST", host)
    with pytest.raises(ConfigError, match=r"^Setting mqtt\.host \(from ESP_INGEST_MQTT__HOST\)") as raised:
        load()
    assert says in str(raised.value)
    assert "secret" not in str(raised.value)
    if host:
        monkeypatch.delenv("ESP_INGEST_MQTT__HOST")
        monkeypatch.setenv("ESP_INGEST_HTTP__HOST", host)
        with pytest.raises(ConfigError, match=r"^Setting http\.host"):
            load()


@pytest.mark.parametrize(
    "host", ["localhost", "10.0.0.1", "::1", "fe80::1%eth0", "my_broker", "broker.example.", "b\xfc.de"]
)
def test_hosts_that_are_hosts(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ESP_INGEST_MQTT__HOST", host)
    assert load().mqtt.host == host


def test_a_password_that_would_not_be_sent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESP_INGEST_MQTT__PASSWORD", "x")
    with pytest.raises(ConfigError, match=r"^Setting mqtt\.password .* is set without username.* set username too\."):
        load()


@pytest.mark.parametrize("path", ["", "mqtt", "/a b", "/a\r\nX: 1"])
def test_a_websocket_path_is_a_path(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("ESP_INGEST_MQTT__WEBSOCKET_PATH", path)
    with pytest.raises(ConfigError, match=r"^Setting mqtt\.websocket_path .* must be a path that begins"):
        load()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a = " + b"[" * 5_000 + b"]" * 5_000, "nested too deeply"),
        (b"a = " + b"{a=" * 3_000 + b"1" + b"}" * 3_000, "nested too deeply"),
        (b"[mqtt]\nport = " + b"1" * 5_000, "a number in it is too long"),
        (b"[mqtt]\nhost = '\xff'", "line 2 is not UTF-8 text"),
        ("[mqtt]".encode("utf-16"), "save it as UTF-8"),
    ],
)
def test_what_no_parser_takes_is_a_sentence(tmp_path: Path, text: bytes, said: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(text)
    for read, error in ((load, ConfigError), (rules_file.load, rules.RulesError)):
        with pytest.raises(error, match=said) as caught:
            read(file)
        assert "codec" not in str(caught.value)
        assert "recursion" not in str(caught.value)


def test_a_table_nested_too_deeply_in_the_environment_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESP_INGEST_TELEMETRY__LIMITS", "[" * 50_000)
    with pytest.raises(ConfigError, match="ESP_INGEST_TELEMETRY__LIMITS cannot be used: it is nested too deeply"):
        load()
