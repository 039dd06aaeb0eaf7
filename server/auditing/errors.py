"""What keeps a decision log from being opened."""


class AuditError(ValueError):
    """The decision log can't be kept as it was asked for; the message says why, and what to do."""
