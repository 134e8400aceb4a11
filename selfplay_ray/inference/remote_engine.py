"""An engine behind an HTTP endpoint: its requests, the versions of the policy there, and whether it is well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np
import openai

from selfplay_ray.errors import (
    ClusterError,
    ContextLengthError,
    InferenceError,
    SelfPlayError,
    UnavailableError,
    UnknownNameError,
)
from selfplay_ray.inference.adapter_folders import AdapterFolders
from selfplay_ray.inference.endpoint_adapters import delivery_to, find_base, list_models, refusal
from selfplay_ray.inference.endpoint_versions import EndpointModel, EndpointVersions
from selfplay_ray.inference.endpoints import (
    CONNECT_SECONDS,
    Endpoint,
    Failure,
    is_retryable,
    kind_of,
    sentence_of,
)
from selfplay_ray.inference.openai_answers import Answer, checked_generation
from selfplay_ray.inference.requests import LIVE, EngineStats, Generation, GenerationRequest
from selfplay_ray.inference.token_requests import LogprobsModes, continue_tokens, sampling

T = TypeVar("T")
Weights = Mapping[str, np.ndarray]

LOOK_EVERY = 2.0
"""Seconds from one look at an endpoint to the next."""
LOOKS_BEFORE_LOST = 2
"""Looks in vain after which requests that the endpoint hasn't answered are given up."""
FAILURES = (openai.APIStatusError, openai.APIConnectionError)

logger = logging.getLogger(__name__)


