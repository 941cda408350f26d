"""Executes plans on one GPU. Launching a step never waits for the GPU; only its result does."""

import torch

from quire_engine.core.messages import Roofline
from quire_engine.runner.gpu.compiles import CompileCounter
from quire_engine.runner.gpu.graphs import StepGraphs
from quire_engine.runner.gpu.layout import StepLayout, lay_out
from quire_engine.runner.gpu.parts import GpuParts
from quire_engine.runner.gpu.prompt_scores import PromptScores
from quire_engine.runner.gpu.results import ResultCopies
from quire_engine.runner.gpu.sampler import Mode
from quire_engine.runner.gpu.sampler_logprobs import StepLogprobs
from quire_engine.runner.memory import Limits
from quire_engine.runner.plan import FinishedStep, PendingStep, StepPlan, StepResult

MODES: tuple[Mode, ...] = ("greedy", "random", "full")
"""Each does what the ones before it do, too."""

MAX_NUM_IN_FLIGHT = 2
"""One step runs on the GPU while the CPU prepares the next."""


class GpuRunner:
    """A `ModelRunner` on one GPU."""

    device = "cuda"
    max_num_in_flight = MAX_NUM_IN_FLIGHT

    def __init__(
        self, parts: GpuParts, limits: Limits, stream: torch.cuda.Stream | None = None
    ) -> None:
        self.limits = limits
        self.stream = stream
        """What every step is launched on; None: the current one, and no graphs."""
        self.dtype = parts.decoder.dtype
        self.roofline: Roofline | None = None
        """What bounds its steps; told once."""
        self.load_report: dict[str, float] = {}
        """Seconds that each phase of loading took, in order."""
        self.compiles: CompileCounter | None = None
        """Counts from when it is ready."""
        self.attention = parts.attention
        self._rows, self._staging, self._inputs = parts.rows, parts.staging, parts.inputs
        self._sampler, self.step = parts.sampler, parts.step
        self._copies = ResultCopies(parts.step.sampled_2S)
        self._prompts = PromptScores(parts.decoder, parts.step.logits_SV)
        self._mode_of_row: dict[int, int] = {}
        self._graphs: StepGraphs | None = None

    @property
    def num_blocks(self) -> int:
        return self.limits.num_blocks

    @property
    def max_model_len(self) -> int:
        return self.limits.max_model_len

    @property
    def max_num_batched_tokens(self) -> int:
        return self.limits.max_num_batched_tokens

    @property
    def num_compiles_after_ready(self) -> int:
        """Kernels that requests had to wait for; 0 unless warming up missed a variant."""
        return 0 if self.compiles is None else len(self.compiles)

    def use_graphs(self, graphs: StepGraphs) -> None:
        """Run decode steps through graphs from now on."""
        self._graphs = graphs

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Begin one step; see `ModelRunner.launch`."""
        with torch.cuda.stream(self.stream):
            return self._launch(plan)

    def _launch(self, plan: StepPlan) -> PendingStep:
        self._prompts.forget(plan.dropped)
        for row, sequence in self._rows.apply(plan):
            self._mode_of_row[row] = MODES.index(self._sampler.stage(row, sequence))
            self._prompts.add(sequence)
        if not plan.num_tokens:
            return FinishedStep(StepResult())
        layout = lay_out(self._rows, plan.num_tokens)
        size = self._graph_size(layout)
        self._send(layout, size)
        hidden_TE, num_slots = None, size or len(layout.sampling_S)
        if size is not None:
            self._decode(size)
        elif self._prompts.has_any:
            hidden_TE = self.step.mixed_whole(layout)
        else:
            self.step.mixed(layout, self._graphs)
        logprobs = self._sample(layout, size, num_slots) if num_slots else None
        prompt_logprobs = {}
        if hidden_TE is not None:
            prompt_logprobs = self._prompts.score(layout, hidden_TE)
        return self._copies.start(layout.seq_ids, logprobs, prompt_logprobs)

    def _graph_size(self, layout: StepLayout) -> int | None:
        if self._graphs is None or not layout.is_decode:
            return None
        return self._graphs.size_for(layout.num_slots)

    def _send(self, layout: StepLayout, size: int | None) -> None:
        """Tell the GPU of everything that is new in this step."""
        self._inputs.stage(layout, padded_to=size or layout.num_slots)
        self._rows.stage(self._staging)
        self._sampler.put_staged(self._staging)
        if size is None:
            self.attention.stage(layout, self._staging)
        self._staging.send()
        self._rows.apply_staged()
        self._sampler.apply_staged()

    def _decode(self, size: int) -> None:
        assert self._graphs is not None, "there are no graphs"
        self._graphs.decode(size)

    def _sample(self, layout: StepLayout, size: int | None, num_slots: int) -> StepLogprobs | None:
        rows = layout.rows_B[layout.sampling_S].tolist()
        mode = MODES[max(map(self._mode_of_row.__getitem__, rows))]
        self._copies.hold_sampling()
        if mode == "full":
            return self.step.sample_full(rows)
        if size is not None and self._graphs is not None:
            self._graphs.sample(size, mode)
        else:
            self.step.sample(num_slots, mode)
        return None
