"""verifiers' environments as episodes: played by scripts and by the real model, their rewards worked out by hand."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from selfplay_ray.arena import Arena
from selfplay_ray.errors import ConfigError, InferenceError
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.integrations import verifiers_stage
from selfplay_ray.integrations.verifiers import VerifiersArena
from selfplay_ray.integrations.verifiers_environment import Environment
from selfplay_ray.integrations.verifiers_stage import close_stages, stage_of
from selfplay_ray.lora import LoRASettings
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import Completion, EpisodeRequest, ModelCall, Rollout

pytest.importorskip("verifiers.v1")

SUMS = "selfplay_ray.integrations.verifiers_sums:Sums"
ECHO = Environment("verifiers_games:Echo")
GUESSING = Environment("verifiers_games:Guessing+verifiers_games:Echo")


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Whatever a test opened is closed with it, and leaves no task."""
    before = asyncio.all_tasks()
    yield
    await close_stages()
    assert not verifiers_stage._stages
    await settled(lambda: asyncio.all_tasks() - {asyncio.current_task()} <= before)


def scripted(*answers: str) -> MockInferenceClient:
    """Says ``answers``, one after the other."""
    rest = iter(answers)
    return MockInferenceClient(lambda messages: next(rest))


def arena_of(environment: Environment, client: Any, **options: Any) -> VerifiersArena:
    return VerifiersArena(
        4, environment, group_size=2, client=client, **{"held_out": 0.0, "max_tokens": 8, **options}
    )


async def play(arena: VerifiersArena, row: int = 0, **request: Any) -> Rollout:
    asked = EpisodeRequest("task", arena.tasks[row], **request)
    return (await arena.generate_rollouts([asked]))[0].rollout


def last_line(rollout: Rollout) -> str:
    return (rollout.error or "").strip().splitlines()[-1]


class TestRewards:
    async def test_are_those_of_its_rubric(self):
        client = scripted("cat", "cats", "cow")
        arena = arena_of(ECHO, client)
        right, long, other = [await play(arena) for _ in range(3)]
        assert [rollout.error for rollout in (right, long, other)] == [None] * 3
        assert right.rewards == {"Agent": 1.5}  # 1 × same + 0.5 × short
        assert long.rewards == {"Agent": 0.0}  # neither
        assert other.rewards == {"Agent": 0.5}  # 0.5 × short
        assert other.metrics == {
            "reward/Agent": 0.5,
            "same/Agent": 0.0,
            "short/Agent": 1.0,
            "letters/Agent": 3.0,
        }
        assert list(client.calls[0].messages) == [
            {"role": "system", "content": "Repeat."},
            {"role": "user", "content": "Say cat."},
        ]
        assert client.calls[0].max_tokens == 8

    async def test_every_reply_is_a_step_and_later_ones_continue_its_tokens(self):
        client = scripted("cow", "dog", "cat")
        rollout = await play(arena_of(GUESSING, client))
        assert rollout.error is None, rollout.error
        assert rollout.rewards == {"Agent": 0.5 + 1.5}  # 1 less two misses of a quarter, and the task's own
        assert [step.completion_text for step in rollout.steps] == ["cow", "dog", "cat"]
        assert [len(step.prompt) for step in rollout.steps] == [2, 4, 6]
        assert rollout.steps[2].prompt[-1] == {"role": "user", "content": "No. Miss 2."}
        prefix = client.calls[1].prefix
        assert prefix is not None
        assert prefix.messages == 3
        first = rollout.steps[0].response
        assert prefix.token_ids == first.prompt_token_ids + first.completion_token_ids

    async def test_each_agent_is_a_role_and_one_that_is_not_trainable_an_oracle(self):
        client = scripted("dog", "cat", "dog")
        arena = arena_of(Environment("verifiers_games:Pair+verifiers_games:Echo"), client)
        rollout = await play(arena)
        assert rollout.error is None, rollout.error
        assert set(arena.roles) == {"first", "second", "judge"}
        said = {step.role_id: step.completion_text for step in rollout.steps}
        assert said == {"first": "dog", "second": "cat"}  # the judge's word is no step
        # Both are short (0.5); the second says the word (1); the first has the judge's (1), the second not (-1).
        assert rollout.rewards == {"first": 0.5 + 1, "second": 0.5 + 1 - 1}
        assert [call.role_id for call in client.calls][-1] is None

    async def test_a_limit_on_turns_truncates(self):
        options = {"guesser": {"max_turns": 1}}
        rollout = await play(
            arena_of(Environment(GUESSING.name, json.dumps(options)), scripted("cow", "dog", "cat"))
        )
        assert rollout.error is None, rollout.error
        assert rollout.truncated
        assert [step.completion_text for step in rollout.steps] == ["cow"]

    async def test_samples_of_one_task_are_one_group(self):
        client = MockInferenceClient(lambda messages: "cat" if len(client.calls) % 2 else "horse")
        arena = arena_of(ECHO, client)
        step = await arena.step()
        assert [result.rollout.error for result in step.results] == [None] * 4
        assert [group.roots for group in step.groups] == [2, 2]
        artifacts = [result.rollout.artifact["word"] for result in step.results]
        assert artifacts[0] == artifacts[1]
        assert artifacts[2] == artifacts[3]
        assert json.loads(json.dumps(step.results[0].rollout.artifact)) == step.results[0].rollout.artifact

    async def test_two_rollouts_at_once_do_not_mix(self):
        class Waiting(MockInferenceClient):
            """Answers none before four have asked."""

            async def complete(self, call: ModelCall) -> Completion:
                answer = await super().complete(call)
                while len(self.calls) < 4:
                    await asyncio.sleep(0)
                return answer

        client = Waiting(lambda messages: messages[-1]["content"].removeprefix("Say ").removesuffix("."))
        arena = arena_of(ECHO, client)
        asked = [EpisodeRequest("task", arena.tasks[row]) for row in range(4)]
        results = await asyncio.wait_for(arena.generate_rollouts(asked), 60)
        assert [result.rollout.error for result in results] == [None] * 4
        words = ["cat", "horse", "dog", "bee"]
        assert [result.rollout.steps[0].completion_text for result in results] == words
        assert [result.rewards["Agent"] for result in results] == [1.5, 1.0, 1.5, 1.5]  # a horse isn't short


