"""Command-line flags made from the fields of a frozen dataclass, through absl. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags, logging

T = TypeVar("T")


class OptionError(ValueError):
    """A flag that cannot be: unknown, malformed or in contradiction to another. The message names the fix."""


def option(default: Any, help_text: str, *, unit: str = "", choices: Sequence[str] = ()) -> Any:
    """A dataclass field that is also a flag. `unit` is shown by --help; `choices` are the allowed values."""
    return dataclasses.field(default=default, metadata={"help": help_text, "unit": unit, "choices": tuple(choices)})


def _parse_value(name: str, text: str, kind: Any) -> Any:
    """Turns the text of a flag into the field's type: str, int, float, bool or a tuple of numbers."""
    origin = typing.get_origin(kind)
    try:
        if origin is tuple:
            number = typing.get_args(kind)[0]
            return tuple(number(part) for part in text.split(",") if part.strip())
        return kind(text)
    except ValueError:
        wanted = "numbers separated by commas" if origin is tuple else kind.__name__
        raise OptionError(f"--{name}: expected {wanted}. Received: {text!r}.") from None


def _define(cls: type) -> tuple[flags.FlagValues, dict[str, Any]]:
    values, kinds = flags.FlagValues(), typing.get_type_hints(cls)
    flags.DEFINE_string("flagfile", "", "Read flags from this file, one a line.", flag_values=values)
    for field in dataclasses.fields(cls):
        # Defaults stay out of absl: only what the user wrote may override a preset.
        if kinds[field.name] is bool:
            flags.DEFINE_boolean(field.name, None, field.metadata["help"], flag_values=values)
        else:
            flags.DEFINE_string(field.name, None, field.metadata["help"], flag_values=values)
    return values, kinds


def _flagfiles_first(argv: Sequence[str]) -> list[str]:
    """Moves --flagfile before all else: absl reads left to right, and the command line is to win wherever it stands."""
    files, rest, position = [], [], 0
    while position < len(argv):
        word = argv[position]
        if word in ("--flagfile", "-flagfile"):
            files += list(argv[position : position + 2])
            position += 1
        elif word.lstrip("-").startswith("flagfile=") and word.startswith("-"):
            files.append(word)
        else:
            rest.append(word)
        position += 1
    return files + rest


def parse(cls: type[T], argv: Sequence[str], presets: Mapping[str, Mapping[str, Any]] | None = None) -> T:
    """Builds `cls` from a command line. Precedence: default < preset < flagfile < command line.

    Args:
        argv: Words after the program's name.
        presets: Values by preset name; the field `preset` chooses one.

    Raises:
        OptionError: Unknown flag, value of the wrong type, value not among the choices, words without a flag.
    """
    values, kinds = _define(cls)
    try:
        left_over = values(["program", *_flagfiles_first(argv)])[1:]
    except flags.Error as error:
        raise OptionError(f"{error} (--help lists every flag)") from None
    if left_over:
        raise OptionError(f"Expected flags only, each as --name=value. Received: {' '.join(left_over)!r}.")
    given: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        flag = values[field.name]
        if flag.present:
            kind = kinds[field.name]
            given[field.name] = flag.value if kind is bool else _parse_value(field.name, str(flag.value), kind)
    preset_name = given.get("preset", "")
    if preset_name and preset_name not in (presets or {}):
        raise OptionError(f"--preset: expected one of {sorted(presets or {})}. Received: {preset_name!r}.")
    config = cls(**(dict((presets or {}).get(preset_name, {})) | given))
    check_choices(config)
    return config


def check_choices(config: Any) -> None:
    """Raises OptionError for a field whose value is not among its choices."""
    for field in dataclasses.fields(config):
        choices, value = field.metadata["choices"], getattr(config, field.name)
        if choices and value not in choices:
            raise OptionError(f"--{field.name}: expected one of {', '.join(choices)}. Received: {value!r}.")


def help_text(cls: type, program: str, presets: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Every flag with its unit, choices, default and meaning, and what each preset sets."""
    lines = [
        (cls.__doc__ or "").strip().split("\n")[0],
        "",
        f"usage: python -m {program} [--flagfile=FILE] [flags]",
        "",
    ]
    for field in dataclasses.fields(cls):
        meta, default = field.metadata, field.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        details = [f"unit: {meta['unit']}"] if meta["unit"] else []
        details += ["|".join(meta["choices"])] if meta["choices"] else []
        details += [f"default: {shown!r}" if isinstance(default, str) else f"default: {shown}"]
        lines += [f"  --{field.name}  ({'; '.join(details)})", f"      {meta['help']}"]
    for name, preset in (presets or {}).items():
        shown = ", ".join(f"{key}={value}" for key, value in preset.items())
        lines += ["", f"  --preset={name}: {shown}"]
    return "\n".join(lines) + "\n"


def run_command(
    cls: type[T],
    program: str,
    argv: Sequence[str],
    command: Callable[[T], int],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Parses, runs, and turns an error a user can mend into one line. Returns the exit code.

    0: done; 1: the command failed or its result is below what was asked; 2: the flags are wrong.
    """
    if any(word in ("--help", "-help", "-h", "--helpfull", "--helpshort") for word in argv):
        sys.stdout.write(help_text(cls, program, presets))
        return 0
    # Read by TensorFlow and ONNX Runtime when they are imported: their start-up notes would hide the progress lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow would take all of a GPU's memory and leave none to ONNX Runtime.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    flags.FLAGS(["program"])  # absl's logging asks absl's own, empty, set of flags
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    logging.get_absl_handler().setFormatter(None)
    try:
        config = parse(cls, argv, presets)
    except OptionError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    try:
        return command(config)
    except OptionError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("SEMISAM_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {error}\n(SEMISAM_TRACEBACK=1 shows where)\n")
        return 1
