"""What a failure is called wherever a client reads it: its code, and then the reason with the remedy."""

from sandpoint.printable import cut

MAX_ERROR = 4_000
"""How many characters of an error a model reads: arguments and names in it may be of any length."""


def coded(code: str, message: object) -> str:
    """Return the text of a failure, as the protocol can carry it: names of files in it may hold anything."""
    return cut(f"{code}: {message}", MAX_ERROR, lines=True)
