"""A tree like a `node_modules`: for the same number and seed the same files, links, modes and times."""

import os
import random
from dataclasses import dataclass
from itertools import accumulate

DEFAULT_FILES = 64_000
SEED = 2026

_TEXT = """
    const let return function export import default from require module exports async await this new
    class extends constructor prototype typeof instanceof undefined null true false if else for while
    switch case break continue throw try catch finally options config callback error result value key
    index length name type path file data buffer stream event listener handler request response status
    message context state props children element node parent target source input output token parser
    lexer scope visitor plugin Object Array String Number Boolean Promise Map Set Symbol Error JSON Math
    keys values entries map filter reduce forEach push slice splice concat join split replace match test
    exec indexOf includes apply call bind
"""
_WORDS = _TEXT.split()
_JOINS = [" ", " ", ".", ", ", " = ", "(", ") ", " { ", ": ", " => ", " === ", "; ", "['", "'] ", " && "]
_FOLDERS = [
    "lib",
    "dist",
    "src",
    "esm",
    "cjs",
    "types",
    "utils",
    "helpers",
    "internal",
    "core",
    "build",
    "test",
]
_SCOPES = ("@babel", "@types", "@jest", "@rollup", "@vue", "@angular", "@webassemblyjs", "@nodelib")
_TEXT_ENDINGS = (".js",) * 11 + (".d.ts",) * 3 + (".js.map",) * 2 + (".json", ".md", ".mjs", ".css")
_BINARY_ENDINGS = (".png", ".woff2", ".wasm", ".node")
_LONGEST = 2_500_000
_DEEPEST = 7
_LINES_OF_A_PACKAGE = 320


@dataclass
class Tree:
    """What was made. `files` counts all but directories, as a backup's `file_count` does."""

    files: int = 0
    directories: int = 1
    symlinks: int = 0
    hard_links: int = 0
    bytes: int = 0


def generate(root: str, files: int = DEFAULT_FILES, seed: int = SEED, *, shorter_than: int | None = None) -> Tree:
    """Make a tree of so many files in a new directory.

    Args:
        root: The directory.
        files: How many.
        seed: Of all that is random.
        shorter_than: Make files of sizes spread evenly below this: a large tree is made sooner. (A single size for
            all would be sooner still, but mksquashfs compares all files of one size with one another.)
    """
    return _Generator(root, files, seed, shorter_than).run()


