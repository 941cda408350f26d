"""What runs beside the core: tokenizing, detokenizing, stop strings, request state. No torch."""
