"""Text that is safe to show to a person, whoever chose it."""

import unicodedata


def printable(text: str, *, lines: bool = False) -> str:
    """Return text in which nothing can move the cursor, hide or reorder what is printed.

    Control, format and unassigned characters become backslash escapes; with `lines`, newlines and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs" or (lines and character in "\n\t")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def cut(text: str, limit: int, *, lines: bool = False) -> str:
    """Return text in its printable form, its middle left out where that has more than so many characters."""
    head = limit // 2
    if len(text) > limit:  # of a name of megabytes only what can be shown is looked at
        text = f"{text[:limit]}{text[-limit:]}"
    shown = printable(text, lines=lines)
    return shown if len(shown) <= limit else f"{shown[:head]}\u2026{shown[-head + 1 :]}"