class TestHeldOut:
    def test_no_task_is_in_both_parts_twice_or_not(self):
        arena = arena_of(ECHO, None, held_out=0.25)  # of the four different words one; "cat" is there twice
        trained = {arena.tasks[task["row"]]["word"] for task in arena.trained}
        batch = arena.get_eval_batch(100)
        reserved = [request.artifact["word"] for request in batch]
        assert trained.isdisjoint(reserved)
        assert trained | set(reserved) == {"cat", "horse", "dog", "bee"}
        assert len({request.group for request in batch}) == len(batch)

    async def test_may_come_from_other_options(self):
        other = Environment(ECHO.name, json.dumps({"taskset": {"words": ["emu"]}}))
        client = scripted("emu")
        arena = arena_of(ECHO, client, evaluation=other)
        (request,) = arena.get_eval_batch(5)
        rollout = (await arena.generate_rollouts([request]))[0].rollout
        assert rollout.error is None, rollout.error
        assert rollout.rewards == {"Agent": 1.5}
        assert len(arena.trained) == 5


class TestFailures:
    async def test_a_reward_that_raises(self):
        rollout = await play(arena_of(Environment("verifiers_games:BadReward"), scripted("a")))
        assert last_line(rollout).startswith(
            "selfplay_ray.errors.EpisodeError: verifiers' environment 'verifiers_games:BadReward' failed at task 0: "
        )
        assert "no such answer" in last_line(rollout)
        assert rollout.rewards == {}
        assert len(rollout.steps) == 1  # it is shown, and not trained on

    async def test_an_environment_that_raises(self):
        name = "verifiers_games:Raising+verifiers_games:Echo"
        rollout = await play(arena_of(Environment(name), scripted("cat")))
        assert "EnvError" in last_line(rollout)
        assert "the board" in last_line(rollout)

    async def test_an_environment_that_hangs_is_ended(self):
        name = "verifiers_games:Hanging+verifiers_games:Echo"
        rollout = await play(arena_of(Environment(name, seconds=1.0), scripted("cat")))
        assert "exceeded its 1s deadline" in last_line(rollout)

    async def test_a_model_that_fails_fails_the_rollout_with_its_own_words(self):
        class Failing(MockInferenceClient):
            async def complete(self, call: ModelCall) -> Completion:
                raise InferenceError("the engine is on fire")

        rollout = await play(arena_of(ECHO, Failing(lambda messages: "")))
        assert last_line(rollout) == "selfplay_ray.errors.InferenceError: the engine is on fire"

    @pytest.mark.parametrize("name", [ECHO.name, "verifiers_games:Hanging+verifiers_games:Echo"])
    async def test_a_cancelled_episode_leaves_nothing_running(self, name: str):
        asked, forever = asyncio.Event(), asyncio.Event()

        class Stuck(MockInferenceClient):
            async def complete(self, call: ModelCall) -> Completion:
                asked.set()
                await forever.wait()
                raise AssertionError

        stage = await stage_of(Environment(name))
        await asyncio.sleep(0.1)  # its server listens
        before = asyncio.all_tasks()
        playing = asyncio.create_task(play(arena_of(Environment(name), Stuck(lambda messages: ""))))
        await asyncio.wait_for(asked.wait(), 60)
        assert stage.switchboard._lines
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        assert not stage.switchboard._lines
        await settled(lambda: {task for task in asyncio.all_tasks() if "selfplay" in repr(task)} <= before)

    async def test_what_is_not_a_conversation_is_refused_up_front(self):
        with pytest.raises(ConfigError, match="verifiers_games:WithTools' gives its agents tools"):
            arena_of(Environment("verifiers_games:WithTools"), None)
        with pytest.raises(ConfigError, match="has no end of tasks; set a limit"):
            arena_of(Environment("verifiers_games:Endless"), None, limit=0)
        endpoint = {"agent": {"client": {"type": "eval", "base_url": "http://127.0.0.1:9/v1"}}}
        with pytest.raises(ConfigError, match="there is none to train"):
            arena_of(Environment(ECHO.name, json.dumps(endpoint)), None)

    @pytest.mark.parametrize(
        ("name", "options", "reason"),
        [
            ("no_such_taskset", "{}", "no_such_taskset"),
            ("verifiers_games:Nothing", "{}", "has no Taskset 'Nothing'"),
            ("no/such/file.py:Echo", "{}", "No such file"),
            ("verifiers_games:Echo", '{"taskset": {"colour": "red"}}', "colour"),
        ],
    )
    def test_what_is_not_there_is_named(self, name: str, options: str, reason: str):
        with pytest.raises(ConfigError) as error:
            Environment(name, options).make()
        assert str(error.value).startswith(f"verifiers' environment {name!r} can't be had with the options")
        assert reason in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_file_will_do(self, tmp_path: Path):
        file = tmp_path / "mine.py"
        file.write_text(Path(__file__).with_name("verifiers_games.py").read_text(encoding="utf-8"))
        environment = Environment(f"{file}:Echo")
        assert [task["word"] for task in environment.tasks(environment.make(), 2)] == ["cat", "horse"]


