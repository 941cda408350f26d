"""Which prompts an engine can compute at all."""

from quire_engine.core.kv_cache import KvCache
from quire_engine.errors import InvalidRequestError, PromptTooLongError


def check_prompt_length(num_tokens: int, max_model_len: int, cache: KvCache) -> None:
    """Check that a prompt leaves room for a token, in the model's length and in an empty cache.

    Raises:
        InvalidRequestError: it is empty, or more than the cache holds.
        PromptTooLongError: it is as long as the model goes, or longer.
    """
    if not num_tokens:
        raise InvalidRequestError("the prompt has no tokens", "prompt")
    if num_tokens >= max_model_len:
        raise PromptTooLongError(num_tokens, max_model_len)
    if num_tokens >= cache.num_slots:
        num_blocks = num_tokens // cache.block_size + 1
        raise InvalidRequestError(
            f"the prompt has {num_tokens} tokens and needs {num_blocks} cache blocks of "
            f"{cache.block_size}; this engine has {cache.pool.num_blocks}",
            "prompt",
        )
