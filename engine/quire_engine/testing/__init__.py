"""A fake engine: the real service, scheduler and cache on a model that costs nothing. No torch."""
