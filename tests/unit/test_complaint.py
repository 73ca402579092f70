"""What is said of an outage."""

import pika
import pytest

from callboard.middleware.complaint import reason

REFUSED = ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no"), "no"),
        (TimeoutError(), "TimeoutError"),
        (pika.exceptions.AMQPConnectionError(REFUSED), "[Errno 111] Connection refused"),
        (
            pika.adapters.utils.connection_workflow.AMQPConnectionWorkflowFailed(
                [pika.adapters.utils.connection_workflow.AMQPConnectorSocketConnectError(REFUSED)]
            ),
            "[Errno 111] Connection refused",
        ),
    ],
)
def test_the_reason_is_that_of_the_innermost_error(error: BaseException, said: str) -> None:
    assert reason(error) == said
