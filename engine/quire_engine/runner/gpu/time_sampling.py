"""Times sampling on a GPU: `python -m quire_engine.runner.gpu.time_sampling [VOCAB_SIZE]`.

Every line is the time of one step's sampling inside a CUDA graph. "flat" logits are those of random
weights, "peaked" ones those of a model that knows what it says.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from quire_engine.runner.gpu.sampler import GpuSampler, PlainMode
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.plan import AdmittedSequence
from quire_engine.sampling_params import SamplingParams

_KINDS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "top_k": {"temperature": 0.8, "top_k": 50},
    "top_k+top_p": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
}
_BATCHES = (1, 8, 64, 256)
_STEPS_PER_GRAPH = 10
_REPLAYS = 20


def timings(vocab_size: int) -> Iterator[tuple[str, str, int, float]]:
    """Yield (kind of parameters, shape of the logits, batch size, microseconds)."""
    for kind, params in _KINDS.items():
        for shape in ("flat", "peaked"):
            for batch in _BATCHES:
                yield kind, shape, batch, _time(params, logits_like(shape, batch, vocab_size))


def logits_like(shape: str, batch: int, vocab_size: int) -> torch.Tensor:
    """Return bfloat16 logits of a shape."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(batch, vocab_size, generator=generator, device="cuda")
    if shape == "flat":
        return (logits * 0.4).bfloat16()
    best = torch.randint(0, vocab_size, (batch, 40), generator=generator, device="cuda")
    peaks = torch.randn(batch, 40, generator=generator, device="cuda")
    return (logits * 2 - 5).scatter_(1, best, 8 + 4 * peaks).bfloat16()


def _time(params: Mapping[str, Any], logits: torch.Tensor) -> float:
    """Return the microseconds of one step."""
    batch, vocab_size = logits.shape
    device = logits.device
    sampler = GpuSampler(max_num_rows=batch, vocab_size=vocab_size, device=device)
    staging = Staging(1 << 20, device)
    for row in range(batch):
        sampler.stage(row, _sequence(row, SamplingParams(seed=row, **params)))
    sampler.put_staged(staging)
    staging.send()
    sampler.apply_staged()
    rows = torch.arange(batch, dtype=torch.int32, device=device)
    out = torch.zeros_like(rows), torch.zeros_like(rows)
    mode: PlainMode = "greedy" if params["temperature"] == 0.0 else "random"
    sampler.sample(logits, rows, *out, mode)  # compiles, which a capture may not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_STEPS_PER_GRAPH):
            sampler.sample(logits, rows, *out, mode)
    graph.replay()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(_REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / (_REPLAYS * _STEPS_PER_GRAPH)


def _sequence(seq_id: int, params: SamplingParams) -> AdmittedSequence:
    return AdmittedSequence(
        seq_id=seq_id,
        token_ids=[0],
        num_prompt_tokens=1,
        block_ids=[],
        num_computed_tokens=0,
        params=params,
    )


if __name__ == "__main__":
    for kind, shape, batch, microseconds in timings(int((sys.argv[1:] or ["128256"])[0])):
        sys.stdout.write(f"{kind:12} {shape:7} batch {batch:4} {microseconds:8.1f} us\n")
