"""API keys: who may call the paths that cost something."""

import hmac
from collections.abc import Mapping
from pathlib import Path

from quire_router.config import RouterConfig
from quire_router.errors import AuthenticationError, ConfigError

KEY_VARIABLE = "QUIRE_API_KEY"
PROTECTED_PATHS = ("/v1/", "/tokenize", "/detokenize")


def load_keys(config: RouterConfig, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the accepted keys; none means that everybody may call.

    Flags and file add up; the environment counts only without them.

    Raises:
        ConfigError: the file cannot be read or has no key in it.
    """
    keys = [*config.api_key, *_keys_of_file(config.api_key_file)]
    if not keys:
        keys = environment.get(KEY_VARIABLE, "").split(",")
    return tuple(dict.fromkeys(stripped for key in keys if (stripped := key.strip())))


class Authenticator:
    """Checks the `Authorization: Bearer` header of protected paths."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, path: str, authorization: bytes | None) -> None:
        """Let the request pass, or say why not.

        Raises:
            AuthenticationError: the path needs a key, and the header has none or a wrong one.
        """
        if not self._keys or not path.startswith(PROTECTED_PATHS):
            return
        if authorization is None:
            raise AuthenticationError(
                "an API key is required; send it as 'Authorization: Bearer KEY'"
            )
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not self._is_known(key.strip()):
            raise AuthenticationError("the API key is not valid")

    def _is_known(self, key: bytes) -> bool:
        # Every key is compared, so that timing tells nothing of which one came close.
        matches = [hmac.compare_digest(key, known) for known in self._keys]
        return any(matches)


def _keys_of_file(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read api_key_file {path}: {error}") from error
    keys = [line for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file {path} has no key in it")
    return keys
