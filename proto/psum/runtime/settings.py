"""Settings: frozen dataclasses read from the environment, every mistake reported at once.

A side declares its settings as fields made by `setting`; `load` reads them. The same declarations give the command
line its flags and the documentation its table, so that there is one place that knows a name, a default and a meaning.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from psum.runtime.variables import unknown_variables, without_service_links
from psum.wire.errors import ConfigurationError


class Settings:
    """Base of a side's settings: a frozen dataclass of fields made by `setting`."""

    sources: Mapping[str, str] = MappingProxyType({})
    """What gave each value that is not a default: a variable, or the setting's own name where the program did. Empty
    where the settings were not made by `load`."""

    remarks: tuple[str, ...] = ()
    """What the environment says that does not count, though it looks as if it should."""

    def mistakes(self) -> Iterable[str]:
        """What is wrong with the values taken together."""
        return ()

    def warnings(self) -> Iterable[str]:
        """What can be used, but can hardly be meant: a sentence for each, to be logged once at the start."""
        return self.remarks


S = TypeVar("S", bound=Settings)


@dataclasses.dataclass(frozen=True, slots=True)
class Declaration:
    """What is known about one setting.

    Attributes:
        variables: The environment variables that give it, the first that is set wins; the first is its own name.
        deprecated: Further ones, that it had as its own name before.
        parse: Turns text into the value; raises ValueError with a text that says what was expected.
        meaning: One sentence for people.
        default_text: The default as people write it.
    """

    variables: tuple[str, ...]
    parse: Callable[[str], Any]
    meaning: str
    default_text: str
    deprecated: tuple[str, ...] = ()


def setting(
    *variables: str,
    default: Any,
    parse: Callable[[str], Any],
    meaning: str,
    default_text: str | None = None,
    deprecated: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that `load` can read; see Declaration."""
    text = str(default) if default_text is None else default_text
    declared = Declaration(variables, parse, meaning, text, deprecated)
    return dataclasses.field(default=default, metadata={"psum": declared}, kw_only=True)


def declarations(kind: type[Settings]) -> dict[str, Declaration]:
    """The declarations of a settings class by field name."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # The base has none itself.
    return {field.name: field.metadata["psum"] for field in fields}


def load(kind: type[S], environ: Mapping[str, str], given: Mapping[str, Any], remarks: Iterable[str] = ()) -> S:
    """Reads settings from the environment; what is given beats what the environment says.

    A variable whose name begins with PSUM_ and that is none of psum's is a mistake.

    Args:
        kind: The settings class.
        environ: The environment variables.
        given: Values by field name. Text is parsed as the environment's would be, other values are taken as they are;
            None stands for not given.
        remarks: See Settings.remarks.

    Raises:
        ConfigurationError: With every mistake that was found.
    """
    mistakes = list(unknown_variables(environ))
    environ = without_service_links(environ)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    known = declarations(kind)
    for unknown in sorted(given.keys() - known.keys()):
        mistakes.append(f"there is no setting {unknown!r}; there are {', '.join(sorted(known))}")
    for name, declared in known.items():
        source, value = name, given.get(name)
        if value is None:
            names = (*declared.variables, *declared.deprecated)
            source, value = next(((v, environ[v]) for v in names if environ.get(v)), (name, None))
        if value is None:
            continue
        sources[name] = source
        try:
            values[name] = declared.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            mistakes.append(f"{source}={value!r}: {error}")
    settings = kind(**values)
    # Not fields: two settings with the same values are the same.
    object.__setattr__(settings, "sources", sources)
    object.__setattr__(settings, "remarks", tuple(remarks))
    if not mistakes:
        mistakes.extend(settings.mistakes())
        if mistakes:
            # They may be the reason.
            mistakes.extend(settings.remarks)
    if mistakes:
        raise ConfigurationError(mistakes)
    return settings


def integer(least: int, most: int) -> Callable[[str], int]:
    """Parses a whole number within limits, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return value

    return parse


_SIZE_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(text: str) -> int:
    """Parses a size such as 1048576, 512KiB or 8GiB into bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _SIZE_UNITS:
        raise ValueError("expected a size such as 1048576, 512KiB, 16MiB or 8GiB")
    bytes_given = float(match[1]) * _SIZE_UNITS[match[2].lower()]
    if bytes_given >= 2**63:
        raise ValueError("expected a size of less than 2^63 bytes")
    return int(bytes_given)


_TIME_UNITS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

#: gRPC takes whole milliseconds in 31 bits.
_LEAST_SECONDS: Final = 0.001
_MOST_SECONDS: Final = 480 * 3600.0


def duration(text: str) -> float:
    """Parses a time such as 30, 30s, 1.5m or 200ms into seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _TIME_UNITS:
        raise ValueError("expected a time such as 30, 30s, 200ms or 2m")
    seconds = float(match[1]) * _TIME_UNITS[match[2].lower()]
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise ValueError(f"expected a time from {_LEAST_SECONDS * 1000:g}ms to {_MOST_SECONDS / 3600:g}h")
    return seconds


def choice(*allowed: str) -> Callable[[str], str]:
    """Parses one of the words, case aside."""

    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return word

    return parse


def items(parse: Callable[[str], Any] = str) -> Callable[[str], tuple[Any, ...]]:
    """Parses a list with commas, empty items left out."""
    return lambda text: tuple(parse(item.strip()) for item in text.split(",") if item.strip())
