"""The engine: paged KV cache, continuous batching, model execution, and the gRPC service."""
