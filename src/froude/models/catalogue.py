"""Named models, and `resolve`: a name, a ``config.json`` or a YAML file becomes an `Architecture`."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from froude.core.errors import FroudeError, InvalidValueError, UnknownNameError
from froude.models.architecture import Architecture
from froude.models.huggingface import from_config

_ENDINGS = re.compile(r"-(hf|instruct|chat|base|it|fp8|nvfp4|fp4|bf16|fp16|awq|gptq|int4|int8)$")


def resolve(model: str) -> Architecture:
    """The architecture that ``model`` names.

    Args:
        model: a name of the catalogue (case, organisation, dashes and endings such as -instruct do not matter; part of
            one will do if it fits one model only), a ``config.json`` or its folder, or a YAML file of `Architecture`
            fields.

    Raises:
        FroudeError: one sentence naming the nearest model, or what is wrong with the file.
    """
    path = Path(model)
    if model and path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidValueError("model", model, "is a folder without a config.json")
        return read_config(path / "config.json")
    if path.suffix == ".json":
        return read_config(path)
    if path.suffix in {".yaml", ".yml"}:
        return Architecture.read(path)
    return find_model(model)


def read_config(path: Path) -> Architecture:
    """A Hugging Face ``config.json``."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FroudeError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise FroudeError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}; is it truncated?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FroudeError(f"{path}: cannot be read ({error})") from None
    return from_config(data, where=str(path))


def list_models(model: str | None = None) -> list[Architecture]:
    """Every model of the catalogue, or the one that ``model`` names, as `resolve` reads it."""
    return [_model(name) for name in _catalogue()] if model is None else [resolve(model)]


def find_model(name: str) -> Architecture:
    """A model of the catalogue by name, alias or unambiguous part of a name that starts where a word does.

    Raises:
        FroudeError: naming the nearest model, or the several that fit.
    """
    table = _aliases()
    key = _fold(name)
    fitting = (
        {table[key]} if key in table else {full for alias, full in table.items() if key and f"-{key}" in f"-{alias}"}
    )
    if len(fitting) > 1:
        some = sorted(fitting)
        rest = f" and {len(some) - 5} more" if len(some) > 5 else ""
        raise InvalidValueError("model", name, f"fits several models: {', '.join(some[:5])}{rest}")
    if not fitting:
        raise UnknownNameError("model", name, [*_catalogue(), *(full.rpartition("/")[2] for full in _catalogue())])
    return _model(fitting.pop())


@functools.cache
def _model(name: str) -> Architecture:
    fields = {key: value for key, value in _catalogue()[name].items() if key != "aliases"}
    return Architecture.parse({"name": name, **fields}, where=f"catalogue.toml, {name}")


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    data = tomllib.loads(resources.files(__package__).joinpath("catalogue.toml").read_text("utf-8"))
    families = data["families"]
    return {name: {**families[fields["family"]], **fields} for name, fields in data["models"].items()}


@functools.cache
def _aliases() -> dict[str, str]:
    table: dict[str, str] = {}
    for name, fields in _catalogue().items():
        for alias in (name, *fields.get("aliases", ())):
            key = _fold(alias)
            if table.setdefault(key, name) != name:
                raise LookupError(f"catalogue.toml: {alias!r} names both {table[key]} and {name}")
    return table


def _fold(name: str) -> str:
    """What names are compared by."""
    short = name.lower().rpartition("/")[2].replace("_", "-").strip()
    while (bare := _ENDINGS.sub("", short)) != short:
        short = bare
    return short.replace("-", "").replace(" ", "")
