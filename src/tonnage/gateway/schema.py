"""The requests of OpenAI's API, as far as it documents them; what it does not document is the engine's to judge.

Documented fields are checked for type and range (https://platform.openai.com/docs/api-reference/chat and
/completions), so that a mistake gets the same answer whichever engine is behind. Unknown fields, unknown kinds of
content parts and tools, and unknown response formats pass: engines extend the API (`top_k`, `video_url`, `grammar`).
A decoded request is only looked at; what travels on is the client's own bytes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from tonnage.gateway.refusal import Refusal

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Bias = dict[str, Annotated[float, Meta(ge=-100, le=100)]]
Stop = str | Annotated[list[str], Meta(max_length=4)]
JsonObject = dict[str, Any]


class ImageUrl(Struct, frozen=True):
    """Where an image is: an address, or `data:` with the image itself."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputAudio(Struct, frozen=True):
    """Sound, in base64."""

    data: str
    format: Literal["wav", "mp3"]


class Part(Struct, frozen=True):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None
    file: JsonObject | None = None

    def __post_init__(self) -> None:
        _require(self, self.type, among=("text", "refusal", "image_url", "input_audio", "file"))


class CalledFunction(Struct, frozen=True):
    """A function and the arguments that the model wrote for it, as JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """A call that the model made earlier in the conversation."""

    id: str
    type: str
    function: CalledFunction | None = None
    custom: JsonObject | None = None

    def __post_init__(self) -> None:
        _require(self, self.type, among=("function", "custom"))


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: JsonObject | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None

    def __post_init__(self) -> None:
        if self.role == "assistant":
            if self.content is None and not (
                self.tool_calls or self.function_call or self.audio or self.refusal is not None
            ):
                raise ValueError("Object missing required field `content`")
            return
        if self.content is None and self.role != "function":
            raise ValueError("Object missing required field `content`")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("Object missing required field `tool_call_id`")
        if self.role == "function" and self.name is None:
            raise ValueError("Object missing required field `name`")


class Function(Struct, frozen=True):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Named(Struct, frozen=True):
    """Names a function or tool."""

    name: str


class Tool(Struct, frozen=True):
    """A tool that the model may use."""

    type: str
    function: Function | None = None
    custom: Named | None = None

    def __post_init__(self) -> None:
        _require(self, self.type, among=("function", "custom"))


class AllowedTools(Struct, frozen=True):
    """A selection from `tools`."""

    mode: Literal["auto", "required"]
    tools: list[JsonObject]


class ToolChoice(Struct, frozen=True):
    """The tool that the model must use."""

    type: str
    function: Named | None = None
    custom: Named | None = None
    allowed_tools: AllowedTools | None = None

    def __post_init__(self) -> None:
        _require(self, self.type, among=("function", "custom", "allowed_tools"))


class JsonSchema(Struct, frozen=True):
    """The schema that the answer must match."""

    name: Name
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """The form of the answer."""

    type: str
    json_schema: JsonSchema | None = None

    def __post_init__(self) -> None:
        _require(self, self.type, among=("json_schema",))


class StreamOptions(Struct, frozen=True):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Request(Struct, frozen=True, kw_only=True):
    """What both kinds of request have."""

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: Stop | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None


class ChatRequest(Request, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    audio: JsonObject | None = None
    function_call: Literal["none", "auto"] | Named | None = None
    functions: Annotated[list[Function], Meta(min_length=1, max_length=128)] | None = None
    logprobs: bool | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    metadata: dict[str, str] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    parallel_tool_calls: bool | None = None
    prediction: JsonObject | None = None
    prompt_cache_key: str | None = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    verbosity: str | None = None


class CompletionRequest(Request, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    suffix: str | None = None


_R = TypeVar("_R", bound=Request)

_chat = msgspec.json.Decoder(ChatRequest)
_completion = msgspec.json.Decoder(CompletionRequest)


def chat_request(body: bytes) -> ChatRequest:
    """Read and check the body of a chat completion.

    Raises:
        Refusal: 400, with the field at fault in `param`.
    """
    request = _decode(_chat, body)
    if request.top_logprobs is not None and not request.logprobs:
        raise _invalid("top_logprobs", "it is only allowed when 'logprobs' is true")
    if request.tool_choice not in (None, "none") and not request.tools:
        raise _invalid("tool_choice", "it is only allowed when 'tools' are given")
    return request


def completion_request(body: bytes) -> CompletionRequest:
    """Read and check the body of a completion.

    Raises:
        Refusal: 400, with the field at fault in `param`.
    """
    request = _decode(_completion, body)
    if isinstance(request.prompt, list) and len({type(item) for item in request.prompt}) != 1:
        raise _invalid("prompt", "expected a string, or an array of strings, of tokens, or of arrays of tokens")
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise _invalid("best_of", "it must not be smaller than 'n'")
    if request.stream and (request.best_of or 1) > 1:
        raise _invalid("best_of", "results cannot be streamed when it is greater than 1")
    return request


def with_model(body: bytes, model: str) -> bytes:
    """The same JSON object with another `model`; the values of all other fields keep their bytes."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def _decode(decoder: msgspec.json.Decoder[_R], body: bytes) -> _R:
    try:
        request = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"The request body is not JSON: {error}.", code="invalid_json") from error
    if request.stream_options is not None and not request.stream:
        raise _invalid("stream_options", "it is only allowed when 'stream' is true")
    return request


def _require(value: Struct, field: str, *, among: tuple[str, ...]) -> None:
    """A tagged object must hold the field that its `type` names; of unknown types nothing is known."""
    if field in among and getattr(value, field) is None:
        raise ValueError(f"Object missing required field `{field}`")


def _refusal(problem: str) -> Refusal:
    """Turns msgspec's words, such as "Expected `int`, got `str` - at `$.n`", into OpenAI's."""
    text, _, where = problem.partition(" - at `$")
    param = where.rstrip("`").removeprefix(".").replace("[...]", "")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        param = f"{param}.{missing[1]}".removeprefix(".")
        return Refusal(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    kind = "type" if ", got `" in text else "value"
    if not param:
        return Refusal(400, f"The request body is not a JSON object: {text}.", code="invalid_type")
    return Refusal(
        400,
        f"Invalid {kind} for '{param}': {text[:1].lower()}{text[1:]}.",
        param=param,
        code=f"invalid_{kind}",
    )


def _invalid(param: str, problem: str) -> Refusal:
    return Refusal(400, f"Invalid value for '{param}': {problem}.", param=param, code="invalid_value")
