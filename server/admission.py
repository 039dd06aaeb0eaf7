"""From a request that parsed to choices that may run: which model, which policy, which prompt; or a clear refusal."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from anyio import to_thread
from starlette.requests import Request

from guard.policy import Policy
from guard.types import Phase, Subject
from server.admitted import Admitted, Caller
from server.api.errors import bad_request, context_too_long, from_failure
from server.api.schema import MAX_CHOICES, ChatRequest, CompletionRequest, GenerationRequest
from server.auditing.content import PromptText
from server.engines.base import (
    EngineBusy,
    EngineError,
    EngineRequest,
    Grammar,
    RequestRefused,
    SamplingParams,
)
from server.entrance import Entrance
from server.grammars.source import SourceError
from server.keys.types import Client
from server.observer import ChoiceObserver
from server.pipeline import Adviser, Choice, NoAdviser
from server.policy_store import InForce
from server.prompts import check_characters, conversation, reference, templated
from server.scheduling.turn import Turn
from server.second_opinion.adviser import ChoiceAdviser, PromptAdvice
from server.second_opinion.types import Message as SentMessage
from server.service import Service
from server.tokenizer import Message

_PARAMS = {
    "chat": "messages",
    "completions": "prompt",
    "responses": "input",
    "messages": "messages",
    "moderations": "input",
}  # by endpoint: the field that holds the prompt


@dataclass(frozen=True, slots=True)
class _Job:
    """A choice that was asked for. `text` is only made where the decision log needs it, `messages` where a rule asks somebody."""

    prompt: list[int]
    text: Callable[[], PromptText]
    messages: Callable[[], Sequence[SentMessage]]
    sampling: SamplingParams
    reference: int | None = None  # the token that monitors of drift measure from; a text has none


class Admission:
    """Admits one client's requests. What it may not choose (tenant, policy, monitors) is set here."""

    def __init__(self, service: Service, client: Client, turn: Turn) -> None:
        self._service = service
        self._client = client
        self._entrance = Entrance(service, client, turn)

    @classmethod
    def of(cls, request: Request) -> "Admission":
        """Of who sent a request."""
        return cls(request.app.state.service, request.state.client, request.state.turn)

    async def chat(self, body: ChatRequest, request_id: str, endpoint: str = "chat") -> Admitted:
        """A conversation, by whichever endpoint it came. Raises ApiError."""
        self._entrance.check(endpoint, body.model, body.num_unknown_fields)
        prompt = await conversation(self._service, body.messages, _PARAMS[endpoint], body.offered)
        grammar = await self._grammar(body, endpoint)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = body.max_completion_tokens or body.max_tokens
        n = body.n or 1
        samplings = [
            body.sampling(
                max_tokens=max_tokens,
                logprobs=logprobs,
                prompt_logprobs=None,
                choice=choice,
                grammar=grammar,
            )
            for choice in range(n)
        ]
        text = partial(PromptText.chat, prompt.messages)
        return await self._admit(
            endpoint,
            _caller(body, request_id, all_scores=body.moderation is not None),
            [
                _Job(prompt.ids, text, lambda: prompt.messages, sampling, prompt.reference)
                for sampling in samplings
            ],
            _turn(prompt.messages),
        )

    async def scoring(
        self, endpoint: str, model: str, conversations: Sequence[list[Message]], caller: Caller
    ) -> Admitted:
        """Conversations that are only read: prefill, and not a token of reply. Raises ApiError."""
        self._entrance.check(endpoint, model)
        param = _PARAMS[endpoint]
        num_characters = sum(len(message["content"]) for messages in conversations for message in messages)
        check_characters(self._service, num_characters, param)
        jobs = [
            _Job(
                ids := await templated(self._service, messages, param),
                partial(PromptText.chat, messages),
                partial(list, messages),
                SamplingParams(max_tokens=0, temperature=0.0),
                await reference(self._service, messages, ids),
            )
            for messages in conversations
        ]
        return await self._admit(endpoint, caller, jobs, max(map(_turn, conversations)))

    async def completions(self, body: CompletionRequest, request_id: str) -> Admitted:
        """Raises ApiError."""
        self._entrance.check("completions", body.model, body.num_unknown_fields)
        n = body.n or 1
        if len(body.prompts) * n > MAX_CHOICES:
            told = f"{len(body.prompts)} prompts with n={n} exceed {MAX_CHOICES} choices in one request"
            raise bad_request(told, "prompt")
        for prompt in body.prompts:
            check_characters(self._service, len(prompt), "prompt")
        prompts = [
            (
                await self._encoded(prompt, add_special_tokens=body.add_special_tokens is not False),
                partial(PromptText.completion, prompt),
                partial(self._as_messages, prompt),
            )
            for prompt in body.prompts
        ]
        jobs = [
            _Job(
                prompt,
                text,
                messages,
                body.sampling(
                    max_tokens=body.max_tokens,
                    logprobs=body.logprobs,
                    prompt_logprobs=body.logprobs if body.echo else None,
                    choice=choice,
                ),
            )
            for prompt, text, messages in prompts
            for choice in range(n)
        ]
        return await self._admit("completions", _caller(body, request_id), jobs)

    async def _grammar(self, body: ChatRequest, endpoint: str) -> Grammar | None:
        """What the replies are held to, made before the request stands in line. Raises ApiError."""
        if body.form is None:
            return None
        try:
            source = body.form.source()
            with self._service.schemas.one(self._client.tenant, source):
                return await self._service.engine.compile(source)
        except (SourceError, RequestRefused) as error:
            param = _asked_by(body, endpoint)
            raise bad_request(f"{param}: {error}", param) from error
        except EngineError as error:
            if isinstance(error, EngineBusy):
                self._service.metrics.shed.labels("queue_full").inc()
            raise from_failure(error) from error

    async def _encoded(self, prompt: str | list[int], *, add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        encode = partial(self._service.tokenizer.encode, add_special_tokens=add_special_tokens)
        return await to_thread.run_sync(encode, prompt)

    def _as_messages(self, prompt: str | list[int]) -> list[SentMessage]:
        """A text completion's prompt as the conversation that it stands for."""
        text = prompt if isinstance(prompt, str) else self._service.tokenizer.decode(prompt)
        return [{"role": "user", "content": text}]

    async def _admit(
        self,
        endpoint: str,
        caller: Caller,
        jobs: Sequence[_Job],
        turn: int = 1,
    ) -> Admitted:
        param = _PARAMS[endpoint]
        for job in jobs:
            self._check_length(len(job.prompt), job.sampling.max_tokens, param)
        prompts = {id(job.prompt): len(job.prompt) for job in jobs}  # choices of one prompt share it
        num_prompt = sum(prompts.values())
        await self._entrance.reserve(num_prompt, sum(job.sampling.max_tokens or 0 for job in jobs))
        service, admitted_at = self._service, self._service.clock()
        await self._entrance.enter(endpoint, len(jobs))
        # nothing is chosen before its turn has come: what was reloaded while it waited holds
        in_force, now = service.policies.in_force, service.now()
        decision_id = secrets.token_hex(12)
        subject = Subject(
            tenant=self._client.tenant,
            key_id=self._client.key_id,
            model=service.engine.info.model_id,
            endpoint=endpoint,
            request_id=caller.request_id,
            decision_id=decision_id,
            metadata=dict(caller.metadata),
            turn=turn,
        )
        shed = service.breakers.admit(_monitors(in_force.policy, subject, now))
        advised = {id(job.prompt): PromptAdvice(job.messages) for job in jobs}
        choices = tuple(
            self._choice(
                index,
                EngineRequest(f"{decision_id}-{index}", job.prompt, job.sampling),
                job.reference,
                in_force=in_force,
                subject=subject,
                caller=caller,
                text=job.text,
                advised=advised[id(job.prompt)],
                shed=shed,
            )
            for index, job in enumerate(jobs)
        )
        return Admitted(
            decision_id,
            int(now.timestamp()),
            in_force.policy,
            subject,
            param,
            num_prompt,
            choices,
            in_force.monitors.monitors,
            None if service.request_timeout_s is None else admitted_at + service.request_timeout_s,
            self._client.may_debug,
            self._client.block_style or service.block_style,
        )

    def _choice(
        self,
        index: int,
        request: EngineRequest,
        reference: int | None,
        *,
        in_force: InForce,
        subject: Subject,
        caller: Caller,
        text: Callable[[], PromptText],
        advised: PromptAdvice,
        shed: frozenset[str],
    ) -> Choice:
        service = self._service
        now = service.now()  # the time that is recorded is the time that was decided by: a replay needs it
        policy = in_force.policy
        decider = policy.decider(subject, now=now)
        is_read_only = request.sampling.max_tokens == 0
        self._entrance.check_monitors(decider, shed, (Phase.PROMPT,) if is_read_only else tuple(Phase))
        needed = decider.monitors
        if caller.all_scores:
            needed |= {(phase, name) for phase in Phase for name in in_force.scoring.names}
        scorer = in_force.scoring.scorer(needed, reference, shed=shed)
        observer = ChoiceObserver(
            service,
            policy,
            subject,
            decider,
            scorer,
            decision_id=subject.decision_id,
            admitted_at=now,
            choice=index,
            num_prompt=len(request.prompt_ids),
            stream=caller.stream,
            allowance=self._client.allowance,
            content=None if service.audit is None else service.content.capture(policy, text),
            subject_hmac=service.content.subject(caller.end_user),
            shed=shed,
        )
        adviser: Adviser = NoAdviser()
        if decider.escalates:
            adviser = ChoiceAdviser(
                service.second_opinions,
                advised,
                decision_id=subject.decision_id,
                choice=index,
                policy=str(policy),
                now=service.now,
            )
        return Choice(index, request, scorer, decider, observer, adviser, policy.budget_s)

    def _check_length(self, num_prompt: int, max_tokens: int | None, param: str) -> None:
        limit = self._service.engine.info.max_context
        wanted = num_prompt + (1 if max_tokens is None else max_tokens)
        if num_prompt == 0:
            raise bad_request("the prompt is empty", param)
        most = self._service.max_prompt_tokens
        if most is not None and num_prompt > most:
            self._service.metrics.shed.labels("prompt_too_long").inc()
            raise context_too_long(
                f"A prompt may have {most} tokens here; the request's has {num_prompt}.", param
            )
        if wanted > limit:
            self._service.metrics.shed.labels("prompt_too_long").inc()
            asked = "" if max_tokens is None else f" and {max_tokens} for the response"
            raise context_too_long(
                f"This model's context is {limit} tokens; the request has {num_prompt} in the prompt{asked}.",
                param,
            )


def _caller(body: GenerationRequest, request_id: str, *, all_scores: bool = False) -> Caller:
    return Caller(
        body.request_id or request_id, body.metadata or {}, body.end_user, bool(body.stream), all_scores
    )


def _monitors(policy: Policy, subject: Subject, now: datetime) -> set[str]:
    """Those that the rules for a subject read."""
    return {name for rule in policy.applied(subject, now=now) for _, name in rule.reads}


def _asked_by(body: ChatRequest, endpoint: str) -> str:
    """The field that a reply has its form from."""
    if body.must_call:
        return "tool_choice"
    if body.form is not None and body.form.answer is not None:
        return "text.format" if endpoint == "responses" else "response_format"
    return "parallel_tool_calls" if body.at_most_one_call else "tools"


def _turn(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "user" for message in messages)
