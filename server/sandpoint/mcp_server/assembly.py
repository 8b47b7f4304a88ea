"""The page put together: its styles and scripts go into the one document that a host or a browser is given."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

_PART = re.compile(
    r'<link rel="stylesheet" href="(?P<style>[\w-]+\.css)">|<script src="(?P<script>[\w-]+\.js)"></script>'
)
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


@cache
def read_page() -> str:
    """Return the page as one document that loads nothing.

    Raises:
        OSError: A part of the installation is missing.
    """
    folder = files("sandpoint.mcp_server") / "timeline"

    def inlined(part: re.Match[str]) -> str:
        tag = "style" if part["style"] else "script"
        return f"<{tag}>{(folder / part[part.lastgroup or 0]).read_text('utf-8')}</{tag}>"

    return _PART.sub(inlined, (folder / "page.html").read_text("utf-8"))


def content_policy() -> str:
    """Return the Content-Security-Policy of the page in a window of its own.

    It may run and look like what it was delivered with, and speak to where it came from; nothing else, and nobody may
    frame it. Where a script would make markup of text, the browser refuses (Trusted Types).
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(_hashes('script'))}",
            f"style-src {' '.join(_hashes('style'))}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _hashes(tag: str) -> Iterator[str]:
    for inline in _INLINE.finditer(read_page()):
        if inline[1] == tag:
            yield f"'sha256-{b64encode(hashlib.sha256(inline[2].encode()).digest()).decode()}'"
