"""What documents and manifests say of the code: written by `make docs`, held to by a test.

Between `<!-- tools -->` and `<!-- /tools -->`, say, README.md has a table of what a client of the server is told.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp_types import Prompt, Tool

from helpers.mcp import FakeService
from sandpoint.cli.failures import DEBUG
from sandpoint.mcp_server import build_server
from sandpoint.mcp_server.http_settings import HTTP_PREFIX, HttpSettings
from sandpoint.settings import PREFIX, R2_VARIABLES, Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BUNDLE = ROOT / "server" / "mcpb" / "manifest.json"
REGISTRY = ROOT / "server" / "server.json"

OF_OTHER_TOOLS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_CA_BUNDLE",
    "DOCKER_HOST",
)
"""Variables that Sandpoint leaves to boto3 and Docker's package, and that its users are told of."""

_SECRET = re.compile(r"(_KEY|_KEY_ID|_TOKEN|_TOKENS)$")


def variables() -> list[str]:
    """Return every variable that Sandpoint reads, and those that its users are told of."""
    own = [PREFIX + name.upper() for name in Settings.model_fields if name != "r2"]
    of_http = [HTTP_PREFIX + name.upper() for name in HttpSettings.model_fields]
    return [*own, *of_http, DEBUG, *R2_VARIABLES.values(), *OF_OTHER_TOOLS]


def settings_rows(readme: str) -> dict[str, tuple[str, str]]:
    """Return what README's tables of settings say: by variable its meaning and its default, without markup."""
    section = readme.split("\n## Settings\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \| (.*?) ?\|$", section, re.MULTILINE)
    return {name: (_plain(meaning), _plain(default)) for name, meaning, default in rows}


def expected() -> dict[Path, str]:
    """Return what each document would be if it were written now."""
    told = anyio.run(_Told.ask)
    readme = README.read_text()
    for name, table in told.tables().items():
        readme = _replaced(readme, name, table)
    return {
        README: readme,
        BUNDLE: _json(json.loads(BUNDLE.read_text()) | {"version": _version(), "tools": told.summaries()}),
        REGISTRY: _json(_registered(json.loads(REGISTRY.read_text()), readme)),
    }


def main() -> None:
    """Write the documents that are out of date, and name them."""
    for path, text in expected().items():
        if path.read_text() != text:
            path.write_text(text)
            print(f"written: {path.relative_to(ROOT)}")


class _Told:
    """What the server tells its clients."""

    def __init__(self, tools: Sequence[Tool], prompts: Sequence[Prompt], resources: Iterable[tuple[str, str]]) -> None:
        self.tools = tools
        self.prompts = prompts
        self.resources = resources

    @classmethod
    async def ask(cls) -> "_Told":
        async with Client(build_server(FakeService())) as client:
            tools = (await client.list_tools()).tools
            prompts = (await client.list_prompts()).prompts
            resources = (await client.list_resources()).resources
            templates = (await client.list_resource_templates()).resource_templates
        return cls(
            tools,
            prompts,
            [(str(each.uri), each.description or "") for each in resources]
            + [(each.uri_template, each.description or "") for each in templates],
        )

    def summaries(self) -> list[dict[str, str]]:
        return [{"name": tool.name, "description": _first_sentence(tool.description or "")} for tool in self.tools]

    def tables(self) -> dict[str, str]:
        tools = [
            (f"`{tool.name}`", _first_sentence(tool.description or "").removesuffix("."), _effect(tool))
            for tool in self.tools
        ]
        prompts = [
            (
                f"`{prompt.name}`",
                ", ".join(f"`{argument.name}`" for argument in prompt.arguments or ()),
                _first_sentence(prompt.description or "").removesuffix("."),
            )
            for prompt in self.prompts
        ]
        resources = [(f"`{uri}`", _first_sentence(told).removesuffix(".")) for uri, told in self.resources]
        return {
            "tools": _table(("tool", "what it does", "effect"), tools),
            "prompts": _table(("prompt", "arguments", "what it asks of the agent"), prompts),
            "resources": _table(("resource", "what it is"), resources),
        }


def _effect(tool: Tool) -> str:
    hints = tool.annotations
    if hints is None or hints.read_only_hint is None or hints.destructive_hint is None:
        raise ValueError(f"{tool.name} does not say what it does to its surroundings")
    if hints.read_only_hint:
        return "reads"
    return "changes or removes" if hints.destructive_hint else "adds"


def _first_sentence(text: str) -> str:
    first, stop, _ = " ".join(text.split()).partition(". ")
    return first + stop.rstrip()


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _replaced(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"README.md has no lines {begin.strip()} and {end.strip()} for the table of {name}")
    return before + begin + content + end + after


def _registered(server: dict[str, Any], readme: str) -> dict[str, Any]:
    [package] = server["packages"]
    server["version"] = package["version"] = _version()
    package["environmentVariables"] = [
        {"name": name, "description": _sentence(meaning) + (f" Default: {default}." if default else "")}
        | ({"isSecret": True} if _SECRET.search(name) else {})
        for name, (meaning, default) in settings_rows(readme).items()
    ]
    return server


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", markdown).replace("`", "").strip()


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
