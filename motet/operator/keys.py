"""The keys by which clients are known: how they are written down, and what is wrong with one.

Of a key its SHA-256 is enough: `sha256:` and 64 hexadecimal digits (`printf %s KEY | sha256sum`) keep the key itself
out of the operator's file. It may have a name (`alice: KEY`), by which policies and the audit log call it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sha256:"
SENDABLE = re.compile(r"[!-~]+")  # what every client can send in a header as it stands
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]{0,63}):(\s+(?P<key>.*))?", re.DOTALL)
ID_DIGITS = 12  # hexadecimal, of the digest of a key without a name


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the server knows it: `id` is its name, or the beginning of its digest; neither lets anybody in."""

    id: str
    digest: bytes

    @classmethod
    def read(cls, written: str) -> Key:
        """A key that `problem` finds nothing wrong with."""
        name, key = split(written)
        digest = digest_written(key)
        return cls(name or f"{PREFIX}{digest.hex()[:ID_DIGITS]}", digest)


def split(written: str) -> tuple[str | None, str]:
    """(name, key) of `NAME: KEY`; a key alone has no name."""
    named = NAMED.fullmatch(written.strip())
    return (named["name"], named["key"] or "") if named else (None, written)


def digest_of(key: str) -> bytes:
    """SHA-256 of what a client sends."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def digest_written(written: str) -> bytes:
    """SHA-256 of the key that an operator wrote down, as it is or hashed."""
    return bytes.fromhex(written.removeprefix(PREFIX)) if written.startswith(PREFIX) else digest_of(written)


def problem(written: str) -> str | None:
    """Why it can be no key, without telling it; None where it can."""
    _, written = split(written)
    if not written.strip():
        return "a key is empty: clients could send it without knowing it"
    if written.startswith(PREFIX):
        if not DIGEST.fullmatch(written.removeprefix(PREFIX)):
            return f"a hashed key is {PREFIX} and 64 hexadecimal digits (printf %s KEY | sha256sum)"
        is_of_nothing = digest_written(written) in (digest_of(""), digest_of("\n"))
        return "a hashed key is that of an empty text: was its variable set?" if is_of_nothing else None
    return None if SENDABLE.fullmatch(written) else "a key has characters other than visible ASCII, or spaces"


def read_keys(file: Path) -> list[str]:
    """One key per line, `NAME: KEY` or alone; empty lines and those that begin with `#` are none.

    Raises:
        ValueError: it cannot be read, holds no key, or one that can be none.
    """
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text") from error
    keys = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
    if not keys:
        raise ValueError(f"{file} holds no key: everybody would be let in")
    for number, key in keys.items():
        if (wrong := problem(key)) is not None:
            raise ValueError(f"{file}, line {number}: {wrong}")
    return list(keys.values())
