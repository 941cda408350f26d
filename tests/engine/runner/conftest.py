"""A tiny driver that issues plans by hand, and the models that runner tests share."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quire_engine.config import EngineConfig
from quire_engine.runner.cpu_runner import CpuRunner
from quire_engine.runner.factory import build_runner
from quire_engine.runner.plan import AdmittedSequence, StepPlan, StepResult
from quire_engine.sampling_params import SamplingParams

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
BLOCK_SIZE = 16


@dataclass
class Driver:
    """Runs sequences through a runner, with blocks handed out in a scrambled order."""

    runner: CpuRunner
    free: list[int] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)
    plan: StepPlan = field(default_factory=StepPlan)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)
    blocks: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.runner.num_blocks
        self.free = (
            [block * 7 % count for block in range(count)] if count % 7 else list(range(count))
        )

    def admit(
        self, seq_id: int, token_ids: Sequence[int], params: SamplingParams, num_prompt: int = 0
    ) -> None:
        self.tokens[seq_id], self.computed[seq_id] = list(token_ids), 0
        self.blocks[seq_id] = [self.free.pop() for _ in range(-(-len(token_ids) // BLOCK_SIZE))]
        self.plan.admitted.append(
            AdmittedSequence(
                seq_id=seq_id,
                token_ids=list(token_ids),
                num_prompt_tokens=num_prompt or len(token_ids),
                block_ids=list(self.blocks[seq_id]),
                num_computed_tokens=0,
                params=params,
            )
        )

    def drop(self, seq_id: int) -> None:
        self.plan.dropped.append(seq_id)
        self.free += self.blocks.pop(seq_id)
        del self.computed[seq_id]

    def step(self, num_tokens: Mapping[int, int]) -> StepResult:
        """Compute so many tokens of each sequence; blocks are added as they are needed."""
        for seq_id, count in num_tokens.items():
            end = self.computed[seq_id] + count
            while len(self.blocks[seq_id]) * BLOCK_SIZE < end:
                self.blocks[seq_id].append(self.free.pop())
                self.plan.new_block_ids.setdefault(seq_id, []).append(self.blocks[seq_id][-1])
            self.computed[seq_id] = end
        self.plan.num_tokens = dict(num_tokens)
        result = self.runner.execute(self.plan)
        self.plan = StepPlan()
        self.results.append(result)
        for seq_id, token_id in result.token_ids.items():
            self.tokens[seq_id].append(token_id)
        return result

    def left(self, seq_id: int) -> int:
        return len(self.tokens[seq_id]) - self.computed[seq_id]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        *,
        chunk: int = 10_000,
        params: SamplingParams | None = None,
    ) -> list[list[int]]:
        """Return the tokens that follow each prompt, computed side by side."""
        params = params or SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
        ids = [max(self.tokens, default=-1) + 1 + index for index in range(len(prompts))]
        for seq_id, prompt in zip(ids, prompts, strict=True):
            self.admit(seq_id, prompt, params)
        goal = {i: len(p) + num_tokens for i, p in zip(ids, prompts, strict=True)}
        while waiting := [i for i in ids if len(self.tokens[i]) < goal[i]]:
            self.step({i: min(chunk, self.left(i)) for i in waiting})
        for seq_id in ids:
            self.drop(seq_id)
        return [self.tokens[i][len(p) :] for i, p in zip(ids, prompts, strict=True)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and no weights, for load_format=dummy."""
    path = tmp_path_factory.mktemp("tiny")
    (path / "config.json").write_text(json.dumps(TINY))
    return path


BuildDriver = Callable[..., Driver]


@pytest.fixture(scope="session")
def build(tiny_model: Path) -> BuildDriver:
    """Return a function that builds a driver of the tiny model; keywords are config fields."""

    def build_driver(**options: Any) -> Driver:
        defaults = {
            "model": str(tiny_model),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "num_gpu_blocks_override": 200,
            "max_num_seqs": 32,
        }
        runner = build_runner(EngineConfig.from_flat(defaults | options | {"device": "cpu"}))
        assert isinstance(runner, CpuRunner)
        return Driver(runner)

    return build_driver


@pytest.fixture(scope="session")
def driver(build: BuildDriver) -> Driver:
    return build()
