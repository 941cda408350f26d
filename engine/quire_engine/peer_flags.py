"""Flags that vLLM knows and Quire does not: they are skipped with a warning, not refused.

A command line written for vLLM should start here. Flags are grouped by how many values they take,
because the values must be skipped with the flag. Names that vLLM itself has dropped are here too:
people still pass them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

_SWITCHES = """
    --allow-credentials --allow-deprecated-quantization --async-engine --async-scheduling
    --calculate-kv-scales --data-parallel-external-lb
    --data-parallel-hybrid-lb --data-parallel-multi-port-external-lb --disable-async-output-proc
    --disable-cascade-attn --disable-chunked-mm-input
    --disable-fastapi-docs --disable-frontend-multiprocessing --disable-hybrid-kv-cache-manager
    --disable-log-requests --disable-log-stats --disable-mm-preprocessor-cache
    --disable-nccl-for-dp-synchronization --disable-sliding-window --disable-shuffle
    --disable-uvicorn-access-log --enable-auto-tool-choice --enable-chunked-prefill --enable-dbo
    --enable-eplb --enable-expert-parallel --enable-force-include-usage --enable-log-outputs
    --enable-log-requests --enable-lora --enable-lora-bias --enable-mfu-metrics
    --enable-mm-embeds --enable-prompt-adapter --enable-prompt-embeds
    --enable-prompt-tokens-details --enable-reasoning --enable-request-id-headers
    --enable-return-routed-experts --enable-server-load-tracking --enable-sleep-mode
    --enable-ssl-refresh --enable-tokenizer-info-endpoint --exclude-tools-when-tool-choice-none
    --fully-sharded-loras --grpc --headless --insecure
    --interleave-mm-strings --kv-cache-metrics --kv-sharing-fast-prefill --language-model-only
    --log-error-stack --mm-encoder-only --no-oversample --plot-timeline
    --multi-step-stream-outputs --ray-workers-use-nsight --return-tokens-as-token-ids
    --scheduler-reserve-full-isl --skip-mm-profiling --trust-remote-code
    --trust-request-chat-template --use-beam-search --use-tqdm-on-load --use-v2-block-manager
    --worker-use-ray
"""

_ONE_VALUE = """
    --additional-config --api-server-count --attention-backend --attention-config
    --audio-asr-base-prompt --chat-template-content-format --code-revision
    --collect-detailed-traces --compilation-config --config --config-format --convert
    --cpu-offload-gb --custom-histogram-buckets --data-parallel-address --data-parallel-backend
    --data-parallel-rank --data-parallel-rpc-port --data-parallel-size
    --data-parallel-size-local --data-parallel-start-rank --dbo-decode-token-threshold
    --dbo-prefill-token-threshold --dcp-kv-cache-interleave-size
    --decode-context-parallel-size --default-chat-template-kwargs
    --disable-access-log-for-endpoints --distributed-executor-backend --ec-transfer-config
    --eplb-config --expert-placement-strategy --fingerprint-mode
    --grpc-port --guided-decoding-backend
    --guided-decoding-disable-fallback --h11-max-header-count
    --h11-max-incomplete-event-size --hf-config-path --hf-name --hf-output-len --hf-split
    --hf-subset --io-processor-plugin --kv-cache-metrics-sample --kv-events-config
    --kv-offloading-backend --kv-offloading-size --kv-transfer-config --limit-mm-per-prompt
    --log-config-file --logits-processor-pattern --logprobs-mode --long-lora-scaling-factors
    --lora-dtype --lora-extra-vocab-size --mamba-block-size --mamba-cache-dtype
    --mamba-ssm-cache-dtype --master-addr --master-port --max-cpu-loras
    --max-cudagraph-capture-size --max-log-len --max-long-partial-prefills --max-lora-rank
    --max-loras --max-num-active-seqs --max-num-partial-prefills --max-num-queued-tokens
    --max-parallel-loading-workers --max-seq-len-to-capture --media-io-kwargs
    --mm-encoder-attn-backend --mm-encoder-tp-mode --mm-processor-cache-gb
    --mm-processor-cache-type --mm-processor-kwargs --model-impl --model-loader-extra-config
    --nnodes --node-rank --num-lookahead-slots --num-scheduler-steps
    --optimization-level --otlp-traces-endpoint --override-attention-dtype
    --override-generation-config --override-neuron-config --override-pooler-config
    --pipeline-parallel-size --pooler-config --prefill-context-parallel-size
    --prefill-schedule-interval --prefix-caching-hash-algo --profiler-config --pt-load-map-location
    --quantization-param-path --reasoning-config
    --reasoning-parser --reasoning-parser-plugin --response-role --root-path --rope-scaling
    --rope-theta --runner --safetensors-load-strategy --scheduler-cls --scheduler-delay-factor
    --show-hidden-metrics-for-version --spec-method --spec-model --spec-tokens
    --speculative-config --speculative-model --sse-keep-alive-interval --ssl-ca-certs
    --ssl-cert-reqs --ssl-certfile --ssl-ciphers --ssl-keyfile --stream-interval
    --structured-outputs-config --swap-space --task --tokenizer-mode --tokenizer-pool-size
    --tokenizer-revision --tool-call-parser --tool-parser-plugin --tool-server
    --uvicorn-log-level --video-pruning-rate --worker-cls --worker-extension-cls
    -O -ac -asc -cc -dcp -dp -ep -pp -r -sc
"""

_SEVERAL_VALUES = """
    --allowed-headers --allowed-local-media-path --allowed-media-domains --allowed-methods
    --allowed-origins --cudagraph-capture-sizes --default-mm-loras --ignore-patterns
    --logits-processors --lora-modules --middleware --prompt-adapters
"""

_REASONS = {
    "--enable-chunked-prefill": "chunked prefill is always on",
    "--async-engine": "there is one engine for both",
    "--config": "give its content as flags",
    "--profiler-config": "--profile DIR writes a trace",
    "--enable-lora": "adapters are not supported",
    "--lora-modules": "adapters are not supported",
    "--ssl-certfile": "put a TLS proxy in front; traffic is NOT encrypted",
    "--ssl-keyfile": "put a TLS proxy in front; traffic is NOT encrypted",
    "--swap-space": "preempted sequences are recomputed, never swapped",
    "--trust-remote-code": "code out of a model's repository is never run",
}


@dataclass(frozen=True, slots=True)
class PeerFlag:
    """How many values a flag takes (None: all up to the next flag), and why it has no effect."""

    num_values: int | None
    reason: str = ""


def _table() -> dict[str, PeerFlag]:
    groups: Sequence[tuple[str, int | None]] = (
        (_SWITCHES, 0),
        (_ONE_VALUE, 1),
        (_SEVERAL_VALUES, None),
    )
    flags = {
        name: PeerFlag(num_values, _REASONS.get(name, ""))
        for names, num_values in groups
        for name in names.split()
    }
    negated = {f"--no-{name[2:]}": PeerFlag(0) for name in _SWITCHES.split()}
    return negated | flags


PEER_FLAGS: Mapping[str, PeerFlag] = MappingProxyType(_table())