class _Generator:
    def __init__(self, root: str, files: int, seed: int, shorter_than: int | None) -> None:
        self.random = random.Random(seed)
        self.root = root
        self.files = files
        self.shorter_than = shorter_than
        self.tree = Tree()
        self.directories = [root]
        self.packages: list[str] = []
        self.vocabulary = _vocabulary(self.random)
        self.lines = self.vocabulary
        self.licences = [self._text(size) for size in (1_063, 1_079, 11_358, 745)]

    def run(self) -> Tree:
        os.mkdir(self.root)
        modules = self._directory(self.root, "node_modules")
        commands = self._directory(modules, ".bin")
        while self.tree.files < self.files:
            self._package(modules)
            if self.tree.files < self.files and self.random.random() < 0.15:
                self._symlink(commands)
        # Last, and from the bottom up: each entry made in a directory moves the directory's own time.
        for path in reversed(self.directories):
            self._set_time(path)
        return self.tree

    def _package(self, modules: str) -> None:
        package = self._new_package(modules)
        # The files of a package resemble each other, as source code does: it compresses to about a fifth.
        start = self.random.randrange(len(self.vocabulary) - _LINES_OF_A_PACKAGE)
        self.lines = self.vocabulary[start : start + _LINES_OF_A_PACKAGE]
        amount = min(900, max(3, int(self.random.lognormvariate(2.9, 1.2))), self.files - self.tree.files)
        folders = [(package, 0)]
        for number in range(amount // 14):
            parent, depth = self.random.choice(folders)
            name = self.random.choice(_FOLDERS)
            if depth < _DEEPEST:
                folders.append((self._directory(parent, f"{name}{number}" if number else name), depth + 1))
        self._file(package, "package.json", 1_200, b"{", 0o644)
        for number in range(1, amount):
            self._entry(self.random.choice(folders)[0], number)

    def _new_package(self, modules: str) -> str:
        number = len(self.packages)
        if self.packages and self.random.random() < 0.12:
            modules = self._directory(self.random.choice(self.packages), "node_modules")
        elif self.random.random() < 0.25:
            modules = self._directory(modules, self.random.choice(_SCOPES))
        name = f"{self.random.choice(_WORDS).lower()}-{self.random.choice(_WORDS).lower()}-{number}"
        package = self._directory(modules, name)
        self.packages.append(package)
        return package

    def _entry(self, folder: str, number: int) -> None:
        draw = self.random.random()
        if draw < 0.004:
            self._hard_link(folder, number)
        elif draw < 0.02:
            size = int(self.random.lognormvariate(9.6, 1.1))
            self._file(folder, f"asset-{number}{self.random.choice(_BINARY_ENDINGS)}", size, b"", 0o644)
        elif draw < 0.05:
            self._write(os.path.join(folder, f"LICENSE-{number}"), self.random.choice(self.licences), 0o644)
        else:
            size = int(self.random.lognormvariate(7.7, 1.65))
            mode = 0o755 if draw < 0.07 else 0o644
            ending = self.random.choice(_TEXT_ENDINGS)
            self._file(folder, f"{self.random.choice(_WORDS)}-{number}{ending}", size, b"'use strict';\n", mode)

    def _file(self, folder: str, name: str, size: int, head: bytes, mode: int) -> None:
        size = min(_LONGEST, size) if self.shorter_than is None else self.random.randrange(self.shorter_than)
        content = head + self._text(size) if head else self.random.randbytes(size)
        self._write(os.path.join(folder, name), content, mode)

    def _write(self, path: str, content: bytes, mode: int) -> None:
        with open(path, "xb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        self._set_time(path)
        self.tree.files += 1
        self.tree.bytes += len(content)

    def _hard_link(self, folder: str, number: int) -> None:
        package = self.random.choice(self.packages)
        os.link(os.path.join(package, "package.json"), os.path.join(folder, f"shared-{number}.json"))
        self.tree.files += 1
        self.tree.hard_links += 1

    def _symlink(self, commands: str) -> None:
        package = os.path.relpath(self.packages[-1], commands)
        path = os.path.join(commands, os.path.basename(package))
        os.symlink(os.path.join(package, "package.json"), path)
        self._set_time(path)
        self.tree.files += 1
        self.tree.symlinks += 1

    def _directory(self, parent: str, name: str) -> str:
        path = os.path.join(parent, name)
        try:
            os.mkdir(path)
        except FileExistsError:
            return path
        self.directories.append(path)
        self.tree.directories += 1
        return path

    def _text(self, size: int) -> bytes:
        return b"".join(self.random.choices(self.lines, k=size // 30 + 1))[:size]

    def _set_time(self, path: str) -> None:
        moment = 1_750_000_000_000_000_000 + self.random.randrange(30_000_000_000_000_000)
        os.utime(path, ns=(moment, moment), follow_symlinks=False)


def _vocabulary(source: random.Random) -> list[bytes]:
    names = _WORDS + [
        a + b.capitalize() + c.capitalize() for a, b, c in (source.choices(_WORDS, k=3) for _ in range(4_000))
    ]
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(names))))
    lines = []
    for _ in range(30_000):
        words = source.choices(names, cum_weights=weights, k=source.randint(1, 7))
        text = "  " * source.randrange(5) + "".join(word + source.choice(_JOINS) for word in words)
        lines.append(text.rstrip().encode() + b"\n")
    return lines
