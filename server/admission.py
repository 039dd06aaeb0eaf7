"""From a request that parsed to choices that may run: which model, which policy, which prompt; or a clear refusal."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from guard.policy import Policy
from guard.types import Subject
from server.api.errors import bad_request, context_too_long, not_found
from server.api.schema import MAX_CHOICES, ChatRequest, CompletionRequest, GenerationRequest
from server.engines.base import EngineRequest, SamplingParams
from server.observer import ChoiceObserver
from server.pipeline import Choice
from server.service import Service
from server.tokenizer import PromptError


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may run."""

    decision_id: str
    created: int  # Unix seconds
    policy: Policy  # kept until the request ends, whatever is reloaded meanwhile
    subject: Subject
    num_prompt_tokens: int
    choices: tuple[Choice, ...]


class Admission:
    """Admits requests to one service. What the client may not choose (tenant, policy, monitors) is set here."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def chat(self, body: ChatRequest, request_id: str) -> Admitted:
        """Raises ApiError."""
        self._check(body)
        messages = [{"role": _role(message.role), "content": message.text} for message in body.messages]
        try:
            prompt = self._service.tokenizer.chat(messages)
        except PromptError as error:
            raise bad_request(str(error), "messages") from error
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = body.max_completion_tokens or body.max_tokens
        n = body.n or 1
        samplings = [
            body.sampling(max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=None, choice=choice)
            for choice in range(n)
        ]
        return self._admit("chat", body, request_id, [(prompt, sampling) for sampling in samplings])

    def completions(self, body: CompletionRequest, request_id: str) -> Admitted:
        """Raises ApiError."""
        self._check(body)
        tokenizer = self._service.tokenizer
        prompts = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts]
        n = body.n or 1
        if len(prompts) * n > MAX_CHOICES:
            raise bad_request(
                f"{len(prompts)} prompts with n={n} exceed {MAX_CHOICES} choices in one request", "prompt"
            )
        jobs = [
            (
                prompt,
                body.sampling(
                    max_tokens=body.max_tokens,
                    logprobs=body.logprobs,
                    prompt_logprobs=body.logprobs if body.echo else None,
                    choice=choice,
                ),
            )
            for prompt in prompts
            for choice in range(n)
        ]
        return self._admit("completions", body, request_id, jobs)

    def _check(self, body: GenerationRequest) -> None:
        service = self._service
        if body.model not in service.served_models:
            known = ", ".join(service.served_models)
            raise not_found(f"This model does not exist here; served: {known}", "model", "model_not_found")
        if body.num_unknown_fields:
            service.metrics.unknown_fields.inc(body.num_unknown_fields)

    def _admit(
        self,
        endpoint: str,
        body: GenerationRequest,
        request_id: str,
        jobs: Sequence[tuple[list[int], SamplingParams]],
    ) -> Admitted:
        for prompt, sampling in jobs:
            self._check_length(len(prompt), sampling.max_tokens)
        service = self._service
        policy, now = service.policies.current, service.now()
        subject = Subject(
            model=service.engine.info.model_id,
            endpoint=endpoint,
            request_id=request_id,
            metadata=dict(body.metadata or {}),
        )
        decision_id = secrets.token_hex(12)
        choices = tuple(
            self._choice(
                index,
                EngineRequest(f"{decision_id}-{index}", prompt, sampling),
                policy=policy,
                subject=subject,
                decision_id=decision_id,
                stream=bool(body.stream),
            )
            for index, (prompt, sampling) in enumerate(jobs)
        )
        prompts = {id(prompt): len(prompt) for prompt, _ in jobs}  # choices of one prompt share it
        return Admitted(decision_id, int(now.timestamp()), policy, subject, sum(prompts.values()), choices)

    def _choice(
        self,
        index: int,
        request: EngineRequest,
        *,
        policy: Policy,
        subject: Subject,
        decision_id: str,
        stream: bool,
    ) -> Choice:
        service = self._service
        now = service.now()  # the time that is recorded is the time that was decided by: a replay needs it
        decider = policy.decider(subject, now=now)
        scorer = service.scoring.scorer(decider.monitors)
        observer = ChoiceObserver(
            service,
            policy,
            subject,
            decider,
            scorer,
            decision_id=decision_id,
            admitted_at=now,
            choice=index,
            num_prompt=len(request.prompt_ids),
            stream=stream,
        )
        return Choice(index, request, scorer, decider, observer)

    def _check_length(self, num_prompt: int, max_tokens: int | None) -> None:
        limit = self._service.engine.info.max_context
        wanted = num_prompt + (1 if max_tokens is None else max_tokens)
        if num_prompt == 0:
            raise bad_request("the prompt is empty", "prompt")
        if wanted > limit:
            self._service.metrics.shed.labels("prompt_too_long").inc()
            asked = "" if max_tokens is None else f" and {max_tokens} for the response"
            raise context_too_long(
                f"This model's context is {limit} tokens; the request has {num_prompt} in the prompt{asked}."
            )


def _role(role: str) -> str:
    """`developer` is OpenAI's newer name for `system`; chat templates know the old one."""
    return "system" if role == "developer" else role
