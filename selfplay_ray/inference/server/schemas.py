"""What may be asked, as JSON: OpenAI's requests with vLLM's additions. What isn't known is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MASK64 = (1 << 64) - 1
MAX_CHOICES = 128
MAX_PROMPTS = 256
MAX_TOP_LOGPROBS = 20

Text = Annotated[str, Field(max_length=8_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = list[TokenId]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class RequestModel(BaseModel):
    """Base of what comes in."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StreamOptions(RequestModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Neutral(RequestModel):
    """Parameters of OpenAI's and vLLM's that are taken only where they change nothing.

    Most would make the tokens come from another distribution than the logprobs are of.
    """

    top_p: float | None = 1.0
    top_k: int | None = 0
    min_p: float | None = 0.0
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    best_of: int | None = None
    use_beam_search: bool | None = False
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: JsonValue = None
    guided_json: JsonValue = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    logits_processors: JsonValue = None
    kv_transfer_params: JsonValue = None
    vllm_xargs: JsonValue = None
    thinking_token_budget: int | None = None


NEUTRAL: dict[str, tuple[object, ...]] = {
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "best_of": (1,),
    "use_beam_search": (False,),
}
"""What a parameter may be, beside None, without changing anything."""


class Sampling(Neutral):
    """How tokens are drawn, and when that ends."""

    n: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(1.0, ge=0, le=100)
    """0 is greedy."""
    seed: int | None = Field(None, ge=-(2**63), le=MASK64)
    """Fixes the samples; choice number i is drawn with ``seed + i``."""
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    """Texts that end a reply, which then lacks them; its tokens are the tokens sampled, those of the text too."""
    stop_token_ids: Annotated[TokenIds, Field(max_length=64)] | None = None
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    """The end of the turn, and ``stop_token_ids``, have probability 0 before that many tokens."""
    max_tokens: int | None = Field(None, ge=1)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True


class Common(Sampling):
    """What a chat and a completion have in common."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    """Give the prompt's and the reply's token ids, its stop token included."""
    return_tokens_as_token_ids: bool | None = False
    """Write tokens in logprobs as ``token_id:17``."""
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    """Lower is earlier."""
    add_special_tokens: bool | None = None
    # Taken, and of no consequence here:
    user: str | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    metadata: JsonValue = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ContentPart(RequestModel):
    type: Literal["text"]
    text: Text


class ChatMessage(RequestModel):
    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Text | list[ContentPart]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(RequestModel):
    type: Literal["text"]


class ChatCompletionRequest(Common):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    add_generation_prompt: Literal[True] = True
    continue_final_message: Literal[False] = False
    echo: Literal[False] = False
    response_format: ResponseFormat | None = None
    tools: Annotated[list[JsonValue], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(Common):
    prompt: (
        Text
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[
            list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)
        ]
    )
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] = False
    suffix: Literal[""] | None = None


class TokenSamplingParams(Sampling):
    """vLLM's ``SamplingParams``, as ``/inference/v1/generate`` takes them."""

    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    output_kind: int | None = None


class TokenGenerateRequest(RequestModel):
    token_ids: Annotated[TokenIds, Field(min_length=1)]
    sampling_params: TokenSamplingParams
    model: str | None = None
    request_id: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    priority: int = Field(0, ge=-(2**31), lt=2**31)


class TokenizeRequest(RequestModel):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: Literal[True] = True
    return_token_strs: bool | None = False


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: TokenIds


class LoRAConfig(RequestModel):
    """PEFT's ``adapter_config.json``, as far as it matters, for weights that come without one."""

    r: int = Field(ge=1, le=4096)
    lora_alpha: float = Field(gt=0)


class LoadLoRARequest(RequestModel):
    """An adapter: a folder on this machine, or its weights themselves."""

    lora_name: Name
    lora_path: str | None = None
    """A folder as PEFT or ``save_adapter`` writes it, or the file of ``save_adapter``."""
    lora_weights: str | None = None
    """The safetensors, in base64."""
    lora_config: LoRAConfig | None = None
    """What ``lora_weights`` under PEFT's names are to be multiplied with."""
    policy_version: int | None = Field(None, ge=0, lt=2**63)
    """Stamped on every token; by default the one saved with the weights, the number at the end of the name, or 1
    more than the last."""
    load_inplace: bool = False
    """Replace the adapter of that name."""
    is_3d_lora_weight: Literal[False] = False


class UnloadLoRARequest(RequestModel):
    lora_name: Name
    lora_int_id: int | None = None
