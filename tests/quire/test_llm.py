import gc
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from quire import LLM, RequestOutputKind, SamplingParams
from quire.llm_options import engine_config
from quire_engine.config import CacheConfig, EngineConfig
from quire_engine.core.engine_core import EngineCore
from quire_engine.errors import ConfigError, InvalidRequestError, PromptTooLongError, QuireError
from quire_engine.frontend.processor import Processor
from quire_engine.frontend.tokenizer import Tokenizer
from quire_engine.frontend.validation import ModelLimits
from quire_engine.testing.runner import FakeModel, FakeRunner
from quire_engine.testing.tokenizer import (
    CHAT_TEMPLATE,
    EOS_TOKEN_ID,
    VOCAB_SIZE,
    tokenizer_json,
)


class Parts:
    """A fake model behind an LLM, with the parts in reach."""

    def __init__(self, model: FakeModel, *, template: str | None = CHAT_TEMPLATE) -> None:
        self.runner = FakeRunner(
            model, num_blocks=200, max_model_len=300, max_num_batched_tokens=64
        )
        self.core = EngineCore(
            EngineConfig(cache=CacheConfig(block_size=16)),
            self.runner,
            prefix_model="fake",
            eos_token_ids=frozenset({EOS_TOKEN_ID}),
        )
        self.processor = Processor(
            Tokenizer.from_json(tokenizer_json()),
            ModelLimits(max_model_len=self.core.max_model_len, vocab_size=VOCAB_SIZE),
            defaults={"temperature": 0.25},
        )
        self.llm = LLM.from_parts(
            self.core,
            self.processor,
            template=template,
            special_tokens={"bos_token": "<|im_start|>"},
        )

    def check_idle(self) -> None:
        """Check that nothing is left running."""
        while self.core.has_work:
            self.core.step()
        self.core.check()
        assert self.processor.num_requests == 0
        assert self.core.stats.num_running == self.core.stats.num_waiting == 0
        assert self.core.stats.num_used_blocks == 0


MakeParts = Callable[..., Parts]


@pytest.fixture
def make_parts() -> Iterator[MakeParts]:
    made: list[Parts] = []

    def make(model: FakeModel | None = None, **options: Any) -> Parts:
        made.append(Parts(model or FakeModel(), **options))
        return made[-1]

    yield make
    for parts in made:
        parts.check_idle()


def test_outputs_come_in_the_order_of_the_prompts(make_parts: MakeParts) -> None:
    llm = make_parts().llm
    prompts = [f"prompt {number}" * (1 + number % 3) for number in range(20)]
    params = [SamplingParams(temperature=0, max_tokens=1 + number % 7) for number in range(20)]

    outputs = llm.generate(prompts, params, use_tqdm=False)

    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [
        1 + n % 7 for n in range(20)
    ]
    assert all(output.finished for output in outputs)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 20


