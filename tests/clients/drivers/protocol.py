"""How the tests drive a client: a line of JSON asks, lines of JSON answer. Standard library only, for it runs in the client's own environment.

What is asked: `do` (chat, completion, models or guardrail), `base_url`, `api_key`, `model`, `retries`, and by what is done `text`, `stream`, `tools`,
`options`. While a reply is streamed each piece is a line `{"piece": …}`. The last line is what the client made of it: `text`, `finish`, `refusal`,
`call`, `usage`; or `{"error": {kinds, status, code, message}}` with what it raised.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

Ask = Mapping[str, Any]
Answer = dict[str, Any]
Piece = Callable[[str], None]


def drive(answer: Callable[[Ask, Piece], Answer]) -> None:
    """Answer every line until the input ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # some clients print

    def tell(told: Answer) -> None:
        out.write(json.dumps(told) + "\n")
        out.flush()

    tell({"ready": True})
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            told = answer(ask, lambda text: tell({"piece": text}))
        except Exception as error:  # noqa: BLE001  # what a client raises is what is asked about
            told = {"error": described(error)}
        tell(told)


def described(error: Exception) -> Answer:
    """`kinds`: its class and those it is one of."""
    return {
        "kinds": [kind.__name__ for kind in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "message": str(error),
    }
