"""What is written down is made from the code, so that it cannot drift: ``python -m tools.docs [--check]``.

Writes config/esp_ingest.toml, docs/configuration.md, docs/metrics.md and the alerts as a PrometheusRule. ``--check``
writes nothing and exits 1 when one of them differs; tests/unit/test_config.py does the same.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from esp_ingest.config.settings import ENV_PREFIX, Settings
from esp_ingest.model import SIGNALS
from esp_ingest.service.metrics import ApiMetrics, LifecycleMetrics, MetricInfo, Metrics
from tools import dashboards

CHECKOUT = Path(__file__).resolve().parents[1]
COMMAND = "python -m tools.docs"

# Tables have no default to show, so the file shows how one is written.
EXAMPLES = {
    "limits": "limits.motor_temp = { high = 450 }  # the lower bound keeps its default",
    "wells": 'wells."ESP-01".pip = { low = 50, high = 3_500 }',
    "extra_signals": 'extra_signals.tubing_temp = { unit = "°F", low = 32, high = 572 }',
    "by_well": 'by_well."ESP-01" = { curve = [[0, 52], [1_500, 44], [3_000, 8]], stages = 120, '
    "recommended_bpd = [1_100, 2_100] }",
    "oidc_roles": 'oidc_roles = { "esp-admins" = "admin", "esp-operators" = "operator", "esp-users" = "viewer" }',
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_LENGTHS = {"min_length": "at least {} characters", "max_length": "at most {} characters"}

_CONFIGURATION = f"""\
# Configuration

<!-- Made by `{COMMAND}` from esp_ingest/config/settings.py: change it there. -->

Settings come from three places; a later one wins: the defaults below, the TOML file of `--config FILE`
([config/esp_ingest.toml](../config/esp_ingest.toml) has them all), and environment variables
`{ENV_PREFIX}SECTION__KEY`. A secret can also be a file, as systemd credentials and Docker or Kubernetes secrets
are: set `…_file` in place of the key. Whatever is wrong ends the start at once, with exit code 2 and a sentence
that names the key; an unknown key names the nearest valid one. Paths may begin with `~`. Numbers are written
without a unit: the key's name ends in it. A value in the environment that stands in quotes is refused, since files
of variables are not read alike: `docker --env-file` keeps the quotes that a shell and systemd take off; a carriage
return at its end is taken off. Files of secrets are UTF-8, with or without a byte order mark; a line end behind the
secret does not count. `esp-ingest check` tries the settings against broker and database.

Across sections: `mqtt.receive_maximum` must be at least twice `batch.max_rows` or `batch.max_messages`, whichever is
less, or a batch would never fill while another is written. [Operations](operations.md) tells how to size window and
spool.
"""

_METRICS = f"""\
# Metrics

<!-- Made by `{COMMAND}` from esp_ingest/service/metrics.py: change it there. -->

`GET /metrics`, Prometheus text format. Counters end in `_total`; durations are seconds, sizes bytes. Series with a
closed list of labels exist at 0 from the start. There is no well among the labels: that is what the table is for.
`process_*` (memory, CPU, file descriptors) are those of the Prometheus client, up to 5 s old. Alerts made of these,
each with its runbook, are in [config/prometheus/alerts.yml](../config/prometheus/alerts.yml).

A sum that always holds, but for what moves while it is read, and that the daemon checks at every batch:

    readings_received_total = readings_written_total + readings_duplicate_total + readings_rejected_total
                              + readings_spooled_total + readings_held

"""
_HEAD = ("| metric | type | labels | meaning | a problem when |", "|---|---|---|---|---|")


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections of the settings, in their order."""
    for name, field in Settings.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        yield name, field.annotation


def toml() -> str:
    """config/esp_ingest.toml: every setting at its default, with its meaning and bounds."""
    lines = [
        "# Every setting with its default. A line may be left out: the default then holds.",
        f"# Each has an environment override {ENV_PREFIX}SECTION__KEY, for example {ENV_PREFIX}MQTT__HOST=broker.",
        "# Secrets belong into files (…_file) or the environment, not in here.",
        f"# Made by `{COMMAND}` from esp_ingest/config/settings.py.",
    ]
    for name, section in sections():
        lines += ["", f"# {_first_line(section)}", f"[{name}]"]
        for key, field in section.model_fields.items():
            lines.append(f"# {_meaning(field)}")
            lines.append(f"# {EXAMPLES[key]}" if key in EXAMPLES else f"{key} = {_toml_value(_default(field))}")
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """docs/configuration.md."""
    lines = _CONFIGURATION.splitlines()
    for name, section in sections():
        lines += ["", f"## [{name}]", "", _first_line(section), "", "| setting | default | meaning | environment |"]
        lines.append("|---|---|---|---|")
        for key, field in section.model_fields.items():
            default = "none" if key in EXAMPLES else f"`{_toml_value(_default(field))}`"
            variable = f"{ENV_PREFIX}{name}__{key}".upper()
            lines.append(f"| `{key}` | {default} | {_cell(_meaning(field))} | `{variable}` |")
        lines += [line for key in section.model_fields if key in EXAMPLES for line in _example(name, key)]
    lines += ["", "## Signals and their hard limits", "", "| signal | unit | low | high | |", "|---|---|---|---|---|"]
    lines += [f"| `{s.name}` | {s.unit} | {s.low:g} | {s.high:g} | {s.description} |" for s in SIGNALS]
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """docs/metrics.md."""
    lines = [*_METRICS.splitlines(), *_HEAD, *_rows(Metrics().catalogue)]
    lines += ["", "Buckets of the histograms:", ""]
    lines += [
        f"- `{info.name}`: {', '.join(map(_number, info.buckets))}" for info in Metrics().catalogue if info.buckets
    ]
    lines += [
        "",
        "## Of `esp-ingest api`, on its own port",
        "",
        *_HEAD,
    ]
    lines += _rows(ApiMetrics().catalogue)
    lines += [
        "",
        "## Of `esp-ingest lifecycle run`",
        "",
        "On `lifecycle.http_port` with `--every`, and in `lifecycle.metrics_file` after each run.",
        "",
        *_HEAD,
    ]
    return "\n".join([*lines, *_rows(LifecycleMetrics().catalogue)]) + "\n"


