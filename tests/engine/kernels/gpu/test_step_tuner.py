import itertools

from triton.runtime.errors import OutOfResources

from quire_engine.kernels.gpu.step_tuner import StepTuner


class FakeChoice:
    """A table with one line, and how wrong each of its values would be."""

    name = "product"

    def __init__(self, tiles: str, errors: dict[str, float] | None = None) -> None:
        self.tiles, self._errors = tiles, errors or {}

    def get(self) -> str:
        return self.tiles

    def put(self, tiles: str) -> None:
        self.tiles = tiles

    def error(self, tiles: str) -> float:
        return self._errors.get(tiles, 0.0)


class FakeStep:
    """Takes as long as the tiles in the table say: the first time, and every time after it."""

    def __init__(self, choice: FakeChoice, seconds: dict[str, list[float]]) -> None:
        self._choice = choice
        self._seconds = {
            tiles: itertools.chain(times, itertools.repeat(times[-1]))
            for tiles, times in seconds.items()
        }

    def __call__(self, num_tokens: int) -> float:
        if self._choice.tiles not in self._seconds:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return next(self._seconds[self._choice.tiles])


def tuned(choice: FakeChoice, seconds: dict[str, list[float]], *candidates: str) -> list[str]:
    said: list[str] = []
    StepTuner(FakeStep(choice, seconds), said.append).tune(choice, 8, candidates)
    return said


def test_the_tiles_of_the_fastest_step_win() -> None:
    choice = FakeChoice("a")

    said = tuned(choice, {"a": [3e-3], "b": [1e-3], "c": [2e-3]}, "b", "c")

    assert choice.tiles == "b"
    assert said == ["product x 8: step 3000.0 us, best of 3 1000.0 b"]


def test_what_the_table_says_stays_where_nothing_is_faster() -> None:
    choice = FakeChoice("a")

    tuned(choice, {"a": [1.0], "b": [2.0]}, "b")

    assert choice.tiles == "a"


def test_luck_does_not_win_twice() -> None:
    choice = FakeChoice("a")

    tuned(choice, {"a": [3.0], "lucky": [1.0, 4.0], "good": [2.0]}, "lucky", "good")

    assert choice.tiles == "good"


def test_tiles_that_compute_something_else_never_win() -> None:
    choice = FakeChoice("a", {"wrong": 2.0, "nan": float("nan")})

    said = tuned(choice, {"a": [3.0], "wrong": [1.0], "nan": [1.5]}, "wrong", "nan")

    assert choice.tiles == "a"
    assert sum("WRONG" in line for line in said) == 2


def test_tiles_that_do_not_fit_the_gpu_are_left_out() -> None:
    choice = FakeChoice("a")

    tuned(choice, {"a": [3.0], "b": [2.0]}, "too large", "b")

    assert choice.tiles == "b"


def test_out_of_time_the_table_stays_as_it_was() -> None:
    choice = FakeChoice("a")
    said: list[str] = []
    tuner = StepTuner(FakeStep(choice, {"a": [2.0], "b": [1.0]}), said.append, stop_at=0.0)

    tuner.tune(choice, 8, ["b"])

    assert choice.tiles == "a"
    assert "out of time" in said[0]
