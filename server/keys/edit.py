"""Changes to a key file that keep its comments. What is written was read back first, and replaces the file at once."""

import os
from datetime import datetime
from io import StringIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from ruamel.yaml import YAML

from server.keys.file import parse_keys, read_key_bytes
from server.keys.secret import NewKey
from server.keys.types import KeyScope

_NEW = "apiVersion: interlock/v1\nkind: Keys\ntenants: {}\nkeys: []\n"


class EditError(Exception):
    """What was asked for can't be done to this file."""


def entry(
    key: NewKey, tenant: str, scopes: list[KeyScope], *, expires: datetime | None, description: str
) -> dict[str, Any]:
    """A key as it stands in the file."""
    made: dict[str, Any] = {
        "id": key.id,
        "tenant": tenant,
        "sha256": key.sha256,
        "scopes": [scope.value for scope in dict.fromkeys(scopes)],
    }
    if expires is not None:
        made["expires"] = expires.isoformat(timespec="seconds").replace("+00:00", "Z")
    if description:
        made["description"] = description
    return made


def add(path: Path, made: dict[str, Any], *, new_tenant: bool) -> None:
    """Add a key. Raises PolicyError, EditError or OSError; then the file is as it was."""
    document = _read(path) if path.exists() else _yaml().load(_NEW)
    tenants, name = document["tenants"], made["tenant"]
    if name not in tenants:
        if tenants and not new_tenant:
            known = ", ".join(sorted(tenants))
            raise EditError(f"{path} has no tenant '{name}'; known: {known}. If it is new: --new-tenant")
        tenants[name] = {}
        tenants.fa.set_block_style()
    document["keys"].append(made)
    document["keys"].fa.set_block_style()
    _write(path, document)


def remove(path: Path, key_id: str) -> None:
    """Take a key out. Raises PolicyError, EditError or OSError; then the file is as it was."""
    document = _read(path)
    keys = document["keys"]
    at = next((index for index, key in enumerate(keys) if key["id"] == key_id), None)
    if at is None:
        raise EditError(f"{path} has no key '{key_id}'")
    del keys[at]
    _write(path, document)


def _read(path: Path) -> Any:
    data = read_key_bytes(path)
    parse_keys(data, path)  # a file that is wrong is not edited
    return _yaml().load(data.decode())


def as_yaml(value: Any) -> str:
    text = StringIO()
    _yaml().dump(value, text)
    return text.getvalue()


def _write(path: Path, document: Any) -> None:
    data = as_yaml(document).encode()
    parse_keys(data, path)
    target = path.resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    with NamedTemporaryFile(dir=target.parent, prefix=".keys-", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(mode)
            Path(file.name).replace(target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _yaml() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 200
    return yaml
