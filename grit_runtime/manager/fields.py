"""Objects of the API server as named tuples: reading, writing, and their schema. Pure.

A field is camelCase there and snake_case here. `Annotated` has its description and what else its
schema says. Objects are hostile input: each field is checked for its type. What an object has
beyond the classes is passed over, since a newer manager may have written it.
"""

from __future__ import annotations

import types
import typing
from typing import Any

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.startup import named


def name_of(field: str) -> str:
    """The name that the API server knows *field* by."""
    first, *rest = field.split("_")
    return first + "".join("UID" if word == "uid" else word.capitalize() for word in rest)


def read(wanted: Any, value: Any, where: str) -> Any:
    """*value* as *wanted*: a NamedTuple, tuple, dict, Literal or a plain JSON type."""
    wanted, _ = _bare(wanted)
    if hasattr(wanted, "_fields"):
        return _read_record(wanted, value, where)
    origin = typing.get_origin(wanted)
    if origin is None:
        return _read_plain(wanted, value, where)
    return _READERS[origin](typing.get_args(wanted), value, where)


def plain(value: Any) -> Any:
    """*value* for the API server, without the fields that have their defaults."""
    if hasattr(value, "_fields"):
        defaults = value._field_defaults
        return {
            name_of(field): plain(item)
            for field, item in zip(value._fields, value, strict=True)
            if field not in defaults or defaults[field] != item
        }
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def schema(wanted: Any) -> dict[str, Any]:
    """The structural schema of *wanted* (apiextensions v1)."""
    wanted, said = _bare(wanted)
    if hasattr(wanted, "_fields"):
        return {**_schema_of_record(wanted), **said}
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is None:
        return {**_SCHEMAS[wanted], **said}
    if origin is typing.Literal:
        return {"type": "string", "enum": list(arguments), **said}
    if origin is tuple:
        return {"type": "array", "items": schema(arguments[0]), **said}
    if arguments[1] is Any:
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True, **said}
    return {"type": "object", "additionalProperties": schema(arguments[1]), **said}


def _bare(wanted: Any) -> tuple[Any, dict[str, Any]]:
    """*wanted* without Annotated and None, and what is said besides in its schema."""
    origin = typing.get_origin(wanted)
    if origin in {types.UnionType, typing.Union}:  # of a Literal and None it is the older one
        return _bare(typing.get_args(wanted)[0])
    if origin is not typing.Annotated:
        return wanted, {}
    inner, *notes = typing.get_args(wanted)
    bare, said = _bare(inner)
    for note in notes:
        said |= {"description": note} if isinstance(note, str) else note
    return bare, said


def _schema_of_record(wanted: Any) -> dict[str, Any]:
    hints = named.types(wanted)
    required = [name_of(field) for field in hints if field not in wanted._field_defaults]
    return {
        "type": "object",
        "properties": {name_of(field): schema(hint) for field, hint in hints.items()},
        **({"required": required} if required else {}),
    }


def _read_record(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    found = {}
    for field, hint in named.types(wanted).items():
        name = name_of(field)
        item = value.get(name)  # null is the same as none, as everywhere in Kubernetes
        if item is not None:
            found[field] = read(hint, item, f"{where}.{name}")
        elif field not in wanted._field_defaults:
            raise InvalidArgumentError(f"{where}.{name}: expected a value, there is none")
    return wanted(**found)


def _read_choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        raise _wrong(where, f"one of {', '.join(choices)}", value)
    return value


def _read_list(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    return tuple(read(kinds[0], item, f"{where}[{at}]") for at, item in enumerate(value))


def _read_map(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    return {key: read(kinds[1], item, f"{where}[{key}]") for key, item in value.items()}


def _read_plain(wanted: Any, value: Any, where: str) -> Any:
    if wanted is Any:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is int and type(value) is float and value.is_integer():
        return int(value)  # 1.0 is a whole number to JSON
    if type(value) is not wanted:  # bool is an int to isinstance, and JSON's true is no number
        raise _wrong(where, _WORDS[wanted], value)
    return value


def _wrong(where: str, expected: str, value: Any) -> InvalidArgumentError:
    return InvalidArgumentError(f"{where}: expected {expected}, is {repr(value)[:60]}")


_READERS: dict[Any, Any] = {typing.Literal: _read_choice, tuple: _read_list, dict: _read_map}
_WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
_SCHEMAS: dict[type, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number"},
}
