"""Builds the project's images where no container engine runs and no base image can be pulled.

buildah builds the unchanged Dockerfiles without a daemon. Their argument BASE_IMAGE names a slim
Python made here, of Debian's packages by debootstrap and of this machine's CPython. Everything is
kept in the user's cache folder: a build whose dependencies did not change takes seconds.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASE_RECIPE = "1"
"""Count up when what the base is made of changes."""
CERTIFICATES = "/etc/ssl/certs"
PROGRAMS = ("buildah", "debootstrap")

# The libraries that CPython's own modules are linked with, as the official image has them.
BASE_PACKAGES = (
    "ca-certificates,libffi8,libncursesw6,libnsl2,libreadline8,libsqlite3-0,libuuid1,netbase"
)
BASE_SUITE = "bookworm"
PATH_VARIABLE = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageError(Exception):
    """An image cannot be built or run; the message holds the end of what the program printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One image of the project."""

    name: str
    dockerfile: str
    target: str


ENGINE = Recipe(name="quire-engine", dockerfile="Dockerfile.engine", target="engine")
ROUTER = Recipe(name="quire-router", dockerfile="Dockerfile.operator", target="router")
OPERATOR = Recipe(name="quire-operator", dockerfile="Dockerfile.operator", target="operator")
RECIPES = (ENGINE, ROUTER, OPERATOR)
MAX_IMAGES = 250
"""Steps of builds that are kept; of the newest some 60 are needed. Removing one takes 0.2 s."""


def missing_programs() -> list[str]:
    """Name what building images needs and this machine or user lacks."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return missing if os.geteuid() == 0 else [*missing, "root"]


def default_folder() -> Path:
    """Return where layers are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quire" / "images"


def base_image() -> str:
    """Name the base image after what it is made of."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"localhost/python-slim:{version}-{BASE_RECIPE}"


class ImageBuilder:
    """buildah with a store of its own. Several processes may share one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = folder / "lock"
        folder.mkdir(parents=True, exist_ok=True)

    def build(
        self, recipe: Recipe, *, tag: str = "", context: Path = ROOT, version: str = "0.1.0"
    ) -> str:
        """Build an image, its base first, and return its name.

        Raises:
            ImageError: a step of the Dockerfile failed.
        """
        name = tag or f"localhost/{recipe.name}:{version}"
        with self._locked():
            base = base_image()
            if not self._has(base):
                self._make_base(base)
            self.buildah(
                *("build", "--quiet", "--pull-never", "--layers", "--format=docker"),
                # Packages come through this machine's certificates; images keep none of them.
                f"--volume={CERTIFICATES}:{CERTIFICATES}:ro",
                *(f"--file={context / recipe.dockerfile}", f"--target={recipe.target}"),
                *(f"--build-arg=BASE_IMAGE={base}", f"--build-arg=VERSION={version}"),
                *(f"--tag={name}", str(context)),
            )
            if len(self.buildah("images", "--all", "--quiet").split()) > MAX_IMAGES:
                self.buildah("rmi", "--prune")
        return name

    def inspect(self, image: str) -> dict[str, Any]:
        """Return the image's Docker configuration."""
        answer: dict[str, Any] = json.loads(self.buildah("inspect", "--type=image", image))
        return answer

    def size_bytes(self, image: str) -> int:
        """Return the size of all layers, unpacked."""
        [row] = json.loads(self.buildah("images", "--json", image))
        return round(_parse_size(row["size"]))

    def push(self, image: str, target: str, *, prefix: Sequence[str] = ()) -> None:
        """Push to a registry without TLS; `prefix` is what enters the registry's network."""
        # Uncompressed: on one machine gzip costs minutes and saves nothing.
        flags = ("--quiet", "--tls-verify=false", "--format=v2s2", "--disable-compression")
        self.buildah("push", *flags, image, f"docker://{target}", prefix=prefix)

    @contextmanager
    def container(self, image: str) -> Iterator["Container"]:
        """Yield a container of an image; it is removed at the end."""
        name = self.buildah("from", "--pull-never", image).strip()
        try:
            yield Container(self, name)
        finally:
            self.buildah("rm", name)

    def buildah(self, *arguments: str, prefix: Sequence[str] = ()) -> str:
        """Run buildah on this store and return its output."""
        store = [f"--root={self._folder}/store", "--runroot=/run/quire-images"]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "PATH": _path()}
        command = [*prefix, "buildah", *store, "--storage-driver=overlay", *arguments]
        return _run(command, environment)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _has(self, image: str) -> bool:
        try:
            self.buildah("inspect", "--type=image", image)
        except ImageError:
            return False
        return True

    def _make_base(self, name: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            tree = Path(scratch) / "tree"
            bootstrap = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}"]
            _run([*bootstrap, BASE_SUITE, str(tree)], os.environ | {"PATH": _path()})
            _clean_packages(tree)
            _install_python(Path(sys.base_prefix), tree)
            container = self.buildah("from", "scratch").strip()
            self.buildah("copy", "--quiet", container, str(tree), "/")
            self.buildah("config", f"--env={PATH_VARIABLE}", "--cmd=python3", container)
            self.buildah("commit", "--quiet", "--rm", container, name)


class Container:
    """A container that runs commands in turn, in this machine's network."""

    def __init__(self, builder: ImageBuilder, name: str) -> None:
        self._builder = builder
        self._name = name

    def run(self, *command: str) -> str:
        """Run a command as the image's user and return what it printed.

        Raises:
            ImageError: it ended with another status than 0.
        """
        return self._builder.buildah("run", self._name, "--", *command)

    @contextmanager
    def files(self) -> Iterator[Path]:
        """Yield the container's root folder."""
        yield Path(self._builder.buildah("mount", self._name).strip())
        self._builder.buildah("umount", self._name)


def _install_python(source: Path, tree: Path) -> None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = tree / "usr" / "local" / "lib"
    skipped = (
        "site-packages",
        "dist-packages",
        "test",
        "__pycache__",
        "config-*",
        "*.a",
        "idlelib",
    )
    ignore = shutil.ignore_patterns(*skipped)
    shutil.copytree(
        source / "lib" / name, library / name, ignore=ignore, symlinks=True, dirs_exist_ok=True
    )
    (library / name / "site-packages").mkdir()
    for shared in (source / "lib").glob("libpython3*.so*"):
        shutil.copy2(shared, library, follow_symlinks=False)
    include = Path("include") / name
    shutil.copytree(source / include, tree / "usr" / "local" / include)
    programs = tree / "usr" / "local" / "bin"
    shutil.copy2(source / "bin" / name, programs)
    for alias in ("python", "python3"):
        (programs / alias).symlink_to(name)
    _run(["chroot", str(tree), "ldconfig"], os.environ)
    _run(["chroot", str(tree), f"/usr/local/bin/{name}", "-m", "ensurepip"], os.environ)
    (programs / "pip").symlink_to("pip3")
    # pip and uv bring certificates of their own; the machine's are mounted while images are built.
    (tree / "etc" / "pip.conf").write_text(
        f"[global]\ncert = {CERTIFICATES}/ca-certificates.crt\nroot-user-action = ignore\n"
    )
    (tree / "etc" / "uv").mkdir()
    (tree / "etc" / "uv" / "uv.toml").write_text("native-tls = true\n")


def _clean_packages(tree: Path) -> None:
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "var/log/*"):
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _path() -> str:
    # debootstrap and chroot lie where a login shell of root looks, and a user's does not.
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(command: Sequence[str], environment: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise ImageError(f"{' '.join(command)} ended with status {done.returncode}:\n{tail}")
    return done.stdout


def _parse_size(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
