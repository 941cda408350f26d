"""A part of a README that is generated: what stands between two marks."""


def replace_marked(readme: str, begin: str, end: str, content: str) -> str:
    """Return the README with what is between its two marks replaced."""
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    assert rest, f"the README must hold the marks {begin} and {end}"
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"
