"""`transformers`' own `generate`, on the weights that Quire runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quire_engine.errors import ConfigError
from quire_engine.model.source import ModelSource


class TransformersGenerator:
    """Generates greedily with a model of transformers."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def load(cls, source: ModelSource, dtype: str, device: str) -> "TransformersGenerator":
        """Load the weights that `source` names; random ones for a dummy model.

        Raises:
            ConfigError: transformers does not fit the weights.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch_dtype = getattr(torch, dtype)
        auto: Any = AutoModelForCausalLM  # its from_config has no types
        if source.format == "safetensors":
            folder = Path(source.weight_files[0]).parent
            model = auto.from_pretrained(str(folder), dtype=torch_dtype)
        else:
            config = AutoConfig.for_model(**source.config)
            model = auto.from_config(config, dtype=torch_dtype)
        if source.format == "gguf":
            _load_gguf(model, source)
        model.train(mode=False)
        return cls(model.to(device))

    def generate(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        import torch

        input_ids = torch.tensor(list(prompts), device=self._model.device)
        with torch.inference_mode():
            self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )


def _load_gguf(model: Any, source: ModelSource) -> None:
    # Read as Quire reads it: transformers' own reader needs one more package, accelerate.
    from quire_engine.model.families import read_spec
    from quire_engine.model.gguf_weights import read_gguf

    spec = read_spec(source.config)
    tensors = dict(read_gguf(source.weight_files[0], spec, shows_progress=False))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
    if unexpected or set(missing) - set(tied):
        raise ConfigError(f"transformers does not fit the weights: {missing} {unexpected}")
    model.tie_weights()
