"""Where the settings come from, and the sentence that says what is wrong with them.

Order of precedence, the last one wins: the defaults in settings.py, the TOML file, environment variables
``ESP_INGEST_SECTION__KEY``. A secret may also be a file: ``…_FILE`` beside its key
(``ESP_INGEST_DATABASE__PASSWORD_FILE``).
"""

import os
import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

from esp_ingest.config import toml_text
from esp_ingest.config.sentences import fields_at, nearest, what_is_wrong
from esp_ingest.config.settings import ENV_PREFIX, ConfigError, Settings


def load(file: str | Path | None = None, **overrides: Any) -> Settings:
    """Read the settings from ``file`` (None: defaults alone) and the environment.

    ``overrides`` are partial sections that win over both, for the demo and for tests. Raises ConfigError."""
    path = Path(file).expanduser() if file is not None else None
    if path is not None and path.is_dir():
        raise ConfigError(f"The configuration file {path} is a folder: give the path of a TOML file with --config.")
    if path is not None and not path.exists():
        raise ConfigError(f"The configuration file {path} does not exist: give the path of a TOML file with --config.")
    _refuse_unknown_environment()

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is the library's
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            assert isinstance(env_settings, EnvSettingsSource)
            env_settings.env_vars = _as_meant(env_settings.env_vars)
            if path is None:
                return init_settings, env_settings
            return init_settings, env_settings, _TomlFile(settings_cls, path)

    try:
        return Loaded(**overrides)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except SettingsError as error:
        raise ConfigError(_explain_environment(error)) from None
    except RecursionError:  # a table set as JSON; toml_text.py answers for the file
        values = {name: value for name, value in os.environ.items() if name.upper().startswith(ENV_PREFIX)}
        deepest = max(values, key=lambda name: values[name].count("[") + values[name].count("{"))
        raise ConfigError(f"The environment variable {deepest} cannot be used: it is nested too deeply.") from None
    except toml_text.TomlError as error:
        raise ConfigError(f"The configuration file {path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from None


class _TomlFile(TomlConfigSettingsSource):
    """The TOML file, with what is wrong in it said in our words."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return _without_overridden_files(toml_text.parse(file_path.read_bytes()))


def _without_overridden_files(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables of the TOML file without the secret files that the environment overrides: the environment wins, also
    with a secret over the file that the TOML file names for it."""
    return {
        section: {
            key: value
            for key, value in table.items()
            if not (key.endswith("_file") and _variable([section, key.removesuffix("_file")]))
        }
        if isinstance(table, dict)
        else table
        for section, table in tables.items()
    }


def _refuse_unknown_environment() -> None:
    """pydantic-settings passes over variables of no known section; a typing error must not. Of those without the double
    underscore only what would be a setting with it is one: Kubernetes sets ESP_INGEST_PORT and the like by itself, and
    ESP_INGEST_HTTP_PORT to a URL where there is a service of that name."""
    meant = {
        f"{section}_{key}".upper(): f"{ENV_PREFIX}{section}__{key}".upper()
        for section in Settings.model_fields
        for key in fields_at(Settings, [section])
    }
    for name, value in os.environ.items():
        right = meant.get(name.upper().removeprefix(ENV_PREFIX)) if name.upper().startswith(ENV_PREFIX) else None
        if right is not None and not value.startswith("tcp://"):
            raise ConfigError(f"Unknown environment variable {name}: did you mean {right}?")
        if name.upper().startswith(ENV_PREFIX) and "__" in name[len(ENV_PREFIX) :]:
            section = name[len(ENV_PREFIX) :].split("__")[0].lower()
            if section not in Settings.model_fields:
                raise ConfigError(
                    f"Unknown section in the environment variable {name}{nearest(section, Settings.model_fields)}"
                )


def _as_meant(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """The environment without what files of it bring along: docker's --env-file, Kubernetes and CI systems keep quotes
    and the carriage returns of a file from Windows, where a shell and systemd take them off. A carriage return at the
    end means nothing; quotes may be meant, so they are refused with a word."""
    found: dict[str, str | None] = {}
    for name, value in variables.items():
        if value is None or not name.upper().startswith(ENV_PREFIX):
            continue
        is_secret = any(part in name.upper() for part in ("PASSW", "DSN", "SECRET"))
        text = value.rstrip("\r\n" if is_secret else "\r")  # `echo secret | base64` in Kubernetes adds a line end
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
            secret = "; a secret that has them can be read from a file, with …_FILE" if is_secret else ""
            raise ConfigError(
                f"The environment variable {name.upper()} stands in quotes, which are part of its value as files of "
                f"variables are read by docker and others: leave them out{secret}."
            )
        found[name] = text
    return found


def _explain(error: ValidationError) -> str:
    """One sentence about the first thing that is wrong."""
    location = [str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"]]
    if error.errors(include_url=False, include_input=False)[0]["type"] == "extra_forbidden":
        return _explain_unknown(location)
    found, words = what_is_wrong(error, Settings)
    variable = _variable(found)
    come_from = f" (from {variable})" if variable else ""
    place = f"Setting {'.'.join(found)}{come_from}" if found else "Configuration"
    return f"{place}{'' if found != location else ':'} {words}."


def _explain_unknown(location: list[str]) -> str:
    variable = _variable(location)
    come_from = f" (from {variable})" if variable else ""
    if len(location) == 1:
        return f"Unknown section [{location[0]}]{come_from}{nearest(location[0], Settings.model_fields)}"
    parent = ".".join(location[:-1])
    known = fields_at(Settings, location[:-1], otherwise=("low", "high", "unit"))
    return f"Unknown setting {'.'.join(location)}{come_from}{nearest(location[-1], known, parent)}"


def _explain_environment(error: SettingsError) -> str:
    """What pydantic-settings could not read is a whole section that is set as JSON, or a table in it."""
    names = [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]
    said = re.search(r'"(\w+)"', str(error))
    section = f"{ENV_PREFIX}{said[1]}" if said else ENV_PREFIX
    wrong = next((name for name in sorted(names) if name.upper().startswith(section.upper())), section)
    return (
        f"The environment variable {wrong} cannot be used: set each setting by itself, as "
        f"{ENV_PREFIX}SECTION__KEY, and a table as a JSON object."
    )


def _variable(location: list[str]) -> str:
    """The environment variable that set this, or "" if the file did."""
    for length in range(len(location), 0, -1):
        wanted = ENV_PREFIX + "__".join(location[:length]).upper()
        for name in os.environ:
            if name.upper() == wanted:
                return name
    return ""
