"""`quire top`: the replicas of a router, live in a terminal."""
