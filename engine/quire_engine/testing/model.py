"""What the fake model says about itself."""

from quire_engine.config import EngineConfig
from quire_engine.server.model_card import ModelCard
from quire_engine.testing.tokenizer import (
    CHAT_TEMPLATE,
    EOS_TOKEN_ID,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    tokenizer_json,
)


def fake_card(config: EngineConfig, names: tuple[str, ...]) -> ModelCard:
    """Return the card of a fake model that is served under this name (several: comma separated)."""
    return ModelCard(
        served_names=names,
        model="fake",
        prefix_model=names[0],
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(EOS_TOKEN_ID,),
        max_logprobs=config.model.max_logprobs,
        has_prefix_caching=config.cache.enable_prefix_caching,
        tokenizer_json=tokenizer_json().encode(),
        chat_template=config.model.chat_template or CHAT_TEMPLATE,
        special_tokens={"eos_token": SPECIAL_TOKENS[0], "bos_token": SPECIAL_TOKENS[1]},
    )
