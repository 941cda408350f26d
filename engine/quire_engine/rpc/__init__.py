"""The RPC contract: proto, stubs, prefix hash, chat template. No torch, no other engine module."""
