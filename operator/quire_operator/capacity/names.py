"""A model's size from its name alone: "8B", "Qwen3-30B-A3B-FP8", "70B-AWQ"."""

from quire_operator.capacity.footprint import Footprint


def footprint_of_name(
    name: str, *, dtype: str = "auto", quantization: str = "", kv_cache_dtype: str = "auto"
) -> Footprint | None:
    """Return a rough footprint for the size in a name, or None if the name has none.

    Weights follow from the number of parameters; layers, heads and cache are those of the usual
    dense model of that size, so the answer is good to some ten percent of weights and a factor of
    two of cache. `quantization` empty: as the name says (AWQ, GPTQ-Int4, FP8, Q4_K_M, ...).
    """
    raise NotImplementedError
