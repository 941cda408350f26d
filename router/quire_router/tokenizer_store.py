"""The tokenizers that engines sent, kept by their hash: replicas of a model share one."""

import hashlib
from typing import Any

import grpc

from quire_engine.rpc import engine_pb2 as pb
from quire_router.generation import TokenizerFiles
from quire_router.session import ConnectionLostError

TIMEOUT_S = 60.0


class TokenizerStore:
    """Fetches each tokenizer once."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}

    async def fetch(self, stub: Any) -> TokenizerFiles:
        """Return the tokenizer of an engine; its data is not sent when it is known already.

        Raises:
            ConnectionLostError: the engine broke off, or what it sent is not what it announced.
            grpc.aio.AioRpcError: the call failed.
        """
        call = stub.GetTokenizer(pb.GetTokenizerRequest(), timeout=TIMEOUT_S)
        try:
            message = await call.read()
            if message is grpc.aio.EOF or not message.HasField("header"):
                raise ConnectionLostError("the engine sent a tokenizer without a header")
            header = message.header
            if header.sha256 not in self._data:
                self._data[header.sha256] = await _receive(call, header)
        finally:
            call.cancel()
        return TokenizerFiles(
            sha256=header.sha256,
            data=self._data[header.sha256],
            chat_template=header.chat_template,
            generation_config=header.generation_config,
            special_tokens=header.special_tokens,
        )


async def _receive(call: Any, header: pb.GetTokenizerResponse.Header) -> bytes:
    parts = []
    while (message := await call.read()) is not grpc.aio.EOF:
        parts.append(message.data)
    data = b"".join(parts)
    if header.sha256 and hashlib.sha256(data).hexdigest() != header.sha256:
        raise ConnectionLostError(
            f"the engine sent {len(data)} bytes of tokenizer.json that do not have the hash "
            f"{header.sha256} of the {header.num_bytes} bytes announced"
        )
    return data
