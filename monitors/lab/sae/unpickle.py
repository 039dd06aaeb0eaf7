"""Run as a script of its own, never imported: the only place where a pickle is read, in a process that may do little.

It reads one job (JSON) from standard input and writes safetensors and one line of JSON. It must not import anything of
this project: `python -I unpickle.py` sees installed packages only.
"""

import json
import resource
import sys

_MEMORY = 8 << 30  # bytes of address space besides four times the file: importing torch takes several GiB
_SECONDS = 900


def _limit(size: int) -> None:
    """Memory, time, size of written files; no core dumps (they would hold weights)."""
    for what, value in (
        (resource.RLIMIT_AS, _MEMORY + 4 * size),
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_FSIZE, 2 * size + (1 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (limit, limit))


def _flat(prefix: str, value: object) -> dict[str, object]:
    """Nested dicts under dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, object] = {}
    for name, inner in value.items():
        found |= _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    return found


def main() -> None:
    """{"source", "size", "target", "ranks": {tensor: number of dimensions}, "settings": [name], "dropped": [name]}."""
    job = json.load(sys.stdin)
    _limit(job["size"])
    import torch  # noqa: PLC0415 - after the limits
    from safetensors.torch import save_file  # noqa: PLC0415

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        sys.exit(
            f"needs torch 2.10 or later, has {torch.__version__}: earlier ones can be attacked by a file"
        )
    try:
        # The one reader of pickles: it knows tensors and plain containers only, and runs in this process only.
        held = torch.load(job["source"], map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # noqa: BLE001 - whatever the file made it do, it is refused
        sys.exit(f"refused: it holds more than tensors, or is no such file ({type(error).__name__})")
    entries = _flat("", held)
    tensors: dict[str, torch.Tensor] = {}
    settings: dict[str, object] = {}
    for name, value in entries.items():
        if name in job["dropped"]:
            continue
        if name in job["settings"] and isinstance(value, str | int | float):
            settings[name] = value
        elif name in job["ranks"] and isinstance(value, torch.Tensor):
            if value.layout != torch.strided or not value.is_floating_point():
                sys.exit(f"refused: tensor {name!r} is {value.dtype} {value.layout}; needs dense floats")
            if value.ndim != job["ranks"][name]:
                sys.exit(f"refused: tensor {name!r} has {value.ndim} dimensions; needs {job['ranks'][name]}")
            if not value.isfinite().all():
                sys.exit(f"refused: tensor {name!r} holds NaN or infinity")
            tensors[name] = value.detach().clone().contiguous()
        else:
            sys.exit(f"refused: {name!r} ({type(value).__name__}) is no part of this format")
    save_file(tensors, job["target"])
    print(json.dumps(settings))  # noqa: T201 - its result


if __name__ == "__main__":
    main()
