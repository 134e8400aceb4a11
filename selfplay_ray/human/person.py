"""How an episode asks a person."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from selfplay_ray.errors import EpisodeError

POLL_SECONDS = 0.5
REQUEST_SECONDS = 10.0


class Person(Protocol):
    """Somebody who can be asked."""

    async def ask(self, key: str, question: str) -> str | None:
        """The answer, or None, an abstention, if there was none in time. ``key`` names the question: asked again
        under the same one, by an episode that is played again, it gets the same answer."""
        ...


@dataclass(frozen=True, slots=True)
class HttpPerson:
    """A person at a desk that another process serves at ``url``. It travels between processes, its token with it."""

    url: str
    token: str = field(repr=False)

    async def ask(self, key: str, question: str) -> str | None:
        """Raises EpisodeError: the desk can't be reached, or refuses."""
        headers = {"Authorization": f"Bearer {self.token}"}
        client = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=REQUEST_SECONDS, trust_env=False
        )
        try:
            async with client:
                answer = await client.post("/questions", json={"key": key, "text": question})
                while answer.raise_for_status().json()["state"] == "waiting":
                    await asyncio.sleep(POLL_SECONDS)
                    answer = await client.get(f"/questions/{key}")
        except httpx.HTTPError as error:
            raise EpisodeError(
                f"the desk of the person to be asked, {self.url}, failed: {error!r}"
            ) from error
        said: str | None = answer.json()["answer"]
        return said
