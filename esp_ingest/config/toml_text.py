"""TOML files of people → tables. What a parser or a codec says of a file is put into words for them."""

import tomllib
from typing import Any


class TomlError(ValueError):
    """It is not TOML, or not text; says why, as the end of a sentence."""


def parse(data: bytes) -> dict[str, Any]:
    """The tables of a file, in UTF-8 with or without a byte order mark. Raises TomlError."""
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise TomlError("it looks like UTF-16: save it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise TomlError(f"line {line} is not UTF-8 text: save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise TomlError(str(error)) from None
    except RecursionError:
        raise TomlError("its values are nested too deeply") from None
    except ValueError:  # tomllib hands over what int() says of more than 4300 digits
        raise TomlError("a number in it is too long") from None
