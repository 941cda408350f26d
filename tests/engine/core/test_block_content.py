from hypothesis import given, strategies as st

from quire_engine.core.block_content import ContentChain
from quire_engine.rpc.prefix import block_hashes, prefix_seed


def chain_of(token_ids: list[int], *, salt: str = "") -> ContentChain:
    chain = ContentChain("m", salt, 16)
    chain.extend(token_ids, len(token_ids) // 16)
    return chain


@given(st.lists(st.integers(0, 200_000), max_size=100), st.integers(0, 6))
def test_hashes_are_those_of_the_contract_however_the_chain_grew(
    token_ids: list[int], first: int
) -> None:
    num_blocks = len(token_ids) // 16
    chain = ContentChain("m", "tenant", 16)
    chain.extend(token_ids, min(first, num_blocks))
    chain.extend(token_ids, num_blocks)
    seed = prefix_seed("m", cache_salt="tenant")
    assert [c.block_hash for c in chain.contents] == block_hashes(token_ids, 16, seed)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
def test_shared_blocks_are_counted(shared: int, one: int, two: int) -> None:
    first = chain_of([1] * 16 * shared + [2] * 16 * one)
    second = chain_of([1] * 16 * shared + [3] * 16 * two)
    assert first.num_shared(second) == second.num_shared(first) == shared


def test_contents_are_the_same_only_with_the_same_past_and_salt() -> None:
    one, two = chain_of([1] * 32), chain_of([1] * 32)
    assert one.contents[1].is_same(two.contents[1])
    assert not one.contents[1].is_same(two.contents[0])
    assert not one.contents[1].is_same(chain_of([2] * 16 + [1] * 16).contents[1])
    assert not one.contents[1].is_same(chain_of([1] * 32, salt="tenant").contents[1])
