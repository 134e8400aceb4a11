"""The plainest of harnesses for verifiers, in this process: the conversation is sent, and the reply is the turn."""

from __future__ import annotations

from typing import Any

import aiohttp
import verifiers.v1 as vf

__all__ = ["ChatHarness"]  # where verifiers looks for it


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """A conversation without tools. verifiers' own one starts a program with an environment of its own for each turn,
    which takes a second and the network."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Ask once. What goes wrong verifiers knows already: it is in between."""
        body = {"model": ctx.model, "messages": self._messages(data)}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(
                f"{endpoint}/chat/completions", json=body, headers={"Authorization": f"Bearer {secret}"}
            ) as answer,
        ):
            text = await answer.text()
            return vf.ProgramResult(exit_code=0 if answer.ok else 1, stdout=text, stderr="")

    def _messages(self, data: vf.TaskData) -> list[dict[str, Any]]:
        system, prompt = self.resolve_prompt(data)
        said = [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or ())
        if system is not None:
            said.insert(0, vf.SystemMessage(content=system))
        return [message.model_dump(mode="json", exclude_none=True) for message in said]
