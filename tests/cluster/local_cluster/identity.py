"""Who is who in the cluster: one certificate authority, and a token for each component."""

import base64
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from local_cluster.addresses import API_URL, CONTROL_IP, KUBERNETES_SERVICE_IP
from local_cluster.processes import run_command

SERVER_NAMES = (
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
    "DNS:localhost",
    "IP:127.0.0.1",
    f"IP:{CONTROL_IP}",
    f"IP:{KUBERNETES_SERVICE_IP}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Keys, certificates and kubeconfigs below one folder."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    @property
    def tokens(self) -> Path:
        """The API server's token file."""
        return self.folder / "tokens.csv"

    def kubeconfig(self, name: str) -> Path:
        return self.folder / f"{name}.kubeconfig"


def create_identities(folder: Path, nodes: list[str]) -> Identities:
    """Make every key, certificate, token and kubeconfig of a cluster with these nodes."""
    identities = Identities(folder=folder)
    folder.mkdir(mode=0o700)
    _create_certificates(identities)
    members = {
        "admin": ("admin", "system:masters"),
        "controller": ("system:kube-controller-manager", ""),
        "scheduler": ("system:kube-scheduler", ""),
        "proxy": ("system:kube-proxy", ""),
        **{node: (f"system:node:{node}", "system:nodes") for node in nodes},
    }
    lines = []
    for number, (name, (user, group)) in enumerate(members.items()):
        token = secrets.token_hex(16)
        lines.append(f'{token},{user},{number},"{group}"' if group else f"{token},{user},{number}")
        write_kubeconfig(identities.kubeconfig(name), identities.authority, API_URL, token)
    identities.tokens.write_text("\n".join(lines) + "\n")
    return identities


def write_kubeconfig(path: Path, authority: Path, server: str, token: str) -> None:
    """Write a kubeconfig that needs no other file."""
    data = base64.b64encode(authority.read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "quire", "cluster": {"server": server, "certificate-authority-data": data}}
        ],
        "users": [{"name": "quire", "user": {"token": token}}],
        "contexts": [{"name": "quire", "context": {"cluster": "quire", "user": "quire"}}],
        "current-context": "quire",
    }
    path.write_text(json.dumps(config, indent=1))
    path.chmod(0o600)


def read_token(kubeconfig: Path) -> str:
    """Return the token of a kubeconfig that `write_kubeconfig` wrote."""
    token = json.loads(kubeconfig.read_text())["users"][0]["user"]["token"]
    assert isinstance(token, str), "write_kubeconfig wrote something else"
    return token


def _create_certificates(identities: Identities) -> None:
    ca_key = identities.key("ca")
    _create_key(ca_key)
    subject = ("-subj", "/CN=quire-test", "-days", "30")
    _openssl("req", "-x509", "-new", *subject, "-key", ca_key, "-out", identities.authority)
    signer = identities.key("service-account")
    _create_key(signer)
    _openssl("pkey", "-in", signer, "-pubout", "-out", identities.certificate("service-account"))
    _sign(identities, "apiserver", "/CN=apiserver", f"subjectAltName={','.join(SERVER_NAMES)}")
    # The kubelets know people by certificate only; this is the API server, which asks them for
    # logs and executes commands in their pods.
    usage = "extendedKeyUsage=clientAuth"
    _sign(identities, "kubelet-client", "/O=system:masters/CN=apiserver", usage)


def _create_key(path: Path) -> None:
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    _openssl("genpkey", *curve, "-out", path)


def _sign(identities: Identities, name: str, subject: str, extension: str) -> None:
    key, request = identities.key(name), identities.folder / f"{name}.csr"
    _create_key(key)
    names = ("-subj", subject, "-addext", extension)
    _openssl("req", "-new", "-key", key, *names, "-out", request)
    authority = ("-CA", identities.authority, "-CAkey", identities.key("ca"), "-CAcreateserial")
    options = ("-days", "30", "-copy_extensions", "copyall")
    certificate = identities.certificate(name)
    _openssl("x509", "-req", *options, *authority, "-in", request, "-out", certificate)


def _openssl(*arguments: str | Path) -> None:
    run_command(["openssl", *(str(argument) for argument in arguments)])
