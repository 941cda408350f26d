"""The way of the README on a local cluster: images, chart, a deployment, an answer."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import openai

from local_cluster.cluster import LocalCluster, start_cluster
from local_cluster.images import publish_images
from local_cluster.release import SAMPLES, Release

QUESTION = "What is the capital of France?"


def run_demo() -> None:
    """Go the whole way once and take everything down again."""
    with ExitStack() as stack:
        with _step("start two nodes"):
            cluster = stack.enter_context(start_cluster())
        _deploy(cluster)


def _deploy(cluster: LocalCluster) -> None:
    with _step("build the images and push them"):
        images = publish_images(cluster)
    with _step("helm install quire charts/quire"):
        Release(cluster=cluster, images=images).install()
    with _step("kubectl apply -f manifests/samples/01-smollm2.yaml"):
        cluster.kubectl("apply", "-f", str(SAMPLES / "01-smollm2.yaml"))
        cluster.wait("llmd/smollm2", "condition=Ready", timeout_s=600)
    say(cluster.kubectl("get", "llmd"))
    with cluster.tunnel("smollm2", 80) as address:
        say(f"> {QUESTION}")
        say(ask(address, "smollm2", QUESTION))


def ask(address: str, model: str, question: str) -> str:
    """Chat once, with the official client, and return the answer."""
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key="none") as client:
        completion = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=48,
            temperature=0,
        )
    return completion.choices[0].message.content or ""


def say(text: str) -> None:
    """Print for the person before the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def _step(title: str) -> Iterator[None]:
    started_at = time.monotonic()
    say(f"== {title}")
    yield
    say(f"   {time.monotonic() - started_at:.0f} s")
