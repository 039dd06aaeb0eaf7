"""Asks for second opinions on behalf of one choice. What is asked about a prompt is asked once for all of its choices."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import anyio

from guard.types import Advice, Decision, Escalate, Phase
from server.engines.base import Token
from server.second_opinion.targets import SecondOpinions
from server.second_opinion.types import Message, Question


class PromptAdvice:
    """One prompt of a request, and what was said of it. Its choices match at the same token, on the same scores."""

    def __init__(self, messages: Callable[[], Sequence[Message]]) -> None:
        self._make_messages = messages
        self._messages: Sequence[Message] | None = None
        self._advice: dict[str, Advice] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    @property
    def messages(self) -> Sequence[Message]:
        if self._messages is None:
            self._messages = self._make_messages()
        return self._messages

    async def once(self, rule: str, ask: Callable[[], Awaitable[Advice]]) -> Advice:
        """What the first choice to come was told. If it was cancelled while it waited, the next one asks."""
        async with self._locks.setdefault(rule, asyncio.Lock()):
            if rule not in self._advice:
                self._advice[rule] = await ask()
            return self._advice[rule]


class ChoiceAdviser:
    """Implements the pipeline's `Adviser`."""

    def __init__(
        self,
        opinions: SecondOpinions,
        prompt: PromptAdvice,
        *,
        decision_id: str,
        choice: int,
        policy: str,
        now: Callable[[], datetime],
    ) -> None:
        self._opinions = opinions
        self._prompt = prompt
        self._decision_id = decision_id
        self._choice = choice
        self._policy = policy
        self._now = now
        self._reply: list[str] = []

    def heard(self, tokens: tuple[Token, ...]) -> None:
        self._reply.extend(token.text for token in tokens)

    async def advise(self, decision: Decision) -> Mapping[str, Advice]:
        """All questions of one step are asked side by side."""
        advice: dict[str, Advice] = {}

        async def ask(escalate: Escalate) -> None:
            advice[escalate.rule] = await self._ask(escalate, decision)

        async with anyio.create_task_group() as group:
            for effect in decision.effects:
                if isinstance(effect, Escalate):
                    group.start_soon(ask, effect)
        return advice

    async def _ask(self, escalate: Escalate, decision: Decision) -> Advice:
        values = next((m.values for m in decision.matches if m.rule == escalate.rule), {})
        question = Question(
            decision_id=self._decision_id,
            choice=self._choice,
            policy=self._policy,
            rule=escalate.rule,
            phase=decision.phase,
            token=decision.token,
            values=values,
            messages=self._prompt.messages,
            reply="".join(self._reply),
            asked_at=self._now(),
        )

        async def send() -> Advice:
            return await self._opinions.ask(escalate.to, question, escalate.deadline_s)

        return (
            await self._prompt.once(escalate.rule, send) if decision.phase is Phase.PROMPT else await send()
        )
