"""A process in which grammars are tried: what is made to exhaust a machine exhausts this process, which is killed and begun anew.

It is run by its path and imports nothing of the server, so it starts in no time. Lines of JSON come in, and each is answered: first
the tokenizer, then sources of grammars. An answer is what is wrong, or empty.
"""

import json
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_CPU_S = 2.0  # of computing that one grammar may take
_MEMORY_BYTES = 96 * 1024 * 1024  # that the tried grammars may take, beside the tokenizer
_STACK_BYTES = (
    1024 * 1024
)  # far less than the server's threads have: what passes here overflows no stack there


def tokenizer(spec: dict[str, Any]) -> LLTokenizer:
    """Raises ValueError for one that llguidance can't read."""
    return LLTokenizer(spec["tokenizer"], n_vocab=spec["num_ids"], eos_token=spec["eos_token_ids"])


def compiled(vocabulary: LLTokenizer, source: str) -> LLMatcher:
    """Never raises: `is_error()` tells."""
    limits = LLParserLimits(step_max_items=20_000, max_lexer_states=20_000, verbose_errors=False)
    return LLMatcher(vocabulary, source, log_level=0, limits=limits)


def tried(vocabulary: LLTokenizer, source: str) -> str:
    """What is wrong with a grammar: that it can't be compiled, or followed beyond what it forces a reply to begin with."""
    matcher = compiled(vocabulary, source)
    if not matcher.is_error() and not any(matcher.compute_bitmask()):
        return "Unsatisfiable schema"
    if not matcher.is_error():
        matcher.consume_tokens(vocabulary.tokenize_bytes(matcher.compute_ff_bytes()))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error())


def _limit_memory() -> None:
    """Where the system tells how much is in use (Linux). What ends at a limit leaves no core dump."""
    with suppress(ImportError, OSError, StopIteration):
        import resource  # noqa: PLC0415  # not everywhere

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        lines = Path("/proc/self/status").read_text().splitlines()
        used = int(next(line for line in lines if line.startswith("VmData:")).split()[1]) * 1024
        most = used + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _answer(vocabulary: LLTokenizer, source: str) -> str:
    """On a thread with a small stack. Beyond _CPU_S the timer's signal ends the process."""
    found: list[str] = []
    signal.setitimer(signal.ITIMER_PROF, _CPU_S)
    thread = threading.Thread(target=lambda: found.append(tried(vocabulary, source)))
    thread.start()
    thread.join()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return found[0]


def main() -> None:
    vocabulary = tokenizer(json.loads(sys.stdin.readline()))
    threading.stack_size(_STACK_BYTES)
    _limit_memory()
    _tell("")
    for line in sys.stdin:
        _tell(_answer(vocabulary, json.loads(line)))


def _tell(answer: str) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
