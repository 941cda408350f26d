"""The processes that share a model (tensor parallelism), one for each GPU."""
