"""Claude Code itself, with a script where it expects a model."""

import json
import os
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Use:
    """A tool that the model uses."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """What Claude Code shows the model of a tool's result."""

    text: str
    is_error: bool


Script = Generator[Use, Shown, str]
"""A model: it yields the tools that it uses, is sent what they say, and returns its last words."""


def sandpoint(tool: str, **arguments: Any) -> Use:
    """Use a tool of the server."""
    return Use(f"mcp__sandpoint__{tool}", arguments)


class ScriptedModel:
    """A server of the Messages API on this machine, for the time of a block, whose only model is a script."""

    def __init__(self, script: Script) -> None:
        self.requests: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self._script = script
        self._used = 0

    def __enter__(self) -> Self:
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                blocks = model.answer(request)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for event in _events(request["model"], blocks):
                    self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

            def log_message(self, *_: object) -> None:
                """The test's output is no place for it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Return its base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what the model says next."""
        self.requests.append(request)
        try:
            use = self._script.send(self._shown(request)) if self._used else next(self._script)
        except StopIteration as end:
            return [{"type": "text", "text": end.value}]
        except Exception as error:  # noqa: BLE001 - what a script finds wrong is raised when the run has ended
            self.failure = error
            return [{"type": "text", "text": "The script failed."}]
        self._used += 1
        return [{"type": "tool_use", "id": self._use_id, "name": use.tool, "input": use.arguments}]

    @property
    def _use_id(self) -> str:
        return f"toolu_{self._used}"

    def _shown(self, request: dict[str, Any]) -> Shown:
        [result] = [
            block
            for message in request["messages"]
            if isinstance(message["content"], list)
            for block in message["content"]
            if block.get("tool_use_id") == self._use_id
        ]
        content = result["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        return Shown(text, bool(result.get("is_error")))

    @property
    def told(self) -> str:
        """Return all texts that the model had read when it was first asked, less the tools' schemas."""
        first = self.requests[0]
        return "\n".join(
            block["text"] for message in first["messages"] for block in _blocks(message) if "text" in block
        )

    def tools(self, number: int) -> dict[str, dict[str, Any]]:
        """Return the tools, by name, whose schemas the model was given with a request: the first is 0, the last -1."""
        return {tool["name"]: tool for tool in self.requests[number]["tools"]}


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _events(model: str, blocks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message | {"usage": {"input_tokens": 1, "output_tokens": 1}}}
    ]
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            start: dict[str, Any] = {"text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            start = {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        events += [
            {"type": "content_block_start", "index": index, "content_block": block | start},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    reason = "tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn"
    return [
        *events,
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]


_PATIENCE = {"CLAUDE_CODE_MCP_STARTUP_WAIT_MS": "120000", "MCP_TIMEOUT": "120000"}
"""It waits for servers before it asks the model: on a busy machine for longer than a person would."""


@dataclass
class ClaudeCode:
    """Claude Code without a person, and with settings of its own below `base`."""

    base: Path
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, model: str = "http://127.0.0.1:9") -> str:
        """Run it to its end, which must be a good one, and return what it printed."""
        own = {
            name: self._folder(name.lower()) for name in ("HOME", "CLAUDE_CONFIG_DIR", "CLAUDE_CODE_TMPDIR", "TMPDIR")
        }
        quiet = ("DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC")
        done = subprocess.run(
            [_program(), *arguments],
            cwd=self.cwd,
            env={
                "PATH": os.environ["PATH"],
                "ANTHROPIC_BASE_URL": model,
                "ANTHROPIC_API_KEY": "none",
                **own,
                **dict.fromkeys(quiet, "1"),
                **_PATIENCE,
                **self.env,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def prompt(
        self, script: Script, *arguments: str, text: str = "Go on.", settings: Mapping[str, Any] | None = None
    ) -> tuple[ScriptedModel, dict[str, Any]]:
        """Let a script work as the model, until it has nothing more to do; return it, and how the run ended."""
        with ScriptedModel(script) as model:
            printed = self.run(
                *("--print", text, "--output-format", "json", "--settings", json.dumps(settings or {})),
                *arguments,
                model=model.url,
            )
        if model.failure is not None:
            raise model.failure
        ended = json.loads(printed)
        assert not ended["is_error"], ended
        return model, ended

    def _folder(self, name: str) -> str:
        folder = self.base / name
        folder.mkdir(exist_ok=True)
        return str(folder)


def _program() -> str:
    spec = find_spec("claude_agent_sdk")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "_bundled" / "claude")
