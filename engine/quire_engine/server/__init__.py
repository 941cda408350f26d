"""The gRPC service in front of the engine, its health, its metrics."""
