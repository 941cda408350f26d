"""What clients are told about the model: GetModelInfo and GetTokenizer."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quire_engine.core.messages import CoreReady
from quire_engine.rpc import engine_pb2 as pb

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The model as its source and the configuration describe it."""

    served_names: tuple[str, ...]
    """The first is canonical."""
    model: str
    prefix_model: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_logprobs: int
    has_prefix_caching: bool
    tokenizer_json: bytes = b""
    """Empty: the engine serves token ids only."""
    chat_template: str = ""
    generation_config: dict[str, Any] = field(default_factory=dict)
    """Defaults of SamplingParams."""
    special_tokens: dict[str, Any] = field(default_factory=dict)
    """bos_token, eos_token and the like, as chat templates use them."""

    def info(self, ready: CoreReady, *, epoch: int) -> pb.ModelInfo:
        """Return the answer of GetModelInfo for an engine that is ready as of this call."""
        return pb.ModelInfo(
            served_model_names=self.served_names,
            model=self.model,
            max_model_len=ready.max_model_len,
            vocab_size=self.vocab_size,
            eos_token_ids=self.eos_token_ids,
            block_size=ready.block_size,
            num_blocks=ready.num_blocks,
            prefix_model=self.prefix_model,
            prefix_caching=self.has_prefix_caching,
            epoch=epoch,
            version=_version(),
            dtype=ready.dtype,
            device=ready.device,
            max_logprobs=self.max_logprobs,
            max_num_batched_tokens=ready.max_num_batched_tokens,
            max_num_seqs=ready.max_num_seqs,
            created=int(time.time()),
        )

    def tokenizer_messages(self) -> Iterator[pb.GetTokenizerResponse]:
        """Yield the header, then tokenizer.json in chunks."""
        yield pb.GetTokenizerResponse(
            header=pb.GetTokenizerResponse.Header(
                sha256=hashlib.sha256(self.tokenizer_json).hexdigest(),
                num_bytes=len(self.tokenizer_json),
                chat_template=self.chat_template,
                generation_config=json.dumps(self.generation_config),
                special_tokens=json.dumps(self.special_tokens),
            )
        )
        for start in range(0, len(self.tokenizer_json), CHUNK_BYTES):
            yield pb.GetTokenizerResponse(data=self.tokenizer_json[start : start + CHUNK_BYTES])


def _version() -> str:
    try:
        return importlib.metadata.version("quire")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
