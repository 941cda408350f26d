"""A recording on a GPU has the kernels of each step, those inside CUDA graphs too."""

import gzip
import json
from pathlib import Path

import pytest

from gpu_runner_support import run, workload
from quire_engine.sampling_params import SamplingParams
from random_models import LLAMA_8B, new_core

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

NUM_STEPS = 6


def test_the_kernels_of_the_recorded_steps_are_in_trace_and_table(tmp_path: Path) -> None:
    core = new_core(
        tmp_path,
        LLAMA_8B,
        num_gpu_blocks_override=200,
        max_model_len=1024,
        max_num_seqs=16,
        profile=str(tmp_path / "traces"),
        profile_steps=NUM_STEPS,
        profile_skip=2,
    )

    run(core, workload([40], [SamplingParams(temperature=0.0, max_tokens=30)]))

    [trace] = (tmp_path / "traces").glob("*.pt.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    kernels = [event["name"] for event in events if event.get("cat") == "kernel"]
    # Each step of one row has a GEMV for every linear, and attention, in each of two layers.
    assert len([name for name in kernels if "_gemv_kernel" in name]) >= NUM_STEPS * 2 * 4
    assert len([name for name in kernels if "_decode_kernel" in name]) == NUM_STEPS * 2
    table = next((tmp_path / "traces").glob("*.txt")).read_text()
    assert table.startswith(f"{NUM_STEPS} steps of {NUM_STEPS} tokens in ")
    assert "gemv" in table
