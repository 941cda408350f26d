"""The OpenAI gateway: HTTP in, the replica that will answer soonest, gRPC out."""
