"""One request of a benchmark, and what became of it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """A prompt, as text or token ids, and how much to generate."""

    prompt: str | list[int]
    prompt_len: int
    output_len: int


@dataclass(slots=True, kw_only=True)
class BenchResult:
    """When the parts of an answer arrived; times in seconds of one clock."""

    prompt_len: int
    start_time: float
    success: bool = False
    latency: float = 0.0
    """From sending to the last token."""
    ttft: float = 0.0
    """From sending to the first token."""
    itl: list[float] = field(default_factory=list)
    """Between one arrival of tokens and the next."""
    output_len: int = 0
    generated_text: str = ""
    error: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None with fewer than two tokens."""
        if self.output_len < 2:
            return None
        return (self.latency - self.ttft) / (self.output_len - 1)

    def arrive(self, now: float, text: str) -> None:
        """Note an arrival of tokens."""
        if not self.ttft:
            self.ttft = now - self.start_time
        else:
            self.itl.append(now - self.start_time - self.latency)
        self.latency = now - self.start_time
        self.generated_text += text
