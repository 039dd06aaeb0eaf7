"""Whether policy and keys speak of the same tenants: a misspelt one is a tenant whose rules hold for nobody."""

from collections.abc import Collection, Iterator

from guard.policy import Policy
from guard.scope import Match, any_glob


def unknown_tenants(policy: Policy, tenants: Collection[str]) -> tuple[str, ...]:
    """What rules and exceptions say of tenants that fits none of those in the key file."""
    matches = [(f"rule {rule.id}", rule.match) for rule in policy.rules]
    matches += [(f"exception {waiver.id}", waiver.match) for waiver in policy.waivers]
    return tuple(
        f"{owner}: '{glob}'"
        for owner, match in matches
        for glob in _globs(match)
        if not any(any_glob((glob,), tenant) for tenant in tenants)
    )


def _globs(match: Match) -> Iterator[str]:
    yield from (glob for glob in (*match.tenants, *match.not_tenants) if glob != "*")
