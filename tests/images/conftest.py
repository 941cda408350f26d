import os

import pytest

from image_builder import RECIPES, ImageBuilder, default_folder, missing_programs


@pytest.fixture(scope="session")
def builder() -> ImageBuilder:
    if missing := missing_programs():
        reason = (
            f"images cannot be built here, missing: {', '.join(missing)}; run `make cluster-tools`"
        )
        # CI has to show that they can.
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return ImageBuilder(default_folder())


@pytest.fixture(scope="session")
def images(builder: ImageBuilder) -> dict[str, str]:
    """The images of the working tree, by the name of their recipe."""
    return {recipe.name: builder.build(recipe) for recipe in RECIPES}