def _rows(catalogue: Iterable[MetricInfo]) -> Iterator[str]:
    for info in catalogue:
        labels = ", ".join(f"`{label}`" for label in info.labels)
        problem = re.sub(r"(EspIngest\w+)", r"[\1](runbooks/\1.md)", _cell(info.problem))
        yield f"| `{info.name}` | {info.kind} | {labels} | {_cell(info.help)} | {problem} |"


def prometheus_rule() -> str:
    """config/kubernetes/monitoring/alerts.yaml: the alerts as the Prometheus operator takes them."""
    alerts = _read(CHECKOUT / "config/prometheus/alerts.yml")
    groups = "groups:" + alerts.partition("\ngroups:")[2].rstrip("\n")
    head = (
        f"# Made by `{COMMAND}` from config/prometheus/alerts.yml: change it there.",
        "apiVersion: monitoring.coreos.com/v1",
        "kind: PrometheusRule",
        "metadata:",
        "  name: esp-ingest",
        "spec:",
    )
    return "\n".join([*head, *(f"  {line}" for line in groups.split("\n"))]) + "\n"


def environment() -> str:
    """config/esp_ingest.env.example: every setting as a variable of the environment, at its default."""
    lines = [
        "# Every setting as a variable, at its default; take the # away from those that you change. For systemd's",
        "# EnvironmentFile=, docker --env-file and a shell: values without quotes, secrets as files (…_FILE).",
        f"# Made by `{COMMAND}` from esp_ingest/config/settings.py.",
    ]
    for name, section in sections():
        lines += ["", f"# {_first_line(section)}"]
        for key, field in section.model_fields.items():
            if key not in EXAMPLES:
                lines += [f"# {_meaning(field)}", f"#{ENV_PREFIX}{name}__{key}=".upper() + _variable(_default(field))]
    return "\n".join(lines) + "\n"


def _variable(value: Any) -> str:
    return _toml_value(value).strip('"')


FILES: dict[str, Callable[[], str]] = {
    "config/esp_ingest.env.example": environment,
    "config/grafana/esp-ingest.json": dashboards.operations,
    "config/grafana/esp-ingest-wells.json": dashboards.engineers,
    "config/esp_ingest.toml": toml,
    "docs/configuration.md": configuration,
    "docs/metrics.md": metrics,
    "config/kubernetes/monitoring/alerts.yaml": prometheus_rule,
}


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with ``--check`` compare them. Returns the exit code."""
    differing = [name for name, make in FILES.items() if _read(CHECKOUT / name) != make()]
    for name in differing:
        sys.stdout.write(f"{name} differs from the code\n" if arguments else f"{name} written\n")
        if not arguments:
            (CHECKOUT / name).parent.mkdir(parents=True, exist_ok=True)
            (CHECKOUT / name).write_text(FILES[name](), encoding="utf-8")
    return 1 if arguments and differing else 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().split("\n")[0]


def _meaning(field: FieldInfo) -> str:
    bounds = _bounds(field)
    return f"{field.description}{f' ({bounds})' if bounds else ''}"


def _bounds(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(field.annotation))
    said = []
    for constraint in field.metadata:
        said += [
            f"{word} {_number(getattr(constraint, at))}" for at, word in _BOUNDS.items() if hasattr(constraint, at)
        ]
        if isinstance(constraint, annotated_types.MinLen | annotated_types.MaxLen):
            if getattr(constraint, "min_length", 0) == 1:
                said.append("not empty")
                continue
            said += [text.format(getattr(constraint, at)) for at, text in _LENGTHS.items() if hasattr(constraint, at)]
    return ", ".join(said)


def _number(value: Any) -> str:
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else f"{value:g}"


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _toml_value(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, int) and value >= 10_000:
        return f"{value:_}"
    return repr(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _example(section: str, key: str) -> list[str]:
    return ["", f"An entry of `{key}`:", "", "```toml", f"[{section}]", EXAMPLES[key], "```"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
