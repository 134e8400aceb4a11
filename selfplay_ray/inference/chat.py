"""From messages to tokens and back, without tokenizing anything twice. No MLX, so that rollout workers stay light."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from jinja2 import TemplateError

from selfplay_ray.errors import InferenceError, ModelError
from selfplay_ray.models import resolve_model
from selfplay_ray.types import Message, TokenPrefix

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise installing PyTorch
from transformers import AutoTokenizer

Tokens = tuple[int, ...]
PRIVATE_USE = range(0xE000, 0xF900)
"""Unicode's private use area: characters that mean nothing to a chat template, or to anyone."""


@dataclass(frozen=True, slots=True)
class _Shielded:
    """Messages in which text that looks like a special token is one character, and what each stands for."""

    messages: list[Message]
    stand_ins: Mapping[str, str]
    mark: str  # a character that occurs nowhere in the messages


class ChatTokenizer:
    """A model's chat template and tokenizer.

    Text that looks like a special token (somebody writes ``<|im_end|>`` in a message) is spelled out in ordinary
    tokens: nobody can end their turn, or begin another's, from inside a message. That holds for the tokens the
    tokenizer marks as special; a marker that is not (a ``<think>`` in some models) stays what it is. A sampled
    reply is its sampled tokens in any case, whatever its text looks like.

    Args:
        model_path: a model's folder, or any name ``resolve_model`` knows.

    Raises:
        ModelError: there is no such model, it has no readable tokenizer, or no chat template.
    """

    def __init__(self, model_path: str | Path) -> None:
        folder = resolve_model(str(model_path))
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the tokenizer in {folder} can't be read: {error}") from error
        if not self._tokenizer.chat_template:
            raise ModelError(f"the model in {folder} has no chat template; use an instruct model")
        self.eos_token_ids = _eos_token_ids(folder) | {self._tokenizer.eos_token_id} - {None}
        added = self._tokenizer.added_tokens_decoder.values()
        self._special = _any_of({token.content for token in added if token.special})

    def encode(self, messages: Sequence[Message], prefix: TokenPrefix | None = None) -> tuple[Tokens, bool]:
        """The prompt that asks for the next reply, and whether it extends ``prefix``.

        With a prefix the result is its tokens and then the tokens of what is new. Where the template renders the
        covered part otherwise than when it was sampled (drops earlier thinking, say), everything is tokenized
        anew and the second value is False.

        Raises:
            InferenceError: the template refuses the messages, the prefix covers none or more than there are, or
                they hold every private-use character.
        """
        chat = self._shield(messages)
        if prefix is not None:
            new = self._after(prefix, chat)
            if new is not None:
                return prefix.token_ids + self._tokenize(new, chat.stand_ins), True
        return self._tokenize(self._render(chat.messages), chat.stand_ins), prefix is None

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> Tokens:
        """The tokens of ``text`` as it is, without a chat: what looks like a special token is one.

        ``add_special_tokens`` lets the tokenizer add those that begin a text, if it has any.
        """
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def text_of(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of any tokens, special ones shown or left out."""
        return self._text(token_ids, skip_special_tokens=skip_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a reply: no stop token, no special tokens."""
        said = [token for token in token_ids if token not in self.eos_token_ids]
        return self._text(said, skip_special_tokens=True)

    def _after(self, prefix: TokenPrefix, chat: _Shielded) -> str | None:
        """What the template renders after the tokens of ``prefix``, or None where it breaks it."""
        if not 0 < prefix.messages <= len(chat.messages):
            raise InferenceError(
                f"a prefix of {prefix.messages} messages can't begin a chat of {len(chat.messages)}"
            )
        last = prefix.messages - 1
        covered, reply, new = chat.messages[:last], chat.messages[last], chat.messages[last + 1 :]
        marked = Message(role=reply["role"], content=chat.mark)
        before, _, after = self._render([*covered, marked, *new]).partition(chat.mark)
        # Many templates trim a reply; that doesn't make it another conversation.
        shown = {before + text + after for text in (reply["content"], reply["content"].strip())}
        if before != self._render(covered) or self._render(chat.messages) not in shown:
            return None
        end = self._text(prefix.token_ids[-1:]) if prefix.ended else ""
        return after.removeprefix(end) if after.startswith(end) else None

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            chat = cast(list[dict[str, str]], list(messages))
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise InferenceError(f"the model's chat template refuses these messages: {error}") from error

    def _text(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        ids = list(token_ids)
        return str(self._tokenizer.decode(ids, skip_special_tokens, clean_up_tokenization_spaces=False))

    def _shield(self, messages: Sequence[Message]) -> _Shielded:
        text = "".join(message["content"] for message in messages)
        forged = sorted(set(self._special.findall(text)))
        free = (character for character in map(chr, PRIVATE_USE) if character not in text)
        unused = list(itertools.islice(free, 1 + len(forged)))
        if len(unused) <= len(forged):
            raise InferenceError(
                "the messages hold all of Unicode's private-use characters, some of which are needed to tell apart "
                "what was said from what the chat template says; leave a few out"
            )
        mark, *characters = unused
        shields = dict(zip(forged, characters, strict=True))
        shielded = [
            Message(role=m["role"], content=self._special.sub(lambda found: shields[found[0]], m["content"]))
            for m in messages
        ]
        return _Shielded(shielded, {character: text for text, character in shields.items()}, mark)

    def _tokenize(self, rendered: str, stand_ins: Mapping[str, str]) -> Tokens:
        """Tokens of rendered text. The template writes BOS itself where there is one, so none is added."""
        tokens: list[int] = []
        for piece in _any_of(stand_ins, keep=True).split(rendered):
            text = stand_ins.get(piece, piece)
            tokens += self._tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=piece in stand_ins
            )
        return tuple(tokens)


def _any_of(texts: Iterable[str], *, keep: bool = False) -> re.Pattern[str]:
    """A pattern for any of ``texts``, the longest first; with ``keep``, splitting by it keeps what it matched."""
    longest_first = sorted(texts, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
    return re.compile(f"({pattern})" if keep else pattern)


def _eos_token_ids(folder: Path) -> frozenset[int]:
    """The ids the model's own configuration stops at; generation_config.json has the last word, as in mlx-lm."""
    ids: object = None
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            ids = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id") or ids
    if isinstance(ids, list):
        return frozenset(ids)
    return frozenset({ids} if isinstance(ids, int) else ())