@pytest.mark.parametrize(
    ("prompts", "token_ids"),
    [
        ("hi", [[104, 105]]),
        (["hi", "x"], [[104, 105], [120]]),
        ({"prompt": "hi"}, [[104, 105]]),
        ({"prompt_token_ids": [5, 6]}, [[5, 6]]),
        ([{"prompt_token_ids": [5, 6]}, "x"], [[5, 6], [120]]),
        ({"prompt": "shown", "prompt_token_ids": (7,)}, [[7]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (np.array([5, 6]), [[5, 6]]),
        ([np.array([5, 6])], [[5, 6]]),
        ([], []),
    ],
)
def test_prompts_are_taken_in_every_form(
    make_parts: MakeParts, prompts: Any, token_ids: list[list[int]]
) -> None:
    outputs = make_parts().llm.generate(prompts, SamplingParams(max_tokens=1), use_tqdm=False)

    assert [output.prompt_token_ids for output in outputs] == token_ids


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "a prompt must be a string"),
        ({}, "a prompt needs 'prompt' or 'prompt_token_ids'"),
        ({"prompt": 5}, "'prompt' must be a string, got 5"),
        ({"prompt": "x", "multi_modal_data": {"image": 1}}, "a prompt has 'multi_modal_data'"),
        ({"prompt_token_ids": "12"}, "must be a list of token ids"),
        (5, "a prompt must be a string"),
        (["ok", 5.0], "a prompt must be a string"),
        (["ok", ""], "the prompt is empty"),
        (["ok", [VOCAB_SIZE]], f"token id {VOCAB_SIZE}"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_starts(
    make_parts: MakeParts, prompt: Any, message: str
) -> None:
    parts = make_parts()
    prompts: Any = prompt if isinstance(prompt, list | int) else [prompt, "ok"]

    with pytest.raises(InvalidRequestError, match=message):
        parts.llm.generate(prompts, use_tqdm=False)

    assert not parts.core.has_work
    assert parts.processor.num_requests == 0


def test_a_refused_prompt_is_named_by_its_place(make_parts: MakeParts) -> None:
    with pytest.raises(PromptTooLongError, match="300 tokens") as refusal:
        make_parts().llm.generate(["x", "x" * 300], use_tqdm=False)

    assert refusal.value.__notes__ == ["in prompt 1 of 2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampling_params": [SamplingParams()]}, "2 prompts, 1 sampling_params"),
        ({"priority": [1, 2, 3]}, "2 prompts, 3 priority"),
        ({"sampling_params": {"n": 1}}, "sampling_params must be of type SamplingParams, got {"),
        ({"priority": "high"}, "2 prompts, 4 priority"),
    ],
)
def test_parameters_that_fit_no_prompt_are_refused(
    make_parts: MakeParts, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make_parts().llm.generate(["a", "b"], use_tqdm=False, **arguments)


def test_without_parameters_the_models_defaults_apply(make_parts: MakeParts) -> None:
    llm = make_parts().llm

    params = llm.get_default_sampling_params()
    [output] = llm.generate("x", use_tqdm=False)

    assert (params.temperature, params.max_tokens) == (0.25, 16)
    assert len(output.outputs[0].token_ids) == 16


def test_several_completions_belong_to_one_output(make_parts: MakeParts) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=12)

    [output] = make_parts().llm.generate("x", params, use_tqdm=False)

    assert [each.index for each in output.outputs] == [0, 1, 2]
    assert len({each.text for each in output.outputs}) == 3


def test_text_stops_at_the_stop_string_and_at_the_end(make_parts: MakeParts) -> None:
    llm = make_parts(FakeModel(script="Hello world. Bye.", num_output_tokens=17)).llm

    stopped, ended = llm.generate(
        ["a", "b"], [SamplingParams(stop="d."), SamplingParams(max_tokens=50)], use_tqdm=False
    )

    assert (stopped.outputs[0].text, stopped.outputs[0].stop_reason) == ("Hello worl", "d.")
    assert bytes(stopped.outputs[0].token_ids) == b"Hello world."
    assert (ended.outputs[0].text, ended.outputs[0].finish_reason) == ("Hello world. Bye.", "stop")
    assert ended.outputs[0].token_ids[-1] == EOS_TOKEN_ID
    assert ended.outputs[0].stop_reason is None


def test_logprobs_have_the_shapes_of_vllm(make_parts: MakeParts) -> None:
    params = SamplingParams(max_tokens=3, logprobs=2, prompt_logprobs=1, temperature=0)

    [output] = make_parts().llm.generate("abc", params, use_tqdm=False)

    [completion] = output.outputs
    assert completion.logprobs is not None
    chosen = [completion.logprobs[i][token] for i, token in enumerate(completion.token_ids)]
    assert completion.cumulative_logprob == pytest.approx(sum(each.logprob for each in chosen))
    assert chosen[0].decoded_token == completion.text[0]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [next(iter(position or ())) for position in output.prompt_logprobs[1:]] == [98, 99]


def test_outputs_are_whole_whatever_the_output_kind(make_parts: MakeParts) -> None:
    llm = make_parts(FakeModel(script="abcdef")).llm
    kinds = [SamplingParams(max_tokens=6, output_kind=kind) for kind in RequestOutputKind]

    outputs = llm.generate(["x"] * 3, kinds, use_tqdm=False)

    assert [output.outputs[0].text for output in outputs] == ["abcdef"] * 3
    assert kinds[0].output_kind is RequestOutputKind.CUMULATIVE


