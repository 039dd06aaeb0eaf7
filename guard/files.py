"""Which files a policy is made of."""

from pathlib import Path

_SUFFIXES = frozenset({".yaml", ".yml"})


def policy_files(path: Path) -> list[Path]:
    """A file itself, or the *.yaml and *.yml directly in a folder, by name. Raises OSError.

    Hidden ones are no part of it, as in a shell: editors keep locks and copies beside what they edit. Nor are pipes and
    sockets, on which a reader would wait forever.
    """
    if not path.is_dir():
        return [path]
    named = (f for f in path.iterdir() if f.suffix in _SUFFIXES and not f.name.startswith("."))
    return sorted(f for f in named if not _is_special(f))


def _is_special(file: Path) -> bool:
    """A link to nowhere is not: that it can't be read has to be told."""
    return file.exists() and not file.is_file() and not file.is_dir()
