"""A GPU runner and a CPU runner of the same small model, and workloads for both."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from quire_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from quire_engine.core.engine_core import EngineCore
from quire_engine.core.messages import NewSequence, SequenceOutput
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.share import WHOLE, Share, share_of
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import assemble
from quire_engine.runner.cpu_runner import CpuRunner
from quire_engine.runner.factory import make_model
from quire_engine.runner.gpu.cache import GpuKvCache
from quire_engine.runner.gpu.decoder import GpuDecoder
from quire_engine.runner.gpu.parts import GpuParts
from quire_engine.runner.gpu.runner import GpuRunner
from quire_engine.runner.group.collectives import join
from quire_engine.runner.group.rank import ONLY_RANK, Rank
from quire_engine.runner.memory import KvCache, Limits
from quire_engine.runner.plan import ModelRunner
from quire_engine.runner.sampling.sampler import Sampler
from quire_engine.sampling_params import SamplingParams

VOCAB_SIZE = 211
MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 24},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 6},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
}


class Setting:
    """One model with one set of limits, on either kind of runner."""

    def __init__(self, family: str = "llama", *, num_blocks: int = 40, budget: int = 40) -> None:
        self.spec: ModelSpec = read_spec(MODEL | FAMILIES[family])
        self.config = EngineConfig(
            cache=CacheConfig(block_size=16),
            scheduler=SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=budget, watermark=0.0),
        )
        self.limits = Limits(
            num_blocks=num_blocks, block_size=16, max_model_len=200, max_num_batched_tokens=budget
        )

    def _weights(self, share: Share = WHOLE) -> dict[str, torch.Tensor]:
        # Larger than life, so that the most likely tokens are far apart.
        tensors = [(name, tensor * 3) for name, tensor in make_dummy(self.spec, torch.float32, 0)]
        return assemble(self.spec, tensors, torch.float32, share=share)

    def cpu_runner(self) -> CpuRunner:
        cache = KvCache(
            self.spec, num_blocks=self.limits.num_blocks, block_size=16, dtype=torch.float32
        )
        return CpuRunner(
            make_model(self.spec, self._weights(), cache, None, max_len=256),
            Sampler(vocab_size=VOCAB_SIZE),
            self.limits,
            max_num_seqs=6,
            block_size=16,
        )

    def gpu_runner(self, rank: Rank = ONLY_RANK) -> GpuRunner:
        """Build the runner of GPUs; its kernels are interpreted where there is none."""
        spec = share_of(self.spec, rank.share)
        decoder = GpuDecoder(
            spec,
            self._weights(rank.share),
            max_len=256,
            max_num_tokens=self.limits.max_num_batched_tokens,
            group=join(rank, torch.device("cpu")),
        )
        cache = GpuKvCache(
            spec,
            num_blocks=self.limits.num_blocks,
            block_size=16,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        parts = GpuParts.build(self.config, decoder, cache, self.limits, eos_token_ids=())
        return GpuRunner(parts, self.limits)

    def core(self, runner: ModelRunner) -> EngineCore:
        return EngineCore(self.config, runner, prefix_model="tiny", eos_token_ids=frozenset())


def workload(lens: Sequence[int], params: Sequence[SamplingParams]) -> list[NewSequence]:
    """Return a sequence of each length; every third shares its beginning with the first."""
    draw = random.Random(0)
    shared = [draw.randrange(VOCAB_SIZE) for _ in range(max(lens))]
    found = []
    for index, length in enumerate(lens):
        own = [draw.randrange(VOCAB_SIZE) for _ in range(length)]
        prompt = own if index % 3 else shared[: length - 1] + own[:1]
        found.append(
            NewSequence(
                seq_id=index,
                prompt_token_ids=prompt,
                params=params[index % len(params)],
                priority=0,
                arrival_s=float(index),
                cache_salt="",
            )
        )
    return found


def run(core: EngineCore, sequences: Sequence[NewSequence]) -> dict[int, list[SequenceOutput]]:
    """Run sequences to their ends; return what was heard of each."""
    for sequence in sequences:
        core.add(sequence)
    heard: dict[int, list[SequenceOutput]] = {}
    while core.has_work:
        for output in core.step().outputs:
            assert output.error is None, output.error
            heard.setdefault(output.seq_id, []).append(output)
    core.check()
    return heard


def tokens_of(heard: dict[int, list[SequenceOutput]]) -> dict[int, list[int]]:
    """Return the generated tokens of each sequence."""
    return {
        seq_id: [token for output in outputs for token in output.token_ids]
        for seq_id, outputs in sorted(heard.items())
    }