def test_a_second_identical_prompt_hits_the_prefix_cache(make_parts: MakeParts) -> None:
    llm = make_parts().llm
    prompt = "x" * 64

    first, second, salted = (
        llm.generate({"prompt": prompt, "cache_salt": salt}, use_tqdm=False)[0]
        for salt in ("", "", "s")
    )

    assert first.num_cached_tokens == salted.num_cached_tokens == 0
    assert second.num_cached_tokens is not None
    assert second.num_cached_tokens >= 32
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, use_tqdm=False)[0].num_cached_tokens == 0


def test_priority_decides_who_is_served_first(make_parts: MakeParts) -> None:
    prompts = ["a" * 60, "b" * 60, "c" * 60]

    outputs = make_parts().llm.generate(
        prompts, SamplingParams(max_tokens=1), priority=[2, 1, 0], use_tqdm=False
    )

    scheduled = [output.metrics.scheduled_ts for output in outputs]
    assert scheduled == sorted(scheduled, reverse=True)


def test_a_chat_is_rendered_and_answered(make_parts: MakeParts) -> None:
    llm = make_parts(FakeModel(script="Paris.", num_output_tokens=6)).llm
    messages = [{"role": "user", "content": [{"type": "text", "text": "Capital?"}]}]

    [one] = llm.chat(messages, use_tqdm=False)
    two = llm.chat([messages, messages], use_tqdm=False)

    assert one.prompt == "<|im_start|>user\nCapital?<|im_end|>\n<|im_start|>assistant\n"
    assert one.prompt_token_ids[0] == EOS_TOKEN_ID + 1
    assert one.outputs[0].text == "Paris."
    assert [output.prompt for output in two] == [one.prompt] * 2


def test_a_chat_can_go_on_with_the_last_message(make_parts: MakeParts) -> None:
    messages = [{"role": "assistant", "content": "The capital is"}]

    [output] = make_parts().llm.chat(
        messages, add_generation_prompt=False, continue_final_message=True, use_tqdm=False
    )

    assert output.prompt == "<|im_start|>assistant\nThe capital is"


def test_a_chat_takes_a_template_and_its_variables(make_parts: MakeParts) -> None:
    [output] = make_parts(template=None).llm.chat(
        [{"role": "user", "content": "x"}],
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ mood }}{{ tools | length }}",
        chat_template_kwargs={"mood": "!"},
        tools=[{"type": "function"}],
        use_tqdm=False,
    )

    assert output.prompt == "<|im_start|>x!1"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, [{"role": "user", "content": "x"}], "this model has no chat template"),
        (CHAT_TEMPLATE, [[]], "at least one message"),
        ("{{ raise_exception('no') }}", [{"role": "user", "content": "x"}], "^no$"),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_refused(
    make_parts: MakeParts, template: str | None, messages: Any, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make_parts(template=template).llm.chat(messages, use_tqdm=False)


def test_ctrl_c_between_steps_aborts_everything_and_leaves_the_llm_usable(
    make_parts: MakeParts,
) -> None:
    parts = make_parts()
    num_steps = 0

    def interrupt() -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 3:
            signal.raise_signal(signal.SIGINT)

    parts.runner.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        parts.llm.generate(["a", "b" * 100], SamplingParams(max_tokens=100), use_tqdm=False)

    parts.check_idle()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (
        len(
            parts.llm.generate("a", SamplingParams(max_tokens=5), use_tqdm=False)[0].outputs[0].text
        )
        == 5
    )


def test_a_step_that_fails_fails_the_call_and_leaves_the_llm_usable(
    make_parts: MakeParts,
) -> None:
    parts = make_parts()

    def fail() -> None:
        parts.runner.before_step = None
        raise RuntimeError("boom")

    parts.runner.before_step = fail
    with pytest.raises(QuireError, match="boom"):
        parts.llm.generate(["a", "b"], use_tqdm=False)

    parts.check_idle()
    assert parts.llm.generate("a", use_tqdm=False)


class Bar:
    """Notes what a progress bar is told."""

    made: "list[Bar]" = []  # noqa: RUF012 -- each test reads the one it made

    def __init__(self, *, total: int, postfix: str, **_options: Any) -> None:
        self.total = total
        self.postfix = postfix
        self.num_done = 0
        Bar.made.append(self)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_exc: object) -> None: ...

    def update(self, num: int) -> None:
        self.num_done += num


