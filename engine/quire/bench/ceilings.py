"""How fast the device of a benchmark could be: known of its kind, or measured before the run."""

import torch

from quire_engine.config import EngineConfig
from quire_engine.runner.factory import resolve_device, resolve_dtype
from quire_engine.runner.roofline import MEASURED, Ceilings, measure_ceilings


def ceilings_at_start(config: EngineConfig) -> Ceilings:
    """Return the limits of the device that a configuration runs on. Takes up to a second.

    Raises:
        ConfigError: there is no such device.
    """
    if resolve_device(config) == "cuda":
        name = torch.cuda.get_device_properties(0).name
        return MEASURED.get(name) or measure_ceilings(torch.device("cuda", 0), torch.bfloat16)
    return measure_ceilings(torch.device("cpu"), resolve_dtype(config.model.dtype))
