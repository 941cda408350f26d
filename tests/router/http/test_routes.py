"""Everything besides generating."""

from typing import Any

import pytest

from http_support import Served, model_info, tokenizer_files
from quire_router.errors import ConfigError


async def test_models_are_listed_under_all_their_names(served: Served) -> None:
    client = await served.client()

    models = await client.models.list()

    assert [model.id for model in models.data] == ["fake", "org/alias"]
    card = models.data[0].model_dump()
    assert card["object"] == "model"
    assert card["created"] == 1_700_000_000
    assert card["max_model_len"] == 512
    assert card["permission"][0]["allow_sampling"]


async def test_a_model_whose_name_has_slashes_can_be_looked_up(served: Served) -> None:
    status, text = await served.get("/v1/models/org/alias")
    missing_status, missing = await served.get("/v1/models/org/other")

    assert status == 200
    assert '"id":"org/alias"' in text
    assert missing_status == 404
    assert "model_not_found" in missing


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/version", "/metrics"])
async def test_probes_answer(served: Served, path: str) -> None:
    status, _ = await served.get(path)

    assert status == 200


async def test_texts_and_chats_are_tokenized(served: Served) -> None:
    _, plain = await served.post("/tokenize", {"prompt": "hé", "return_token_strs": True})
    _, chat = await served.post(
        "/tokenize", {"model": "fake", "messages": [{"role": "user", "content": "a"}]}
    )

    assert plain == {
        "count": 3,
        "max_model_len": 512,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "Ã", "©"],
    }
    assert chat["tokens"][0] == 257
    assert chat["count"] == len(chat["tokens"])
    assert chat["token_strs"] is None


async def test_tokens_become_text_again(served: Served) -> None:
    _, answer = await served.post("/detokenize", {"tokens": [104, 195, 169, 256]})
    _, nothing = await served.post("/detokenize", {"tokens": []})

    assert answer == {"prompt": "hé<|endoftext|>"}
    assert nothing == {"prompt": ""}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/unknown", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/v1/completions", 405),
        ("OPTIONS", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("GET", "/tokenize", 405),
        ("POST", "/v1/audio/speech", 501),
        ("GET", "/v1/files", 501),
    ],
)
async def test_unknown_paths_and_methods_get_openai_errors(
    served: Served, method: str, path: str, status: int
) -> None:
    async with served.http.request(method, served.url + path) as response:
        answer = await response.json()

    assert response.status == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_bodies_have_a_limit(serve_with: Any) -> None:
    served = await serve_with(max_body_bytes=100)
    body = {"prompt": "x" * 200}

    for path in ("/v1/completions", "/tokenize"):
        status, answer = await served.post(path, body)
        assert status == 413
        assert "at most 100" in answer["error"]["message"]
        assert answer["error"]["code"] == "request_too_large"


async def test_bodies_of_unknown_length_have_a_limit_too(serve_with: Any) -> None:
    served = await serve_with(max_body_bytes=100)

    async def body() -> Any:
        for _ in range(10):
            yield b'"' + b"x" * 50

    async with served.http.post(served.url + "/v1/completions", data=body()) as response:
        answer = await response.json()

    assert response.status == 413
    assert answer["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("given", ["ok-1", "bad\tid", "x" * 200, ""])
async def test_request_ids_are_returned_if_fit(served: Served, given: str) -> None:
    async with served.http.get(served.url + "/health", headers={"x-request-id": given}) as response:
        returned = response.headers["x-request-id"]

    assert (returned == given) is (given == "ok-1")
    assert returned


async def test_requests_are_counted_by_route_and_status(served: Served) -> None:
    await served.get("/v1/models/fake")
    await served.get("/scan/for/holes")
    await served.post("/v1/completions", {"prompt": "hi"})
    await served.post("/v1/completions", {"prompt": "hi"})
    await served.post("/v1/completions", {})
    await served.events("/v1/completions", {"prompt": "hi"})

    _, text = await served.get("/metrics")

    for line in (
        'quire_router_requests_total{route="/v1/completions",status="200"} 3.0',
        'quire_router_requests_total{route="/v1/completions",status="400"} 1.0',
        'quire_router_requests_total{route="/v1/models/{id}",status="200"} 1.0',
        'quire_router_requests_total{route="other",status="404"} 1.0',
        "quire_router_requests_in_flight 0.0",
        "quire_router_prompt_tokens_total 6.0",
        "quire_router_completion_tokens_total 18.0",
        'quire_router_tokenizer_cache_total{result="hit"} 2.0',
        'quire_router_tokenizer_cache_total{result="miss"} 1.0',
        "quire_router_time_to_first_token_seconds_count 1.0",
        "quire_router_inter_token_latency_seconds_count 5.0",
    ):
        assert line in text, line


async def test_requests_are_judged_by_the_targets_given(serve_with: Any) -> None:
    served = await serve_with(slo_ttft_ms=60_000, slo_itl_ms=60_000)
    await served.post("/v1/completions", {"prompt": "hi"})
    await served.events("/v1/completions", {"prompt": "hi"})
    await served.post("/v1/completions", {})

    _, text = await served.get("/metrics")

    assert 'quire_router_slo_requests_total{result="met"} 2.0' in text
    assert 'quire_router_slo_requests_total{result="slow_first_token"} 0.0' in text
    assert 'quire_router_slo_target_seconds{target="time_to_first_token"} 60.0' in text


async def test_a_target_must_be_a_time(serve_with: Any) -> None:
    with pytest.raises(ConfigError, match="slo_itl_ms must be more than 0, not -1"):
        await serve_with(slo_itl_ms=-1)


async def test_browsers_are_kept_out_unless_allowed(served: Served, serve_with: Any) -> None:
    open_ = await serve_with(allowed_origins=("https://chat.example",), api_keys=("k",))
    preflight = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }

    async with served.http.get(served.url + "/health", headers=preflight) as closed:
        assert "access-control-allow-origin" not in closed.headers
    async with open_.http.options(open_.url + "/v1/chat/completions", headers=preflight) as allowed:
        assert allowed.status == 200
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    async with open_.http.options(
        open_.url + "/v1/chat/completions", headers={**preflight, "origin": "https://evil.example"}
    ) as refused:
        assert "access-control-allow-origin" not in refused.headers


async def test_another_tokenizer_is_taken_up(served: Served) -> None:
    await served.post("/tokenize", {"prompt": "a"})
    served.script.files = tokenizer_files(sha256="", data=b"")
    served.script.model = model_info(vocab_size=0)

    status, answer = await served.post("/v1/completions", {"prompt": "a"})
    ids_status, _ = await served.post("/v1/completions", {"prompt": [1, 2]})

    assert status == 400
    assert "without a tokenizer" in answer["error"]["message"]
    assert ids_status == 200
