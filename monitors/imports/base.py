"""What importers share."""


class ImportFileError(ValueError):
    """A file that can't be imported: what was found, what is needed."""