class RemoteEngine:
    """Samples tokens at ``endpoint``, from the base model or the policy that is being trained.

    Every version of the policy is an adapter with a name of its own, ``<prefix>@v12``, which is never used again:
    requests in flight finish on the version they began with, and a version is unloaded when its last one is done.
    ``prefix`` must be unique to the run, for servers remember names longer than runs last.

    An endpoint that can't be reached, or lacks the newest version, is sick: it is asked for nothing until a look at
    it, every two seconds, finds it well and the newest version could be loaded.

    Args:
        eos_token_ids: the ends of a turn; a reply ends with one, or with what its request says.
        folders: where adapters are left for an endpoint that reads them from disk.
        scale: the factor on the adapter's product.
        model: what the endpoint calls the base model; found out if empty.
        deadline: seconds that one request may take.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        prefix: str,
        eos_token_ids: Collection[int],
        folders: AdapterFolders,
        scale: float,
        model: str = "",
        deadline: float = 600.0,
    ) -> None:
        self._endpoint = endpoint
        self._prefix = prefix
        self._eos_token_ids = frozenset(eos_token_ids)
        self._folders = folders
        self._scale = scale
        self._model = model
        self._timeout = openai.Timeout(deadline, connect=CONNECT_SECONDS)
        self._modes = LogprobsModes()
        self._trouble: str | None = None  # why it is sick
        self._look_now = asyncio.Event()
        self._asking: set[asyncio.Task[Answer]] = set()
        self._prompt_tokens = self._generated_tokens = 0

    async def connect(self, temperatures: Collection[float] = ()) -> None:
        """See that the endpoint is there, and that it can be trained on what it samples at ``temperatures``.

        Raises:
            ClusterError: it can't be reached, or refuses.
            ConfigError: it has no such model.
            InferenceError: its logprobs are of another temperature.
        """
        try:
            card = find_base(await list_models(self._endpoint), self._model, self._endpoint.url)
            for temperature in temperatures:
                await self._modes.check(self._endpoint, self._timeout, card.id, temperature)
        except FAILURES as error:
            await self._endpoint.aclose()
            sentence = f"the endpoint {sentence_of(self._endpoint, error)}{_advice(error)}"
            raise ClusterError(sentence) from error
        except SelfPlayError:
            await self._endpoint.aclose()
            raise
        self._base, self._context = EndpointModel(card.id, 0), card.max_model_len
        delivery = delivery_to(self._endpoint, card, self._folders, self._scale)
        self._versions = EndpointVersions(self._endpoint, self._prefix, delivery)
        self._watching = asyncio.create_task(self._watch())

    async def generate(self, request: GenerationRequest) -> Generation:
        """Continue the prompt of ``request``; until a policy was loaded, LIVE is the base model, version 0.

        Raises:
            UnavailableError: the endpoint is sick, or too busy; another may answer.
            UnknownNameError: an adapter other than LIVE.
            ContextLengthError: prompt and reply are longer than the endpoint's context.
            InferenceError: the request failed for good, or what came back can't be trained on.
        """
        model = self._model_for(request)
        model.in_flight += 1
        try:
            answer = await self._unless_lost(self._ask(model, request))
        except FAILURES as error:
            self._fail(error, model)
        finally:
            model.in_flight -= 1
            self._versions.unload_unused()
        generation = checked_generation(answer, self._endpoint.url, model.name, request, self._eos_token_ids)
        if any(span.version != model.version for span in generation.spans):
            raise InferenceError(
                f"{self._endpoint.url} was asked for {model.name} and answered with another version: "
                f"{', '.join(str(span.version) for span in generation.spans)}"
            )
        self._prompt_tokens += len(request.prompt_token_ids)
        self._generated_tokens += len(generation.token_ids)
        return generation

    async def load_adapter(self, weights: Weights, version: int) -> None:
        """Let LIVE be ``weights`` from now on; at an endpoint that is sick, from when it is well again.

        Where older versions are still in use there may be no room for one more: until there is, it counts as sick.

        Raises:
            AdapterError: it doesn't take them.
        """
        self._versions.want(weights, version)
        if self._trouble is not None:
            return
        try:
            await self._versions.publish()
        except FAILURES as error:
            self._fall_sick(sentence_of(self._endpoint, error))
            if isinstance(error, openai.APIStatusError) and not self._versions.swaps:
                # It is there, and has never taken one: a rank that is too large, vLLM answers with 500.
                raise refusal(self._endpoint, error) from error
        except SelfPlayError as error:
            self._fall_sick(str(error))
            if not self._versions.in_use:
                raise

    def stats(self) -> EngineStats:
        """Of this run's requests; what else the endpoint does, its own /metrics tell."""
        models = [*self._versions.loaded.values(), self._base]
        return EngineStats(
            running=sum(model.in_flight for model in models),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            swaps=self._versions.swaps,
            swap_seconds=self._versions.swap_seconds,
            adapters=len(self._versions.loaded),
        )

    async def aclose(self) -> None:
        """Give up what is being asked, and unload whatever is left of ours."""
        self._trouble = f"{self._endpoint.url} is left: the run is over"
        self._watching.cancel()
        self._give_up()
        await self._versions.unload_all()
        await self._endpoint.aclose()

    # Requests

    def _model_for(self, request: GenerationRequest) -> EndpointModel:
        if self._trouble is not None:
            raise UnavailableError(self._trouble)
        needed = len(request.prompt_token_ids) + request.max_tokens
        if self._context is not None and needed > self._context:
            raise ContextLengthError(
                f"request {request.id} needs {needed} tokens; {self._endpoint.url} holds {self._context}"
            )
        if request.adapter is None:
            return self._base
        if request.adapter != LIVE:
            raise UnknownNameError("adapter", request.adapter, [LIVE])
        return self._versions.live or self._base

    async def _ask(self, model: EndpointModel, request: GenerationRequest) -> Answer:
        await self._modes.check(self._endpoint, self._timeout, model.name, request.temperature)
        return await continue_tokens(
            self._endpoint,
            self._timeout,
            model.name,
            request.prompt_token_ids,
            sampling(request.temperature, request.max_tokens, request.seed),
            request.top_logprobs,
            ending={
                "stop_token_ids": list(request.stop_token_ids),
                "ignore_eos": request.ignore_eos,
                "min_tokens": request.min_tokens,
            },
        )

    async def _unless_lost(self, asking: Coroutine[Any, Any, Answer]) -> Answer:
        """What ``asking`` returns; it is given up when the endpoint is lost."""
        task = asyncio.create_task(asking)
        self._asking.add(task)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # of no effect on one that is done
            self._asking.discard(task)
        if task.cancelled():
            raise UnavailableError(f"{self._trouble}; the request was given up")
        return task.result()

    def _fail(self, error: Failure, model: EndpointModel) -> NoReturn:
        """Raise what a failed request means, and look at the endpoint if it may be sick."""
        sentence = sentence_of(self._endpoint, error)
        gone = isinstance(error, openai.NotFoundError) and model is not self._base  # restarted, say
        if gone or isinstance(error, openai.APIConnectionError):
            self._fall_sick(sentence)
        if gone or is_retryable(error):
            raise UnavailableError(sentence) from error
        raise kind_of(error)(sentence) from error

    def _give_up(self) -> None:
        for task in self._asking:
            task.cancel()

    # Health

    async def _watch(self) -> None:
        """Look at the endpoint now and then; bring it the newest version when it is back."""
        in_vain = 0
        while True:
            try:
                await self._look()
                in_vain = 0
                self._recover()
            except (*FAILURES, SelfPlayError) as error:
                in_vain += 1
                self._fall_sick(self._sentence(error))
                if in_vain >= LOOKS_BEFORE_LOST:
                    self._give_up()
            await self._until_next_look(in_vain)

    async def _look(self) -> None:
        live = self._versions.live
        names = {model.id for model in await list_models(self._endpoint)}
        if self._versions.has_lost(live, names):
            self._fall_sick(
                f"{self._endpoint.url} has lost a version: it was started again, or told to unload it"
            )
        await self._versions.publish()
        self._versions.unload_unused()

    async def _until_next_look(self, in_vain: int) -> None:
        if in_vain:
            self._look_now.clear()  # that it is sick is known
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await self._look_now.wait()
        except TimeoutError:
            return
        self._look_now.clear()

    def _fall_sick(self, sentence: str) -> None:
        if self._trouble is None:
            logger.warning("%s; it is asked for nothing until it is well", sentence)
        self._trouble = sentence
        self._look_now.set()

    def _recover(self) -> None:
        if self._trouble is not None:
            logger.warning("%s is well again", self._endpoint.url)
        self._trouble = None

    def _sentence(self, error: Failure | SelfPlayError) -> str:
        return str(error) if isinstance(error, SelfPlayError) else sentence_of(self._endpoint, error)


def _advice(error: Failure) -> str:
    if isinstance(error, openai.AuthenticationError):
        return "; its key is taken from the environment variable that endpoint_api_key_env names"
    return "; start it, or leave it out of endpoints"