class TestSwitchboard:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "asks the model with 'tools'"),
            ({"stop": ["\n"]}, "asks the model with 'stop'"),
            ({"top_p": 0.9}, "asks the model with 'top_p'"),
            ({"messages": [{"role": "tool", "content": "7", "tool_call_id": "x"}]}, "it calls tools"),
            (
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                    ]
                },
                "a part of type 'image_url'",
            ),
        ],
    )
    async def test_what_cannot_be_done_fails_the_rollout_in_one_sentence(
        self, change: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
    ):
        usual = aiohttp.ClientSession.post

        def post(session: aiohttp.ClientSession, url: str, json: dict[str, Any], **options: Any) -> Any:
            return usual(session, url, json={**json, **change}, **options)

        monkeypatch.setattr(aiohttp.ClientSession, "post", post)
        rollout = await play(arena_of(ECHO, scripted("cat")))
        assert "verifiers' environment 'verifiers_games:Echo' can't be played here: " in last_line(rollout)
        assert reason in last_line(rollout)

    async def test_streams_to_those_who_ask_for_it(self, monkeypatch: pytest.MonkeyPatch):
        usual = aiohttp.ClientSession.post
        events: list[str] = []

        def post(session: aiohttp.ClientSession, url: str, json: dict[str, Any], **options: Any) -> Any:
            events.append(url)
            return usual(session, url, json={**json, "stream": True}, **options)

        monkeypatch.setattr(aiohttp.ClientSession, "post", post)
        rollout = await play(arena_of(GUESSING, scripted("cow", "cat")))
        assert rollout.error is None, rollout.error
        assert rollout.rewards == {"Agent": 0.75 + 1.5}
        assert len(events) == 2

    async def test_answers_nobody_else(self):
        stage = await stage_of(ECHO)
        url = f"{stage.switchboard.url}/chat/completions"
        body = {"messages": [{"role": "user", "content": "hi"}]}
        known = stage.switchboard.headers
        async with aiohttp.ClientSession() as session:
            statuses = []
            for headers in ({}, {"X-Selfplay-Token": "guess"}, {**known, "X-Session-ID": "guess"}):
                async with session.post(url, json=body, headers=headers) as answer:
                    statuses.append(answer.status)
        assert statuses == [401, 401, 404]
        assert url.startswith("http://127.0.0.1:")

    async def test_a_temperature_of_the_environment_is_the_one_drawn_at(self):
        options = {"agent": {"sampling": {"temperature": 0.5, "max_tokens": 3}}}
        client = scripted("cat", "cat")
        arena = arena_of(Environment(ECHO.name, json.dumps(options)), client)
        assert (await play(arena)).steps[0].temperature == 0.5
        assert client.calls[0].max_tokens == 3
        assert (await play(arena, greedy=True, is_trainable=False)).steps[0].temperature == 0.0


