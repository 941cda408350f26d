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
from quire.bench.counted_requests import text_requests, word_requests
from quire.bench.datasets import repeat_to
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
from quire.bench.server_tokenizing import ServerCounter, check_tokenize
from quire.bench.statistics import ServingFigures, summarize
from quire.bench.tokenizing import LocalCounter
from quire.openai_client import OpenAIClient, ServerError

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
