"""Ranks that compute small models on the CPU."""

from collections.abc import Callable

import torch

from gpu_runner_support import MODEL, Setting
from quire_engine.core.messages import SequenceOutput
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.quantization import Quantization, Scales
from quire_engine.model.share import WHOLE, Share
from quire_engine.model.weight_places import WeightPlaces
from quire_engine.runner.gpu.runner import GpuRunner
from quire_engine.runner.group.rank import Rank


class BiasedSetting(Setting):
    """A model with every bias, whose heads three ranks can share, too."""

    def __init__(self, *, quantizes: bool = False) -> None:
        super().__init__()
        self._quantizes = quantizes
        heads = {"num_attention_heads": 6, "num_key_value_heads": 6}
        self.spec = read_spec(MODEL | heads | {"attention_bias": True})

    def _weights(self, share: Share = WHOLE) -> dict[str, torch.Tensor]:
        places = WeightPlaces(self.spec, torch.float32, share=share, quantizes=self._quantizes)
        places.fill((n, tensor * 3) for n, tensor in make_dummy(self.spec, torch.float32, 0))
        weights = places.finish()
        if self._quantizes:
            Scales(self.spec, Quantization(has_static_inputs=False), share).attach(weights)
        return weights


SETTINGS: dict[str, Callable[[], Setting]] = {
    "biased": BiasedSetting,
    "8-bit": lambda: BiasedSetting(quantizes=True),
    "qwen2": lambda: Setting("qwen2"),
    "qwen3": lambda: Setting("qwen3"),
}


def build_setting(name: str, rank: Rank) -> GpuRunner:
    torch.set_num_threads(1)
    return SETTINGS[name]().gpu_runner(rank)


def logprobs_of(outputs: list[SequenceOutput]) -> list[float]:
    """Return the logprobs of a sequence's own tokens, prompt and completion."""
    found: list[float] = []
    for output in outputs:
        scored = [*(output.prompt_logprobs or []), *(output.logprobs or [])]
        found += [entry.logprobs[0] for entry in scored]
    return found
