"""From weights to a GPU runner that is ready for its first request."""

import gc
import logging
from collections.abc import Collection
from functools import partial
from itertools import pairwise

import torch

from quire_engine.config import EngineConfig
from quire_engine.kernels.gpu.compile_ahead import compile_ahead
from quire_engine.model.decoder import Weights
from quire_engine.model.spec import ModelSpec
from quire_engine.runner.gpu.cache import GpuKvCache
from quire_engine.runner.gpu.compiles import CompileCounter
from quire_engine.runner.gpu.decoder import GpuDecoder
from quire_engine.runner.gpu.graphs import StepGraphs, graph_sizes, piece_sizes
from quire_engine.runner.gpu.memory import MemoryUse, cache_limits, measure_peak, used_bytes
from quire_engine.runner.gpu.parts import GpuParts
from quire_engine.runner.gpu.runner import GpuRunner
from quire_engine.runner.gpu.warm_up import TrialSteps, run_all_variants
from quire_engine.runner.group.group import ALONE, Group
from quire_engine.runner.memory import Limits
from quire_engine.runner.phases import Phases
from quire_engine.runner.roofline import bytes_read, has_8_bit_linears, make_roofline

logger = logging.getLogger(__name__)

KV_DTYPES = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn}


class GpuBuilder:
    """Builds a runner in phases: decoder, compile, trial, cache, graphs."""

    def __init__(
        self,
        config: EngineConfig,
        spec: ModelSpec,
        *,
        eos_token_ids: Collection[int],
        others_bytes: int,
        device: torch.device,
        group: Group = ALONE,
        group_bytes: int = 0,
    ) -> None:
        """Take the spec of a rank's layers, and what others and the group take of the memory."""
        self._config, self._spec, self._device = config, spec, device
        self._group, self._group_bytes = group, group_bytes
        # Graphs cannot be captured on the default stream.
        self._stream = torch.cuda.Stream(device)
        self._eos_token_ids = eos_token_ids
        self._others_bytes = others_bytes
        self._num_tokens = config.scheduler.token_budget("cuda")
        wanted = config.model.max_model_len or spec.max_position
        self._max_len = min(wanted, spec.max_position)

    def build(self, weights: Weights, phases: Phases) -> GpuRunner:
        """Build the runner. Consumes `weights`.

        Raises:
            ConfigError: the memory does not suffice, or a limit is more than it can hold.
        """
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            return self._build(weights, phases)

    def _build(self, weights: Weights, phases: Phases) -> GpuRunner:
        config, dtype = self._config, weights["embedding.weight"].dtype
        step_bytes, is_8_bit = bytes_read(self._spec, weights), has_8_bit_linears(weights)
        kv_dtype = KV_DTYPES.get(config.cache.kv_cache_dtype, dtype)
        decoder = GpuDecoder(
            self._spec,
            weights,
            max_len=self._max_len,
            max_num_tokens=self._num_tokens,
            batch_invariant=config.device.batch_invariant,
            group=self._group,
        )
        weights_bytes = used_bytes(self._device) - self._others_bytes - self._group_bytes
        use = self._try_out(decoder, kv_dtype, weights_bytes, phases)
        limits = cache_limits(config, self._spec, use, kv_dtype, agree=self._group.least)
        cache = self._cache(limits, kv_dtype)
        runner = GpuRunner(self._parts(decoder, cache, limits), limits, self._stream)
        with phases.time("graphs"):
            if not config.model.enforce_eager:
                runner.use_graphs(self._capture(runner))
        with phases.time("warm_up"):
            run_all_variants(
                runner,
                block_size=config.cache.block_size,
                shows_progress=self._group.share.rank == 0,
            )
        runner.roofline = make_roofline(
            self._spec,
            weight_bytes=step_bytes,
            block_bytes=cache.memory.nbytes // limits.num_blocks,
            device=torch.cuda.get_device_properties(self._device),
            is_8_bit=is_8_bit,
        )
        runner.compiles = CompileCounter()
        logger.info(
            "%s",
            use.table(limits, cache.memory.nbytes, config.cache.gpu_memory_utilization),
        )
        return runner

    def _parts(self, decoder: GpuDecoder, cache: GpuKvCache, limits: Limits) -> GpuParts:
        return GpuParts.build(
            self._config, decoder, cache, limits, eos_token_ids=self._eos_token_ids
        )

    def _cache(self, limits: Limits, kv_dtype: torch.dtype) -> GpuKvCache:
        return GpuKvCache(
            self._spec,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            dtype=kv_dtype,
            device=self._device,
        )

    def _capture(self, runner: GpuRunner) -> StepGraphs:
        graphs = StepGraphs(runner.step)
        graphs.capture(graph_sizes(runner.step.max_num_slots), piece_sizes(self._num_tokens))
        return graphs

    def _try_out(
        self, decoder: GpuDecoder, kv_dtype: torch.dtype, weights_bytes: int, phases: Phases
    ) -> MemoryUse:
        """Run the largest step on a cache that just holds it, and see what it takes."""
        size = self._config.cache.block_size
        limits = Limits(
            num_blocks=-(-self._num_tokens // size) + 1,
            block_size=size,
            max_model_len=self._max_len,
            max_num_batched_tokens=self._num_tokens,
        )
        before = used_bytes(self._device)
        with phases.time("compile"):
            cache = self._cache(limits, kv_dtype)
            runner = GpuRunner(self._parts(decoder, cache, limits), limits, self._stream)
            # Calling the same kernels for every layer would take longer than compiling them.
            with decoder.few_layers():
                self._compile(runner)
        with phases.time("trial"):
            steps = TrialSteps(runner, block_size=size)
            steps.decode()  # loads libraries, which stay
            rows = used_bytes(self._device) - before - cache.memory.nbytes
            with measure_peak(self._device) as peak:
                steps.largest()
            graphs_bytes = 0
            if not self._config.model.enforce_eager:
                graphs_bytes = self._graphs_bytes(runner)
            _, total = torch.cuda.mem_get_info(self._device)
            del runner, steps, cache
            gc.collect()
            torch.cuda.empty_cache()
        return MemoryUse(
            total=total,
            others=self._others_bytes,
            weights=weights_bytes,
            activations=peak.num_bytes,
            rows=rows,
            graphs=graphs_bytes,
            group=self._group_bytes,
        )

    def _compile(self, runner: GpuRunner) -> None:
        run_variants = partial(
            run_all_variants,
            runner,
            block_size=self._config.cache.block_size,
            shows_progress=False,
        )
        num_kernels = compile_ahead(run_variants, self._device)
        logger.info("compiled kernels num_kernels=%d", num_kernels)

    def _graphs_bytes(self, runner: GpuRunner) -> int:
        """Estimate what all graphs take from what the largest ones take."""
        sizes, pieces = graph_sizes(runner.step.max_num_slots), piece_sizes(self._num_tokens)
        graphs, used = StepGraphs(runner.step), [used_bytes(self._device)]
        for some_sizes, some_pieces in (
            (sizes[-1:], pieces[-1:]),
            (sizes[-3:-1], []),
            ([], pieces[-3:-1]),
        ):
            graphs.capture(some_sizes, some_pieces)
            used.append(used_bytes(self._device))
        largest, two_sizes, two_pieces = (after - before for before, after in pairwise(used))
        return largest + (two_sizes * len(sizes) + two_pieces * len(pieces)) // 2
