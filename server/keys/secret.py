"""The text of a key, `ilk_<id>_<secret>`. Only the hash of the secret is stored.

The secret has 192 random bits, so a fast hash is enough: there is nothing to guess.
"""

import re
import secrets
from dataclasses import dataclass, field
from hashlib import sha256

_ID_BYTES, _SECRET_BYTES = 5, 24
_TEXT = re.compile(r"ilk_([a-z0-9]{1,32})_([A-Za-z0-9]{32,128})", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. `text` is what its owner keeps, and is told once."""

    id: str
    text: str = field(repr=False)
    sha256: str


def make_key() -> NewKey:
    key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES)
    return NewKey(key_id, f"ilk_{key_id}_{secret}", hash_of(secret).hex())


def hash_of(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def split(text: str) -> tuple[str, str] | None:
    """A key's id and secret; None if this is no key."""
    found = _TEXT.fullmatch(text)
    return (found[1], found[2]) if found else None
