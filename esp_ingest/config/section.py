"""What every section of the settings has in common: strict tables, secrets out of files, paths with ``~``."""

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, model_validator

WELL_ID_PATTERN = r"[A-Za-z0-9._-]{1,64}"


class Section(BaseModel):
    """A section of the settings, or a table in one: frozen, without unknown keys, secrets read from their files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_for_a_number(cls, given: Any) -> Any:
        """pydantic takes true for 1.0."""
        for name, field in cls.model_fields.items():
            if field.annotation in (int, float) and isinstance(given, dict) and isinstance(given.get(name), bool):
                raise ValueError(f"{name} must be a number")
        return given

    @model_validator(mode="after")
    def _read_secret_files(self) -> Self:
        for name in type(self).model_fields:
            path = getattr(self, name) if name.endswith("_file") else None
            secret = name.removesuffix("_file")
            if path and isinstance(getattr(self, secret, None), SecretStr):
                object.__setattr__(self, secret, SecretStr(_secret_of(name, path)))
        return self


def _secret_of(name: str, path: str) -> str:
    """What the secret file ``path`` of the setting ``name`` holds, without line ends and byte order mark. The path is
    named where it looks like one: somebody may have put the secret itself in its place."""
    where = f"{path}: " if path.startswith(("/", "./", "../")) else ""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {where}{error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without its mark is UTF-8 with a NUL beside each letter
        raise ValueError(f"{name} cannot be read: {where}it is not UTF-8 text, save it as UTF-8")
    if "\n" in text and not name.startswith("dsn"):  # a connection string may go over several lines
        raise ValueError(f"{name} cannot be read: {where}it has more than one line, leave the secret alone in it")
    return text


def _expanded(text: str) -> str:
    """A path of the settings: ``~`` is the home folder, as in a shell, and not a folder of that name."""
    if "\0" in text or text != text.strip():
        raise ValueError("must be a path without white space around it")
    if re.match(r"\w+://", text):
        raise ValueError("must be a path, not a URL")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise ValueError('begins with "~", but there is no home folder of that user: give the path in full') from None


PathText = Annotated[str, AfterValidator(_expanded)]
