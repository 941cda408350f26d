"""A fake engine: the real service, scheduler and cache on a model that costs nothing. No torch.

    async with FakeEngine(FakeModel(decode_ms=5, prefill_tokens_per_s=20_000)) as engine:
        channel = grpc.aio.insecure_channel(engine.address)  # "unix:/..." or "127.0.0.1:port"
        ...
        engine.hang()           # steps stop; engine.resume() goes on
        engine.slow_down(10)    # every step takes ten times as long; 1 is normal
        engine.refuse(QueueFullError(9, 9))  # answer for every new request; None ends it
        engine.drop_kv_events() # subscribers miss changes and see a gap in the numbers
        await engine.drain(1.0) # what SIGTERM does first
        await engine.die()      # requests in flight fail with UNAVAILABLE, health is NOT_SERVING
        await engine.restart()  # a new epoch and an empty cache on the same address

or as a process: `python -m quire_engine.testing --uds PATH --decode-ms 5`.

The tokenizer has one token per byte (ids 0 to 255), then "<|endoftext|>" (256, end-of-sequence),
"<|im_start|>" and "<|im_end|>". The next token is a function of all tokens before it, so the same
prompt gets the same answer everywhere, and a continued one the same rest.
"""

from quire_engine.testing.engine import FakeEngine
from quire_engine.testing.runner import FakeModel, FakeRunner, build_fake_runner

__all__ = ["FakeEngine", "FakeModel", "FakeRunner", "build_fake_runner"]
