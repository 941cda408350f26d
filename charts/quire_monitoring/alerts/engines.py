"""Alerts about engines: stuck, restarting, full."""

from quire_monitoring.recordings import threshold
from quire_monitoring.rules import Alert, Group, Severity

_ABOUT = "{{ $labels.namespace }}/{{ $labels.quire_dev_deployment }}"
_POD = "{{ $labels.namespace }}/{{ $labels.pod }}"
_COMPILES = "quire_engine_kernel_compiles_after_ready_total"
_ON_POD = "on (namespace, quire_dev_deployment, pod, instance)"

ENGINE_ALERTS = Group(
    "quire-alerts-engines",
    [
        Alert(
            name="QuireEngineStuck",
            severity=Severity.CRITICAL,
            expr="quire_engine_last_step_age_seconds > 60",
            lasting="1m",
            summary=f"{_POD} has requests and made no step for {{{{ $value | humanizeDuration }}}}",
            meaning="Its streams hang. A kernel or a collective never ends, or the GPU has fallen "
            "off "
            "the bus; the liveness probe should restart the pod soon.",
            look=(
                "`kubectl logs -n NAMESPACE POD --tail=50`",
                "`kubectl exec -n NAMESPACE POD -- nvidia-smi`; on the node, `dmesg | grep -i "
                "xid`.",
                "`kubectl delete pod -n NAMESPACE POD` if it stays; requests go to other replicas.",
            ),
        ),
        Alert(
            name="QuireEngineRestarting",
            severity=Severity.WARNING,
            expr="changes(process_start_time_seconds[30m]) > 2"
            f" and {_ON_POD} quire_engine_steps_total >= 0",
            lasting="0m",
            summary=f"{_POD} has started {{{{ $value }}}} times in half an hour",
            meaning="Requests on it are lost each time. Out of memory on the host or the GPU, a "
            "wrong "
            "flag, or a liveness probe that ends slow starts.",
            look=(
                "`kubectl get pod -n NAMESPACE POD -o jsonpath="
                "'{.status.containerStatuses[*].lastState}'`: OOMKilled?",
                "`kubectl logs -n NAMESPACE POD --previous --tail=100`",
            ),
        ),
        Alert(
            name="QuireQueueGrowing",
            severity=Severity.WARNING,
            expr=f"quire:requests_waiting:mean > {threshold('waitingPerReplica')}",
            lasting="10m",
            summary=f"{_ABOUT}: {{{{ $value | humanize }}}} requests wait per replica",
            meaning="More comes than replicas can do, and time to first token grows with the "
            "queue.",
            look=(
                "Board *Overview*, *In flight*: is it a peak, or growth?",
                "Board *Model*, *KV cache*: full means that memory limits, not speed.",
                "`kubectl scale llmd NAME -n NAMESPACE --replicas=N`, or raise "
                "`spec.autoscaling.maxReplicas`.",
            ),
        ),
        Alert(
            name="QuireKvCacheFull",
            severity=Severity.WARNING,
            expr="quire_engine_kv_cache_usage_ratio > 0.95",
            lasting="10m",
            summary=f"{_POD} holds {{{{ $value | humanizePercentage }}}} of its KV cache in live "
            "requests",
            meaning="New requests wait for memory, and running ones may be preempted. Nothing is "
            "left to cache prefixes in.",
            look=(
                "Board *Model*, *Running*, *Prompt* and *Answer*: more requests, or longer ones?",
                "More memory for the cache: `--gpu-memory-utilization`, more GPUs per replica, a "
                "smaller model; or fewer requests at a time: `--max-num-seqs`.",
                "More replicas spread the load.",
            ),
        ),
        Alert(
            name="QuirePreemptionsHigh",
            severity=Severity.WARNING,
            expr="quire:preemptions:per_request_10m > 0.1",
            lasting="10m",
            summary=f"{_ABOUT}: one preemption for every ten requests or fewer",
            meaning="Sequences give up their blocks and are computed again: work is wasted and "
            "their "
            "streams pause.",
            look=(
                "Board *Model*, *Preemptions* and *KV cache*: which replica?",
                "Lower `--max-num-seqs`, or add memory or replicas as for QuireKvCacheFull.",
            ),
        ),
        Alert(
            name="QuirePrefixHitsCollapsed",
            severity=Severity.WARNING,
            expr="quire:prefix_hits:ratio_10m < 0.5 * (quire:prefix_hits:ratio_1h offset 15m > "
            "0.2)",
            lasting="15m",
            summary=f"{_ABOUT} finds {{{{ $value | humanizePercentage }}}} of prompts in its "
            f"caches, "
            "less than half of what it did",
            meaning="Prompts are computed that used to be cached, so first tokens come later. "
            "Caches "
            "are full, routers do not know what is cached, or clients changed their prompts.",
            look=(
                "Board *Cache and routing*, *Expected and found*: found far below expected is a "
                "stale "
                "index or a full cache; both low are new prompts.",
                "Board *Cache and routing*, *Knowledge of caches*: see QuirePrefixIndexDegraded.",
                "Was it a rollout? Caches start empty; wait.",
            ),
        ),
        Alert(
            name="QuireKernelsCompiledLate",
            severity=Severity.WARNING,
            # The second half: those before the first scrape, of which no increase tells.
            expr=f"increase({_COMPILES}[30m]) > 0"
            f" or ({_COMPILES} > 0 unless {_COMPILES} offset 30m)",
            lasting="0m",
            summary=f"{_POD} has compiled kernels while requests waited",
            meaning="Warming up has missed a variant: all streams of the pod pause, for "
            "milliseconds if the kernel was on disk, for seconds if not. It is a bug of Quire.",
            look=(
                "Board *Model*, *Kernels compiled late* and *Step time*: how often, how long?",
                "`kubectl logs -n NAMESPACE POD | grep 'kernel compiled after ready'`: which ones. "
                "Please report them with model, flags and GPU.",
                "Until it is repaired, keep compiled kernels on a volume that outlives the pod "
                "(`TRITON_CACHE_DIR`): then only the first replica compiles.",
            ),
        ),
        Alert(
            name="QuireScrapeFailing",
            severity=Severity.WARNING,
            expr='up{quire_dev_deployment!=""} == 0',
            lasting="10m",
            summary="{{ $labels.namespace }}/{{ $labels.pod }} does not answer Prometheus",
            meaning="Nothing is known of the pod: its other alerts are silent, too.",
            look=(
                "`kubectl get pod -n NAMESPACE POD`: is it running?",
                "`kubectl get networkpolicy -n NAMESPACE`: may Prometheus reach it? "
                "(`networkPolicy.metricsNamespaces`)",
                "`kubectl port-forward -n NAMESPACE POD 9090:metrics`, then "
                "`curl localhost:9090/metrics | head`.",
            ),
        ),
    ],
)
