"""The last policy that was right, kept on disk: a server that restarts on a wrong one can go on with it."""

import re
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

_VERSION = re.compile(r"[0-9a-f]{16}")


class LastGood:
    """A folder of this server's own. `current` is a link that is swapped at once, so that half a policy is never read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def kept(self, name: str) -> Path | None:
        """Where the policy lies that was kept last: a file or folder of this name."""
        path = self._folder / "current" / name
        return path if path.exists() else None

    def keep(self, policy: Path, files: Sequence[Path]) -> None:
        """Copy the files of a policy. Raises OSError; then what was kept before stays."""
        contents = {file.name: file.read_bytes() for file in files}
        version = self._folder / sha256(repr(sorted(contents.items())).encode()).hexdigest()[:16]
        target = version / policy.name if policy.is_dir() else version
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (target / name).write_bytes(content)
        link = self._folder / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(version.name)
        link.replace(self._folder / "current")
        for other in self._folder.iterdir():
            if _VERSION.fullmatch(other.name) and other != version:  # what else lies there is not ours
                shutil.rmtree(other)