def test_the_progress_bar_counts_requests_and_tokens_per_second(make_parts: MakeParts) -> None:
    make_parts().llm.generate(["a", "b"], use_tqdm=Bar)

    [bar] = Bar.made
    assert (bar.total, bar.num_done) == (2, 2)
    assert bar.postfix.startswith("est. speed input: ")
    assert "0.00" not in bar.postfix


def test_the_end_is_told_in_one_line_where_there_is_no_terminal(
    make_parts: MakeParts, capsys: pytest.CaptureFixture[str]
) -> None:
    make_parts().llm.generate(["a", "b"])

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Processed prompts: 100% (2/2), ")
    assert captured.err.endswith(" toks/s\n")
    assert captured.err.count("\n") == 1


def test_tqdm_shows_the_progress_on_a_terminal(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    make_parts().llm.generate(["a", "b"])

    shown = capsys.readouterr().err
    assert "Processed prompts: 100%|" in shown
    assert "toks/s" in shown


def test_a_closed_llm_says_so(make_parts: MakeParts) -> None:
    with make_parts().llm as llm:
        assert llm.get_tokenizer().encode("hi") == [104, 105]

    with pytest.raises(QuireError, match="this LLM was closed"):
        llm.generate("x")


def test_options_of_vllm_become_configuration() -> None:
    config = engine_config(
        "m",
        {
            "tokenizer": None,
            "max_model_len": 9216,
            "gpu_memory_utilization": 1,
            "max_num_seqs": 512,
            "skip_tokenizer_init": True,
            "load_format": "dummy",
            "hf_overrides": {"a": 1},
        },
    )

    assert (config.model.model, config.model.max_model_len) == ("m", 9216)
    assert (config.cache.gpu_memory_utilization, config.scheduler.max_num_seqs) == (1.0, 512)
    assert config.model.tokenizer == ""


def test_a_dtype_of_torch_is_taken_by_its_name() -> None:
    class Dtype:
        def __str__(self) -> str:
            return "torch.bfloat16"

    assert engine_config("m", {"dtype": Dtype()}).model.dtype == "bfloat16"


def test_options_that_only_vllm_knows_are_named_in_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        engine_config(
            "m", {"trust_remote_code": True, "compilation_config": 3, "quantization": None}
        )

    [record] = caplog.records
    assert "trust_remote_code (code out of a model's repository is never run)" in record.message
    assert "compilation_config" in record.message
    assert "quantization" not in record.message


def test_an_unknown_option_fails_naming_the_nearest() -> None:
    with pytest.raises(TypeError, match="'max_model_length'; did you mean 'max_model_len'"):
        engine_config("m", {"max_model_length": 5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": "512"}, "max_num_seqs must be of type int, got '512'"),
        ({"max_model_len": 1.5}, "max_model_len must be of type int, got 1.5"),
        ({"max_num_seqs": True}, "max_num_seqs must be of type int, got True"),
        ({"enforce_eager": 1}, "enforce_eager must be of type bool, got 1"),
        ({"hf_overrides": "x"}, "hf_overrides must be of type dict, got 'x'"),
        ({"block_size": 7}, "block_size must be one of 16"),
    ],
)
def test_an_option_of_the_wrong_type_or_range_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_config("m", options)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import quire

    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        _ = quire.Engine


def test_what_was_loaded_is_no_garbage_while_a_batch_runs_and_may_be_afterwards(
    make_parts: MakeParts,
) -> None:
    llm, num_frozen = make_parts().llm, []
    loaded = len(gc.get_objects())
    llm.llm_engine.listeners.append(lambda _: num_frozen.append(gc.get_freeze_count()))

    llm.generate("some prompt")

    assert min(num_frozen) > loaded / 2
    assert gc.get_freeze_count() == 0


def test_objects_that_a_program_has_frozen_stay_frozen(make_parts: MakeParts) -> None:
    llm = make_parts().llm
    gc.freeze()
    try:
        llm.generate("some prompt")
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
