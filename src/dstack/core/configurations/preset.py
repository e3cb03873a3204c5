"""Presets: a model to be served well, which a coding agent finds the way to by trying."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from typing_extensions import Self

from dstack.core.configurations.environment import Env
from dstack.core.configurations.profiles import ProfileParams
from dstack.core.configurations.references import EntityReference
from dstack.core.models import CoreModel

DEFAULT_INPUT_TOKENS = 1024
DEFAULT_OUTPUT_TOKENS = 1024
MADE_UP_DATASET = "random"

Provider = Literal["claude", "codex"]


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


Text = Annotated[str, AfterValidator(_not_empty)]


class PresetModelRepo(CoreModel):
    """Exactly this repository of a model."""

    repo: Text
    """Such as `Qwen/Qwen3-0.6B` on Hugging Face."""
    name: str | None = None
    """What requests call the model; by default the repository."""


class PresetModelBase(CoreModel):
    """Any variant of a model: another precision, or quantized."""

    base: Text
    """The repository of the model that variants are made of."""


class PresetPromptFile(CoreModel):
    """A file with wishes."""

    path: str
    """Relative to the configuration."""


class PresetAgentConfig(CoreModel):
    """The coding agent that does the work."""

    provider: Provider
    """Whose command line is run."""
    model: str | None = None
    """Its model; by default `DSTACK_AGENT_ANTHROPIC_MODEL` or `DSTACK_AGENT_OPENAI_MODEL`, else its own choice."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How hard it thinks; `max` is for `claude` only. By default `DSTACK_AGENT_CLAUDE_EFFORT` or
    `DSTACK_AGENT_CODEX_EFFORT`, else its own choice."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.provider == "codex" and self.effort == "max":
            raise ValueError("codex has no effort 'max'; use low, medium, high or xhigh")
        return self


def _expand_model(value: Any) -> Any:
    if isinstance(value, str):
        return {"repo": value}
    return value


def _check_dataset(name: str) -> str:
    if name == MADE_UP_DATASET:
        raise ValueError(f"{MADE_UP_DATASET!r} is what is used without a dataset; leave the field out")
    return _not_empty(name)


PresetModel = Annotated[PresetModelRepo | PresetModelBase, BeforeValidator(_expand_model)]


class PresetConfiguration(ProfileParams):
    """`type: preset`."""

    type: Literal["preset"] = "preset"
    """Which kind of configuration this is."""
    name: str | None = None
    """Name of the preset; runs of its trials begin with it."""
    model: PresetModel
    """What to serve; a text is a `repo`."""
    base: str | None = None
    """Short for `model: {base: …}`."""
    repo: str | None = None
    """Short for `model: {repo: …}`."""
    prompt: Text | PresetPromptFile | None = None
    """Wishes in words, for the agent."""
    min_context_length: Annotated[int, Field(gt=0)] | None = None
    """Tokens that the model takes at least. Needed to make a preset."""
    max_ttft: Annotated[int, Field(gt=0)] | None = None
    """Milliseconds to the first token, at most, of 99 requests in 100. Needed to make a preset."""
    trials: Annotated[int, Field(gt=0)] | None = None
    """How many ways to serve the model are measured. Needed to make a preset, here or as `--trials`."""
    previous: list[str] | None = None
    """Ids or names of presets whose results the agent starts from."""
    concurrency: Annotated[int, Field(gt=0)] | None = None
    """Requests at a time while it is measured. Needed to make a preset."""
    input_tokens: Annotated[int, Field(gt=0)] | None = None
    """Of a request; by default 1024."""
    output_tokens: Annotated[int, Field(ge=2)] | None = None
    """Of an answer; by default 1024."""
    shared_prefix_tokens: Annotated[int, Field(ge=0)] | None = None
    """How many of the tokens of a request all requests begin with; by default none."""
    dataset: Annotated[str, AfterValidator(_check_dataset)] | None = None
    """Requests are taken from it instead of made up, such as `sharegpt`."""
    baseline: bool | None = None
    """Whether the first trial is the plainest way to serve the model; by default it is."""
    gateway: bool | EntityReference | None = None
    """As in a service."""
    agent: PresetAgentConfig | None = None
    """By default `claude`, or what `DSTACK_AGENT_PROVIDER` says."""
    env: Env = Field(default_factory=dict)
    """Variables of the trials' runs."""

    @model_validator(mode="before")
    @classmethod
    def _short_model(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = [name for name in ("model", "base", "repo") if data.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"'{given[0]}' and '{given[1]}' exclude each other: both say which model it is")
        if given and given[0] != "model":
            return {**data, "model": {given[0]: data[given[0]]}, given[0]: None}
        return data

    @model_validator(mode="after")
    def _check_workload(self) -> Self:
        if self.dataset is not None:
            for name in ("input_tokens", "output_tokens", "shared_prefix_tokens"):
                if getattr(self, name) is not None:
                    raise ValueError(f"'{name}' means nothing with a 'dataset', whose requests are as they are")
        if self.shared_prefix_tokens is not None and self.shared_prefix_tokens >= self.input_size:
            raise ValueError(f"'shared_prefix_tokens' must be less than the {self.input_size} of 'input_tokens'")
        return self

    @property
    def input_size(self) -> int:
        """Tokens of a request that is made up."""
        return self.input_tokens or DEFAULT_INPUT_TOKENS

    @property
    def output_size(self) -> int:
        """Tokens of its answer."""
        return self.output_tokens or DEFAULT_OUTPUT_TOKENS

    @property
    def model_name(self) -> str:
        """Of the repository, or of the base model."""
        return self.model.repo if isinstance(self.model, PresetModelRepo) else self.model.base
