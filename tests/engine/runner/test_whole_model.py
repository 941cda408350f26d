"""Whole models in bfloat16 choose the tokens of `transformers`, within the error of bfloat16.

A greedy token is right if its logit, computed in float32, is as far below the largest as rounding
may bring it: twice the error that transformers itself makes in bfloat16.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from quire import LLM, SamplingParams

MODEL_TYPE: Any = AutoModelForCausalLM  # its methods have no types
VOCAB_SIZE = 512
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 3,
    "intermediate_size": 384,
    "max_position_embeddings": 1024,
    "initializer_range": 0.03,
    "eos_token_id": None,
    "bos_token_id": None,
}
MODELS: dict[str, PreTrainedConfig] = {
    "llama-64": LlamaConfig(
        **COMMON, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64
    ),
    "llama-128": LlamaConfig(
        **COMMON, hidden_size=512, num_attention_heads=8, num_key_value_heads=1, head_dim=128
    ),
    "qwen2-64": Qwen2Config(
        **COMMON, hidden_size=448, num_attention_heads=7, num_key_value_heads=1
    ),
    "qwen3-128": Qwen3Config(
        **COMMON,
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=128,
        tie_word_embeddings=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much a device is asked for."""

    device: str
    num_prompts: int
    longest_prompt: int
    num_tokens: int

    def prompts(self) -> list[list[int]]:
        """Draw prompts, the first of a single token."""
        draw = random.Random(1)
        lens = [1, *(draw.randint(2, self.longest_prompt) for _ in range(self.num_prompts - 1))]
        return [draw.choices(range(VOCAB_SIZE), k=length) for length in lens]


ON_CPU = Work(device="cpu", num_prompts=6, longest_prompt=60, num_tokens=8)
ON_GPU = Work(device="cuda", num_prompts=40, longest_prompt=400, num_tokens=32)


class Reference:
    """What transformers says of sequences."""

    def __init__(self, folder: Path, device: str) -> None:
        self._device = device
        self._exact, self._rounded = (
            MODEL_TYPE.from_pretrained(folder, dtype=dtype).to(device).eval()
            for dtype in (torch.float32, torch.bfloat16)
        )

    @torch.inference_mode()
    def logits(self, prompt: list[int], generated: list[int]) -> tuple[torch.Tensor, float]:
        """Return the float32 logits of every generated token, and bfloat16's largest error."""
        ids = torch.tensor([prompt + generated[:-1]], device=self._device)
        exact, rounded = (
            model(ids).logits[0, len(prompt) - 1 :].float().cpu()
            for model in (self._exact, self._rounded)
        )
        return exact, float((exact - rounded).abs().max())


def save_random(config: PreTrainedConfig, folder: Path) -> None:
    """Write a model whose every parameter is random: norms and biases too."""
    torch.manual_seed(0)
    model = MODEL_TYPE.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):
            parameter.data += torch.randn_like(parameter) * 0.2
    model.to(torch.bfloat16).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "work", [ON_CPU, pytest.param(ON_GPU, marks=pytest.mark.gpu)], ids=["cpu", "gpu"]
)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name: str, work: Work, tmp_path: Path) -> None:
    save_random(MODELS[name], tmp_path)
    params = SamplingParams(temperature=0.0, max_tokens=work.num_tokens, ignore_eos=True)
    with LLM(
        str(tmp_path),
        device=work.device,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        num_gpu_blocks_override=1000,
        max_num_batched_tokens=1000,
    ) as llm:
        inputs = [{"prompt_token_ids": prompt} for prompt in work.prompts()]
        outputs = llm.generate(inputs, params, use_tqdm=False)

    reference = Reference(tmp_path, work.device)
    gaps, margins, errors = [], [], []
    for output in outputs:
        generated = output.outputs[0].token_ids
        assert len(generated) == work.num_tokens
        logits, error = reference.logits(output.prompt_token_ids, generated)
        best = logits.topk(2).values
        gaps.append(best[:, 0] - logits.gather(1, torch.tensor(generated)[:, None])[:, 0])
        margins.append(best[:, 0] - best[:, 1])
        errors.append(error)
    gap, margin, most = torch.cat(gaps), torch.cat(margins), 2 * max(errors)
    share = float((gap == 0).float().mean())
    sys.stdout.write(
        f"\n{name} on {work.device}: {share:.1%} of tokens equal, largest gap {gap.max():.4f}, "
        f"allowed {most:.4f}, mean margin {margin.mean():.4f}\n"
    )
    assert float(gap.max()) <= most
    assert share >= 0.9
    assert most < float(margin.mean()), "the rule would let wrong tokens pass"
