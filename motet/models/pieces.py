"""What the tokens of a tokenizer stand for, whatever way its vocabulary spells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from motet.models.tokenizer import BYTE_TOKEN, REPLACEMENT, Tokenizer, byte_of_char

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Kind = Literal["text", "byte", "added", "special"]
SPACE = "\u2581"  # as SentencePiece writes it (Kudo & Richardson 2018)


class Piece(NamedTuple):
    """`kind`: of ordinary text, one byte that no text has (`<0xE2>`), added to the vocabulary, special. `data`: the
    bytes that it stands for behind other text. `spelling`: the vocabulary's own."""

    kind: Kind
    data: bytes
    spelling: str


def pieces_of(backend: Backend) -> dict[int, Piece]:
    """By id, in ascending order: all tokens, added ones included."""
    table = {ord(char): byte for char, byte in byte_of_char().items()} if _is_byte_level(backend) else None
    added = backend.get_added_tokens_decoder()
    found = {token: _piece(spelling, table) for spelling, token in backend.get_vocab(with_added_tokens=False).items()}
    for token, content in added.items():
        found[token] = Piece("special" if content.special else "added", content.content.encode(), content.content)
    return dict(sorted(found.items()))


def _piece(spelling: str, table: dict[int, int] | None) -> Piece:
    if table is None:
        match = BYTE_TOKEN.fullmatch(spelling)
        data = bytes([int(match[1], 16)]) if match else spelling.replace(SPACE, " ").encode("utf-8", "surrogatepass")
        return Piece("byte" if match else "text", data, spelling)
    try:
        return Piece("text", spelling.translate(table).encode("latin-1"), spelling)
    except UnicodeEncodeError:  # not made of bytes: as it stands
        return Piece("text", spelling.encode("utf-8", "surrogatepass"), spelling)


def _is_byte_level(backend: Backend) -> bool:
    return backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()


def spelled(data: bytes, tokenizer: Tokenizer) -> list[int]:
    """How a tokenizer writes a piece of text that stands behind other text: at least one id. Bytes that are no whole
    characters are written one by one; where it has no token for them, as the character that stands for such."""
    try:
        ids = _behind_text(data.decode(), tokenizer)
    except UnicodeDecodeError:
        single = [_single(byte, tokenizer.backend) for byte in data]
        ids = [token for token in single if token is not None]
        ids = ids if len(ids) == len(data) else []
    return ids or _behind_text(REPLACEMENT, tokenizer) or [tokenizer.start_id or 0]


def _behind_text(text: str, tokenizer: Tokenizer) -> list[int]:
    """Behind a line's end, so that tokenizers which begin every text with a space leave it out; nothing of an empty
    text."""
    before, whole = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    return whole[len(before) :] if whole[: len(before)] == before else tokenizer.encode(text)


def _single(byte: int, backend: Backend) -> int | None:
    if not _is_byte_level(backend):
        return backend.token_to_id(f"<0x{byte:02X}>")
    char = next(char for char, value in byte_of_char().items() if value == byte)
    return backend.token_to_id(char)
