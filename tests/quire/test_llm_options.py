import pytest

from quire.llm_options import engine_config


@pytest.mark.parametrize("given", ["tiny", ["tiny"], ("tiny",)])
def test_one_served_name_may_come_as_a_string_or_in_a_list(given: object) -> None:
    config = engine_config("model", {"served_model_name": given})

    assert config.model.served_model_name == ("tiny",)
