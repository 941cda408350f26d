"""When requests arrive. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

from quire.bench.options import LoadConfig


def arrival_times(
    num_requests: int, load: LoadConfig, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the time of each request in seconds from the start, ascending.

    Gaps are gamma-distributed with shape `burstiness`, which for 1 is a Poisson process. They are
    scaled to last exactly num_requests / request_rate, so that runs of one rate can be compared;
    not so on a ramp, whose end is part of the question.
    """
    rates = request_rates(num_requests, load)
    if math.isinf(rates[0]):
        return np.zeros(num_requests)
    gaps = rng.gamma(load.burstiness, 1.0 / (rates * load.burstiness))
    times = np.cumsum(gaps)
    if load.ramp_up_strategy is None and times[-1] > 0:
        times *= num_requests / load.request_rate / times[-1]
    return times


def request_rates(num_requests: int, load: LoadConfig) -> NDArray[np.float64]:
    """Return the requests a second that hold when each request is sent."""
    if load.ramp_up_strategy is None:
        return np.full(num_requests, load.request_rate)
    start, end = float(load.ramp_up_start_rps or 0), float(load.ramp_up_end_rps or 0)
    progress = np.linspace(0.0, 1.0, num_requests)
    if load.ramp_up_strategy == "linear":
        return start + (end - start) * progress
    return np.asarray(start * (end / start) ** progress)
