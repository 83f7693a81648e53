"""Every route against its own OpenAPI schema, with generated requests."""

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.serving.live import Live

FEW = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.mark.slow
def test_no_generated_request_makes_the_server_fail(live: Live) -> None:
    """schemathesis' own loop over operations, since its pytest plugin does not follow pytest 9."""
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json").exclude(path_regex="/events$")
    tried = 0
    for operation in (result.ok() for result in schema.get_all_operations()):

        @FEW
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict):
                case.body |= {"steps": 1, "num_inference_steps": 1}
            case.validate_response(case.call(timeout=30), checks=[not_a_server_error])

        check()
        tried += 1
    assert tried > 30


def test_the_schema_has_an_example_for_every_json_body(live: Live) -> None:
    found = httpx.get(f"{live.url}/openapi.json").json()
    for name in ("JobRequest", "ImagesRequest", "Txt2Img"):
        assert found["components"]["schemas"][name]["examples"][0]["prompt"]
