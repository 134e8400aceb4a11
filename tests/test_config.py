from __future__ import annotations

import pytest
from pydantic import ValidationError

from selfplay_ray.config import RunConfig

URL = "http://127.0.0.1:8000/v1"


def test_something_must_sample():
    assert RunConfig(engines=0, endpoints=(URL,)).endpoints == (URL,)
    with pytest.raises(ValidationError, match="nothing samples with engines = 0 and no endpoints"):
        RunConfig(engines=0)


@pytest.mark.parametrize(
    ("urls", "sentence"),
    [
        (("127.0.0.1:8000/v1",), "an endpoint is an address up to /v1"),
        (("http://127.0.0.1:8000",), "an endpoint is an address up to /v1"),
        (("http:///v1",), "an endpoint is an address up to /v1"),
        (("http://me:secret@host/v1",), "an address holds no password"),
        ((URL, URL), "an endpoint is there twice"),
    ],
)
def test_an_address_that_is_none_is_refused(urls: tuple[str, ...], sentence: str):
    with pytest.raises(ValidationError, match=sentence):
        RunConfig(endpoints=urls)


def test_a_key_in_place_of_its_variables_name_is_refused():
    """It would be written into the run's folder."""
    with pytest.raises(ValidationError, match="should match pattern"):
        RunConfig(endpoint_api_key_env="sk-0123456789")
