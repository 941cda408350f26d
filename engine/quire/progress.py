"""The progress bar of `LLM.generate`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from quire_engine.outputs import RequestOutput
from quire_engine.progress import bar

OnFinished = Callable[[RequestOutput], None]


@contextmanager
def progress_bar(num_requests: int, use_tqdm: bool | Callable[..., Any]) -> Iterator[OnFinished]:
    """Show how many requests have finished, and tokens per second in and out.

    `use_tqdm` may be a class to use in place of tqdm. Yields what to call with each output.
    """
    if not use_tqdm or num_requests == 0:
        yield lambda _output: None
        return
    with (use_tqdm if callable(use_tqdm) else partial(bar, always_ends=True))(
        total=num_requests,
        desc="Processed prompts",
        dynamic_ncols=True,
        postfix=_speeds(0, 0, 1.0),
    ) as shown:
        started_at = time.monotonic()
        num_in = num_out = 0

        def on_finished(output: RequestOutput) -> None:
            nonlocal num_in, num_out
            # The prompt counts once for each completion, as vLLM's bar counts it.
            num_in += len(output.prompt_token_ids) * len(output.outputs)
            num_out += output.metrics.num_generation_tokens
            shown.postfix = _speeds(num_in, num_out, time.monotonic() - started_at)
            shown.update(1)

        yield on_finished


def _speeds(num_in: int, num_out: int, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return (
        f"est. speed input: {num_in / seconds:.2f} toks/s, output: {num_out / seconds:.2f} toks/s"
    )
