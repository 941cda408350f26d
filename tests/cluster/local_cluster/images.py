"""The project's images in the cluster's registry.

A tag is the image's own id, so that an image that is there already is neither pushed nor pulled
again, in whichever cluster or checkout it was made.
"""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from image_builder import ENGINE, OPERATOR, ROUTER, ImageBuilder, Recipe, default_folder
from local_cluster.addresses import CONTROL_IP, REGISTRY_ADDRESS, REGISTRY_NAME, REGISTRY_PORT
from local_cluster.cluster import LocalCluster
from local_cluster.tools import cache_folder, locked

# As fast as the disk; gzip would take minutes for the 6 GB of the engine.
COMPRESSION = ("--compression-format=zstd", "--compression-level=1", "--format=oci")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that the nodes can pull."""

    repository: str
    tag: str

    @property
    def name(self) -> str:
        return f"{REGISTRY_NAME}/{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The three images of one version."""

    engine: Image
    router: Image
    operator: Image

    def chart_flags(self) -> list[str]:
        """Return the flags by which helm installs exactly these images."""
        flags = []
        for part in ("engine", "router", "operator"):
            image: Image = getattr(self, part)
            flags += [f"--set={part}.image.registry={REGISTRY_NAME}"]
            flags += [f"--set={part}.image.repository={image.repository}"]
            flags += [f"--set-string={part}.image.tag={image.tag}"]
        return flags


def publish_images(cluster: LocalCluster, *, version: str = "0.1.0") -> Images:
    """Build the images from the working tree and push them to the cluster's registry."""
    builder = ImageBuilder(default_folder())
    return Images(
        engine=_publish(cluster, builder, ENGINE, version),
        router=_publish(cluster, builder, ROUTER, version),
        operator=_publish(cluster, builder, OPERATOR, version),
    )


def publish_image(cluster: LocalCluster, recipe: Recipe, *, version: str) -> Image:
    """Build one image under another version, for a rollout."""
    return _publish(cluster, ImageBuilder(default_folder()), recipe, version)


def _publish(cluster: LocalCluster, builder: ImageBuilder, recipe: Recipe, version: str) -> Image:
    built = builder.build(recipe, version=version)
    identity = builder.inspect(built)["FromImageID"].removeprefix("sha256:")
    image = Image(repository=recipe.name, tag=identity[:12])
    target = f"docker://{REGISTRY_ADDRESS}/{image.repository}:{image.tag}"
    with locked(cache_folder() / "registry.lock"), _registry(cluster) as url:
        if not _has(url, image):
            push = ("push", "--quiet", "--tls-verify=false", *COMPRESSION, built, target)
            builder.buildah(*push, prefix=cluster.inside())
        _remember(image)
    return image


@contextmanager
def _registry(cluster: LocalCluster) -> Iterator[str]:
    with cluster.tunnel_to(CONTROL_IP, REGISTRY_PORT) as address:
        yield f"http://{address}"


def _has(url: str, image: Image) -> bool:
    request = urllib.request.Request(f"{url}/v2/{image.repository}/manifests/{image.tag}")
    request.add_header("Accept", "application/vnd.oci.image.manifest.v1+json")
    try:
        with urllib.request.urlopen(request, timeout=60):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 404:
            raise
        return False


def _remember(image: Image) -> None:
    """Note the image as one whose layers the nodes keep, in place of older ones."""
    path: Path = cache_folder() / "kept-images"
    names = path.read_text().split() if path.exists() else []
    same = [name for name in names if f"/{image.repository}:" in name and name != image.name]
    others = [name for name in names if f"/{image.repository}:" not in name]
    # Two of each: a test of rollouts has both.
    path.write_text("\n".join([*others, *same[-1:], image.name]) + "\n")
