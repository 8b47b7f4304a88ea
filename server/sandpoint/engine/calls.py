"""The calls of an engine as they go over a wire: what each takes and returns is what its signature says."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from sandpoint.engine.capture import Ask
from sandpoint.engine.freezing import Freezer
from sandpoint.engine.operations import Engine
from sandpoint.engine.tools import Check, Monitor
from sandpoint.engine.wire import WireError

READ_FILE, CLOSE_FILE = "read_file", "close_file"
"""Two calls beside those of `Engine`: of the file that `open_file` returned."""

FILE = "file"
"""The argument of these that says which."""


@dataclass(frozen=True)
class Call:
    """A method of `Engine`."""

    name: str
    arguments: dict[str, TypeAdapter[Any]]
    """Those that go over the wire."""
    helpers: dict[str, object]
    """The others, by what they are: `Monitor`, `Check`, `Ask`, `Freezer`, or what is called once it has joined."""
    result: TypeAdapter[Any]
    returns_file: bool

    def pack(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments as they go over the wire."""
        return {name: adapter.dump_python(given[name]) for name, adapter in self.arguments.items()}

    def unpack(self, arrived: dict[str, Any]) -> dict[str, Any]:
        """Return arguments that arrived.

        Raises:
            WireError: They are not those of this call.
        """
        if arrived.keys() != self.arguments.keys():
            raise WireError(f"{self.name} takes {sorted(self.arguments)}, not {sorted(arrived)}")
        return {name: checked(adapter, arrived[name], self.name) for name, adapter in self.arguments.items()}


def checked(adapter: TypeAdapter[Any], value: object, what: str) -> Any:
    """Return what arrived as what it should be.

    Raises:
        WireError: It is something else.
    """
    try:
        return adapter.validate_python(value, strict=False)  # JSON has lists where the models have tuples
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)[:3]
        raise WireError(f"{what} came with something else than it should: {problems}") from None


def _describe(name: str, method: Callable[..., Any]) -> Call:
    hints = typing.get_type_hints(method, include_extras=True)
    result = hints.pop("return")
    helpers = {each: hint for each, hint in hints.items() if hint in _HELPERS}
    returns_file = result is BinaryIO
    return Call(
        name,
        {each: TypeAdapter(hint) for each, hint in hints.items() if hint not in _HELPERS},
        helpers,
        TypeAdapter(int if returns_file else result),
        returns_file,
    )


_HELPERS: tuple[object, ...] = (Monitor, Check, Ask, Freezer | None, Callable[[], object])

CALLS = {
    name: _describe(name, method)
    for name, method in inspect.getmembers(Engine, inspect.isfunction)
    if not name.startswith("_")
}
