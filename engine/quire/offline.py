"""Runs batches of requests on a core in this process."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quire.garbage import only_new_objects_collected
from quire.interrupts import deferred_interrupts
from quire.prompts import Prompt
from quire.request_outputs import request_output
from quire_engine.core.engine_core import EngineCore
from quire_engine.core.messages import NewSequence, StepOutputs
from quire_engine.errors import QuireError
from quire_engine.frontend.deltas import RequestDelta
from quire_engine.frontend.processor import Processor
from quire_engine.outputs import RequestOutput
from quire_engine.sampling_params import RequestOutputKind, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRequest:
    """One prompt and how to go on from it."""

    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    adds_special_tokens: bool = True
    """Whether tokenizing adds what the tokenizer adds; a rendered chat has it already."""


class OfflineEngine:
    """A core with its processor, used by one thread at a time."""

    def __init__(self, core: EngineCore, processor: Processor) -> None:
        self.core = core
        self.processor = processor
        self.listeners: list[Callable[[StepOutputs], None]] = []
        """Told of every step, before its outputs are processed."""
        self._request_ids = map(str, itertools.count())

    @only_new_objects_collected()
    def run(
        self, requests: Sequence[OfflineRequest], on_finished: Callable[[RequestOutput], None]
    ) -> list[RequestOutput]:
        """Return the outputs in the order of the requests; tell of each when it has finished.

        Whatever is raised, nothing is left running: the next call starts afresh.

        Raises:
            InvalidRequestError: a request that can never succeed; none was started.
            QuireError: the engine failed.
            KeyboardInterrupt: Ctrl-C, between two steps.
        """
        prompts = self._tokenized(requests)
        added: dict[str, Prompt] = {}
        try:
            sequences = deque(self.core.in_order(self._add(requests, prompts, added)))
            with deferred_interrupts() as check_interrupt:
                outputs = self._drive(sequences, added, on_finished, check_interrupt)
        except BaseException:
            self.core.abort(self.processor.abort(added))
            raise
        return [outputs[request_id] for request_id in added]

    def _tokenized(self, requests: Sequence[OfflineRequest]) -> list[Prompt]:
        """Return the prompts with their token ids, texts tokenized in parallel."""
        prompts = [request.prompt for request in requests]
        if self.processor.tokenizer is None:
            return prompts
        for adds_special in (True, False):
            chosen = [
                index
                for index, request in enumerate(requests)
                if request.prompt.token_ids is None and request.adds_special_tokens is adds_special
            ]
            batch = self.processor.tokenizer.encode_batch(
                [prompts[index].text or "" for index in chosen], add_special_tokens=adds_special
            )
            for index, token_ids in zip(chosen, batch, strict=True):
                prompts[index] = replace(prompts[index], token_ids=token_ids)
        return prompts

    def _add(
        self,
        requests: Sequence[OfflineRequest],
        prompts: Sequence[Prompt],
        added: dict[str, Prompt],
    ) -> list[NewSequence]:
        """Register every request, before any is started; record their ids in `added`."""
        sequences: list[NewSequence] = []
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            request_id = next(self._request_ids)
            try:
                sequences += self.processor.add(
                    request_id,
                    prompt.token_ids if prompt.token_ids is not None else prompt.text or "",
                    request.params.clone(output_kind=RequestOutputKind.FINAL_ONLY),
                    priority=request.priority,
                    cache_salt=prompt.cache_salt,
                )
            except QuireError as error:
                error.add_note(f"in prompt {index} of {len(requests)}")
                raise
            added[request_id] = prompt
        return sequences

    def _drive(
        self,
        sequences: deque[NewSequence],
        added: dict[str, Prompt],
        on_finished: Callable[[RequestOutput], None],
        check_interrupt: Callable[[], None],
    ) -> dict[str, RequestOutput]:
        """Step until all have finished."""
        outputs: dict[str, RequestOutput] = {}
        while len(outputs) < len(added):
            check_interrupt()
            self.core.add_while_needed(sequences)
            computed = self.core.step()
            for listener in self.listeners:
                listener(computed)
            step = self.processor.process(computed)
            self.core.abort(step.abort_seq_ids)
            for delta in step.deltas:
                output = outputs[delta.request_id] = _finished(delta, added)
                on_finished(output)
        return outputs


def _finished(delta: RequestDelta, added: dict[str, Prompt]) -> RequestOutput:
    if delta.error is not None:
        raise delta.error
    return request_output(delta, added[delta.request_id])
