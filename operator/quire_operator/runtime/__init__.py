"""The operator around `plan()`: what watches, decides when, writes, and answers for it.

    kube        requests to the API server, on the client of `kubernetes.aio`
    resources   which kinds are watched, and what the server has of them
    store       the cluster as last seen: deployments, children, pods, nodes
    reflector   one list and watch, which keeps a part of the store true
    front       kopf: watches LLMDeployments, and only says which key changed
    schedule    which key is due: deduplicating, one worker per key, backing off
    reconciler  one key: snapshot, plan, apply, status, events
    applier     server-side apply of what differs, then deletions
    election    which replica writes
    health      what must move for the process to be well

Everything that decides is a plain function or class without I/O; everything that waits is a task of
the one `TaskGroup` in `process`.
"""