async def test_global_random_states_are_left_alone():
    random.seed(11)
    np.random.seed(11)
    before = random.getstate(), repr(np.random.get_state())
    name = "verifiers_games:Gambling+verifiers_games:Echo"
    rollout = await play(arena_of(Environment(name), scripted("cat")))
    assert rollout.error is None, rollout.error
    expected = random.Random(1)
    assert rollout.metrics["first/Agent"] == expected.random()
    assert rollout.metrics["second/Agent"] == expected.random()  # its own state is there after each wait
    assert (random.getstate(), repr(np.random.get_state())) == before


async def test_the_sums_are_a_hundred_and_the_shown_answers_right():
    client = MockInferenceClient(lambda messages: "5")
    arena = arena_of(Environment(SUMS), client, held_out=0.1)
    assert len(arena.tasks) == 100
    assert len(arena.trained) == 90
    right, number = await play(arena, 5), await play(arena, 6)  # 0 + 5 and 0 + 6
    assert right.rewards == {"Agent": 1.2}
    assert number.rewards == {"Agent": 0.2}
    assert [message["content"] for message in client.calls[0].messages] == [
        "What is 2 + 3?",
        "5",
        "What is 4 + 8?",
        "12",
        "What is 0 + 5?",
    ]


async def test_with_the_real_model(smollm2: Path):
    """Two conversations of three turns: exact tokens, logprobs and versions, later turns continuing earlier ones."""
    with Engine(smollm2, lora=LoRASettings(), max_batch_size=4) as engine:
        arena: Arena = arena_of(GUESSING, EngineClient.for_engine(engine))
        results = await arena.generate_rollouts([EpisodeRequest("task", arena.tasks[row]) for row in (0, 1)])
    for result in results:
        rollout = result.rollout
        assert rollout.error is None, rollout.error
        texts = [step.completion_text.strip() for step in rollout.steps]
        assert rollout.rewards["Agent"] == pytest.approx(
            guessing_reward(texts, rollout.artifact["word"])
            + echo_reward(texts[-1], rollout.artifact["word"])
        )
        for earlier, later in zip(rollout.steps, rollout.steps[1:], strict=False):
            said = earlier.prompt_token_ids + earlier.completion_token_ids
            assert later.prompt_token_ids[: len(said)] == said
            assert later.response.extended
        assert all(step.response.policy_version == 0 for step in rollout.steps)
        assert all(len(step.completion_logprobs) == len(step.completion_token_ids) for step in rollout.steps)


def guessing_reward(texts: list[str], word: str) -> float:
    misses = texts.index(word) if word in texts else 2
    return 1 - misses / 4


def echo_reward(text: str, word: str) -> float:
    return float(text == word) + 0.5 * float(len(text) <= 3)


async def settled(holds: Callable[[], bool]) -> None:
    """Wait until ``holds``; the test's own time-out ends it."""
    while not holds():
        await asyncio.sleep(0.01)
