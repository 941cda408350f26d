"""Block identity: the hash that the engine's cache and the router's index must agree on.

A block's hash covers its own tokens and, through its parent's hash, everything before it, so equal
hashes mean equal prefixes and a router can binary-search a list of them. XXH3-64 over little-endian
u32 tokens, after the KV-event contract of Mooncake (RFC 1527) and Dynamo:

    local[i] = XXH3(tokens[i*B:(i+1)*B], seed)
    hash[0]  = local[0]
    hash[i]  = XXH3(hash[i-1] || local[i], seed)

The seed is the salt: model, adapter and the request's `cache_salt`. Two tenants with different
salts never share a block.
"""

from array import array
from collections.abc import Sequence
from sys import byteorder

from xxhash import xxh3_64_intdigest

ROOT_HASH = 0
"""Stands for "no parent" in KV events."""


def prefix_seed(model: str, *, adapter: str = "", cache_salt: str = "") -> int:
    """Return the seed that separates the prefixes of different models, adapters and tenants."""
    return xxh3_64_intdigest("\0".join((model, adapter, cache_salt)).encode())


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Return token ids as little-endian u32, the form in which they are hashed and sent."""
    packed = array("I", token_ids)
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def block_hash(parent: int, tokens: bytes, seed: int) -> int:
    """Return the hash of one full block; the first block's parent is ROOT_HASH."""
    local = xxh3_64_intdigest(tokens, seed)
    if parent == ROOT_HASH:
        return local
    return xxh3_64_intdigest(parent.to_bytes(8, "little") + local.to_bytes(8, "little"), seed)


def block_hashes(
    token_ids: Sequence[int], block_size: int, seed: int, *, parent: int = ROOT_HASH
) -> list[int]:
    """Return one hash per full block of `token_ids`; a partial last block has none.

    `parent` continues a chain whose last block has that hash.
    """
    packed = pack_tokens(token_ids)
    stride = 4 * block_size
    hashes = []
    for start in range(0, len(packed) - stride + 1, stride):
        parent = block_hash(parent, packed[start : start + stride], seed)
        hashes.append(parent)
    return hashes
