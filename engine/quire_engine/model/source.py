"""Where a model comes from: the one place that turns `ModelConfig` into files and their contents.

A model is the demo model, a directory, a GGUF file, or a name on the hub. Whatever it is, a
`ModelSource` offers the same things in the same form. Resolving is cheap: weights are not read,
and the tokenizer only when asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_engine.config import ModelConfig
from quire_engine.errors import ConfigError
from quire_engine.model.checkpoint import Checkpoint, find_checkpoint
from quire_engine.model.demo import DEMO_GENERATION_CONFIG, DEMO_NAME, demo_model, is_demo
from quire_engine.model.gguf_config import config_of
from quire_engine.model.gguf_metadata import GgufMetadata, read_metadata
from quire_engine.model.hub import Hub
from quire_engine.model.spec import ConfigReader, max_position, read_rope
from quire_engine.model.tokenizer_files import TokenizerFiles, read_chat_template, read_json

# generation_config.json's name for each field of SamplingParams that it may set.
_GENERATION_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Everything that is known of a model before its weights are read."""

    name: str
    """What clients call it, unless `served_model_name` says otherwise."""
    served_names: tuple[str, ...]
    """What clients may call it, at least one name; the first is reported."""
    config: Mapping[str, Any]
    """config.json, or the same from a GGUF file, with `hf_overrides` merged in."""
    format: str
    """safetensors, gguf or dummy."""
    weight_files: tuple[Path, ...]
    """None for dummy weights."""
    generation_config: Mapping[str, Any]
    """Sampling defaults of the model, by fields of SamplingParams."""
    eos_token_ids: frozenset[int]
    max_model_len: int
    """Longest sequence, prompt and completion together."""
    chat_template: str | None
    special_tokens: Mapping[str, str]
    """Text of bos_token, eos_token and the like, for chat templates."""
    tokenizer_files: TokenizerFiles | None
    """None with `skip_tokenizer_init`."""

    def load_tokenizer(self) -> str | None:
        """Return the text of tokenizer.json; None with `skip_tokenizer_init`.

        Raises:
            ConfigError: the model brings no tokenizer that can be used.
        """
        return self.tokenizer_files.text() if self.tokenizer_files else None


def resolve(config: ModelConfig) -> ModelSource:
    """Find the model that `config` names; download what is not there yet.

    Raises:
        ConfigError: no such model, or its files cannot be used.
    """
    path = _locate(config, config.model, with_weights=config.load_format != "dummy")
    checkpoint = find_checkpoint(path, config.load_format)
    gguf = read_metadata(checkpoint.gguf) if checkpoint.gguf else None
    model_config = _model_config(checkpoint, gguf) | (config.hf_overrides or {})
    generation = _generation_config(config, path)
    own_files = TokenizerFiles(folder=checkpoint.folder, gguf=gguf, is_file_alone=path.is_file())
    files = None if config.skip_tokenizer_init else _other_tokenizer(config) or own_files
    name = config.model or DEMO_NAME
    return ModelSource(
        name=name,
        served_names=config.served_model_name or (name,),
        config=model_config,
        format=checkpoint.format,
        weight_files=checkpoint.weight_files,
        generation_config=_sampling_defaults(config, generation),
        eos_token_ids=_eos_token_ids(model_config, generation, gguf),
        max_model_len=_max_model_len(config, model_config),
        chat_template=_chat_template(config, files),
        special_tokens=files.special_tokens() if files else {},
        tokenizer_files=files,
    )


def _locate(config: ModelConfig, model: str, *, with_weights: bool) -> Path:
    if is_demo(model):
        return demo_model()
    path = Path(model).expanduser()
    if path.exists():
        return path
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(f"no such file or directory: {model}")
    hub = Hub(revision=config.revision, token=config.hf_token, cache_dir=config.download_dir)
    return hub.download(model, with_weights=with_weights)


def _generation_config(config: ModelConfig, path: Path) -> dict[str, Any]:
    if is_demo(config.model):
        return dict(DEMO_GENERATION_CONFIG)
    # Beside a GGUF file that is named itself there may be files of other models.
    return {} if path.is_file() else read_json(path / "generation_config.json")


def _model_config(checkpoint: Checkpoint, gguf: GgufMetadata | None) -> dict[str, Any]:
    return config_of(gguf) if gguf else read_json(checkpoint.folder / "config.json")


def _other_tokenizer(config: ModelConfig) -> TokenizerFiles | None:
    if not config.tokenizer:
        return None
    path = _locate(config, config.tokenizer, with_weights=False)
    if path.is_file():
        return TokenizerFiles(folder=path.parent, gguf=read_metadata(path), is_file_alone=True)
    return TokenizerFiles(folder=path)


def _sampling_defaults(config: ModelConfig, generation: Mapping[str, Any]) -> dict[str, Any]:
    if config.generation_config == "vllm":
        return {}
    return {
        field: generation[name]
        for name, field in _GENERATION_FIELDS.items()
        if generation.get(name) is not None
    }


def _eos_token_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any], gguf: GgufMetadata | None
) -> frozenset[int]:
    # A GGUF file names the end of a turn apart from the end of the text.
    end_of_turn = gguf.values.get("tokenizer.ggml.eot_token_id") if gguf else None
    found: set[int] = set()
    for value in (config.get("eos_token_id"), generation.get("eos_token_id"), end_of_turn):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def _max_model_len(config: ModelConfig, model_config: Mapping[str, Any]) -> int:
    reader = ConfigReader(model_config)
    longest = max_position(reader, read_rope(reader))
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len={config.max_model_len} is more than the {longest} tokens that the "
            "model is made for; to stretch it, set rope_scaling through --hf-overrides"
        )
    return config.max_model_len


def _chat_template(config: ModelConfig, files: TokenizerFiles | None) -> str | None:
    if config.chat_template is not None:
        return read_chat_template(config.chat_template)
    return files.chat_template() if files else None
