"""What pydantic finds wrong, in sentences for people; shared by the settings and by rules.toml."""

from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from esp_ingest.service.text import closest, did_you_mean

_WORDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters",
    "string_pattern_mismatch": "must not contain +, # or /",
    "missing": "is missing",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}


def in_our_words(kind: str, message: str, context: dict[str, Any]) -> str:
    """pydantic's message in the words of this program; what is raised here is in them already."""
    if kind in _WORDS:
        return _WORDS[kind].format_map({name: _plainly(value) for name, value in context.items()})
    return message.removeprefix("Value error, ").rstrip(".?")


def _plainly(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else value


def fields_at(model: Any, location: list[str], otherwise: Iterable[str] = ()) -> list[str]:
    """The names of the fields of the table at ``location`` below ``model``; ``otherwise`` if that is not a table with
    fixed names."""
    for part in location:
        if get_origin(model) is dict:  # tables by names of the user's own, such as wells
            model = get_args(model)[1]
        else:
            model = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else list(otherwise)


def what_is_wrong(error: ValidationError, model: type[BaseModel]) -> tuple[list[str], str]:
    """The first mistake: where it is, as the keys below ``model``, and a clause that says what it is.

    The value is not repeated, since it may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return location, f"is not a key here{did_you_mean(location[-1], fields_at(model, location[:-1]))}"
    words = in_our_words(first["type"], first["msg"], first.get("ctx") or {})
    unit = location[-1].rpartition("_")[2] if location else ""
    if unit in ("seconds", "bytes", "days") and words.endswith("number"):
        words += f" of {unit}, written without a unit"
    name, _, rest = words.partition(" ")
    if name in fields_at(model, location):  # said by a check over several fields, about one of them
        return [*location, name], rest
    return location, words


def nearest(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    """``: did you mean …?`` or, if nothing comes close, ``: known are ….``, to end a sentence about a wrong word.
    ``prefix`` is the section that the word belongs to."""
    close = closest(wrong, known)
    if close is None:
        return f": known are {', '.join(known)}."
    return f": did you mean {f'{prefix}.' if prefix else ''}{close}?"
