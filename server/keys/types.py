"""Keys, and who asks with one. A key says which tenant asks; the tenant says which rules of the policy hold."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from server.limits.allowance import Allowance
from server.limits.types import Limit
from server.scheduling.types import Priority, Standing


class KeyScope(StrEnum):
    """What a key may do. None includes another."""

    INFER = "infer"  # the API
    DEBUG = "debug"  # see monitors' names and scores: `moderation`, /metrics
    ADMIN = "admin"  # the admin port


class BlockStyle(StrEnum):
    """How clients are told of a block."""

    OPENAI = "openai"
    REFUSAL_200 = "refusal_200"
    AZURE = "azure"


@dataclass(frozen=True, slots=True)
class Key:
    """One key, as far as the server knows it: never its secret."""

    id: str
    tenant: str
    secret_sha256: bytes  # 32 bytes
    scopes: frozenset[KeyScope]
    expires: datetime | None = None  # aware
    limits: tuple[Limit, ...] = ()  # its own, and its tenant's
    weight: float = 1.0  # of its tenant
    priority: Priority = Priority.NORMAL
    block_style: BlockStyle | None = None  # None: the server's


@dataclass(frozen=True, slots=True)
class Client:
    """Who sends a request, and what it may use. Set from its key by the server; nothing else in a request has a say."""

    tenant: str = "default"
    key_id: str = ""  # empty: the server has no keys
    scopes: frozenset[KeyScope] = frozenset({KeyScope.INFER, KeyScope.ADMIN})
    standing: Standing = field(default_factory=Standing)  # in the line
    allowance: Allowance = field(default_factory=Allowance, compare=False)
    block_style: BlockStyle | None = None  # None: the server's

    @property
    def may_debug(self) -> bool:
        return KeyScope.DEBUG in self.scopes


def anyone() -> Client:
    """Everybody, on a server without keys: whoever reaches a port may use it."""
    return Client()
