"""Settings: frozen dataclasses that are read from the environment. One error reports all mistakes.

Each side declares its settings as fields made by `setting`, and `load` reads them. The flags of the command line and
the tables in the documentation come from the same declarations.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from psum.runtime.variables import unknown_variables, without_service_links
from psum.wire.errors import ConfigurationError


class Settings:
    """Base class of a side's settings, which is a frozen dataclass of fields made by `setting`."""

    sources: Mapping[str, str] = MappingProxyType({})
    """Where each value that is not a default came from: a variable, or the setting's own name if the program gave it.
    Empty if the settings were not made by `load`."""

    remarks: tuple[str, ...] = ()
    """Sentences about variables that have no effect although they look as if they had."""

    def mistakes(self) -> Iterable[str]:
        """Return a sentence for each error in the combination of values."""
        return ()

    def warnings(self) -> Iterable[str]:
        """Return a sentence for each valid but unlikely combination of values. They are logged once at the start."""
        return self.remarks


S = TypeVar("S", bound=Settings)


@dataclasses.dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration of one setting.

    Attributes:
        variables: The environment variables for it. The first one is its own name. The first one that is set counts.
        deprecated: Its former names, which are tried last.
        parse: Converts text to the value. Raises ValueError with a text that says what was expected.
        meaning: One sentence for people.
        default_text: The default as text.
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
    """Return a dataclass field that `load` can read; see Declaration."""
    text = str(default) if default_text is None else default_text
    declared = Declaration(variables, parse, meaning, text, deprecated)
    return dataclasses.field(default=default, metadata={"psum": declared}, kw_only=True)


def declarations(kind: type[Settings]) -> dict[str, Declaration]:
    """Return the declarations of a settings class by field name."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # The base class itself is no dataclass.
    return {field.name: field.metadata["psum"] for field in fields}


def load(kind: type[S], environ: Mapping[str, str], given: Mapping[str, Any], remarks: Iterable[str] = ()) -> S:
    """Read settings from the environment and from given values, which take precedence.

    An unknown variable whose name begins with PSUM_ is a mistake.

    Args:
        kind: The settings class.
        environ: The environment variables.
        given: Values by field name. Text is parsed as in the environment, other values are taken unchanged. None means
            not given.
        remarks: See Settings.remarks.

    Raises:
        ConfigurationError: There are mistakes. The error lists all of them.
    """
    mistakes = list(unknown_variables(environ))
    environ = without_service_links(environ)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    known = declarations(kind)
    for unknown in sorted(given.keys() - known.keys()):
        mistakes.append(f"there is no setting {unknown!r}; the settings are {', '.join(sorted(known))}")
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
    # These are not fields, so that settings with the same values are equal.
    object.__setattr__(settings, "sources", sources)
    object.__setattr__(settings, "remarks", tuple(remarks))
    if not mistakes:
        mistakes.extend(settings.mistakes())
        if mistakes:
            # A variable without effect may be the cause.
            mistakes.extend(settings.remarks)
    if mistakes:
        raise ConfigurationError(mistakes)
    return settings


def replaced(settings: S, **values: Any) -> S:
    """Return settings with some other values, whose sources and remarks are those of the given settings."""
    new = dataclasses.replace(settings, **values)  # type: ignore[type-var]  # The base class itself is no dataclass.
    object.__setattr__(new, "sources", settings.sources)
    object.__setattr__(new, "remarks", settings.remarks)
    return new
