"""Measurements: of a served model over HTTP (`serve`), of the engine in this process (the rest)."""
