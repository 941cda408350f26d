"""`quire bench serve`: measures a served model over HTTP, as its users would see it."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from quire.bench.arrivals import arrival_times
from quire.bench.datasets import (
    IdChoicePool,
    TextRecord,
    WordPool,
    is_usable,
    read_records,
    repeat_to,
    synthetic_requests,
)
from quire.bench.load import Sender, run_load
from quire.bench.options import (
    DatasetConfig,
    LoadConfig,
    ReportConfig,
    RequestConfig,
    TargetConfig,
)
from quire.bench.plot.writing import write_plot
from quire.bench.progress import progress
from quire.bench.report import format_figures, result_json, result_path, write_result
from quire.bench.request import BenchRequest, BenchResult
from quire.bench.statistics import ServingFigures, summarize
from quire.bench.tokenizing import (
    CANDIDATES,
    LocalCounter,
    ServerCounter,
    TokenCounter,
    TokenCountError,
    check_tokenize,
    num_special_tokens,
    one_token_words,
)
from quire.openai_client import OpenAIClient, ServerError
from quire_engine.errors import ConfigError

READY_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBench:
    """A serving benchmark: whom to ask, what, how fast, and what to report."""

    target: TargetConfig
    dataset: DatasetConfig
    load: LoadConfig
    request: RequestConfig
    report: ReportConfig
    api_key: str = ""

    async def run(self) -> int:
        """Measure and print; return the exit status, 1 when no request succeeded.

        Raises:
            ConfigError: the dataset or tokenizer cannot be used.
            ServerError: the server does not answer.
            TokenCountError: prompts of exact lengths cannot be made.
        """
        headers = dict(item.split("=", 1) for item in self.target.header)
        client = OpenAIClient(self.target.url, api_key=self.api_key, headers=headers)
        async with client:
            model = await self._model(client)
            requests = await self._requests(client, model)
            sender = Sender(
                client=client,
                path=self.target.path,
                model=self.target.served_model_name or model,
                is_chat=self.target.is_chat,
                request=self.request,
            )
            await self._wait_ready(sender, requests[0])
            await self._warm_up(sender, requests)
            results, duration_s = await self._measure(sender, requests)
        return self._finish(results, duration_s, model)

    async def _model(self, client: OpenAIClient) -> str:
        if self.target.model:
            return self.target.model
        models = await client.models()
        if not models:
            raise ServerError(f"{self.target.url} serves no model")
        return models[0]

    async def _requests(self, client: OpenAIClient, model: str) -> list[BenchRequest]:
        tokenizer = self.target.tokenizer
        name = self.target.served_model_name or model
        counter = LocalCounter.load(tokenizer) if tokenizer else ServerCounter(client, name)
        await check_tokenize(counter)
        rng = np.random.default_rng(self.dataset.seed)
        if self.dataset.dataset_name in ("sharegpt", "custom"):
            return await text_requests(self.dataset, counter, rng)
        return await word_requests(self.dataset, counter, rng, is_chat=self.target.is_chat)

    async def _wait_ready(self, sender: Sender, request: BenchRequest) -> None:
        """Send one request until it succeeds, for as long as the ready check lasts."""
        timeout_s = self.target.ready_check_timeout_sec
        if not timeout_s:
            return
        deadline = time.monotonic() + timeout_s
        while not (result := await sender.send(request)).success:
            if time.monotonic() > deadline:
                raise ServerError(f"not ready within {timeout_s} s: {result.error}")
            await asyncio.sleep(READY_POLL_S)

    async def _warm_up(self, sender: Sender, requests: Sequence[BenchRequest]) -> None:
        num_warmups = self.load.num_warmups
        if num_warmups:
            await run_load(
                sender,
                repeat_to(requests, num_warmups),
                np.zeros(num_warmups),
                max_concurrency=self.load.max_concurrency,
            )

    async def _measure(
        self, sender: Sender, requests: Sequence[BenchRequest]
    ) -> tuple[list[BenchResult], float]:
        rng = np.random.default_rng(self.dataset.seed)
        times = arrival_times(len(requests), self.load, rng)
        with progress("requests", len(requests), is_shown=not self.load.disable_tqdm) as advance:
            return await run_load(
                sender,
                requests,
                times,
                max_concurrency=self.load.max_concurrency,
                on_done=advance,
            )

    def _finish(self, results: list[BenchResult], duration_s: float, model: str) -> int:
        figures = summarize(
            results,
            duration_s,
            percentiles=self.report.percentiles,
            limits_ms=self.report.limits_ms,
        )
        sys.stdout.write(format_figures(figures, self.load, self.report.metrics) + "\n")
        if self.report.save_result or self.report.save_detailed or self.report.append_result:
            self._save(figures, results, model)
        if self.report.plot is not None:
            self._plot(Path(self.report.plot), figures, results, model)
        errors = sorted({result.error for result in results if result.error})
        sys.stderr.writelines(f"failed: {error}\n" for error in errors[:5])
        return 0 if figures.completed else 1

    def _save(self, figures: ServingFigures, results: Sequence[BenchResult], model: str) -> None:
        now = datetime.now()
        result = result_json(
            figures,
            results,
            target=self.target,
            load=self.load,
            dataset=self.dataset,
            report=self.report,
            model=model,
            now=now,
        )
        path = result_path(self.report, self.load, self.target, model, now)
        write_result(path, result, append=self.report.append_result)

    def _plot(
        self, path: Path, figures: ServingFigures, results: Sequence[BenchResult], model: str
    ) -> None:
        write_plot(
            path,
            figures,
            results,
            target=self.target,
            load=self.load,
            dataset=self.dataset,
            report=self.report,
            model=model,
            now=datetime.now(),
        )
        sys.stdout.write(f"Plots: {path}\n")


async def word_requests(
    config: DatasetConfig, counter: TokenCounter, rng: np.random.Generator, *, is_chat: bool
) -> list[BenchRequest]:
    """Make random prompts of words, and check each one's number of tokens with the tokenizer.

    For a chat the tokens of the template come on top, as in vLLM's benchmark. Where hardly any word
    is one token, completions are asked for with token ids.
    """
    try:
        words = await one_token_words(counter)
    except TokenCountError:
        if is_chat:
            raise
        ids = sorted(set(await counter.ids(" ".join(CANDIDATES))))
        return synthetic_requests(config, IdChoicePool(tuple(ids)), rng)
    num_special = 0 if is_chat else await num_special_tokens(counter)
    requests = synthetic_requests(config, WordPool(words), rng, num_special=num_special)
    counts = await asyncio.gather(
        *(counter.count(str(r.prompt), add_special_tokens=not is_chat) for r in requests)
    )
    wrong = [
        (request.prompt_len, count)
        for request, count in zip(requests, counts, strict=True)
        if request.prompt_len != count
    ]
    if wrong:
        made, counted = wrong[0]
        raise TokenCountError(
            f"{len(wrong)} of {len(requests)} prompts have another length than they were made "
            f"with (the first: {made}, but the tokenizer counts {counted})"
        )
    return requests


async def text_requests(
    config: DatasetConfig, counter: TokenCounter, rng: np.random.Generator
) -> list[BenchRequest]:
    """Turn the records of a file into requests, starting over when it has too few."""
    found: list[BenchRequest] = []
    records = read_records(config, rng)
    # Many at a time, since a server is asked for each count; but not a whole file for ten prompts.
    for start in range(0, len(records), 256):
        batch = records[start : start + 256]
        requests = await asyncio.gather(*(_text_request(config, r, counter) for r in batch))
        found += [request for request in requests if request is not None]
        if len(found) >= config.num_prompts:
            break
    if not found:
        raise ConfigError(f"dataset_path {config.dataset_path} holds no prompt of a usable length")
    return repeat_to(found, config.num_prompts)


async def _text_request(
    config: DatasetConfig, record: TextRecord, counter: TokenCounter
) -> BenchRequest | None:
    prompt_len = await counter.count(record.prompt, add_special_tokens=True)
    if config.dataset_name == "custom":
        output_len = config.output_len or record.output_len or config.custom_output_len
        return BenchRequest(prompt=record.prompt, prompt_len=prompt_len, output_len=output_len)
    fixed = config.output_len or config.sharegpt_output_len
    completion = record.completion or ""
    output_len = fixed or await counter.count(completion, add_special_tokens=False)
    if not is_usable(prompt_len, output_len, is_output_fixed=fixed is not None):
        return None
    return BenchRequest(prompt=record.prompt, prompt_len=prompt_len, output_len=output_len)
